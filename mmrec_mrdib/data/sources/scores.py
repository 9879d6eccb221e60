"""Scores and ranked lists that other programs wrote: tables, JSON lines or npz. Ids are text, as they stand in the file."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_mrdib.data import text
from mmrec_mrdib.data.sources.table import Csv, chunks, read_ids, read_numbers
from mmrec_mrdib.data.text import BadLines
from mmrec_mrdib.errors import DataError, listed

FORMS = """\
.csv .tsv .parquet  a header and a line a pair: user, item, and score or rank (user_id, userID, uid, ... are user, too);
                    or a line a user: user and items, separated by spaces, in Parquet a list, the best first;
                    or a line a user: user (or id) and top_0, top_1, ..., as MMRec saves its lists
.jsonl              a line a user: {"user": 7, "items": [3, 1], "scores": [0.9, 0.4]}, the best first, scores optional
.npz                arrays users (E,), items (E,), and scores (E,) or ranks (E,);
                    or users (U,), items (U, K), the best first, '' or -1 where a list ends before K, scores (U, K) optional;
                    or users (U,), items (I,), scores (U, I): of all items, -inf where one is not to be ranked
Larger scores are better, smaller ranks. Where ranks, or the order of a list, and scores are there, the ranks decide."""

_ROLES = {
    "user": ("user", "userid", "uid", "users", "userids"),
    "item": ("item", "itemid", "iid", "items", "itemids"),
    "score": ("score", "scores", "prediction", "predictions"),
    "rank": ("rank", "ranks"),
    "split": ("split", "xlabel"),
}
_HELP = "'mmrec-mrdib leaderboard import-run --help' tells the forms"
_PLACE = re.compile(r"(?:top|rank|item)?[_ -]?(\d+)")  # the header of a column that holds the items of one place


@dataclass(frozen=True)
class Pairs:
    """Scored pairs of user and item.

    Attributes:
        users, items: (E,) ids.
        scores: (E,) float64, larger is better, -inf where the item is not to be ranked; ranks as their negatives.
        against: users whose scores run against their ranks, by which they are ranked here.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    against: int = 0


@dataclass(frozen=True)
class Matrix:
    """Scores (U, I) of all users (U,) and items (I,), of which each stands there once."""

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray


def read(path: Path) -> Pairs | Matrix:
    """The scores or lists of a file of one of the `FORMS`.

    Raises:
        DataError: none of them, a cell that is no id or no number (NaN included, but in a matrix), or a user with two lists.
        ConfigError: Parquet without pyarrow.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected a file, or the folder of a run with its result.json")
    if path.suffix.lower() == ".npz":
        return _npz(path)
    if path.suffix.lower() == ".jsonl":
        return _jsonl(path)
    return _table(path)


def read_split(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (users, items) of a table user, item, split: train, valid, test, or 0, 1, 2 as in `x_label`.

    Raises:
        DataError: another form.
    """
    names = {"0": "train", "1": "valid", "2": "test"}
    frames: list[pd.DataFrame] = []
    for frame, columns in _chunks(path):
        if missing := [c for c in ("user", "item", "split") if c not in columns]:
            raise DataError(f"{path}: no column {listed(missing)}; expected user, item and split (or x_label)")
        cells = {role: _ids(path, frame, columns[role], role) for role in ("user", "item", "split")}
        split = pd.Series(cells["split"]).replace(names).to_numpy()
        if len(wrong := np.flatnonzero(~np.isin(split.astype(str), list(names.values())))):
            line, found = frame.index[wrong[0]], cells["split"][wrong[0]]
            raise DataError(f"{path}, line {line}: '{found}' is no split; expected train, valid, test, or 0, 1, 2")
        frames.append(pd.DataFrame(cells | {"split": split}))
    whole = pd.concat(frames)
    return {
        name: (part["user"].to_numpy(), part["item"].to_numpy())
        for name in names.values()
        for part in [whole[whole["split"] == name]]
    }


# Tables.


def _chunks(path: Path) -> Iterable[tuple[pd.DataFrame, dict[str, Any]]]:
    """The table piece by piece, with the columns by role."""
    for frame, _ in chunks(path, Csv(separator=None), BadLines(path, None)):
        yield frame, _columns(path, frame)


def _columns(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """Role -> column; an error where several have one role."""
    plain = {c: re.sub("[_ -]", "", str(c).partition(":")[0].strip().lower()) for c in frame.columns}
    out = {}
    for role, names in _ROLES.items():
        found = [c for c, name in plain.items() if name in names]
        if len(found) > 1:
            raise DataError(f"{path}: columns {listed(map(repr, found))} could all be the {role}; leave one")
        if found:
            out[role] = found[0]
    if "user" not in out and "id" in plain.values():  # MMRec's
        out["user"] = next(c for c, name in plain.items() if name == "id")
    return out


def _table(path: Path) -> Pairs:
    parts: list[tuple[np.ndarray, ...]] = []
    lists: list[list[Any]] = []
    for frame, columns in _chunks(path):
        places = sorted((int(m[1]), c) for c in frame.columns if (m := _PLACE.fullmatch(str(c).strip().lower())))
        if "user" not in columns or ("item" not in columns and not places):
            what = "the items" if "user" in columns else "the user"
            raise DataError(f"{path}: no column of {what} among {listed(map(repr, frame.columns), 8)}; {_HELP}")
        users = _ids(path, frame, columns["user"], "user")
        nested = "item" in columns and any(isinstance(cell, list | np.ndarray) for cell in frame[columns["item"]][:1])
        if "item" not in columns:
            cells = [_ids(path, frame, c, "item", gaps=True) for _, c in places]
            lists += np.stack(cells, axis=1).tolist()
            parts.append((users,))
        elif ("score" in columns or "rank" in columns) and not nested:
            value = [_values(path, frame, columns.get(role), role) for role in ("score", "rank")]
            parts.append((users, _ids(path, frame, columns["item"], "item"), *value))
        elif nested or str(columns["item"]).lower().endswith("s"):
            lists += [_split(path, line, cell) for line, cell in frame[columns["item"]].items()]
            parts.append((users,))
        else:
            raise DataError(f"{path}: no column score or rank; pairs alone do not say which item comes first; {_HELP}")
    whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if len(whole) == 1:
        return _from_lists(path, whole[0], lists)
    users, items, scores, ranks = whole
    return Pairs(users, items, scores) if np.isnan(ranks).all() else _by_rank(users, items, ranks, scores)


def _split(path: Path, line: Any, cell: Any) -> list[Any]:
    """The items of a cell that holds a list."""
    if isinstance(cell, str):
        return cell.split()
    if isinstance(cell, list | np.ndarray):
        return list(cell)
    raise DataError(f"{path}, line {line}: {cell!r:.60} is no list of items")


def _ids(path: Path, frame: pd.DataFrame, column: Any, role: str, gaps: bool = False) -> np.ndarray:
    try:
        ids, good = read_ids(frame[column])
    except TypeError as error:  # lists in the cells
        raise DataError(f"{path}, column {column}: expected one {role} in each cell ({error})") from error
    if gaps:
        good |= ids == ""
    if not good.all():
        at = int(np.flatnonzero(~good)[0])
        raise DataError(f"{path}, line {frame.index[at]}, column {column}: no {role} ({frame[column].iloc[at]!r:.60})")
    return ids


def _values(path: Path, frame: pd.DataFrame, column: Any, role: str) -> np.ndarray:
    """(R,) float64; NaN alone where there is no such column."""
    if column is None:
        return np.full(len(frame), np.nan)
    values, _ = read_numbers(frame[column])
    good = np.isfinite(values) | ((values == -np.inf) & (role == "score"))
    if not good.all():
        at = int(np.flatnonzero(~good)[0])
        raise DataError(f"{path}, line {frame.index[at]}: {role} {frame[column].iloc[at]!r:.60} is not a number")
    return values


def _by_rank(users: np.ndarray, items: np.ndarray, ranks: np.ndarray, scores: np.ndarray) -> Pairs:
    """Pairs in the order of their ranks; `scores` (NaN: none) are held against it."""
    codes, _ = pd.factorize(users)
    order = np.lexsort((ranks, codes))
    rises = (np.diff(codes[order]) == 0) & (np.diff(scores[order]) > 0)
    return Pairs(users, items, -ranks.astype(np.float64), len(np.unique(codes[order][1:][rises])))


# Lists, one a user.


def _from_lists(path: Path, users: np.ndarray, lists: Sequence[Sequence[Any]], scores: Any = None) -> Pairs:
    """Args:
    users: (U,) ids.
    lists: items of each, the best first; '' is none.
    scores: (E,) float64 of all of them, or None.
    """
    _once(path, users, "user", "has two lists")
    lengths = np.array([len(one) for one in lists], dtype=np.int64)
    cells = [cell for one in lists for cell in one]
    items, good = read_ids(pd.Series(cells, dtype=object)) if cells else (np.empty(0, object), np.empty(0, bool))
    owner = np.repeat(users, lengths)
    empty = items == ""
    if not (good | empty).all():
        at = int(np.flatnonzero(~good & ~empty)[0])
        raise DataError(f"{path}: the list of user {owner[at]} has an item that is no id ({cells[at]!r:.60})")
    place = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = np.full(len(items), np.nan) if scores is None else np.asarray(scores, dtype=np.float64)
    return _by_rank(owner[~empty], items[~empty], place[~empty], values[~empty])


def _once(path: Path, ids: np.ndarray, kind: str, what: str) -> None:
    if len(again := ids[pd.Index(ids).duplicated()]):
        raise DataError(f"{path}: {kind} {listed(dict.fromkeys(again), 3)} {what}")


def _jsonl(path: Path) -> Pairs:
    users, lists, scores = [], [], []
    for number, line in enumerate(text.lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            user, items = row["user"], row["items"]
            given = [float(x) for x in row.get("scores") or [np.nan] * len(items)]
            fits = isinstance(items, list) and len(items) == len(given)
        except (ValueError, KeyError, TypeError, AttributeError):
            fits = False
        if not fits or not all(type(x) in (str, int) and str(x) for x in (user, *items)):
            raise DataError(
                f'{path}, line {number}: expected {{"user": ID, "items": [ID, ...], "scores": [number, ...]}}'
            )
        users.append(str(user))
        lists.append([str(i) for i in items])
        scores += given
    if not users:
        raise DataError(f"{path}: no lists in it")
    return _from_lists(path, np.asarray(users, dtype=object), lists, scores)


# Arrays.


def _npz(path: Path) -> Pairs | Matrix:
    arrays = _arrays(path)
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    users, items, scores, ranks = (arrays.get(role) for role in ("user", "item", "score", "rank"))
    if users is None or items is None or users.ndim != 1:
        raise DataError(f"{path}: expected arrays users (U,), items and scores, found {shapes or 'none of them'}")
    if scores is not None and scores.dtype.kind not in "fiu":
        raise DataError(f"{path}: scores of type {scores.dtype}; expected numbers")
    if scores is not None and (scores.dtype.kind != "f" or scores.dtype.itemsize < 4):
        scores = scores.astype(np.float64)
    of, shape = _array_ids(path, users, "users"), None if scores is None else scores.shape
    if items.ndim == 2 and len(items) == len(users) and shape in (None, items.shape):
        cells = items.astype(object)
        if items.dtype.kind in "if":
            cells[items < 0] = ""
        return _from_lists(path, of, cells.tolist(), None if scores is None else scores.ravel())
    if items.ndim == 1 and scores is not None and shape == (len(users), len(items)):
        columns = _array_ids(path, items, "items")
        _once(path, of, "user", "has two rows")
        _once(path, columns, "item", "has two columns")
        return Matrix(of, columns, scores)
    given = [x for x in (scores, ranks) if x is not None]
    if not given or any(x.shape != users.shape for x in (items, *given)):
        raise DataError(f"{path}: the shapes fit none of the forms ({shapes}); {_HELP}")
    values = np.full(len(of), np.nan) if scores is None else scores.astype(np.float64)
    rank = np.full(len(of), np.nan) if ranks is None else ranks.astype(np.float64)
    if (scores is not None and np.any(np.isnan(values) | (values == np.inf))) or (
        ranks is not None and not np.isfinite(rank).all()
    ):
        raise DataError(f"{path}: scores or ranks with NaN or infinite values")
    pairs = Pairs(of, _array_ids(path, items, "items"), values)
    return pairs if ranks is None else _by_rank(of, pairs.items, rank, values)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Role -> array. Nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, Mapping):
                raise DataError(f"{path}: a single array; expected an npz of users, items and scores")
            plain = {name: name.lower().replace("_", "") for name in file}
            found = {r: [n for n, short in plain.items() if short in names] for r, names in _ROLES.items()}
            return {role: file[names[0]] for role, names in found.items() if names}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in why.lower():
            why = "it holds pickled objects, which are never loaded; save ids as numbers or text, np.asarray(ids, dtype=str)"
        raise DataError(f"{path}: not a readable npz ({why})") from error


def _array_ids(path: Path, array: np.ndarray, name: str) -> np.ndarray:
    ids, good = read_ids(pd.Series(list(array.tolist()), dtype=object))
    if not good.all():
        raise DataError(f"{path}: {name}[{int(np.flatnonzero(~good)[0])}] is no id")
    return ids
