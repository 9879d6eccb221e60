"""The MMRec layout: `<name>.inter`, tab-separated with an untyped header `userID itemID [rating] [timestamp] x_label`.

MRLib's is the same in other words: `inter.csv`, separated by commas (or tabs), with the header `user_id,item_id,rating,label`.

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
CSV = "inter.csv"
_IN_CSV = {"user_id": "userID", "item_id": "itemID", "label": "x_label"}


def file_of(folder: Path, name: str) -> Path:
    """The file of a folder's interactions: `<name>.inter`, or `inter.csv` where that alone is there."""
    path, other = folder / f"{name}.inter", folder / CSV
    return other if other.is_file() and not path.is_file() else path


def is_mmrec(path: Path, encoding: str = "utf-8") -> bool:
    """Whether it is an inter.csv, or a .inter file with the untyped header; RecBole's names a type behind each column (`user_id:token`)."""
    if path.name == CSV:
        return True
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
        cells = text.table(path, "," if path.name == CSV else "\t", encoding)
        if path.name == CSV and len(cells.frame.columns) == 1 and "\t" in cells.frame.columns[0]:
            cells = text.table(path, "\t", encoding)
    except MRdIBError as error:
        return None, [Problem(without(path, error))]
    frame, own = cells.frame, {c: c for c in COLUMNS}
    if path.name == CSV:
        own |= {new: old for old, new in _IN_CSV.items() if new not in frame.columns}
        frame = frame.rename(columns={old: new for new, old in own.items()})
    missing = [own[c] for c in COLUMNS if c not in frame.columns]
    if missing and path.name == CSV:
        what = f"the header lacks {', '.join(missing)} (found {listed(cells.frame.columns, 8)}); expected user_id,item_id,rating,label"
        return None, [Problem(what)]
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
            what = f"column {own.get(name, name)}: expected {wanted.get(name, 'numbers')}"
            problems.append(Problem(what, len(at), examples))
        sound &= good
        numbers[name] = values
    return pd.DataFrame({n: v[sound].astype(np.int64 if n in COLUMNS else float) for n, v in numbers.items()}), problems
