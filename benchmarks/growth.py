"""How time and memory grow with the data: generated data sets of 10 thousand to a million interactions, in MMRec's layout, features on disk.

python -m benchmarks.growth                          all models and sizes; writes benchmarks/results/growth-<time>.json
python -m benchmarks.growth plot FILE.json PICTURE   log-log curves and the fitted exponents

Each model and size is measured in a process of its own, with one thread, from the files on: seconds to load, to build graphs, of an epoch
(by steps, where an epoch takes long), of an evaluation on 1,000 users, and the peak of resident memory.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "10K": (10_000, 1_000, 5_000),
    "100K": (100_000, 10_000, 32_000),
    "300K": (300_000, 30_000, 80_000),
    "1M": (1_000_000, 100_000, 200_000),
}
MODELS = ("VBPR", "VBPR+MRdIB (paper)", "FREEDOM", "FREEDOM+MRdIB (paper)", "MGCN")
EVALUATED = 1_000  # users with valid and test items
DIMS = 384
STEPS = 10  # of a model whose epoch is not timed whole
FIGURES = {
    "epoch_seconds": "an epoch, batches of 2,048 (s)",
    "step_seconds": "a step of 2,048 pairs (s)",
    "graph_seconds": "item-item graphs (s)",
    "evaluation_seconds": "ranking all items for 1,000 users (s)",
    "peak_gib": "peak memory (GiB)",
}


def generate(folder: Path, interactions: int, users: int, items: int) -> None:
    """Every item occurs, items beyond that by a power law; features lie near a 32-dimensional surface of 500 clusters."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    drawn = (items * rng.random(2 * interactions) ** 2).astype(np.int64)
    pairs = np.concatenate([np.arange(items), drawn]) + items * rng.integers(0, users, items + len(drawn))
    _, first = np.unique(pairs, return_index=True)  # in the order in which they were drawn, every item first
    pairs = rng.permutation(pairs[np.sort(first)[:interactions]])
    user, item = pairs // items, pairs % items
    order = np.argsort(user, kind="stable")
    user, item = user[order], item[order]
    label = np.zeros(interactions, dtype=np.int64)
    start = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    counts = np.diff(np.r_[start, interactions])
    chosen = start[counts >= 4][:EVALUATED]
    label[chosen], label[chosen + 1] = 1, 2
    with (folder / f"{folder.name}.inter").open("w") as file:
        file.write("userID\titemID\tx_label\n")
        np.savetxt(file, np.column_stack([user, item, label]), fmt="%d", delimiter="\t")
    for name in ("image", "text"):
        centres, basis = rng.normal(size=(500, 32)), rng.normal(size=(32, DIMS))
        out = np.lib.format.open_memmap(folder / f"{name}_feat.npy", "w+", np.float32, (items, DIMS))
        for begin in range(0, items, 10_000):
            n = min(10_000, items - begin)
            latent = centres[rng.integers(0, 500, n)] + rng.normal(size=(n, 32))
            out[begin : begin + n] = latent @ basis + 0.5 * rng.normal(size=(n, DIMS))
        out.flush()


def measure(model: str, folder: Path) -> dict[str, float]:
    """In this process: load, build, train, evaluate."""
    import torch

    from mmrec_mrdib.experiment.record import peak_memory_mb
    from mmrec_mrdib.experiment.run import make_config, prepare
    from mmrec_mrdib.registry import model_class
    from mmrec_mrdib.trainer import MRdIBTrainer

    torch.set_num_threads(1)
    out: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        out[name] = time.perf_counter() - started

    scratch = folder.parent / f"scratch-{model}"
    started = time.perf_counter()
    config = make_config(model, folder.name, 1, values={"data_path": str(folder.parent)})
    config["checkpoint_dir"] = str(scratch)
    splits = prepare(config)
    timed("load_seconds", started)
    started = time.perf_counter()
    net = model_class(config["model"])(config, splits.parts[0])
    timed("graph_seconds", started)
    trainer = MRdIBTrainer(config, net, scratch)
    batches = splits.train
    if not model.startswith("VBPR") and len(batches) > STEPS:
        out["steps_in_an_epoch"] = len(batches)
        batches = list(itertools.islice(batches, STEPS))
    trainer._train_epoch(batches if len(batches) <= STEPS else list(itertools.islice(batches, STEPS)), 0)  # warm
    started = time.perf_counter()
    trainer._train_epoch(batches, 1)
    timed("epoch_seconds", started)
    out["step_seconds"] = out["epoch_seconds"] / len(batches)
    if "steps_in_an_epoch" in out:
        out["epoch_seconds"] = out["step_seconds"] * out["steps_in_an_epoch"]
    started = time.perf_counter()
    trainer.rank(splits.valid)
    timed("evaluation_seconds", started)
    out["peak_gib"] = peak_memory_mb() / 1024
    return out


def exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of log value over log size, least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def fits(results: list[dict]) -> dict[str, dict[str, float]]:
    """Model -> figure -> exponent in interactions + items, over all sizes and ('... last') between the two largest."""
    out: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(r["model"] for r in results):
        rows = [r for r in results if r["model"] == model]
        sizes = [r["interactions"] + r["items"] for r in rows]
        out[model] = {}
        for figure in FIGURES:
            values = [max(r[figure], 1e-9) for r in rows]
            out[model][figure] = exponent(sizes, values)
            if len(rows) > 2:
                out[model][f"{figure} last"] = exponent(sizes[-2:], values[-2:])
    return out


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    axes.flat[-1].axis("off")
    slopes = fits(results)
    for ax, (key, title) in zip(axes.flat, FIGURES.items(), strict=False):
        for n, model in enumerate(slopes):
            rows = [r for r in results if r["model"] == model]
            if key == "graph_seconds" and model.startswith("VBPR"):
                continue  # it has none
            x = [r["interactions"] + r["items"] for r in rows]
            label = f"{model}: {slopes[model][key]:.2f}"
            ax.loglog(x, [r[key] for r in rows], "o-", color=f"C{n}", label=label, markersize=4)
        if not ax.lines:
            continue
        first = [math.inf, 0.0]
        for line in ax.lines:
            first = [min(first[0], line.get_xdata()[0]), max(first[1], line.get_ydata()[0])]
        x = np.array([first[0], max(r["interactions"] + r["items"] for r in results)])
        ax.loglog(x, first[1] * x / x[0], ":", color="0.6", label="linear: 1.00", zorder=0)
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("interactions + items")
        ax.grid(alpha=0.3, which="major")
        ax.legend(fontsize=8, title="fitted exponent", title_fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "plot", "measure"), default="run")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=list(SIZES))
    options = parser.parse_args()
    if options.what == "measure":
        folder, model = options.files
        print(json.dumps(measure(str(model), folder)))
        return 0
    if options.what == "plot":
        source, picture = options.files
        plot(json.loads(source.read_text())["results"], picture)
        return 0
    results: list[dict] = []
    scratch = Path(tempfile.mkdtemp())
    os.environ["MMREC_MRDIB_CACHE"] = str(scratch / "cache")  # graphs are built, not read
    try:
        for name in options.sizes:
            interactions, users, items = SIZES[name]
            generate(scratch / name, interactions, users, items)
            for model in options.models:
                shutil.rmtree(scratch / "cache", ignore_errors=True)
                command = [sys.executable, "-m", "benchmarks.growth", "measure", str(scratch / name), model]
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    return 1
                row = {"model": model, "interactions": interactions, "users": users, "items": items}
                results.append(row | json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"{model:14} {name:5}",
                    *(f"{k} {v:.3g}" for k, v in results[-1].items() if k in FIGURES or k == "load_seconds"),
                    flush=True,
                )
            shutil.rmtree(scratch / name)
    finally:
        shutil.rmtree(scratch)
    for model, slopes in fits(results).items():
        print(f"exponents of {model}:", *(f"{k} {v:.2f}" for k, v in slopes.items()))
    path = Path(__file__).parent / "results" / f"growth-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"results": results, "exponents": fits(results)}, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
