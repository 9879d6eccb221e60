"""Epochs and evaluations against bare PyTorch loops of the same mathematics, side by side: `python -m benchmarks.run`.

Rounds alternate between the sides, so that a change of the machine's speed meets all of them; the ratio of the medians
counts. Prints a table and writes benchmarks/results/<time>.json with facts about the machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmrec_mrdib.experiment.record import versions
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.trainer import MRdIBTrainer

TARGETS = {"VBPR / floor": 1.3, "VBPR+MRdIB / VBPR": 1.6, "evaluation / floor": 1.3}


def vbpr_floor(splits, features, d: int = 64, reg: float = 2.0, batch: int = 2048) -> Callable[[], None]:
    """One epoch of VBPR as a bare loop: parameters, shuffling, uniform negatives without a check, BPR, L2, Adam."""
    n_users, n_items = splits.dataset.user_num, splits.dataset.item_num
    users, items = splits.train.users, splits.train.items
    x = torch.cat(list(features.values()), 1)
    user_table = torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(n_users, 2 * d)))
    item_table = torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(n_items, d)))
    linear = torch.nn.Linear(x.shape[1], d)
    optimizer = torch.optim.Adam([user_table, item_table, *linear.parameters()], 1e-3, fused=True)
    embedding = torch.nn.functional.embedding

    def epoch() -> None:
        order = torch.randperm(len(users))
        negatives = torch.randint(1, n_items, (len(users),))
        for start in range(0, len(users), batch):
            part = order[start : start + batch]
            both = torch.cat([item_table, linear(x)], 1)
            u, i, j = embedding(users[part], user_table), embedding(items[part], both), embedding(
                negatives[start : start + batch], both
            )  # fmt: skip
            loss = torch.nn.functional.softplus((u * j).sum(1) - (u * i).sum(1)).mean()
            loss = loss + reg / len(part) * (u.norm() + i.norm() + j.norm())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def evaluation_floor(splits, users: torch.Tensor, items: torch.Tensor, k: int) -> Callable[[], None]:
    """Full ranking as bare matmul, mask and top-k over ready embeddings, in the same blocks."""
    blocks = list(splits.valid)

    @torch.no_grad()
    def evaluate() -> None:
        for block in blocks:
            scores = users[block.users] @ items.T
            scores.view(-1)[block.masked] = -torch.inf
            torch.topk(scores, k, dim=1)

    return evaluate


def alternate(sides: dict[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each side; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(rounds + warmup):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if n >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(s) for name, s in seconds.items()}


def trainer_of(model: str, dataset: str, values: dict) -> tuple[MRdIBTrainer, object]:
    config = make_config(model, dataset, 1, values=values)
    folder = Path(tempfile.mkdtemp())
    config["checkpoint_dir"] = str(folder)
    splits = prepare(config)
    torch.manual_seed(0)
    return MRdIBTrainer(config, model_class(config["model"])(config, splits.parts[0]), folder), splits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--modalities")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="as the parameter `threads` (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    values = {k: getattr(options, k) for k in ("data_path", "modalities") if getattr(options, k)}
    plain, splits = trainer_of("VBPR", options.dataset, values)
    plugged, plugged_splits = trainer_of("VBPR+MRdIB", options.dataset, values)
    epochs = alternate(
        {
            "floor": vbpr_floor(splits, splits.dataset.features),
            "VBPR": lambda: plain._train_epoch(splits.train, 0),
            "VBPR+MRdIB": lambda: plugged._train_epoch(plugged_splits.train, 0),
        },
        options.rounds,
    )
    plain.model.eval()
    table = plain.model.evaluation_embeddings()
    evaluations = alternate(
        {
            "floor": evaluation_floor(splits, table.users, table.items, max(plain.config["topk"])),
            "VBPR": lambda: plain.rank(splits.valid),
            "VBPR+MRdIB": lambda: plugged.rank(plugged_splits.valid),
        },
        options.rounds * 2,
    )
    ratios = {
        "VBPR / floor": epochs["VBPR"] / epochs["floor"],
        "VBPR+MRdIB / VBPR": epochs["VBPR+MRdIB"] / epochs["VBPR"],
        "evaluation / floor": evaluations["VBPR"] / evaluations["floor"],
        "evaluation: VBPR+MRdIB / VBPR": evaluations["VBPR+MRdIB"] / evaluations["VBPR"],
    }
    for name, ratio in ratios.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"  target <= {target}: {'met' if ratio <= target else 'MISSED'}"
        print(f"{name:32} {ratio:5.2f}{verdict}")
    result = {
        "dataset": options.dataset,
        "rounds": options.rounds,
        "ratios": ratios,
        "epoch_seconds": epochs,
        "evaluation_seconds": evaluations,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": options.threads,
        },
        "versions": versions(),
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
