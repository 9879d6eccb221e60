"""RecBole's atomic files: the one reader of `.inter`, `.item` and `.user`, and the way from and to the MMRec layout.

Read as RecBole means them, except that ids and other tokens are text, byte for byte (no quotes, no 'NA'), times keep all their digits, and
whatever cannot be read is named with its line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_mrdib.data import modality, text
from mmrec_mrdib.data.prepare import TEST, TRAIN, VALID, Collector, Features, Table, write_folder
from mmrec_mrdib.data.sources import mmrec
from mmrec_mrdib.data.sources.mmrec import Problem
from mmrec_mrdib.errors import DataError, MRdIBError, listed, without

SPLITS = mmrec.SPLITS
KINDS = ("token", "token_seq", "float", "float_seq")
_MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "NULL", "None")  # of numbers only


@dataclass(frozen=True)
class Format:
    """What RecBole's parameters say of the files.

    Attributes:
        user, item, rating, time: names of the columns.
        separator, sequence: between columns, and inside a sequence.
        encoding: of the text.
        lengths: column -> the largest length of its sequences.
    """

    user: str = "user_id"
    item: str = "item_id"
    rating: str = "rating"
    time: str = "timestamp"
    separator: str = "\t"
    sequence: str = " "
    encoding: str = "utf-8"
    lengths: Mapping[str, int] | None = None

    @classmethod
    def of(cls, values: Any) -> Format:
        """From a Config, or from anything with `get` or `key in values` and `values[key]`."""
        keys = {
            "user": "USER_ID_FIELD", "item": "ITEM_ID_FIELD", "rating": "RATING_FIELD", "time": "TIME_FIELD", "separator": "field_separator",
            "sequence": "seq_separator", "encoding": "encoding", "lengths": "seq_len",
        }  # fmt: skip
        return cls(**{k: values[v] for k, v in keys.items() if v in values and values[v] is not None})


@dataclass(frozen=True)
class Atomic:
    """An atomic file.

    Attributes:
        frame: one column a field: tokens as text (None where empty), floats as float64 (times as int64 where all are whole), sequences
            as arrays. The index is the line in the file.
        kinds: field -> token, token_seq, float or float_seq.
    """

    frame: pd.DataFrame
    kinds: dict[str, str]


def read_frame(
    path: Path,
    how: Format = Format(),
    ids: Collection[str] = ("user_id", "item_id"),
    load: Collection[str] | None = None,
    unload: Collection[str] | None = None,
) -> Atomic:
    """An atomic file.

    Args:
        ids: the token columns that must be there, and not empty in any line.
        load, unload: the fields wanted (None: all), and those not wanted.

    Raises:
        DataError: not such a table; names the lines.
    """
    found, problems = examine(path, how, ids, load, unload)
    if problems or found is None:
        raise DataError(f"{path}: {mmrec.told(problems[0])}")
    return found


def examine(
    path: Path,
    how: Format,
    ids: Collection[str],
    load: Collection[str] | None = None,
    unload: Collection[str] | None = None,
) -> tuple[Atomic | None, list[Problem]]:
    """As `read_frame`, but with all problems; the lines that have one are left out; None where it is no table at all."""
    try:
        cells = text.table(path, how.separator, how.encoding)
    except MRdIBError as error:
        return None, [Problem(without(path, error))]
    header = list(cells.frame.columns)
    lacking = [f"{name}:token" for name in ids if f"{name}:token" not in header]
    if lacking:
        return None, [Problem(f"the header lacks {', '.join(lacking)} (found {listed(header, 8)})")]
    kinds: dict[str, str] = {}
    for name in header:
        field, _, kind = name.rpartition(":")
        if not field or kind not in KINDS or field in kinds:
            what = "expected a name and a type, each name once, as in user_id:token; types: " + ", ".join(KINDS)
            return None, [Problem(f"column '{name}' of the header: {what}")]
        if (load is None or field in load) and (unload is None or field not in unload):
            kinds[field] = kind
    hidden = [name for name in ids if name not in kinds]
    if hidden:
        return None, [Problem(f"load_col or unload_col leaves out {', '.join(hidden)}, which must be loaded")]
    problems = mmrec.ragged(cells)
    lines, columns = cells.frame.index.to_numpy(), {}
    sound = np.ones(len(lines), dtype=bool)
    for field, kind in kinds.items():
        column = cells.frame[f"{field}:{kind}"].to_numpy()
        if field in ids:
            bad, what = column == "", f"cells of {field}:token are empty"
        elif kind == "token":
            column = np.where(column == "", None, column)
            bad, what = np.zeros(len(column), dtype=bool), ""
        elif kind == "float":
            numbers, bad = _numbers(column, field == how.time)
            what = f"column {field}: expected a number"
        else:
            numbers, bad = _sequences(column, how, field, kind == "float_seq")
            what = f"column {field}: expected numbers, separated by '{how.sequence}'"
        if bad.any():
            at = np.flatnonzero(bad)
            shown = tuple(f"line {lines[n]}" + (f": {column[n]!r}" if field not in ids else "") for n in at[:5])
            problems.append(Problem(what, len(at), shown, field))
            sound &= ~bad
        columns[field] = column if kind == "token" else numbers
    frame = pd.DataFrame({f: pd.Series(c, index=lines, dtype=c.dtype) for f, c in columns.items()})
    return Atomic(frame[sound], kinds), problems


def _numbers(column: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, which are none): float64, exact to the last digit, or int64 where `whole` and all of them are; NaN where missing."""
    missing = np.isin(column, _MISSING)
    if whole and not missing.any():
        try:
            return column.astype(np.int64), missing
        except (ValueError, OverflowError):
            pass
    given = np.where(missing, "nan", column)
    try:
        values = given.astype(np.float64)
    except ValueError:
        values = np.array([_float(t) for t in given])
    return values, ~np.isfinite(values) & ~missing


def _float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _sequences(column: np.ndarray, how: Format, field: str, numbers: bool) -> tuple[np.ndarray, np.ndarray]:
    """(arrays, which could not be read) of cells that hold a sequence; RecBole passes over empty elements, and so is it here."""
    out, bad = np.empty(len(column), dtype=object), np.zeros(len(column), dtype=bool)
    longest = (how.lengths or {}).get(field)
    for n, cell in enumerate(column):
        parts = [p for p in cell.split(how.sequence) if p][:longest]
        if numbers:
            out[n] = np.array([_float(p) for p in parts], dtype=np.float64)
            bad[n] = not np.isfinite(out[n]).all()
        else:
            out[n] = np.array(parts, dtype=str)
    return out, bad


def split_files(folder: Path, splits: Collection[str] = SPLITS) -> list[Path] | None:
    """`<name>.<split>.inter` of every split, where all are there and no `<name>.inter` is."""
    name = folder.resolve().name
    parts = [folder / f"{name}.{split}.inter" for split in splits]
    return parts if not (folder / f"{name}.inter").is_file() and all(p.is_file() for p in parts) else None


def read(folder: Path, how: Format = Format()) -> tuple[Table, np.ndarray | None]:
    """Interactions of `<name>.inter`, or of `<name>.train.inter`, `.valid.inter` and `.test.inter` with their split.

    Raises:
        DataError: neither is there, or a file cannot be read.
    """
    name = folder.resolve().name
    whole, parts = folder / f"{name}.inter", split_files(folder)
    if parts is None and not whole.is_file():
        raise DataError(f"{folder}: neither {whole.name} nor {', '.join(f'{name}.{s}.inter' for s in SPLITS)}")
    collector, labels = Collector(), []
    for label, path in enumerate(parts or [whole]):
        frame = read_frame(path, how, (how.user, how.item)).frame
        numbers = [
            frame[f].to_numpy(dtype=np.float64) if f in frame else np.full(len(frame), np.nan)
            for f in (how.rating, how.time)
        ]
        collector.extend(frame[how.user].to_numpy(), frame[how.item].to_numpy(), *numbers)
        labels.append(np.full(len(frame), label))
    return collector.table(), None if parts is None else np.concatenate(labels)


def features(folder: Path) -> dict[str, Features]:
    """Every modality of a folder whose rows are named by `<modality>_ids.txt`."""
    found = {}
    for name, (path, ids) in modality.find(folder, {}).items():
        file = modality.open_file(name, path, ids, None)
        found[name] = Features(file.rows, file.row_of)
    return found


def write(target: Path, source: Path) -> int:
    """Turn an MMRec folder into atomic files: three benchmark files, a yaml that names them, and features with their ids.

    Returns the number of interactions.
    """
    frame = mmrec.read(mmrec.file_of(source, source.resolve().name)).drop_duplicates(["userID", "itemID"])
    n_ids = int(frame["itemID"].max()) + 1 if len(frame) else 0

    def interactions(folder: Path) -> None:
        for label, split in zip((TRAIN, VALID, TEST), SPLITS, strict=True):
            part = frame[frame["x_label"] == label]
            columns = {"user_id:token": part["userID"], "item_id:token": part["itemID"]}
            pd.DataFrame(columns).to_csv(folder / f"{target.name}.{split}.inter", sep="\t", index=False)
        (folder / f"{target.name}.yaml").write_text("benchmark_filename: [train, valid, test]\n", encoding="utf-8")

    def copier(name: str, path: Path, ids: Path | None) -> Callable[[Path], None]:
        file = modality.open_file(name, path, ids, n_ids)

        def copy(folder: Path) -> None:
            np.save(folder / f"{name}_feat.npy", file.rows)
            tokens = sorted(file.row_of, key=file.row_of.__getitem__)
            (folder / f"{name}_ids.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")

        return copy

    found = modality.find(source, {})
    write_folder(target, [interactions, *(copier(name, *files) for name, files in found.items())])
    return len(frame)
