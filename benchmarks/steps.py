"""What a training step of every model costs, plain: `python -m benchmarks.steps --dataset lfm2k --data_path DIR`.

Process CPU time of an epoch over its steps, everything that an epoch does included (its graphs, its negatives), median of rounds in which the
models take turns; beside VBPR's, and the terms that grow. U users, I items, N both, E interactions, B pairs a step with B′ distinct items and B″
distinct users or items, M modalities of D columns (ΣD in all), d the width, L layers, k neighbours, H hyperedges, K rounds of routing.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import statistics
import sys
import time

import torch

from benchmarks.run import trainer_of
from benchmarks.study import table

F = "I ΣD d"  # the features of all items, encoded
COMPLEXITY = {
    "BPR": "B d",
    "VBPR": "B′ ΣD d",
    "LightGCN": "L E d",
    "LayerGCN": "L (E + N) d; an epoch: E",
    "SelfCF": "L E d + B d²",
    "MMGCN": f"{F} + M L (E d + N d²)",
    "GRCN": f"{F} + M (K + 2) E d",
    "MVGAE": f"{F} + (M + 1) (E d + N d²)",
    "LATTICE": f"L E d + I k d; an epoch: {F} + M I² d, in blocks",
    "DualGNN": f"{F} + M L E d + U k d",
    "SLMRec": f"{F} + (M + 1) (L E d + B² d)",
    "FREEDOM": "L E d + I k d + B′ ΣD d; an epoch: E",
    "MGCN": f"{F} + L E d + M (I k + E) d + B″² d",
    "BM3": "L E d + B′ ΣD d + B M d²",
    "DRAGON": f"{F} + M (L E + I k) d + U k d",
    "LGMRec": f"{F} + (L + M) E d + M N H d + M² B″ N d",
    "SOIL": f"{F} + L E₂ d + M (I k + E₂) d + B″² d",
    "DAMRS": "L E d + M I k d + (M + 1) B″ I d, in blocks",
    "GUME": f"{F} + L (E + I k) d + M (I k + E) d + B″² d",
    "SMORE": f"{F} + L E d + M (I k + E) d + I d log d + B″² d",
    "PGL": f"{F} + L M E d + M I k d; an epoch: E",
    "MENTOR": "3 (M I D d + M L E d) + M I k d + (U² + I²) M d, in blocks",
    "MMGCF": f"{F} + L E d; an epoch: E",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--modalities", metavar="A,B", help="default: all that the data set has")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(COMPLEXITY), metavar="A,B")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = {"show_progress": False, "epochs": 1000, "threads": 1}
    if options.data_path:
        values["data_path"] = options.data_path
    if options.modalities:
        values["modalities"] = options.modalities
    seconds: dict[str, list[float]] = {model: [] for model in dict.fromkeys(["VBPR", *options.models])}
    trainers = {model: trainer_of(model, options.dataset, values) for model in seconds}
    for n in range(options.rounds + 1):
        for model, (trainer, splits) in trainers.items():
            started = time.process_time()
            trainer._train_epoch(splits.train, n)
            if n:  # the first epoch finds its memory
                seconds[model].append((time.process_time() - started) / len(splits.train))
    step = {model: statistics.median(some) for model, some in seconds.items()}
    steps = {model: len(splits.train) for model, (_, splits) in trainers.items()}
    rows = [
        [m, f"{1000 * s:.1f}", f"{s / step['VBPR']:.1f}", f"{s * steps[m]:.2f}", COMPLEXITY.get(m, "")]
        for m, s in sorted(step.items(), key=lambda of: of[1])
    ]
    print("\n".join(table(["", "ms a step", "/ VBPR", "s an epoch", "grows with"], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
