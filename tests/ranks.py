"""What each process of tests/test_distributed.py does under torchrun: `ranks.py FOLDER`, which has the data set 'toy'.

It trains the cases below one after the other, and notes in FOLDER/outcome-RANK.json what came of them and what this process wrote to run folders.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mmrec_mrdib import cli, evaluation, process, train
from mmrec_mrdib import trainer as trainer_module
from mmrec_mrdib.errors import NonFiniteLossError
from mmrec_mrdib.trainer import MRdIBTrainer

COMMON: dict[str, Any] = {
    "topk": [2, 5],
    "valid_metric": "Recall@5",
    "embedding_size": 8,
    "learning_rate": 0.01,
    "epochs": 3,
}
# 223 training pairs: shares of 3 and 4, a last batch of a single pair, and batches that are halved.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": ("VBPR", {"train_batch_size": 8, "checkpoint_interval": 0}),
    "tiny": ("VBPR", {"train_batch_size": 37, "clip_grad_norm": {"max_norm": 0.05}, "eval_batch_size": 1}),
    "stopped": ("LightGCN", {"train_batch_size": 64, "epochs": 40, "stopping_step": 2, "metrics": ["Recall", "NDCG", "ItemCoverage"]}),
    "resumed": ("FREEDOM", {"train_batch_size": 50, "edge_dropout": 0.5, "checkpoint_interval": 0}),
    "diverged": ("VBPR", {"train_batch_size": 64}),
}  # fmt: skip


def run(case: str, folder: Path, runs: str, resume: bool = False) -> dict[str, Any]:
    model, values = CASES[case]
    trainer_module.ROWS_PAY = 2 if case == "rows" else 32  # 40 users and 30 items are large for batches of 8
    values = {"data_path": str(folder)} | COMMON | values
    return train(model, "toy", 1, values=values, runs=folder / runs / case, resume=resume)


def interrupt_in(epoch: int) -> Any:
    stock = MRdIBTrainer._train_epoch

    def stopped(self: Any, data: Any, index: int, *args: Any, **kwargs: Any) -> float:
        if index == epoch:
            raise KeyboardInterrupt
        return stock(self, data, index, *args, **kwargs)

    MRdIBTrainer._train_epoch = stopped
    return stock


def broken_at(call: int) -> Any:
    """`evaluation.topk` that fails once."""
    stock, calls = evaluation.topk, itertools.count(1)

    def topk(*args: Any) -> Any:
        if next(calls) == call:
            raise NonFiniteLossError("NaN in a score")
        return stock(*args)

    return topk


def main(folder: Path) -> None:
    process.settle()
    torch.set_num_threads(1)
    rank, wrote, outcome = process.place().rank, [], {}
    changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in changes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(arguments[0]).startswith(str(folder / "two")):
            wrote.append(str(arguments[0]))

    sys.addaudithook(watch)
    for case in CASES:
        if case == "resumed":
            stock = interrupt_in(2)
            try:
                run(case, folder, "two")
            except KeyboardInterrupt:
                MRdIBTrainer._train_epoch = stock
        ranked = evaluation.topk
        if case == "diverged" and rank == 1:  # one process alone meets it
            evaluation.topk = broken_at(4)  # the first is popularity's: in the third epoch
        outcome[case] = run(case, folder, "two", resume=case == "resumed")
        evaluation.topk = ranked
    again = run("rows", folder, "two", resume=True)  # complete already
    outcome["again"] = again["folder"]
    path = folder / f"outcome-{rank}.json"
    path.write_text(json.dumps(outcome | {"wrote": wrote}))

    # One process dies; the other must not wait for it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, so that it ends by itself
    if rank == 1:
        stock = MRdIBTrainer._train_epoch
        MRdIBTrainer._train_epoch = lambda self, *args: os._exit(3) if args[1] else stock(self, *args)
    arguments = ["--model=VBPR", "--baseline", "--dataset=toy", f"--data_path={folder}", "--seed=7", "--epochs=5"]
    code = cli.main(["train", *arguments, "--topk=5", "--valid_metric=Recall@5", f"--runs={folder / 'two'}"])
    (folder / f"death-{rank}.json").write_text(json.dumps(code))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
