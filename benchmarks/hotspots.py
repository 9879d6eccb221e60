"""What profiling found, before and after: `python -m benchmarks.hotspots`.

Each pair takes turns in one process (or, where a process differs as a whole, in processes that take turns), one thread. Data: the generated set of
benchmarks/growth.py with `--size` interactions. Prints a table of milliseconds and ratios.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import embedding

from benchmarks.growth import DIMS, SIZES, generate
from benchmarks.run import alternate, trainer_of
from mmrec_mrdib.graphs import approximate_knn, knn
from mmrec_mrdib.losses import frobenius
from mmrec_mrdib.models.vbpr import VBPR

ROOT = Path(__file__).resolve().parent.parent
Sides = dict[str, Callable[[], object]]


def gathers(rows: int = 1859, batch: int = 2048, d: int = 64) -> Sides:
    """Rows of a table, and the way back."""
    table, ids = torch.randn(rows, d, requires_grad=True), torch.randint(0, rows, (batch,))
    upstream = torch.randn(batch, d)

    def run(gather: Callable[[], torch.Tensor]) -> None:
        table.grad = None
        gather().backward(upstream)

    return {
        "indexing": lambda: run(lambda: table[ids]),
        "embedding": lambda: run(lambda: embedding(ids, table)),
        "index_select": lambda: run(lambda: table.index_select(0, ids)),
    }


def norms(batch: int = 2048, d: int = 128) -> Sides:
    """The L2 term of VBPR, forward and backward."""
    rows = [torch.randn(batch, d, requires_grad=True) for _ in range(3)]
    return {
        "autograd's norms": lambda: torch.stack([r.norm() for r in rows]).sum().backward(),
        "one pass": lambda: frobenius(*rows).backward(),
    }


def membership(users: torch.Tensor, items: torch.Tensor, sampler) -> Sides:
    """Whether an epoch's draws are positives."""
    drawn = torch.randint(1, sampler.n_items, (len(users),))

    def search() -> torch.Tensor:
        keys = users * sampler.n_items + drawn
        at = torch.searchsorted(sampler.positives, keys).clamp_(max=len(sampler.positives) - 1)
        return (sampler.positives[at] == keys).nonzero()

    return {"binary search": search, "hash filter": lambda: sampler.which_positive(users, drawn)}


def tables(folder: Path, steps: int = 100) -> Sides:
    """Steps of VBPR: all rows of its tables at each, or those of the batch (and all of them at the end)."""
    sides: Sides = {}
    for name, by_rows in (("dense Adam", False), ("Adam by rows", True)):
        original = VBPR.row_tables
        if not by_rows:
            VBPR.row_tables = lambda self: []
        trainer, splits = trainer_of("VBPR", folder.name, {"data_path": str(folder.parent)})
        VBPR.row_tables = original
        batches = list(itertools.islice(splits.train, steps))
        sides[name] = lambda trainer=trainer, batches=batches: trainer._train_epoch(batches, 0)
    return sides


def neighbours(items: int) -> Sides:
    features = torch.cat([torch.zeros(1, DIMS), torch.randn(500, DIMS).repeat(items // 500, 1)])
    features[1:] += torch.randn(items, DIMS)
    return {"exact": lambda: knn(features, 10, True), "approximate": lambda: approximate_knn(features, 10, True)}


def kept_memory(folder: Path, rounds: int, steps: int = 3) -> dict[str, float]:
    """Median seconds of steps of FREEDOM in processes that hand freed memory back to the system (glibc's default), or keep it."""
    code = (
        "import itertools, sys, time; from mmrec_mrdib import process; process.settle(); import torch; torch.set_num_threads(1); "
        "from benchmarks.run import trainer_of; "
        f"trainer, splits = trainer_of('FREEDOM', {folder.name!r}, {{'data_path': {str(folder.parent)!r}}}); "
        f"batches = list(itertools.islice(splits.train, {steps})); trainer._train_epoch(batches, 0); "
        "started = time.perf_counter(); trainer._train_epoch(batches, 0); print(time.perf_counter() - started)"
    )
    seconds: dict[str, list[float]] = {"handed back": [], "kept": []}
    for _ in range(rounds):
        for name, measured in seconds.items():
            # Any of glibc's variables makes `settle` leave its allocator alone; this one changes nothing by itself.
            environment = os.environ | ({"MALLOC_PERTURB_": "0"} if name == "handed back" else {})
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)  # fmt: skip
            measured.append(float(done.stdout.splitlines()[-1]))
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1M")
    parser.add_argument("--knn_items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp())
    os.environ["MMREC_MRDIB_CACHE"] = str(scratch / "cache")
    results: dict[str, dict[str, float]] = {}

    def show(what: str, medians: dict[str, float]) -> None:
        results[what] = medians
        first, last = next(iter(medians.values())), list(medians.values())[-1]
        sides = ", ".join(f"{name} {1000 * s:.3g} ms" for name, s in medians.items())
        print(f"{what}: {sides}: {first / last:.1f} times", flush=True)

    try:
        folder = scratch / options.size
        generate(folder, *SIZES[options.size])
        show("gather 2,048 rows of 64, and back", alternate(gathers(), 40 * options.rounds))
        show("three norms of 2,048 x 128, and back", alternate(norms(), 40 * options.rounds))
        trainer, splits = trainer_of("VBPR", folder.name, {"data_path": str(folder.parent)})
        train = splits.train
        show(
            "an epoch's draws looked up", alternate(membership(train.users, train.items, train.sampler), options.rounds)
        )
        del trainer, splits, train
        for size in dict.fromkeys(("300K", options.size)):  # where it begins to pay, and where it does
            if not (scratch / size).is_dir():
                generate(scratch / size, *SIZES[size])
            show(f"a hundred steps of VBPR, {size}", alternate(tables(scratch / size), options.rounds, warmup=1))
        show(
            f"kNN graph, {options.knn_items:,} items",
            alternate(neighbours(options.knn_items), options.rounds, warmup=1),
        )
        show("three steps of FREEDOM, freed memory", kept_memory(folder, options.rounds))
    finally:
        shutil.rmtree(scratch)
    path = Path(__file__).parent / "results" / f"hotspots-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"size": options.size, "seconds": results}, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
