"""The MMRec layout: `<name>.inter`, tab-separated with an untyped header `userID itemID [rating] [timestamp] x_label`.

Ids are whole numbers from 0; the item id is also the row of `<modality>_feat.npy`. x_label 0, 1, 2 = train, valid, test.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmrec_mrdib.errors import DataError, listed

COLUMNS = ("userID", "itemID", "x_label")
SPLITS = ("train", "valid", "test")


def is_mmrec(path: Path) -> bool:
    """Whether the .inter file has the untyped header; RecBole's names a type behind each column (`user_id:token`)."""
    try:
        with path.open(encoding="utf-8") as file:
            return ":" not in file.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason})") from error


class Problem(NamedTuple):
    """Something that makes the file unusable: what it is (with its place), how many cells it concerns, and examples."""

    what: str
    cells: int = 1
    examples: tuple[str, ...] = ()


def read(path: Path) -> pd.DataFrame:
    """The interactions, in int64 columns userID, itemID, x_label, sorted by x_label (order within a split is kept).

    Raises:
        DataError: a column is missing, or a cell is not a whole number in range; names the line and the mend.
    """
    frame, problems = examine(path)
    if problems or frame is None:
        what, cells, examples = problems[0]
        more = f" ({listed(examples, 3)}; {cells} in all)" if examples else ""
        raise DataError(f"{path}: {what}{more}")
    return frame.sort_values("x_label", kind="stable", ignore_index=True)


def examine(path: Path) -> tuple[pd.DataFrame | None, list[Problem]]:
    """The interactions in the order of the file, without the lines that have a problem, and all problems; None where the file
    cannot be read as a table at all."""
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_filter=False, engine="c")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        return None, [Problem(f"not a tab-separated table ({str(error).strip()})")]
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        what = (
            f"the header lacks {', '.join(missing)} (found {listed(frame.columns, 8)}); expected tab-separated "
            "'userID itemID x_label' for the MMRec layout, or typed names such as 'user_id:token' for RecBole's"
        )
        return None, [Problem(what)]
    problems: list[Problem] = []
    sound = np.ones(len(frame), dtype=bool)
    numbers: dict[str, np.ndarray] = {}
    for name in COLUMNS:
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        whole = np.isfinite(values) & (values >= 0) & (values == np.floor(values)) & (values < 2**53)
        wanted = {"x_label": "0 (train), 1 (valid) or 2 (test)"}.get(name, "whole numbers from 0")
        bad = ~(whole & (values <= 2)) if name == "x_label" else ~whole
        if bad.any():
            lines = np.flatnonzero(bad)
            examples = tuple(f"line {n + 2}: {frame[name].iloc[n]!r}" for n in lines[:5])
            problems.append(Problem(f"column {name}: expected {wanted}", len(lines), examples))
        sound &= ~bad
        numbers[name] = values
    return pd.DataFrame({name: values[sound].astype(np.int64) for name, values in numbers.items()}), problems
