"""Small generated data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_mmrec(folder: Path, users: int, items: int, dims: Mapping[str, int], seed: int = 0) -> None:
    """Write a data set in the MMRec layout: each user has about a quarter of the items, split 8:1:1.

    Args:
        dims: modality -> D_m; features are standard normal.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["userID\titemID\trating\tx_label"]
    per_user = max(items // 4, 5)
    for user in range(users):
        for rank, item in enumerate(rng.choice(items, per_user, replace=False)):
            label = 2 if rank == 0 else 1 if rank == 1 else 0
            lines.append(f"{user}\t{item}\t1\t{label}")
    # every item occurs, so that the rows of the features match
    lines += [f"{item % users}\t{item}\t1\t0" for item in range(items)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")
    for name, width in dims.items():
        np.save(folder / f"{name}_feat.npy", rng.normal(size=(items, width)).astype(np.float32))
