"""What each part of MRdIB does: the runs behind docs/study.md. `python -m benchmarks.study --data_path DIR`.

A run is one model, data set, setting and seed; its outcome is one file in benchmarks/results/study, and a run whose file is there is
not run again. Without --data_path, Last.fm-2K is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATASETS = {  # name -> modalities, epochs at most
    "lfm2k": ("text,vggish", 200),
    "ml-100k": ("title,genre,kg", 100),
}
BACKBONES = ("VBPR", "DualGNN")
WEIGHTS = ("rate_weight", "redundant_weight", "unique_weight")
# The best of the 27 points on validation, lfm2k, seed 1: MRdIB's setting in the other studies.
POINTS = {"VBPR": (0.01, 0.05, 0.01), "DualGNN": (0.001, 0.001, 0.05)}


@dataclass(frozen=True)
class Run:
    """One training; `values` are the parameters that differ from the defaults."""

    study: str
    label: str
    model: str
    dataset: str
    seed: int
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.study}-{self.dataset}-{self.model}-{self.label}-{self.seed}".replace(" ", "_")


def grid() -> Iterator[Run]:
    """All 27 points of (alpha_1, alpha_2, alpha_3) in {0.001, 0.01, 0.05}^3, one seed."""
    for dataset, backbone in itertools.product(DATASETS, BACKBONES):
        for point in itertools.product((0.001, 0.01, 0.05), repeat=3):
            label = "_".join(f"{value:g}" for value in point)
            yield Run("grid", label, f"{backbone}+MRdIB", dataset, 1, dict(zip(WEIGHTS, point, strict=True)))


def auto() -> Iterator[Run]:
    """Automatic weights, in place of the grid."""
    for dataset, backbone, seed in itertools.product(DATASETS, BACKBONES, (1, 2, 3)):
        yield Run("auto", "auto", f"{backbone}+MRdIB", dataset, seed, {"weighting": "auto"})


def components() -> Iterator[Run]:
    """What each part of MRdIB does: Last.fm-2K, five seeds."""
    for backbone, seed in itertools.product(BACKBONES, range(1, 6)):
        full = point(backbone)
        variants = {
            "full": full,
            "without rate": full | {"rate_weight": 0},
            "without redundant": full | {"redundant_weight": 0},
            "without unique": full | {"unique_weight": 0},
            "with synergy": full | {"synergy_weight": 0.1},
            "auto": {"weighting": "auto"},
        }
        yield Run("components", "plain", backbone, "lfm2k", seed)
        for label, values in variants.items():
            yield Run("components", label, f"{backbone}+MRdIB", "lfm2k", seed, values)


def estimators() -> Iterator[Run]:
    """The other estimators of redundancy at the same setting."""
    for backbone, name, seed in itertools.product(BACKBONES, ("club", "infonce", "gaussian"), (1, 2, 3)):
        yield Run("estimators", name, f"{backbone}+MRdIB", "lfm2k", seed, point(backbone) | {"mi_estimator": name})


def robustness() -> Iterator[Run]:
    """Features made worse on purpose, plain and +MRdIB: Last.fm-2K, three seeds."""
    corruptions: dict[str, dict[str, Any]] = {
        kind: {"feature_control": kind} for kind in ("shuffle", "random", "constant")
    }
    corruptions |= {"shuffle text": {"feature_control": {"text": "shuffle"}}}
    corruptions |= {f"noise {db} dB": {"feature_noise": float(db)} for db in (10, 0, -10)}
    corruptions |= {f"lost {share:.0%}": {"feature_dropout": share} for share in (0.3, 0.6, 0.9)}
    for (label, values), backbone, seed in itertools.product(corruptions.items(), BACKBONES, (1, 2, 3)):
        yield Run("robustness", label, backbone, "lfm2k", seed, values)
        yield Run("robustness", label, f"{backbone}+MRdIB", "lfm2k", seed, values | point(backbone))


def point(backbone: str) -> dict[str, float]:
    return dict(zip(WEIGHTS, POINTS[backbone], strict=True))


STUDIES = {"grid": grid, "auto": auto, "components": components, "robustness": robustness, "estimators": estimators}


def execute(run: Run, data_path: str | None, folder: Path) -> float:
    """Train and write what is kept of the result; seconds."""
    from mmrec_mrdib.experiment import record
    from mmrec_mrdib.experiment.run import train

    modalities, epochs = DATASETS[run.dataset]
    values = {"modalities": modalities, "epochs": epochs, "show_progress": False} | run.values
    if run.dataset != "ml-100k":
        values["data_path"] = data_path
    started = time.perf_counter()
    result = train(run.model, run.dataset, run.seed, values=values, runs=folder / "runs", resume=True)
    kept = ("model", "dataset", "seed", "best_epoch", "valid", "test", "seconds_per_epoch", "total_seconds", "folder")
    record.write_json(
        folder / f"{run.name}.json",
        {k: result[k] for k in kept} | {"label": run.label, "values": run.values, "n_epochs": len(result["epochs"])},
    )
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", help="the folder that holds lfm2k/")
    parser.add_argument("--studies", default=",".join(STUDIES), help="default: %(default)s")
    parser.add_argument("--only", default="", help="runs whose names contain this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/study"), help="folder of results")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    runs = [run for study in options.studies.split(",") for run in STUDIES[study]()]
    runs = [r for r in runs if options.only in r.name and (options.data_path or r.dataset == "ml-100k")]
    todo = [r for r in runs if not (options.results / f"{r.name}.json").is_file()]
    print(f"{len(runs)} runs, {len(todo)} to do", flush=True)
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        futures = {pool.submit(execute, r, options.data_path, options.results): r for r in todo}
        for n, future in enumerate(as_completed(futures), 1):
            name, error = futures[future].name, future.exception()
            failed += error is not None
            outcome = f"failed: {error!r}" if error else f"{future.result():.0f} s"
            valid = "" if error else json.loads((options.results / f"{name}.json").read_text())["valid"]["recall@20"]
            print(f"{n} of {len(todo)}: {name}, {outcome} {valid}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
