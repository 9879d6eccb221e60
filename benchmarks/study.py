"""What each part of MRdIB does: trains what is missing and writes the tables and pictures of docs/study.md:
`python -m benchmarks.study --data_path DIR`.

A run is one model, data set, setting and seed; its outcome is one file in benchmarks/results/study, and a run whose file is there is
not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import put
from mmrec_mrdib.experiment import figures, report
from mmrec_mrdib.experiment.report import ATOMS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "study.md"
DATASETS = {  # name -> modalities, epochs at most
    "lfm2k": ("text,vggish", 200),
    "ml-100k": ("title,genre,kg", 100),
}
BACKBONES = ("VBPR", "DualGNN")
WEIGHTS = ("rate_weight", "redundant_weight", "unique_weight")
GRID = (0.001, 0.01, 0.05)
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
        for point in itertools.product(GRID, repeat=3):
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


def robustness() -> Iterator[Run]:
    """Features made worse on purpose, plain and +MRdIB: Last.fm-2K, two seeds."""
    corruptions: dict[str, dict[str, Any]] = {
        kind: {"feature_control": kind} for kind in ("shuffle", "random", "constant")
    }
    corruptions |= {"shuffle text": {"feature_control": {"text": "shuffle"}}}
    corruptions |= {f"noise {db} dB": {"feature_noise": float(db)} for db in (0, -10)}
    corruptions |= {f"lost {share:.0%}": {"feature_dropout": share} for share in (0.5,)}
    for (label, values), backbone, seed in itertools.product(corruptions.items(), BACKBONES, (1, 2)):
        yield Run("robustness", label, backbone, "lfm2k", seed, values)
        yield Run("robustness", label, f"{backbone}+MRdIB", "lfm2k", seed, values | point(backbone))


def point(backbone: str) -> dict[str, float]:
    return dict(zip(WEIGHTS, POINTS[backbone], strict=True))


STUDIES = {"grid": grid, "auto": auto, "components": components, "robustness": robustness}


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


Table = dict[tuple[str, str, str], list[dict[str, Any]]]


def outcomes(folder: Path, study: str) -> Table:
    """(data set, model, label) -> results by seed."""
    out: Table = {}
    for run in STUDIES[study]():
        path = folder / f"{run.name}.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            out.setdefault((run.dataset, run.model, run.label), []).append(result)
    return out


def values_of(results: list[dict[str, Any]], split: str, metric: str) -> list[float]:
    return [r[split][metric] for r in results]


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def grid_lines(folder: Path) -> list[str]:
    """The best of the grid, and what automatic weights reach."""
    lines = [
        "| | best of 27 (α₁, α₂, α₃) | its valid Recall@20 | median of 27 | auto, same seed | auto, 3 seeds | test Recall@20: best of 27 | auto, same seed | time: grid / auto |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    points, autos = outcomes(folder, "grid"), outcomes(folder, "auto")
    for dataset, backbone in itertools.product(DATASETS, BACKBONES):
        model = f"{backbone}+MRdIB"
        of_grid = [r[0] for key, r in points.items() if key[:2] == (dataset, model)]
        of_auto = autos.get((dataset, model, "auto"), [])
        if not of_grid or not of_auto:
            continue
        best = max(of_grid, key=lambda r: r["valid"]["recall@20"])
        first, top = of_auto[0], best["valid"]["recall@20"]
        mean = statistics.fmean(values_of(of_auto, "valid", "recall@20"))
        cost = sum(r["total_seconds"] for r in of_grid) / first["total_seconds"]
        lines.append(
            f"| {model}, {dataset} | {best['label'].replace('_', ', ')} | {top:.4f} "
            f"| {statistics.median(r['valid']['recall@20'] for r in of_grid):.4f} "
            f"| {first['valid']['recall@20']:.4f} ({first['valid']['recall@20'] / top:.1%}) "
            f"| {spread(values_of(of_auto, 'valid', 'recall@20'))} ({mean / top:.1%}) "
            f"| {best['test']['recall@20']:.4f} | {first['test']['recall@20']:.4f} | {cost:.0f} |"
        )
    return lines


def marginal_lines(folder: Path) -> list[str]:
    """Mean valid Recall@20 of the grid's nine points at each value of each weight."""
    symbols = dict(zip(WEIGHTS, ("α₁", "α₂", "α₃"), strict=True))
    head = [f"{symbols[w]} = {value:g}" for w in WEIGHTS for value in GRID]
    lines = [f"| | {' | '.join(head)} |", f"|{'---|' * (1 + len(head))}"]
    points = outcomes(folder, "grid")
    for dataset, backbone in itertools.product(DATASETS, BACKBONES):
        model = f"{backbone}+MRdIB"
        results = [r[0] for key, r in points.items() if key[:2] == (dataset, model)]
        if len(results) == len(GRID) ** 3:
            means = [
                statistics.fmean(r["valid"]["recall@20"] for r in results if r["values"][w] == value)
                for w in WEIGHTS
                for value in GRID
            ]
            lines.append(f"| {model}, {dataset} | {' | '.join(f'{m:.4f}' for m in means)} |")
    return lines


def effect_lines(table: Table, base: str) -> list[str]:
    """Mean and spread of each setting on Last.fm-2K, and its mean difference to `base` over the seeds they share."""
    lines = [
        f"| | | valid Recall@20 | test Recall@20 | test NDCG@20 | test Recall@20 − {base} | seeds above |",
        "|---|---|---|---|---|---|---|",
    ]
    for backbone in BACKBONES:
        reference = {r["seed"]: r for r in table.get(("lfm2k", f"{backbone}+MRdIB", base), [])}
        for (_, model, label), results in table.items():
            if model.removesuffix("+MRdIB") != backbone:
                continue
            pairs = [
                r["test"]["recall@20"] - reference[r["seed"]]["test"]["recall@20"]
                for r in results
                if r["seed"] in reference
            ]
            difference = (
                ("–", "–")
                if label == base
                else (f"{statistics.fmean(pairs):+.4f}", f"{sum(p > 0 for p in pairs)} of {len(pairs)}")
            )
            columns = [
                spread(values_of(results, *which))
                for which in (("valid", "recall@20"), ("test", "recall@20"), ("test", "ndcg@20"))
            ]
            lines.append(f"| {backbone} | {label} | {' | '.join((*columns, *difference))} |")
    return lines


def robust(folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Label -> backbone -> 'plain' or '+MRdIB' -> test Recall@20 by seed (1, 2); 'clean' from the study of components."""
    out: dict[str, dict[str, dict[str, list[float]]]] = {}
    clean = {k: v[:2] for k, v in outcomes(folder, "components").items() if k[2] in ("plain", "full")}
    for (_, model, label), results in (clean | outcomes(folder, "robustness")).items():
        label = "clean" if label in ("plain", "full") else label
        side = "+MRdIB" if model.endswith("+MRdIB") else "plain"
        values = values_of(results, "test", "recall@20")
        out.setdefault(label, {}).setdefault(model.removesuffix("+MRdIB"), {})[side] = values
    return out


def robustness_lines(folder: Path) -> list[str]:
    head = [f"{b}: {what}" for b in BACKBONES for what in ("plain", "+MRdIB", "gain")]
    lines = [f"| features | {' | '.join(head)} |", f"|{'---|' * (1 + len(head))}"]
    for label, backbones in robust(folder).items():
        columns = []
        for backbone in BACKBONES:
            sides = backbones.get(backbone, {})
            if len(sides) < 2:
                columns += ["–"] * 3
                continue
            gain = statistics.fmean(sides["+MRdIB"]) / statistics.fmean(sides["plain"]) - 1
            columns += [spread(sides["plain"]), spread(sides["+MRdIB"]), f"{gain:+.1%}"]
        lines.append(f"| {label} | {' | '.join(columns)} |")
    return lines


def draw(folder: Path) -> bytes:
    """Test Recall@20 against corruption."""
    table = robust(folder)
    panels: dict[str, dict[str, tuple[list[float], list[float], list[float]]]] = {}
    kinds = {
        "noise": ("clean", "noise 0 dB", "noise -10 dB", "random"),
        "lost modality": ("clean", "lost 50%"),
    }
    measured = [label for label, sides in table.items() if all(len(sides.get(b, {})) == 2 for b in BACKBONES)]
    kinds = {kind: tuple(label for label in labels if label in measured) for kind, labels in kinds.items()}
    for kind, labels in kinds.items():
        for backbone in BACKBONES:
            for side in ("plain", "+MRdIB"):
                values = [table[label][backbone][side] for label in labels]
                means = [statistics.fmean(v) for v in values]
                errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
                panels.setdefault(f"{backbone}: {kind}", {})[side] = (list(range(len(labels))), means, errors)
    ticks = {
        f"{b}: {kind}": [label.removeprefix("noise ").removeprefix("lost ") for label in labels]
        for kind, labels in kinds.items()
        for b in BACKBONES
    }
    return figures.lines(panels, ("features", "test Recall@20"), ticks)


def inside(folder: Path) -> dict[str, Any]:
    """`mmrec-mrdib report` on seed 1 of the plain model, the full MRdIB and the automatic one: label -> its figures. Measured once."""
    kept = folder / "inside.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for (_, model, label), results in outcomes(folder, "components").items():
        name = f"{model.removesuffix('+MRdIB')} | {label}"
        if label in ("plain", "full", "auto") and name not in known and results[0]["seed"] == 1:
            run = Path(results[0]["folder"])
            (measured,) = report.build([run], pictures=False)["runs"]
            known[name] = {k: measured[k] for k in ("ranking", "redundancy", "decomposition", "rates")}
    kept.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return known


def inside_lines(folder: Path) -> list[str]:
    lines = [
        "| | | Recall@20: all | text alone | vggish alone | Gaussian, nats | fresh MINE, nats | CKA | in both, bits | only text | only vggish | synergistic |",
        f"|{'---|' * 12}",
    ]
    pair = "text-vggish"
    for name, run in inside(folder).items():
        ranking = [f"{run['ranking'][m]['recall@20']:.4f}" for m in ("all", "text", "vggish")]
        r, d = run["redundancy"][pair], run["decomposition"][pair]
        shared = [f"{r['gaussian']:.2f}", f"{r['mine']:.2f} ± {r['mine_std']:.2f}", f"{r['cka']:.3f}"]
        bits = [f"{d[atom]:.3f}" for atom in ATOMS]
        lines.append(f"| {name} | {' | '.join((*ranking, *shared, *bits))} |")
    return lines


def write(folder: Path) -> None:
    """Put tables and the picture into docs/study.md, as far as the runs are there."""
    page = PAGE.read_text(encoding="utf-8")
    page = put(page, "grid", grid_lines(folder))
    page = put(page, "marginals", marginal_lines(folder))
    page = put(page, "components", effect_lines(outcomes(folder, "components"), "full"))
    page = put(page, "inside", inside_lines(folder))
    page = put(page, "robustness", robustness_lines(folder))
    PAGE.write_text(page, encoding="utf-8")
    if len(robust(folder)) > 1:
        PAGE.with_name("study-robustness.png").write_bytes(draw(folder))


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
    write(options.results)
    print(f"written: {PAGE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
