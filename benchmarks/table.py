"""Trains every backbone, plain and +MRdIB, and writes the tables of docs/benchmarks.md: `python -m benchmarks.table --data_path DIR`.

A cell is one call of the command line for all seeds, with --resume: started again, the same command only does what is missing.
Without --data_path, Last.fm-2K is left out and its tables stay as they are.
"""

from __future__ import annotations

import argparse
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

from mmrec_mrdib import registry

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
TABLES = {  # name -> data set, modalities, epochs at most
    "lfm2k": ("lfm2k", "text,vggish", 200),
    "ml-100k": ("ml-100k", "title,genre,kg", 100),
    "lfm2k-3": ("lfm2k", "text,vggish,whisper", 100),
}
METRICS = ("recall@5", "recall@20", "ndcg@5", "ndcg@20")


@dataclass(frozen=True)
class Cell:
    """One model on one data set."""

    table: str
    model: str
    plugged: bool

    @property
    def name(self) -> str:
        return f"{self.model}{'+MRdIB' if self.plugged else ''}-{self.table}"

    def command(self, options: argparse.Namespace) -> list[str]:
        dataset, modalities, epochs = TABLES[self.table]
        command = [sys.executable, str(ROOT / "run_mrdib.py"), "--model", self.model, "--dataset", dataset]
        if dataset != "ml-100k":
            command += ["--data_path", options.data_path]
        if registry.is_multimodal(self.model):
            command += [f"--modalities={modalities}"]
        if not self.plugged:
            command += ["--baseline"]
        command += ["--seeds", options.seeds, f"--epochs={options.epochs or epochs}", "--resume", "--quiet"]
        return [*command, "--runs", str(options.runs / "runs"), "--output", str(self.output(options))]

    def output(self, options: argparse.Namespace) -> Path:
        return Path(options.runs) / f"{self.name}.json"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for table in options.tables:
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
    for table in options.tables:
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for cell in cells(options):
            if cell.table == table and cell.output(options).is_file():
                name = cell.name.removesuffix(f"-{table}")
                lines.append(row(name, json.loads(cell.output(options).read_text(encoding="utf-8"))))
        page = put(page, table, lines)
    PAGE.write_text(page, encoding="utf-8")


def put(page: str, mark: str, lines: list[str]) -> str:
    """The page with these lines between <!-- mark --> and <!-- end mark -->."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
    before, rest = page.split(begin)
    return before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", help="the folder that holds lfm2k/")
    parser.add_argument("--tables", type=lambda text: text.split(","), help=f"of {', '.join(TABLES)}; default: all")
    parser.add_argument("--models", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--epochs", type=int, help="at most; default: 200 for lfm2k, 100 for the others")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("benchmarks/results/table"), help="folder of results")
    options = parser.parse_args()
    options.tables = options.tables or list(TABLES if options.data_path else ["ml-100k"])
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
