"""Trains every backbone, plain and +MRdIB, and writes the tables of docs/benchmarks.md: `python -m benchmarks.table --data_path DIR`.

A cell is one call of the command line for all seeds, with --resume: started again, the same command only does what is missing.
Without --data_path, Last.fm-2K is left out and its tables stay as they are. `--tables defaults` is another table: every backbone, plain and
untouched, on five data sets, beside popularity and ItemKNN; `--tables defaults-baby` trains one of its columns; what is not trained yet is
a dash. `--tables field-lfm2k,field-baby` trains nothing: it tells what `mmrec-mrdib leaderboard --models all` left in --runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from mmrec_mrdib import registry
from mmrec_mrdib.evaluation import Popularity, rank
from mmrec_mrdib.experiment import record
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.paths import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
TABLES = {  # name -> data set, modalities, epochs at most
    "lfm2k": ("lfm2k", "text,vggish", 200),
    "ml-100k": ("ml-100k", "title,genre,kg", 100),
    "lfm2k-3": ("lfm2k", "text,vggish,whisper", 100),
}
DEFAULTS = {
    f"defaults-{name}": (name, "", 100) for name in ("lfm2k", "ml-100k", "baby", "citeulike-t", "instruments18")
}
FIELD = {"field-lfm2k": "lfm2k", "field-baby": "baby"}
# Recall@20/NDCG@20 on Amazon Baby as reported, mostly one seed chosen on test: by MMRec (FREEDOM), FETTLE (LightGCN), PGL (VBPR, MMGCN, DualGNN,
# MGCN, PGL), SMORE, SOIL, GUME and MENTOR themselves.
REPORTED = {
    "VBPR": ".0663/.0284", "MMGCN": ".0615/.0261", "DualGNN": ".0716/.0309", "LightGCN": ".0754/–", "FREEDOM": ".0992/.0424",
    "MGCN": ".0964/.0427", "SOIL": ".1028/.0454", "GUME": ".1042/.0460", "MENTOR": ".1048/.0450", "PGL": ".1022/.0449", "SMORE": ".1035/.0457",
}  # fmt: skip
ORDER = (
    "VBPR",
    "FREEDOM",
    "LightGCN",
    "BPR",
    "MGCN",
    "DualGNN",
    "MMGCN",
    "SOIL",
)  # of the table of defaults, and of its training
NEIGHBOURS = 100  # of an item in ItemKNN, as in RecBole
METRICS = ("recall@5", "recall@20", "ndcg@5", "ndcg@20")


@dataclass(frozen=True)
class Cell:
    """One model on one data set."""

    table: str
    model: str
    plugged: bool

    @property
    def name(self) -> str:
        return f"{self.model}{'+MRdIB-paper' if self.plugged else ''}-{self.table}"

    def command(self, options: argparse.Namespace) -> list[str]:
        dataset, modalities, epochs = (TABLES | DEFAULTS)[self.table]
        command = [
            sys.executable,
            str(ROOT / "run_mrdib.py"),
            "--model",
            f"{self.model}+MRdIB (paper)" if self.plugged else self.model,
            "--dataset",
            dataset,
        ]
        if dataset != "ml-100k":
            command += ["--data_path", options.data_path]
        if modalities and registry.is_multimodal(self.model):
            command += [f"--modalities={modalities}"]
        if not self.plugged:
            command += ["--baseline"]
        seeds = options.seeds or ("1" if self.table in DEFAULTS else "1,2,3")
        command += ["--seeds", seeds, f"--epochs={options.epochs or epochs}", "--resume", "--quiet"]
        return [*command, "--runs", str(options.runs / "runs"), "--output", str(self.output(options))]

    def output(self, options: argparse.Namespace) -> Path:
        return Path(options.runs) / f"{self.name}.json"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    wanted = [table for table in DEFAULTS if {"defaults", table} & set(options.tables)]
    for model, table in itertools.product(ORDER, wanted):
        if not options.models or model in options.models:
            yield Cell(table, model, False)
    for table in (t for t in options.tables if t in TABLES):
        for model in (*(("BPR", "LightGCN") if table != "lfm2k-3" else ()), *registry.MODELS):
            for plugged in (False, True) if registry.is_multimodal(model) else (False,):
                if not options.models or model in options.models:
                    yield Cell(table, model, plugged)


def run(cell: Cell, options: argparse.Namespace) -> tuple[Cell, float, str]:
    """Train a cell; the last line of its output where it failed."""
    started = time.perf_counter()
    done = subprocess.run(cell.command(options), capture_output=True, text=True, check=False, cwd=ROOT)
    error = (done.stderr.strip().splitlines() or ["no output"])[-1] if done.returncode else ""
    return cell, time.perf_counter() - started, error


class ItemKNN:
    """A model as `evaluation.rank` takes it: the score of an item is the sum of its cosines to those of its NEIGHBOURS nearest
    that the user has; an item's vector is the users who have it in training."""

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
        self.matrix = sp.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), (n_users, n_items))
        self.matrix.data[:] = 1.0  # a repeated interaction counts once
        lengths = np.sqrt(np.maximum(self.matrix.sum(0).A1, 1.0))
        unit = (self.matrix @ sp.diags(1 / lengths)).astype(np.float32).tocsc()
        near = (unit.T @ unit).tocsr()
        near.setdiag(0.0)
        rows = np.repeat(np.arange(n_items), np.diff(near.indptr))
        order = np.lexsort((-near.data, rows))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order)) - near.indptr[rows]
        near.data[place >= NEIGHBOURS] = 0.0
        near.eliminate_zeros()
        self.weights = near.T.tocsr()

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        users = next(iter(interaction.interaction.values())).numpy()
        return torch.from_numpy((self.matrix[users] @ self.weights).toarray())


def floors(dataset: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Popularity and ItemKNN on valid and test, by name: no training."""
    file = options.runs / f"floors-{dataset}.json"
    if not file.is_file():
        values = {"data_path": options.data_path} if dataset != "ml-100k" else {}
        config = make_config("BPR", dataset, values=values | {"use_gpu": False})
        splits = prepare(config)
        train, users, items = splits.parts[0].inter_feat, splits.dataset.uid_field, splits.dataset.iid_field
        size = splits.dataset.user_num, splits.dataset.item_num
        scorers = {
            "Popularity": Popularity(train[items], size[1], users),
            "ItemKNN": ItemKNN(train[users].numpy(), train[items].numpy(), *size),
        }
        outcome = {
            name: {
                s.name: rank(scorer, s, ["recall", "ndcg"], [5, 20], users).means for s in (splits.valid, splits.test)
            }
            for name, scorer in scorers.items()
        }
        write_atomically(file, json.dumps(outcome, indent=1).encode())
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def defaults_table(options: argparse.Namespace) -> list[str]:
    """Lines of the table of defaults: test Recall@20, and NDCG@20 behind it; a dash where nothing is trained."""
    columns = {
        table: dataset for table, (dataset, _, _) in DEFAULTS.items() if dataset == "ml-100k" or options.data_path
    }
    known = {dataset: floors(dataset, options) for dataset in columns.values()}

    def cell(model: str, table: str) -> str:
        file = Cell(table, model, False).output(options)
        if model in known[columns[table]]:
            outcome = known[columns[table]][model]
        elif file.is_file():
            outcome = read(file)[0]
        else:
            return "–"
        below = outcome["valid"]["recall@20"] < known[columns[table]]["Popularity"]["valid"]["recall@20"]
        return f"{outcome['test']['recall@20']:.4f}, {outcome['test']['ndcg@20']:.4f}{' (!)' if below else ''}"

    lines = [f"| test Recall@20, NDCG@20 | {' | '.join(columns.values())} |", f"|{'---|' * (len(columns) + 1)}"]
    return lines + [f"| {m} | {' | '.join(cell(m, t) for t in columns)} |" for m in ("Popularity", "ItemKNN", *ORDER)]


def field_table(options: argparse.Namespace, dataset: str) -> list[str]:
    """Lines of a table of all models, plain and +MRdIB, from the newest run folders of seed 1."""

    def newest(name: str) -> dict[str, Any] | None:
        # A name may be the beginning of another's; what is behind it is data set, seed and hash.
        files = sorted(options.runs.glob(f"{name}-{dataset}-1-????????/result.json"), key=os.path.getmtime)
        return record.load_result(files[-1].parent) if files else None

    def values(outcome: dict[str, Any] | None) -> str:
        if outcome is None:
            return "–"
        # Pop itself differs from this floor in the order of ties.
        below = outcome["model"] != "Pop" and outcome["valid"]["recall@20"] < outcome["popularity"]["recall@20"]
        return f"{outcome['test']['recall@20']:.4f}, {outcome['test']['ndcg@20']:.4f}{' (!)' if below else ''}"

    def seconds(outcome: dict[str, Any]) -> str:
        on_gpu = outcome.get("device", "cpu") != "cpu"
        return f"{outcome['seconds_per_epoch']:.1f}{' (GPU)' if on_gpu else ''}"

    head = [
        "",
        "Recall@20, NDCG@20",
        "+MRdIB",
        "gain",
        "epochs (best)",
        "s/epoch",
        "peak MB",
        "+MRdIB: epochs, s/epoch",
    ]
    head += ["reported on Amazon Baby"] * (dataset == "baby")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in ("Pop", *registry.BASELINES, *registry.MODELS):
        plain, variant = newest(model), newest(f"{model}+MRdIB")
        row = [model, values(plain), values(variant)]
        gain = plain and variant and variant["test"]["recall@20"] / plain["test"]["recall@20"] - 1
        row.append("–" if gain is None else f"{100 * gain:+.1f} %")
        one_pass = plain is not None and len(plain["epochs"]) == 1
        if plain is None or one_pass:
            row += ["one pass" if one_pass else "–", "–" if plain is None else seconds(plain)]
        else:
            row += [f"{len(plain['epochs'])} ({plain['best_epoch']})", seconds(plain)]
        row.append("–" if plain is None else f"{plain['peak_memory_mb']:.0f}")
        row.append("–" if variant is None else f"{len(variant['epochs'])}, {seconds(variant)}")
        row += [REPORTED.get(model, "–")] * (dataset == "baby")
        lines.append(f"| {' | '.join(row)} |")
    return lines


def read(file: Path) -> list[dict[str, Any]]:
    """The results in a file that `train --output` wrote: of one run it is that run's result, not a list."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, list) else [content]


def row(name: str, results: list[dict[str, Any]]) -> str:
    def spread(values: list[float], digits: int) -> str:
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) if len(values) > 1 else 0:.{digits}f}"

    columns = [spread([r["test"][m] for r in results], 4) for m in METRICS]
    columns.append(spread([r["valid"]["recall@20"] for r in results], 4))
    columns.append(f"{statistics.mean(r['best_epoch'] for r in results):.0f}")
    columns.append(f"{statistics.mean(r['seconds_per_epoch'] for r in results):.2f}")
    columns.append(f"{max(r['peak_memory_mb'] for r in results):.0f}")
    return f"| {name} | {' | '.join(columns)} |"


def write(options: argparse.Namespace) -> None:
    """Put the tables between their marks in docs/benchmarks.md."""
    page = PAGE.read_text(encoding="utf-8")
    names = [m.replace("recall", "Recall").replace("ndcg", "NDCG") for m in METRICS]
    head = ["", *names, "valid Recall@20", "best epoch", "s/epoch", "peak MB"]
    if {"defaults", *DEFAULTS} & set(options.tables):
        page = put(page, "defaults", defaults_table(options))
    for table in FIELD.keys() & set(options.tables):
        page = put(page, table, field_table(options, FIELD[table]))
    for table in (t for t in options.tables if t in TABLES):
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for cell in cells(options):
            if cell.table == table and cell.output(options).is_file():
                name = cell.name.removesuffix(f"-{table}")
                lines.append(row(name, read(cell.output(options))))
        page = put(page, table, lines)
    PAGE.write_text(page, encoding="utf-8")


def put(page: str, mark: str, lines: list[str]) -> str:
    """The page with these lines between <!-- mark --> and <!-- end mark -->."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
    before, rest = page.split(begin)
    return before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", help="the folder that holds lfm2k/ and the other data sets")
    parser.add_argument(
        "--tables",
        type=lambda text: text.split(","),
        help=f"of {', '.join(TABLES)}, defaults, {', '.join(FIELD)}; default: all but the last",
    )
    parser.add_argument("--models", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--seeds", help="default: 1,2,3; of the table of defaults: 1")
    parser.add_argument("--epochs", type=int, help="at most; default: 200 for lfm2k, 100 for the others")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("benchmarks/results/table"), help="folder of results")
    options = parser.parse_args()
    options.tables = options.tables or list((*TABLES, "defaults") if options.data_path else ["ml-100k"])
    options.runs.mkdir(parents=True, exist_ok=True)
    todo, failed = list(cells(options)), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for n, (cell, seconds, error) in enumerate(pool.map(lambda c: run(c, options), todo), 1):
            print(f"{n} of {len(todo)}: {cell.name}, {seconds:.0f} s {error}", flush=True)
            failed += bool(error)
    write(options)
    print(f"written: {PAGE}" + (f"; {failed} cells failed, the same command tries them again" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
