"""The MMRec layout: `<name>.inter`, tab-separated with an untyped header `userID itemID [rating] [timestamp] x_label`.

Ids are whole numbers from 0; the item id is also the row of `<modality>_feat.npy`. x_label 0, 1, 2 = train, valid, test.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmrec_mrdib.data import text
from mmrec_mrdib.errors import DataError, MRdIBError, listed, without

COLUMNS = ("userID", "itemID", "x_label")
SPLITS = ("train", "valid", "test")


def is_mmrec(path: Path, encoding: str = "utf-8") -> bool:
    """Whether the .inter file has the untyped header; RecBole's names a type behind each column (`user_id:token`)."""
    try:
        with path.open(encoding=encoding) as file:
            return ":" not in file.readline()
    except (UnicodeError, LookupError):
        return ":" not in text.read(path, encoding).partition(b"\n")[0].decode()  # which says what is wrong


class Problem(NamedTuple):
    """Something that makes the file unusable: what it is (with its place), how many cells it concerns, examples, and the column where it
    is that of one alone."""

    what: str
    cells: int = 1
    examples: tuple[str, ...] = ()
    column: str | None = None


def told(problem: Problem) -> str:
    """A problem in one line."""
    what, cells, examples, _ = problem
    return f"{what} ({listed(examples, 3)}; {cells} in all)" if examples else what


def ragged(cells: text.Cells) -> list[Problem]:
    """The lines that have too few or too many cells, as a problem."""
    if not cells.ragged:
        return []
    shown = tuple(f"line {line}: {n}" for line, n in cells.ragged[:5])
    what = f"lines with more or fewer cells than the {cells.frame.shape[1]} columns of the header"
    return [Problem(what, len(cells.ragged), shown)]


def read(path: Path, extra: Collection[str] = (), encoding: str = "utf-8") -> pd.DataFrame:
    """The interactions, in int64 columns userID, itemID, x_label, sorted by x_label (order within a split is kept).

    Args:
        extra: further columns, as float64 (NaN where empty), of those that the header has.

    Raises:
        DataError: a column is missing, or a cell is not a whole number in range; names the line and the mend.
    """
    frame, problems = examine(path, extra, encoding)
    if problems or frame is None:
        raise DataError(f"{path}: {told(problems[0])}")
    return frame.sort_values("x_label", kind="stable", ignore_index=True)


def examine(
    path: Path, extra: Collection[str] = (), encoding: str = "utf-8"
) -> tuple[pd.DataFrame | None, list[Problem]]:
    """The interactions in the order of the file, without the lines that have a problem, and all problems; None where the file
    cannot be read as a table at all."""
    try:
        cells = text.table(path, encoding=encoding)
    except MRdIBError as error:
        return None, [Problem(without(path, error))]
    frame = cells.frame
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        what = (
            f"the header lacks {', '.join(missing)} (found {listed(frame.columns, 8)}); expected tab-separated "
            "'userID itemID x_label' for the MMRec layout, or typed names such as 'user_id:token' for RecBole's"
        )
        return None, [Problem(what)]
    problems = ragged(cells)
    sound = np.ones(len(frame), dtype=bool)
    numbers: dict[str, np.ndarray] = {}
    for name in (*COLUMNS, *(e for e in extra if e in frame.columns and e not in COLUMNS)):
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        if name in COLUMNS:
            good = np.isfinite(values) & (values >= 0) & (values == np.floor(values)) & (values < 2**53)
            good &= (values <= 2) | (name != "x_label")
        else:
            good = np.isfinite(values) | (frame[name] == "").to_numpy()
        wanted = {
            "userID": "whole numbers from 0",
            "itemID": "whole numbers from 0",
            "x_label": "0 (train), 1 (valid) or 2 (test)",
        }
        if not good.all():
            at = np.flatnonzero(~good)
            examples = tuple(f"line {frame.index[n]}: {frame[name].iloc[n]!r}" for n in at[:5])
            problems.append(Problem(f"column {name}: expected {wanted.get(name, 'numbers')}", len(at), examples))
        sound &= good
        numbers[name] = values
    return pd.DataFrame({n: v[sound].astype(np.int64 if n in COLUMNS else float) for n, v in numbers.items()}), problems
