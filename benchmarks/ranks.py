"""One process against several at one model (docs/distributed.md), in turns within one session:

    torchrun --nproc-per-node=2 -m benchmarks.ranks --dataset lfm2k --data_path DIR

For each model an epoch and a ranking of the validation split: of one process while the others wait, and of all together. Seconds by the clock
depend on what else the machine does, and more so of processes that wait for each other at every step; CPU seconds of a process do not, and say what
idle cores would take at best. Medians over rounds.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mmrec_mrdib import distributed
from mmrec_mrdib.distributed import ALONE, Ranks
from mmrec_mrdib.experiment.run import make_config, prepare, seeded_model
from mmrec_mrdib.trainer import MRdIBTrainer


def trainer(config: Any, folder: str, ranks: Ranks) -> tuple[MRdIBTrainer, Any]:
    splits = prepare(config, ranks=ranks)
    out = MRdIBTrainer(config, seeded_model(config, splits), Path(folder), ranks)
    out._train_data = splits.train
    return out, splits


def timed(fitted: MRdIBTrainer, splits: Any, epoch: int) -> list[float]:
    """Clock and CPU seconds of an epoch and of an evaluation."""
    out = []
    for work in (lambda: fitted._train_epoch(splits.train, epoch), lambda: fitted.rank(splits.valid)):
        clock, cpu = time.perf_counter(), time.process_time()
        work()
        out += [time.perf_counter() - clock, time.process_time() - cpu]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="datasets")
    parser.add_argument("--models", default="VBPR,LightGCN,FREEDOM")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train_batch_size", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = {"data_path": options.data_path, "train_batch_size": options.train_batch_size, "show_progress": False}
    for model in options.models.split(","):
        config = make_config(model, options.dataset, 1, values=values)
        ranks = distributed.join(config)
        with tempfile.TemporaryDirectory() as scratch:
            one, all_of_them = trainer(config, scratch, ALONE), trainer(config, scratch, ranks)
            times: dict[str, list[list[float]]] = {"one": [], "all": []}
            for epoch in range(options.rounds + 1):  # the first is not counted
                if ranks.first:
                    with torch.random.fork_rng():  # the processes' streams must stay the same
                        times["one"].append(timed(*one, epoch))
                ranks.says(True)
                times["all"].append(timed(*all_of_them, epoch))
        of_all = torch.tensor([[statistics.median(x) for x in zip(*times["all"][1:], strict=True)]])
        slowest = ranks.total(of_all, "MAX").flatten().tolist()
        if ranks.first:
            alone = [statistics.median(x) for x in zip(*times["one"][1:], strict=True)]
            for what, at in (("epoch", 0), ("evaluation", 2)):
                (clock, cpu), (clocks, cpus) = alone[at : at + 2], slowest[at : at + 2]
                print(
                    f"{model:10} {what:10}  one: {clock:.3f} s, CPU {cpu:.3f}   {ranks.size}: {clocks:.3f} s, CPU {cpus:.3f} each"
                    f"   ratio {clocks / clock:.2f}, CPU {cpus / cpu:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
