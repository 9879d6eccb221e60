"""The MMRec layout: `<name>.inter`, tab-separated with an untyped header `userID itemID [rating] [timestamp] x_label`.

Ids are whole numbers from 0; the item id is also the row of `<modality>_feat.npy`. x_label 0, 1, 2 = train, valid, test.
"""

from __future__ import annotations

from pathlib import Path

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


def read(path: Path) -> pd.DataFrame:
    """The interactions, in int64 columns userID, itemID, x_label, sorted by x_label (order within a split is kept).

    Raises:
        DataError: a column is missing, or a cell is not a whole number in range; names the line and the mend.
    """
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_filter=False, engine="c")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a tab-separated table ({str(error).strip()})") from error
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise DataError(
            f"{path}: the header lacks {', '.join(missing)} (found {listed(frame.columns, 8)}); expected tab-separated "
            "'userID itemID x_label' for the MMRec layout, or typed names such as 'user_id:token' for RecBole's"
        )
    numbers = {c: _whole_numbers(frame[c], c, path) for c in COLUMNS}
    bad = numbers["x_label"] > 2
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}, line {row + 2}: x_label is {numbers['x_label'][row]}; expected 0 (train), 1 (valid) or 2 (test)"
        )
    return pd.DataFrame(numbers).sort_values("x_label", kind="stable", ignore_index=True)


def _whole_numbers(column: pd.Series, name: str, path: Path) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(values) & (values >= 0) & (values == np.floor(values)) & (values < 2**53))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}, line {row + 2}, column {name}: {column.iloc[row]!r} is not a whole number from 0 "
            f"({int(bad.sum())} such lines); number users and items from 0"
        )
    return values.astype(np.int64)
