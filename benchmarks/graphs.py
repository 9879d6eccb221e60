"""Time and peak memory of an item-item graph of generated features, as JSON: `python -m benchmarks.graphs --items 20000`."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from mmrec_mrdib.experiment.record import peak_memory_mb, reset_peak_memory
from mmrec_mrdib.graphs import knn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    features = torch.randn(options.items + 1, options.dims)
    features[0] = 0
    reset_peak_memory()
    started = time.perf_counter()
    matrix = knn(features, options.k, True).normalised("rows").matrix()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_gib": peak_memory_mb() / 1024, "entries": len(matrix)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
