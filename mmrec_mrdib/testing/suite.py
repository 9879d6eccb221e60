"""A suite in miniature with MMRec's interface and its quirks, for tests of what runs on such suites.

`minisuite/` is written for this purpose: configurator, data set, loaders, evaluator, trainer, quick start, three models. It imports what is not
installed, reads what left NumPy and SciPy, takes a GPU for granted, keeps tables of the last batch and shifts ids in place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from mmrec_mrdib.testing.toy import write_mmrec

HOME = Path(__file__).parent / "minisuite"


def write_suite(folder: Path, users: int = 40, items: int = 30) -> Path:
    """Write the suite and its data set `mini` into a folder; returns the folder. `hosts.yaml` there is its table for `--suite`."""
    shutil.copytree(HOME, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    data = folder / "data" / "mini"
    write_mmrec(data, users, items, {"image": 12, "text": 8})
    file = data / "mini.inter"
    rows: dict[str, str] = {}  # each pair once: such suites take it as it is
    for line in file.read_text().splitlines():
        rows.setdefault(line.rpartition("\t")[0].rpartition("\t")[0], line)
    file.write_text("\n".join(rows.values()) + "\n")
    return folder


def pickled_graph(folder: Path) -> Path:
    """A pickle beside the data, as MiniDualGNN loads it."""
    file = folder / "data" / "mini" / "user_graph_dict.npy"
    np.save(file, np.array({0: [[1], [2.0]]}, dtype=object), allow_pickle=True)
    return file
