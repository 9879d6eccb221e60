"""Any table, CSV or Parquet: interactions by the names of their columns, and features and texts, one row an item.

Of CSV every cell is text as it stands in the file: ids are not stripped, 'NA' is an id, and '007' is not 7.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from mmrec_mrdib.data import text
from mmrec_mrdib.data.prepare import Collector, Features
from mmrec_mrdib.data.text import BadLines
from mmrec_mrdib.errors import ConfigError, DataError, did_you_mean, first_line, listed

_ROWS = 200_000  # rows in memory at a time
_QUOTES = "; if quotes are part of the cells, say --quoting=none"
DATES = "2024-01-31, 2024-01-31T18:30:00 or 2024-01-31 18:30:00+02:00"


@dataclass(frozen=True)
class Csv:
    """How CSV files are written.

    Attributes:
        separator: between cells; None: found in the header, by the column that is wanted, or the one that it has most of.
        quoting: 'minimal': a cell may stand in double quotes; 'none': quotes are characters like others.
        encoding: of the text.
        names: of the columns, where the file has no header.
    """

    separator: str | None = ","
    quoting: Literal["minimal", "none"] = "minimal"
    encoding: str = "utf-8"
    names: tuple[str, ...] | None = None


class Chunk(NamedTuple):
    """Some rows: cells by column, indexed by the line in the file where each begins, and (R,) how many lines each takes."""

    frame: pd.DataFrame
    lines: np.ndarray


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


def chunks(path: Path, how: Csv, bad: BadLines, wanted: str = "") -> Iterator[Chunk]:
    """The table piece by piece; of CSV all cells as text, '' where empty.

    Args:
        bad: told of the rows that have too few or too many cells, or broken quotes: they are left out.
        wanted: a column that is there, for a separator that is to be found.

    Raises:
        DataError: it cannot be read as such a table.
        ConfigError: Parquet without pyarrow; a separator or encoding that there is not.
    """
    try:
        what = text.disguise(path)
        if (
            what is not None
            and not what.startswith("a gzip")
            and not (is_parquet(path) and what.startswith("a Parquet"))
        ):
            raise DataError(f"{path}: no table but {what}")
        if is_parquet(path):
            if how.names is not None:
                raise ConfigError(f"--names: no effect on {path}: Parquet names its columns itself")
            before = 1
            with pyarrow().parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS):
                    frame = batch.to_pandas(integer_object_nulls=True)  # or ids beside a gap would be rounded
                    frame.index = pd.RangeIndex(before, before + len(frame))
                    before += len(frame)
                    yield Chunk(frame, np.ones(len(frame), dtype=np.int64))
            return
        yield from _rows(path, how, bad, wanted)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeError as error:
        if what is None:
            text.read(path, how.encoding)  # tells the line
        raise text.not_encoded(path, how.encoding, error) from error
    except LookupError as error:
        raise ConfigError(
            f"--encoding={how.encoding}: no such encoding; known are utf-8, latin-1, cp1252, utf-16, ..."
        ) from error
    except (OSError, ValueError, EOFError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: cannot be read as a table ({first_line(error)})") from error


def _open(path: Path, encoding: str) -> IO[str]:
    encoding = "utf-8-sig" if text.is_utf8(encoding) else encoding
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding=encoding, newline="") if packed else path.open(encoding=encoding, newline="")


def _separator(path: Path, how: Csv, wanted: str) -> str:
    if how.separator is not None:
        return {"\\t": "\t", "tab": "\t"}.get(how.separator, how.separator)
    with _open(path, how.encoding) as file:
        header = file.readline().rstrip("\r\n")
    if not wanted:
        return max(",\t;|", key=header.count)
    return next((s for s in ",\t;|" if wanted in next(csv.reader([header], delimiter=s), ())), ",")


def _rows(path: Path, how: Csv, bad: BadLines, wanted: str) -> Iterator[Chunk]:
    separator = _separator(path, how, wanted)
    if not separator or separator in '\r\n"':
        raise ConfigError(f"--separator={how.separator!r}: expected one or more characters between the cells")
    with _open(path, how.encoding) as file:
        single = separator if len(separator) == 1 else "\x1f"
        stream: Any = file if single == separator else (line.replace(separator, single) for line in file)
        quoting: Literal[0, 3] = csv.QUOTE_NONE if how.quoting == "none" else csv.QUOTE_MINIMAL
        # Strict: a quote that opens a cell and never closes it is an error, not a cell of a thousand lines.
        reader = csv.reader(stream, delimiter=single, quoting=quoting, strict=True)
        header = next(reader, []) if how.names is None else list(how.names)
        if not any(header):
            raise DataError(
                f"{path}: not a table: its first line is empty, where the names of the columns are expected"
            )
        rows: list[list[str]] = []
        numbers: list[int] = []
        ends: list[int] = []
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                bad.add(start, f"broken quotes, {error}{_QUOTES}", "", max(reader.line_num - start + 1, 1))
                continue
            if len(row) == len(header):
                rows.append(row)
                numbers.append(start)
                ends.append(reader.line_num)
            elif row:
                why = (
                    f"{len(row)} cells, the header has {len(header)}"
                    if how.names is None
                    else f"{len(row)} cells, --names has {len(header)}"
                )
                bad.add(start, why, separator.join(row), reader.line_num - start + 1)
            if len(rows) == _ROWS:
                yield _chunk(rows, header, numbers, ends)
                rows, numbers, ends = [], [], []
        yield _chunk(rows, header, numbers, ends)


def _chunk(rows: list[list[str]], header: list[str], numbers: list[int], ends: list[int]) -> Chunk:
    cells = np.array(rows, dtype=object).reshape(len(rows), len(header))
    return Chunk(pd.DataFrame(cells, columns=header, index=numbers), np.array(ends, int) - np.array(numbers, int) + 1)


def _column(frame: pd.DataFrame, name: str, option: str, path: Path) -> pd.Series:
    if name not in frame.columns:
        near = did_you_mean(name, map(str, frame.columns))
        if frame.shape[1] == 1:
            near += " It has a single column: is --separator right?"
        raise ConfigError(
            f"{option}={name}: no such column in {path}.{near} Columns: {listed(map(repr, frame.columns), 12)}"
        )
    column = frame[name]
    if isinstance(column, pd.DataFrame):
        raise ConfigError(f"{option}={name}: {path} has {column.shape[1]} columns of this name")
    return column


def read_ids(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(ids as text, '' where there is none; which are ids). Whole numbers have no decimal point, whatever stands in other rows."""
    codes, distinct = pd.factorize(column.astype(object))
    texts = np.array([*map(_text, distinct), ""], dtype=object)
    good = np.array([text.is_id(t) for t in texts])
    return texts[codes], good[codes]


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(values, NaN where empty; which are there but no number)."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    given = (column.notna() & (column.astype(str).str.strip() != "")).to_numpy()
    return values, given & ~np.isfinite(values)


def _times(column: pd.Series) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """(values, which are there but neither a number nor a date, 'numbers' and 'dates' if there are any); dates become seconds."""
    if column.dtype.kind == "M":
        return _seconds(column), np.zeros(len(column), dtype=bool), {"dates"}
    values, wrong = read_numbers(column)
    found = {"numbers"} if np.isfinite(values).any() else set()
    text_at = np.flatnonzero(wrong & np.isnan(values))
    if len(text_at):
        values = values.copy()
        values[text_at] = _seconds(column.iloc[text_at])
        wrong = wrong & ~np.isfinite(values)
        found |= {"dates"} if np.isfinite(values[text_at]).any() else set()
    return values, wrong, found


def _seconds(column: pd.Series) -> np.ndarray:
    """Seconds since 1970 (UTC) of dates, or of text in ISO form; NaN where there is none. Whatever the unit of the dtype."""
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    return (dates - pd.Timestamp("1970-01-01", tz="UTC")).dt.total_seconds().to_numpy(dtype=np.float64)


def read_interactions(
    path: Path,
    columns: Mapping[str, str | None],
    collector: Collector,
    max_bad: int,
    how: Csv = Csv(),
) -> BadLines:
    """Feed a table to the collector; returns the lines that were skipped.

    Args:
        columns: 'user', 'item', 'rating' and 'time' -> name of the column (None: there is none).

    Raises:
        ConfigError: a column that is not there.
        DataError: more than `max_bad` lines lack an id or have a rating or time that is no number; times as numbers and as dates.
    """
    bad = BadLines(path, max_bad)
    kinds: set[str] = set()
    for frame, lines in chunks(path, how, bad):
        picked = {k: _column(frame, v, f"--{k}", path) for k, v in columns.items() if v is not None}
        values = {name: np.full(len(frame), np.nan) for name in ("rating", "time")}
        wrong: dict[str, np.ndarray] = {}
        tokens = {}
        for name in ("user", "item"):
            tokens[name], good = read_ids(picked[name])
            wrong[name] = ~good
        if "rating" in picked:
            values["rating"], wrong["rating"] = read_numbers(picked["rating"])
        if "time" in picked:
            values["time"], wrong["time"], found = _times(picked["time"])
            kinds |= found
            if len(kinds) > 1:
                raise DataError(
                    f"{path}, column {columns['time']}: some times are numbers, others dates; which is earlier cannot be told (dates: {DATES})"
                )
        broken = np.any(list(wrong.values()), axis=0)
        for n in np.flatnonzero(broken):
            name = next(k for k, w in wrong.items() if w[n])
            why = {"rating": "no number", "time": f"neither a number nor a date such as {DATES}"}.get(
                name, f"no {name}"
            )
            if name in tokens and tokens[name][n]:
                why = f"a {name} of more than one line{_QUOTES}"
            bad.add(int(frame.index[n]), f"column {columns[name]}: {why}", str(picked[name].iloc[n]), int(lines[n]))
        sound = ~broken
        collector.extend(tokens["user"][sound], tokens["item"][sound], values["rating"][sound], values["time"][sound])
    return bad


def read_features(path: Path, id_column: str, how: Csv = Csv()) -> Features:
    """Features from a table: the id column names the item, every other column is a number.

    Raises:
        ConfigError: no such id column.
        DataError: a cell that is no finite number, or an id that occurs twice.
    """
    parts: list[np.ndarray] = []
    row_of: dict[str, int] = {}
    for frame, _ in chunks(path, how, BadLines(path, None), id_column):
        ids, good = read_ids(_column(frame, id_column, "--feature-id", path))
        rest = frame.drop(columns=[id_column])
        if rest.shape[1] == 0:
            raise DataError(f"{path}: no column beside '{id_column}'; expected one number a dimension")
        values = np.empty(rest.shape, dtype=np.float32)
        for n, name in enumerate(rest.columns):
            cells = rest.iloc[:, n]
            column = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            wrong = np.flatnonzero(~np.isfinite(column))
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{path}, line {frame.index[row]}, column {name}: {cells.iloc[row]!r} is not a finite number"
                )
            values[:, n] = column
        _number(row_of, ids, good, frame, path)
        parts.append(values)
    if not row_of:
        raise DataError(f"{path}: no rows")
    return Features(np.concatenate(parts), row_of)


def read_texts(path: Path, id_column: str, items: Sequence[str], how: Csv = Csv()) -> list[dict[str, str]]:
    """Texts from a table: the id column names the item, every other column is a field. White space within a text is one space.

    Returns:
        an object an item, in the order of `items`: 'id', and the fields that are not empty.

    Raises:
        ConfigError: no such id column.
        DataError: an id that occurs twice; another column called 'id'; no text of any item.
    """
    out = {token: {"id": token} for token in items}
    row_of: dict[str, int] = {}
    for frame, _ in chunks(path, how, BadLines(path, None), id_column):
        ids, good = read_ids(_column(frame, id_column, "--feature-id", path))
        _number(row_of, ids, good, frame, path)
        fields = frame.drop(columns=[id_column])
        if "id" in fields:
            raise DataError(
                f"{path}: a column 'id' beside '{id_column}', and 'id' is the item's in items.jsonl; rename it"
            )
        wanted = np.flatnonzero([token in out for token in ids])
        for name in fields.columns:
            column = fields[name]
            for n in wanted[column.notna().to_numpy()[wanted]]:
                if words := " ".join(_text(column.iloc[n]).split()):
                    out[ids[n]][str(name)] = words
    if not any(len(fields) > 1 for fields in out.values()):
        raise DataError(f"{path}: no text of any of the {len(out)} items, by column '{id_column}'")
    return list(out.values())


def _number(row_of: dict[str, int], ids: np.ndarray, good: np.ndarray, frame: pd.DataFrame, path: Path) -> None:
    """Add the items of a piece of a table that has one row an item.

    Raises:
        DataError: it has two, or a row without.
    """
    for n, token in enumerate(ids):
        if not good[n] or token in row_of:
            what = f"id '{token}' stands in another line already" if good[n] else f"no id: {token!r}"
            raise DataError(f"{path}, line {frame.index[n]}: {what}; expected one row an item")
        row_of[token] = len(row_of)
