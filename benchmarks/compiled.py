"""Whether `torch.compile` pays: `python -m benchmarks.compiled`.

Eight steps of each model, eager and with `step_loss` compiled, in turns: seconds until the first compiled steps are done, and the ratio after that.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import functools
import itertools
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.run import alternate, trainer_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--modalities")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["VBPR", "VBPR+MRdIB (paper)"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    values = {k: getattr(options, k) for k in ("data_path", "modalities") if getattr(options, k)}
    for name in options.models:
        torch.compiler.reset()
        trainer, splits = trainer_of(name, options.dataset, values)
        batches = list(itertools.islice(splits.train, 8))
        trainer.model.train()

        def steps(step_loss: Callable, trainer=trainer, batches=batches) -> None:
            for batch in batches:
                trainer.optimizer.zero_grad(set_to_none=True)
                torch.stack(list(step_loss(batch).parts.values())).sum().backward()
                trainer.optimizer.step()

        compiled = torch.compile(trainer.model.step_loss)
        started = time.perf_counter()
        steps(compiled)
        seconds = time.perf_counter() - started
        sides = {
            "eager": functools.partial(steps, trainer.model.step_loss),
            "compiled": functools.partial(steps, compiled),
        }
        medians = alternate(sides, 6)
        print(
            f"{name}: {seconds:.0f} s to compile; compiled / eager {medians['compiled'] / medians['eager']:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
