"""Any table, CSV or Parquet: interactions by the names of their columns, and features, one row an item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_mrdib.data.prepare import Collector, Features
from mmrec_mrdib.errors import ConfigError, DataError, did_you_mean, listed

_ROWS = 200_000  # rows in memory at a time


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def pyarrow() -> Any:
    """The package with its parquet module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow as package
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("parquet needs pyarrow: pip install 'mmrec-mrdib[parquet]'") from error
    return package


def chunks(path: Path, separator: str) -> Iterator[pd.DataFrame]:
    """The table piece by piece; of CSV all cells as text, '' where empty.

    Raises:
        DataError: it cannot be read as such a table.
        ConfigError: Parquet without pyarrow.
    """
    try:
        if is_parquet(path):
            with pyarrow().parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS):
                    yield batch.to_pandas()
        else:
            options = {"sep": separator, "dtype": str, "keep_default_na": False, "na_filter": False, "chunksize": _ROWS}
            with pd.read_csv(path, **options) as reader:
                yield from reader
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, UnicodeDecodeError) as error:  # pyarrow's and pandas' parser errors are ValueErrors
        raise DataError(f"{path}: cannot be read as a table ({str(error).strip().splitlines()[0]})") from error


def _column(frame: pd.DataFrame, name: str, option: str, path: Path) -> pd.Series:
    if name not in frame.columns:
        near = did_you_mean(name, map(str, frame.columns))
        raise ConfigError(f"{option}={name}: no such column in {path}.{near} Columns: {listed(frame.columns, 12)}")
    return frame[name]


def _tokens(column: pd.Series) -> np.ndarray:
    """Ids as text, '' where there is none; whole numbers without a decimal point."""
    if column.dtype.kind == "f":
        whole = column.dropna()
        if (whole == np.floor(whole)).all():
            column = column.astype("Int64")
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    return text.where(text.map(str.isprintable), "").to_numpy(dtype=object)


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(values, which are there but neither a number nor a date); dates become seconds."""
    if column.dtype.kind == "M":
        return _seconds(column), np.zeros(len(column), dtype=bool)
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    given = (column.notna() & (column.astype(str).str.strip() != "")).to_numpy()
    text = np.flatnonzero(np.isnan(values) & given)
    if len(text):
        values = values.copy()
        values[text] = _seconds(column.iloc[text])
    return values, given & ~np.isfinite(values)


def _seconds(column: pd.Series) -> np.ndarray:
    """Seconds since 1970 (UTC) of dates, or of text in ISO form; NaN where there is none. Whatever the unit of the dtype."""
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    return (dates - pd.Timestamp("1970-01-01", tz="UTC")).dt.total_seconds().to_numpy(dtype=np.float64)


def read_interactions(
    path: Path, columns: Mapping[str, str | None], collector: Collector, max_bad: int, separator: str = ","
) -> int:
    """Feed a table to the collector; returns how many rows were skipped.

    Args:
        columns: 'user', 'item', 'rating' and 'time' -> name of the column (None: there is none).

    Raises:
        ConfigError: a column that is not there.
        DataError: more than `max_bad` rows lack an id or have a rating or time that is no number.
    """
    bad: list[int] = []
    before = 2  # the header is line 1
    for frame in chunks(path, separator):
        picked = {k: _column(frame, v, f"--{k}", path) for k, v in columns.items() if v is not None}
        users, items = _tokens(picked["user"]), _tokens(picked["item"])
        broken = (users == "") | (items == "")
        values = {}
        for name in ("rating", "time"):
            if name in picked:
                values[name], wrong = _numbers(picked[name])
                broken |= wrong
            else:
                values[name] = np.full(len(frame), np.nan)
        bad.extend((np.flatnonzero(broken) + before).tolist())
        if len(bad) > max_bad:
            raise DataError(
                f"{path}, line {listed(bad, 5)}: no user, no item, or a rating or time that is no number; "
                f"{len(bad)} such lines, --max-bad={max_bad} allowed"
            )
        sound = ~broken
        collector.extend(users[sound], items[sound], values["rating"][sound], values["time"][sound])
        before += len(frame)
    return len(bad)


def read_features(path: Path, id_column: str, separator: str = ",") -> Features:
    """Features from a table: the id column names the item, every other column is a number.

    Raises:
        ConfigError: no such id column.
        DataError: a cell that is no finite number, or an id that occurs twice.
    """
    parts: list[np.ndarray] = []
    row_of: dict[str, int] = {}
    before = 2
    for frame in chunks(path, separator):
        ids = _tokens(_column(frame, id_column, "--feature-id", path))
        rest = frame.drop(columns=[id_column])
        if rest.shape[1] == 0:
            raise DataError(f"{path}: no column beside '{id_column}'; expected one number a dimension")
        values = np.empty(rest.shape, dtype=np.float32)
        for n, name in enumerate(rest.columns):
            column = pd.to_numeric(rest[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            wrong = np.flatnonzero(~np.isfinite(column))
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{path}, line {row + before}, column {name}: {rest[name].iloc[row]!r} is not a finite number"
                )
            values[:, n] = column
        for n, token in enumerate(ids):
            if not token or token in row_of:
                what = f"id '{token}' stands in another line already" if token else "no id"
                raise DataError(f"{path}, line {n + before}: {what}; expected one row an item")
            row_of[token] = len(row_of)
        parts.append(values)
        before += len(frame)
    if not parts:
        raise DataError(f"{path}: no rows")
    return Features(np.concatenate(parts), row_of)
