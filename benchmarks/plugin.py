"""What the parts of MRdIB cost: each estimator of redundancy for M = 2, 3, 4 modalities, and automatic against fixed weights:
`python -m benchmarks.plugin`.

Sides take turns (see benchmarks/run.py); medians count.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import functools
from collections.abc import Callable

import torch

from benchmarks.run import alternate, trainer_of
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.registry import ESTIMATORS, load

AUTO_TARGET = 1.05


def redundancy_step(name: str, modalities: int, items: int, dim: int) -> Callable[[], None]:
    """Forward and backward of the redundancy objective on a batch of distinct items."""
    z = {f"m{n}": torch.randn(items, dim, requires_grad=True) for n in range(modalities)}
    module = Redundancy(tuple(z), lambda a, b: load(ESTIMATORS[name]).create((dim, dim), 64, 0.01))

    def step() -> None:
        loss, _ = module(z, 0.005)
        assert loss is not None
        loss.backward()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--modalities")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["VBPR", "DualGNN"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--items", type=int, default=1400, help="distinct items of a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)

    print(f"redundancy, {options.items} items x 64, ms a step (forward and backward)")
    print("| estimator | M = 2 | M = 3 | M = 4 | M = 4 / M = 2 |\n|---|---|---|---|---|")
    for name in ESTIMATORS:
        sides = {str(m): redundancy_step(name, m, options.items, 64) for m in (2, 3, 4)}
        ms = [1000 * s for s in alternate(sides, options.rounds * 4, warmup=5).values()]
        print(f"| {name} | {' | '.join(f'{s:.1f}' for s in ms)} | {ms[-1] / ms[0]:.1f} |", flush=True)

    values = {k: getattr(options, k) for k in ("data_path", "modalities") if getattr(options, k)}
    print("\nan epoch of training")
    for model in options.models:
        sides = {}
        for weighting in ("fixed", "auto"):
            trainer, splits = trainer_of(f"{model}+MRdIB (paper)", options.dataset, values | {"weighting": weighting})
            sides[weighting] = functools.partial(trainer._train_epoch, splits.train, 0)
        seconds = alternate(sides, options.rounds)
        ratio = seconds["auto"] / seconds["fixed"]
        print(
            f"{model}+MRdIB (paper): auto / fixed {ratio:.3f}  target <= {AUTO_TARGET}: {'met' if ratio <= AUTO_TARGET else 'MISSED'}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
