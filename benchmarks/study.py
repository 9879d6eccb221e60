"""What MRdIB brings, where it comes from and what it costs: trains what is missing and writes the tables of docs/study.md.

python -m benchmarks.study --data_path DIR --runs RUNS --output OUT [--parts main,components] [--key=value ...]

main        plain, +MRdIB, +Content and +MRdIB with shuffled features: every backbone on every data set, tested in pairs
components  one part of MRdIB changed at a time, against MRdIB
slices      whose test interactions are found: by the item's popularity and by the length of the user's history; trains nothing
new         items and users that were held out of training
corrupted   features with noise, or lost
joint       backbone and plug-in trained together, against one after the other

Every part is one or more boards (`mmrec-mrdib leaderboard`): ordinary run folders, of which none that is complete is trained again. Each writes
OUT/PART.md and OUT/PART.json; main also a board's forms, or of boards that are given (`--boards`) its pictures. Parameters of all runs are given as --key=value. Epoch and readout are chosen on validation, test is read once a
run, and nothing is chosen by it here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import put
from mmrec_mrdib import paths, registry
from mmrec_mrdib.cli import parameters
from mmrec_mrdib.cli.leaderboard import _names as names
from mmrec_mrdib.cli.leaderboard import _seeds as seeds
from mmrec_mrdib.cli.leaderboard import _variants as variants
from mmrec_mrdib.cli.recommend import warnings_only
from mmrec_mrdib.errors import ConfigError, MRdIBError
from mmrec_mrdib.experiment import leaderboard, record, tables
from mmrec_mrdib.experiment.leaderboard import Cell, Spec
from mmrec_mrdib.experiment.ranks import mean_ranks
from mmrec_mrdib.experiment.workers import Failure, LocalPool, visible_gpus
from mmrec_mrdib.paths import write_atomically

SPARSE, DENSE = ("baby", "citeulike-t", "instruments18"), ("lfm2k", "ml-100k")
VALUES = {"learning_rate": "0.005", "epochs": "60", "stopping_step": "5"}  # of all runs
METRICS = ("recall@5", "recall@20", "ndcg@20")
K = 20  # of slices
NEW_METRICS = ("recall@20", "ndcg@20")  # of new items and users
HELD_OUT = 0.1  # share of the items that are new; of the users: benchmarks.new_users
CORRUPTIONS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "noise, 0 dB": {"feature_noise": "0.0"},
    "noise, −10 dB": {"feature_noise": "-10.0"},
    "half of the items lost a modality": {"feature_dropout": "0.5"},
}
GONE = "–"
Board = dict[str, Any]
Lines = list[str]
Outcome = tuple[dict[str, Any], Lines]  # for PART.json, for PART.md


@dataclass(frozen=True)
class Study:
    """What was asked for; None: each part's own."""

    data_path: str | None
    runs: Path
    output: Path
    jobs: int
    train: bool
    command: str
    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    variants: tuple[str, ...] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    boards: tuple[Path, ...] = ()
    columns: tuple[str, ...] = ()

    def given(self) -> Board:
        """The boards that `mmrec-mrdib leaderboard` wrote (`--boards`) as one, without what they compare with rivals; each keeps the correction of
        its own tests. Of a row that stands in several, the one of most seeds counts."""
        boards = [json.loads(path.read_text(encoding="utf-8")) for path in self.boards]
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        comparisons: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for board in boards:
            for row in board["rows"]:
                key = (row["dataset"], row["model"])
                if len(row["seeds"]) > len(rows.get(key, {"seeds": ()})["seeds"]):
                    rows[key] = row
                    own = [c for c in board["comparisons"] if (c["dataset"], c["model"]) == key]
                    own = [{"against": "plain", "interval": None, **c} for c in own]  # version 2 knew no rivals
                    comparisons[key] = [c for c in own if c["against"] == "plain"]
        metrics = list(self.columns) or boards[0]["metrics"]
        if lost := [m for m in metrics if any(m not in board["metrics"] for board in boards)]:
            raise ConfigError(
                f"--columns={','.join(lost)}: not in every board; the first has {', '.join(boards[0]['metrics'])}"
            )
        codes = sorted({code for board in boards for code in board["codes"]})
        most = max((board["seeds"] for board in boards), key=len)
        for row in rows.values():  # complete in a board of fewer seeds
            if row["status"] == "complete" and len(row["seeds"]) < len(most):
                row["status"] = "incomplete"
        joined = {"rows": list(rows.values()), "comparisons": [c for found in comparisons.values() for c in found]}
        variants = [v for v in dict.fromkeys(row["variant"] for row in rows.values()) if v != "reported"]
        ranks = mean_ranks(rows.values(), variants, [m for m in metrics if not m.startswith(tables.NEW)])
        return (
            boards[0]
            | joined
            | {"metrics": metrics, "codes": codes, "seeds": most, "against": ["plain"], "ranks": ranks}
        )

    def board(self, spec: Spec) -> tuple[Board, list[Cell]]:
        """The runs of a spec, trained as far as they are missing (or only gathered), and their board."""
        spec = dataclasses.replace(spec, runs=self.runs, only_complete=not self.train)
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        told = _told if self.train else _silent
        done = leaderboard.execute(spec, LocalPool(leaderboard.WORK, self.jobs, visible_gpus()), told, threads)
        return leaderboard.board(spec, done, self.command), done

    def spec(self, part: Part, **values: Any) -> Spec:
        """A part's board; `values` are parameters of its own."""
        return Spec(
            models=self.models or part.models,
            datasets=self.of(part),
            seeds=self.seeds or part.seeds,
            variants=part.variants,
            metrics=METRICS,
            values={**VALUES, **self.values, **values},
            data_path=self.data_path,
        )

    def of(self, part: Part) -> tuple[str, ...]:
        return self.datasets or part.datasets

    def measured(self, name: str, payloads: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Run folder -> what `measure` makes of it; kept in OUT/NAME-measured.json and measured anew when the run's result has changed."""
        path = self.output / f"{name}-measured.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        todo = {k: p for k, p in payloads.items() if k not in known or known[k]["test"] != p["test"]}
        pool = LocalPool("benchmarks.study:measure", self.jobs)
        try:
            for key, payload in todo.items():
                pool.submit(key, payload)
            for n in range(len(todo)):
                key, outcome = pool.next()
                failed = f": FAILED: {outcome.reason}" if isinstance(outcome, Failure) else ""
                _told(f"{name}: {n + 1} of {len(todo)}: {key}{failed}")
                if not isinstance(outcome, Failure):
                    known[key] = {**outcome, "test": payloads[key]["test"]}
                    record.write_json(path, known)
        finally:
            pool.close()
        return {k: known[k] for k in payloads if k in known and known[k]["test"] == payloads[k]["test"]}


@dataclass(frozen=True)
class Part:
    """One part of the study: what it compares unless told otherwise, and what makes its table."""

    make: Callable[[Study, Part], Outcome]
    variants: tuple[str, ...]
    models: tuple[str, ...]
    datasets: tuple[str, ...] = SPARSE
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


def _told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass


def measure(payload: Mapping[str, Any]) -> dict[str, Any]:
    """One task, in a worker: what is measured on a trained run."""
    from mmrec_mrdib.experiment import export

    trained = export.load(payload["folder"], payload["data_path"])
    if payload["kind"] == "slices":
        by = {name: registry.load(f"mmrec_mrdib.experiment.slices:by_{name}") for name in ("popularity", "history")}
        return {name: function(trained, K, "test") for name, function in by.items()}
    from benchmarks import new_users
    from mmrec_mrdib.experiment.run import make_config, prepare

    result = trained.result
    whole = make_config(result["model"], result["dataset"], result["seed"], values=payload["whole"])
    return new_users.judge(trained, prepare(whole))


# Tables.


def found(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """The one row with these values, or None."""
    return next((row for row in rows if all(row[k] == v for k, v in wanted.items())), None)


def percent(share: float) -> str:
    return f"{share:+.1%}".replace("%", " %").replace("-", "−")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def pairs(board: Board) -> Iterator[tuple[str, str]]:
    """(data set, backbone) of a board, in its order."""
    yield from dict.fromkeys((row["dataset"], row["backbone"]) for row in board["rows"] if row["variant"] != "reported")


def seeds_of(row: Mapping[str, Any] | None, board: Board) -> str:
    """' (3 of 5 seeds)', where not all are there."""
    if row is None or len(row["seeds"]) == len(board["seeds"]):
        return ""
    return f" ({len(row['seeds'])} of {len(board['seeds'])} seeds)"


def value_cell(board: Board, row: Mapping[str, Any] | None) -> str:
    """Means of a row, '.0377, .0902, .0409'."""
    if row is None or not row["mean"]:
        return GONE
    return ", ".join(f"{row['mean'][m]:.4f}" for m in board["metrics"]) + seeds_of(row, board)


def gain_cell(board: Board, row: Mapping[str, Any] | None) -> str:
    """Gains of a row over the board's reference, '+9.6 %, **+8.7 %**, +6.9 %'; significant ones bold."""
    if row is None:
        return GONE
    keys = {"dataset": row["dataset"], "model": row["model"]}
    compared = [found(board["comparisons"], metric=m, **keys) for m in board["metrics"]]
    if any(c is None or c["gain"] is None for c in compared):
        return GONE
    texts = [f"**{percent(c['gain'])}**" if c["significant"] else percent(c["gain"]) for c in compared if c]
    return ", ".join(texts) + seeds_of(row, board)


def smallest_cell(board: Board, row: Mapping[str, Any] | None) -> str:
    """The smallest gains that would have been significant."""
    if row is None:
        return GONE
    keys = {"dataset": row["dataset"], "model": row["model"]}
    compared = [found(board["comparisons"], metric=m, **keys) for m in board["metrics"]]
    texts = [
        GONE if c is None or c["smallest"] is None else f"{c['smallest']:.1%}".replace("%", " %") for c in compared
    ]
    return GONE if set(texts) == {GONE} else ", ".join(texts)


def gains(boards: Mapping[str, Board], label: str = "", reference: str = "plain", smallest: str = "") -> Lines:
    """A line for each label, data set and backbone: the reference's values and the others' gains over them; then the means of the gains.

    Args:
        boards: label -> board of the same variants.
        label: head of the column of labels; '': there is one board.
        smallest: the variant whose smallest significant gain is shown.
    """
    variants = list(dict.fromkeys(row["variant"] for board in boards.values() for row in board["rows"]))
    others = [v for v in variants if v not in (reference, "reported")]
    head = ["data set", "backbone", *([label] if label else []), tables.titled(reference), *map(tables.titled, others)]
    lines, means = [], []
    for name, board in boards.items():
        named = [name] if label else []
        for dataset, backbone in pairs(board):
            rows = {v: found(board["rows"], dataset=dataset, backbone=backbone, variant=v) for v in variants}
            line = [dataset, backbone, *named, value_cell(board, rows.get(reference))]
            line += [gain_cell(board, rows[v]) for v in others]
            lines.append(line + ([smallest_cell(board, rows.get(smallest))] if smallest else []))
        for group, datasets in {"sparse": SPARSE, "dense": DENSE}.items():
            if line := [mean_cell(board, v, datasets) for v in others if set(datasets) & set(_datasets(board))]:
                means.append([f"mean, {group} sets", "", *named, "", *line, *([""] if smallest else [])])
    if label:  # the labels of one data set and backbone under each other
        order = list(dict.fromkeys((line[0], line[1]) for line in lines))
        lines.sort(key=lambda line: order.index((line[0], line[1])))
    return table(head + (["smallest"] if smallest else []), lines + means)


def _datasets(board: Board) -> set[str]:
    return {row["dataset"] for row in board["rows"]}


def mean_cell(board: Board, variant: str, datasets: Sequence[str]) -> str:
    """Mean gains of a variant over backbones and data sets, and over how many."""
    models = {row["model"] for row in board["rows"] if row["variant"] == variant}
    texts, n = [], 0
    for metric in board["metrics"]:
        some = [
            c["gain"]
            for c in board["comparisons"]
            if c["dataset"] in datasets and c["model"] in models and c["metric"] == metric and c["gain"] is not None
        ]
        texts.append(percent(statistics.fmean(some)) if some else GONE)
        n = len(some)
    return f"{', '.join(texts)} (of {n})" if n else GONE


def spread(values: Sequence[float]) -> str:
    if not values:
        return GONE
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def measures(metrics: Sequence[str] = METRICS) -> str:
    return ", ".join(map(tables.title, metrics))


def note(reference: str = "the plain backbone", corrected: str = "the table", metrics: Sequence[str] = METRICS) -> str:
    """What the numbers and marks of a table of gains over `reference` are; `corrected`: over what tests are."""
    return (
        f"Test: {measures(metrics)}; means over seeds, gains over {reference}. Bold: significant in both tests of docs/leaderboard.md, after Holm's "
        f"correction over {corrected}, whichever way. {GONE}: not run, or not to be had."
    )


# Parts.


def main_part(study: Study, part: Part) -> Outcome:
    if study.boards:
        board = study.given()
        for name, picture in tables.pictures(board).items():
            write_atomically(study.output / name, picture)
        return {"board": board}, [
            note(corrected="its board", metrics=board["metrics"]),
            "",
            *gains({"": board}, smallest="mrdib"),
        ]
    board, _ = study.board(dataclasses.replace(study.spec(part), variants=study.variants or part.variants))
    tables.write(board, study.output / "main")
    told = note() + " Smallest: the gains of +MRdIB from which on they would have been significant."
    return {"board": board}, [told, "", *gains({"": board}, smallest="mrdib")]


def components_part(study: Study, part: Part) -> Outcome:
    if study.boards:
        board = study.given()
        return {"board": board}, [note(corrected="its board", metrics=board["metrics"]), "", *gains({"": board})]
    board, _ = study.board(dataclasses.replace(study.spec(part), against=("mrdib",)))
    return {"board": board}, [note("+MRdIB"), "", *gains({"": board}, reference="mrdib")]


def corrupted_part(study: Study, part: Part) -> Outcome:
    boards = {name: study.board(study.spec(part, **values))[0] for name, values in CORRUPTIONS.items()}
    told = note("the plain backbone with the same features", "the lines of each kind")
    return {"boards": boards}, [told, "", *gains(boards, "features")]


def slices_part(study: Study, part: Part) -> Outcome:
    if study.boards:
        board, results = study.given(), []
        board["rows"] = [r for r in board["rows"] if r["variant"] in part.variants and r["dataset"] in study.of(part)]
        for name in (Path(folder).name for row in board["rows"] for folder in row["folders"]):
            if (study.runs / name / "result.json").is_file():
                results.append(record.load_result(study.runs / name) | {"folder": str(study.runs / name)})
    else:
        board, done = dataclasses.replace(study, train=False).board(study.spec(part))
        results = [result for cell in done for result in cell.results.values()]
    known = study.measured("slices", {Path(r["folder"]).name: payload("slices", study, r) for r in results})
    lines = [f"Share of the test interactions found in the top {K}, mean over seeds. {GONE}: not run.", ""]
    heads = {"popularity": "training interactions of the item", "history": "training items of the user"}
    for by, head in heads.items():
        rows = []
        for dataset, backbone in pairs(board):
            folders = {
                v: [Path(f).name for f in row["folders"] if Path(f).name in known]
                for v in part.variants
                if (row := found(board["rows"], dataset=dataset, backbone=backbone, variant=v))
            }
            bins = {v: [known[f][by] for f in names] for v, names in folders.items()}
            first: dict[str, Any] = next((each[0] for each in bins.values() if each), {})
            for name, one in first.items():
                shares = [
                    [b[name]["share"] for b in bins.get(v, []) if b[name]["share"] is not None] for v in part.variants
                ]
                cells = [f"{statistics.fmean(s):.4f}" if s else GONE for s in shares]
                rows.append([dataset, backbone, name, f"{one['interactions']:,}", *cells])
        lines += [
            *table(["data set", "backbone", head, "test interactions", *map(tables.titled, part.variants)], rows),
            "",
        ]
    return {"board": board, "slices": known}, lines[:-1]


def payload(kind: str, study: Study, result: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "folder": result["folder"], "data_path": study.data_path, "test": result["test"]}


def new_part(study: Study, part: Part) -> Outcome:
    board, done = study.board(study.spec(part, cold_items=str(HELD_OUT)))
    rows, kept = [], {}
    for cell in done:
        mine = list(cell.results.values())
        reasons = "; ".join(dict.fromkeys(f.reason for f in cell.failures.values()))
        rows_of = [(cell.model, mine, reasons)]
        if (
            cell.variant == "mrdib"
        ):  # no cell of its own: most backbones refuse to be judged by items that they have no score for
            hosts = [record.load_result(study.runs / r["trained_backbone"]["folder"]) for r in mine]
            rows_of.insert(0, (cell.backbone, hosts, "" if hosts else reasons))
        for model, results, why in rows_of:
            cold = [r["cold"] for r in results if r.get("cold")]
            kept[f"{model} on {cell.dataset}"] = cold
            values = [spread([c[m] for c in cold]) for m in NEW_METRICS]
            chance = f"{min(1.0, 20 / cold[0]['items']):.4f}" if cold else GONE
            others = spread([r["test"]["recall@20"] for r in results])
            rows.append(
                [cell.dataset, model, *values, chance, others, state(len(cold), why or "has no score for new items")]
            )
    head = ["data set", "model", "new items: Recall@20", "NDCG@20", "chance: Recall@20", "other items: Recall@20", ""]
    note = (
        f"{percent(HELD_OUT)[1:]} of the items held out entirely and ranked among themselves, by their features; beside it what chance finds, and the "
        f"same model's ranking of all others (test). {GONE}: not run, or not to be had."
    )
    users, lines = new_users_lines(study, part)
    return {"board": board, "new_items": kept, **users}, [note, "", *table(head, rows), "", *lines]


def new_users_lines(study: Study, part: Part) -> Outcome:
    """Users held out entirely; with the first of the backbones alone, since content alone ranks for them."""
    from benchmarks import new_users
    from mmrec_mrdib.experiment.run import make_config

    spec = study.spec(part)
    spec = dataclasses.replace(spec, models=spec.models[:1])
    whole = {(cell.model, cell.dataset): cell.values for cell in leaderboard.cells(spec)}
    target = study.output / "without-users"
    for (model, dataset), values in whole.items():
        new_users.without(make_config(model, dataset, spec.seeds[0], values=values), new_users.HELD_OUT, target)
    held = dataclasses.replace(study, data_path=str(target))
    board, done = study.board(dataclasses.replace(spec, data_path=held.data_path))
    payloads = {
        Path(result["folder"]).name: {**payload("users", held, result), "whole": whole[cell.model, cell.dataset]}
        for cell in done
        for result in cell.results.values()
    }
    known = study.measured("new", payloads)
    rows = []
    for cell in done:
        mine = [known[name] for r in cell.results.values() if (name := Path(r["folder"]).name) in known]
        ranked = [
            spread([m[who][metric] for m in mine]) for metric in NEW_METRICS for who in ("histories", "popularity")
        ]
        others = spread([r["test"]["recall@20"] for r in cell.results.values()])
        users = f"{mine[0]['users']:,}" if mine else GONE
        why = "; ".join(dict.fromkeys(f.reason for f in cell.failures.values()))
        rows.append([cell.dataset, cell.model, *ranked, others, users, state(len(mine), why)])
    head = ["data set", "model", "new users: Recall@20", "popularity", "NDCG@20", "popularity"]
    note = (
        f"{percent(new_users.HELD_OUT)[1:]} of the users held out entirely, and ranked for by the items of their training histories alone, against what is popular "
        f"among the other users; beside it the same model for these others (test). {GONE}: not run."
    )
    return {"users_board": board, "new_users": known}, [
        note,
        "",
        *table([*head, "other users: Recall@20", "new users", ""], rows),
    ]


def state(seeds: int, why: str) -> str:
    """'3 seeds', or why there are none."""
    if not seeds:
        return why.replace("|", "\\|")
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def joint_part(study: Study, part: Part) -> Outcome:
    board, done = study.board(study.spec(part))
    plain = {(cell.dataset, cell.backbone): cell.results for cell in done if cell.variant == "plain"}
    rows = []
    for cell in sorted(done, key=lambda cell: list(pairs(board)).index((cell.dataset, cell.backbone))):
        row = found(board["rows"], dataset=cell.dataset, model=cell.model)
        gain = "" if cell.variant == "plain" else gain_cell(board, row)
        spent = cost(cell, plain.get((cell.dataset, cell.backbone), {}))
        rows.append([cell.dataset, cell.model, value_cell(board, row), gain, *spent])
    told = note() + (
        " Epochs and seconds of training with its evaluations, means over seeds; of what is trained after its backbone, the backbone's + its own. "
        "Seconds are those of a machine that may have had other work beside."
    )
    head = ["data set", "model", measures(), "gain", "epochs", "seconds"]
    return {"board": board}, [told, "", *table(head, rows)]


def cost(cell: Cell, hosts: Mapping[int, Mapping[str, Any]]) -> tuple[str, str]:
    """(epochs, seconds) of a cell's runs, where staged with those of the backbones they took."""

    def of(results: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
        some = [r["epochs"] for r in results]
        seconds = [sum(e["seconds"] + e.get("eval_seconds", 0.0) for e in epochs) for epochs in some]
        return statistics.fmean(map(len, some)), statistics.fmean(seconds)

    if not cell.results:
        return GONE, GONE
    own = of(cell.results.values())
    if cell.host is None:
        return f"{own[0]:.0f}", f"{own[1]:.0f}"
    before = [hosts[seed] for seed in cell.results if seed in hosts]
    if not before:
        return f"… + {own[0]:.0f}", f"… + {own[1]:.0f}"
    host = of(before)
    return f"{host[0]:.0f} + {own[0]:.0f}", f"{host[1]:.0f} + {own[1]:.0f}"


PARTS = {
    "main": Part(
        main_part,
        ("plain", "mrdib", "content", "mrdib-shuffled"),
        ("FREEDOM", "VBPR", "LightGCN", "MGCN", "DualGNN"),
        (*SPARSE, *DENSE),
    ),
    "components": Part(
        components_part,
        (
            "mrdib",
            "plain",
            "content",
            *(f"mrdib-{p}" for p in ("unique", "both", "bottleneck", "noise", "redundant")),
        ),
        ("LightGCN", "FREEDOM"),
    ),
    "slices": Part(slices_part, ("plain", "mrdib", "content", "mrdib-shuffled"), ("FREEDOM", "LightGCN")),
    "new": Part(new_part, ("mrdib", "content"), ("LightGCN", "VBPR", "FREEDOM", "MGCN"), seeds=(1, 2, 3)),
    "corrupted": Part(
        corrupted_part,
        ("plain", "mrdib", "mrdib-bottleneck", "content"),
        ("LightGCN", "FREEDOM"),
        ("baby", "citeulike-t"),
    ),
    "joint": Part(joint_part, ("plain", "mrdib", "mrdib-joint"), ("LightGCN", "FREEDOM")),
}


# The command.


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument("--data_path", metavar="DIR", help="folder of the data sets; built-in ones are found without")
    out.add_argument("--runs", type=Path, default=Path("runs"), metavar="RUNS", help="default: %(default)s")
    out.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/study"), metavar="OUT", help="default: %(default)s"
    )
    out.add_argument(
        "--docs", type=Path, metavar="FILE", help="a page with <!-- table: PART --> marks, to fill in place"
    )
    out.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="default: %(default)s")
    out.add_argument("--models", metavar="A,B", help="backbones of all parts (default: each part's own)")
    out.add_argument("--datasets", metavar="X,Y", help="data sets of all parts (default: each part's own)")
    out.add_argument("--seeds", metavar="N|A,B", help="how many (1 to N), or which (default: each part's own)")
    out.add_argument(
        "--variants", metavar="A,B", help=f"of the part main (default: {','.join(PARTS['main'].variants)})"
    )
    out.add_argument(
        "--boards", type=Path, nargs="+", default=[], metavar="FILE.json",
        help="main, components and slices from boards that 'mmrec-mrdib leaderboard' wrote, as with --tune; nothing is trained; slices "
        "are measured on those of their runs that are in RUNS",
    )  # fmt: skip
    out.add_argument("--columns", metavar="A,B", help="of --boards: the metrics to tell (default: those of the first)")
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default: %(default)s)")
    out.add_argument(
        "--no_training", action="store_true", help="tables of the runs that are complete; nothing is trained"
    )
    out.add_argument(
        "--quick", action="store_true", help="two backbones on ml-100k, one seed, two epochs: whether it runs"
    )
    return out


QUICK = {"models": "VBPR,LightGCN", "datasets": "ml-100k", "seeds": "1"}
QUICK_VALUES = {"epochs": "2", "stage_epochs": "1"}


def main(arguments: Sequence[str]) -> int:
    options, values = parameters.parse(parser(), arguments)
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, getattr(options, name) or value)
        values = QUICK_VALUES | values
    if options.jobs < 1:
        raise ConfigError(f"--jobs={options.jobs}: expected 1 or more")
    chosen = parts_of(options.parts)
    study = Study(
        data_path=options.data_path,
        runs=options.runs,
        output=options.output,
        jobs=options.jobs,
        train=not options.no_training,
        command=command(arguments),
        models=options.models and names(options.models, "--models"),
        datasets=options.datasets and names(options.datasets, "--datasets"),
        seeds=options.seeds and seeds(options.seeds),
        variants=options.variants and variants(options.variants),
        values=values,
        boards=tuple(options.boards),
        columns=names(options.columns, "--columns") if options.columns else (),
    )
    check(study, chosen, options.docs)
    warnings_only()
    logging.getLogger("mmrec_mrdib").setLevel(logging.ERROR if study.train else logging.CRITICAL)
    study.output.mkdir(parents=True, exist_ok=True)
    missing = False
    try:
        for name in chosen:
            asked = dataclasses.replace(study, command=f"{study.command} --parts={name}")
            outcome, lines = PARTS[name].make(asked, PARTS[name])
            missing |= write(asked, name, outcome, lines, options.docs)
    except KeyboardInterrupt:
        _told(
            "interrupted; complete runs are kept, and the same command goes on; --no_training: the tables of what is there"
        )
        return 130
    return 1 if missing and study.train else 0


def parts_of(text: str) -> tuple[str, ...]:
    chosen = names(text, "--parts")
    if unknown := [name for name in chosen if name not in PARTS]:
        raise ConfigError(f"--parts={text}: no part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return chosen


def command(arguments: Sequence[str]) -> str:
    """The command as others would give it: files and folders by their names in the help, and without what does not change
    a table. Further files of --boards have no option before them and are left out: one name stands for all."""
    folders = {
        action.option_strings[0]: action.metavar
        for action in parser()._actions
        if action.dest in ("data_path", "runs", "output", "boards")
    }
    given = parameters.joined(arguments, set())
    out = []
    for option, _, value in (argument.partition("=") for argument in given):
        if option.startswith("--") and option not in ("--parts", "--jobs", "--docs", "--no_training"):
            out.append(f"{option}={folders.get(option, value)}" if value else option)
    return " ".join(["python -m benchmarks.study", *out])


def check(study: Study, chosen: Sequence[str], docs: Path | None) -> None:
    """Mistakes show before anything is trained.

    Raises:
        ConfigError: a data set is not there, or the page has no place for a part's table.
    """
    if study.boards and (lost := [str(p) for p in study.boards if not p.is_file()]):
        raise ConfigError(f"--boards: no such file: {', '.join(lost)}")
    if study.columns and not study.boards:
        raise ConfigError("--columns is for --boards")
    if study.boards and not set(chosen) <= {"main", "components", "slices"}:
        raise ConfigError("--boards is for --parts=main, components or slices")
    folder = Path(study.data_path) if study.data_path is not None else None
    for dataset in () if study.boards else dict.fromkeys(d for name in chosen for d in study.of(PARTS[name])):
        if dataset not in paths.BUILTIN_DATASETS and not (folder and (folder / dataset).is_dir()):
            where = f"in --data_path={folder}" if folder else "without --data_path=DIR"
            raise ConfigError(f"no data set '{dataset}' {where}; choose others with --datasets")
    for name in () if study.boards else chosen:
        list(leaderboard.cells(study.spec(PARTS[name])))
    if docs is not None:
        page = docs.read_text(encoding="utf-8") if docs.is_file() else ""
        for name in chosen:
            if page.count(f"<!-- table: {name} -->\n") != 1 or f"<!-- end table: {name} -->" not in page:
                raise ConfigError(
                    f"--docs={docs}: expected once <!-- table: {name} -->, and <!-- end table: {name} --> after it"
                )


def write(study: Study, name: str, outcome: Mapping[str, Any], lines: Lines, docs: Path | None) -> bool:
    """PART.json, PART.md, and the page. Returns whether runs are missing."""
    boards = [b for key in ("board", "users_board") if (b := outcome.get(key))] + list(
        outcome.get("boards", {}).values()
    )
    codes = sorted({code for board in boards for code in board["codes"]})
    rows = [row for board in boards for row in board["rows"]]
    complete = sum(row["status"] == "complete" for row in rows)
    lines = [
        f"`{study.command}`, written by version {record.code()}; runs by {', '.join(codes) or GONE}; {complete} of {len(rows)} cells complete.",
        "",
        *lines,
    ]
    record.write_json(
        study.output / f"{name}.json", {"part": name, "command": study.command, "code": record.code(), **outcome}
    )
    write_atomically(study.output / f"{name}.md", ("\n".join(lines) + "\n").encode())
    if docs is not None:
        page = put(docs.read_text(encoding="utf-8"), f"table: {name}", lines)
        write_atomically(docs, page.encode())
    _told(f"written: {study.output / name}.md, .json; {complete} of {len(rows)} cells complete")
    return complete < len(rows)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MRdIBError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
