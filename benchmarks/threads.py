"""What threads do to an epoch, alone and beside a second run: `python -m benchmarks.threads`.

Trains VBPR+MRdIB (paper) in processes of their own, once alone and once twice at the same time, in three settings, and prints a table of
median seconds an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {  # name -> (environment, threads)
    "`OMP_WAIT_POLICY=PASSIVE` (default)": ({"OMP_WAIT_POLICY": "PASSIVE"}, 1),
    "`OMP_WAIT_POLICY=PASSIVE`": ({"OMP_WAIT_POLICY": "PASSIVE"}, 2),
    "`GOMP_SPINCOUNT=10000`": ({"GOMP_SPINCOUNT": "10000", "OMP_WAIT_POLICY": "ACTIVE"}, 2),
}
EPOCHS = """
import json, sys, time
from mmrec_mrdib import process
process.settle()
from benchmarks.run import trainer_of
import torch
dataset, values, threads, epochs = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
trainer, splits = trainer_of("VBPR+MRdIB (paper)", dataset, values)
seconds = []
for n in range(epochs + 3):
    started = time.perf_counter()
    trainer._train_epoch(splits.train, 0)
    seconds.append(time.perf_counter() - started)
print(json.dumps(seconds[3:]))
"""


def seconds(runs: int, environment: dict[str, str], threads: int, dataset: str, values: dict, epochs: int) -> float:
    """Median seconds an epoch of so many runs at the same time."""
    command = [sys.executable, "-c", EPOCHS, dataset, json.dumps(values), str(threads), str(epochs)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    started = [
        subprocess.Popen(command, cwd=ROOT, env=clean | environment, stdout=subprocess.PIPE, text=True)
        for _ in range(runs)
    ]
    return statistics.median(s for p in started for s in json.loads(p.communicate()[0].splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--modalities")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    values = {k: getattr(options, k) for k in ("data_path", "modalities") if getattr(options, k)}
    print("| | threads | alone | two runs side by side |\n|---|---|---|---|")
    for name, (environment, threads) in SETTINGS.items():
        alone, beside = (seconds(n, environment, threads, options.dataset, values, options.epochs) for n in (1, 2))
        print(f"| {name} | {threads} | {alone:.2f} | {beside:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
