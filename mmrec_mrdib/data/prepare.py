"""From raw interactions to a data set's folder: filter, split, number, write.

Sources (`data/sources/`) feed a `Collector`; everything after that is the same for all of them, and depends on what is in the
data and on the seed, never on the order of the lines. Tokens are numbered in sorted order.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mmrec_mrdib import __version__
from mmrec_mrdib.errors import ConfigError, DataError, listed

TRAIN, VALID, TEST = 0, 1, 2
Order = Literal["random", "time", "global-time"]
PREPARED = "prepared.json"  # its presence vouches for users.txt and items.txt


class Collector:
    """Interactions as they stream in, 28 bytes each beside the tokens themselves."""

    def __init__(self) -> None:
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._columns = (array("i"), array("i"), array("d"), array("d"))

    def add(self, user: str, item: str, rating: float, time: float) -> None:
        """One interaction; NaN where there is no rating or time."""
        users, items, ratings, times = self._columns
        users.append(self._users.setdefault(user, len(self._users)))
        items.append(self._items.setdefault(item, len(self._items)))
        ratings.append(rating)
        times.append(time)

    def extend(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray, times: np.ndarray) -> None:
        """Many at once: only the distinct tokens are looked at one by one."""
        for column, tokens, codes in (
            (self._columns[0], users, self._users),
            (self._columns[1], items, self._items),
        ):
            which, distinct = pd.factorize(tokens)
            known = np.array([codes.setdefault(str(t), len(codes)) for t in distinct], dtype=column.typecode)
            column.frombytes(known[which].tobytes())
        for numbers, values in zip(self._columns[2:], (ratings, times), strict=True):
            numbers.frombytes(np.asarray(values, dtype=numbers.typecode).tobytes())

    def __len__(self) -> int:
        return len(self._columns[0])

    def table(self) -> Table:
        """All of them, tokens in sorted order."""
        users, items, ratings, times = (np.frombuffer(c, dtype=c.typecode) for c in self._columns)
        (user_tokens, user_rank), (item_tokens, item_rank) = _ranked(self._users), _ranked(self._items)
        return Table(user_rank[users], item_rank[items], ratings, times, user_tokens, item_tokens)


def _ranked(codes: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted tokens, and the rank of each code among them."""
    tokens = np.array(list(codes), dtype=object)
    order = np.argsort(tokens, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return tokens[order], rank


@dataclass(frozen=True)
class Table:
    """Interactions by number.

    Attributes:
        users, items: (E,) int64 ids into the tokens.
        ratings, times: (E,) float64, NaN where unknown.
        user_tokens, item_tokens: original ids, sorted.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    times: np.ndarray
    user_tokens: np.ndarray
    item_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def kept(self, which: np.ndarray) -> Table:
        """The interactions that a mask or ids select; numbers stay."""
        users, items, ratings, times = (c[which] for c in (self.users, self.items, self.ratings, self.times))
        return Table(users, items, ratings, times, self.user_tokens, self.item_tokens)

    def deduplicated(self) -> Table:
        """Each pair once, the earliest of it, sorted by user and item."""
        order = np.lexsort((self.ratings, self.times, self.items, self.users))
        ordered = self.kept(order)
        first = np.ones(len(ordered), dtype=bool)
        first[1:] = (np.diff(ordered.users) != 0) | (np.diff(ordered.items) != 0)
        return ordered.kept(first)

    def core(self, k: int) -> Table:
        """The k-core: the largest part in which every user and every item has k interactions or more."""
        keep = np.ones(len(self), dtype=bool)
        while True:
            left = np.flatnonzero(keep)
            per_user = np.bincount(self.users[left], minlength=len(self.user_tokens))
            per_item = np.bincount(self.items[left], minlength=len(self.item_tokens))
            few = (per_user[self.users[left]] < k) | (per_item[self.items[left]] < k)
            if not few.any():
                return self.kept(left)
            keep[left[few]] = False

    def renumbered(self) -> Table:
        """Users and items without interactions dropped, the others numbered from 0 in the order of their tokens."""
        user_ids, users = np.unique(self.users, return_inverse=True)
        item_ids, items = np.unique(self.items, return_inverse=True)
        return Table(users, items, self.ratings, self.times, self.user_tokens[user_ids], self.item_tokens[item_ids])

    def split(self, order: Order, ratios: tuple[float, float, float], seed: int) -> np.ndarray:
        """(E,) 0, 1 or 2: train, valid or test of each interaction, by user or, with 'global-time', by two points in time.

        By user: a user's interactions are put in random order or in that of time; the last ones are test, those before valid. Of n, each
        of the two gets its share of n rounded down, but one where the share is above 0 and n is 3 or more; with n = 2 test goes first.

        By points in time, the same for all users: train is before the first, valid from there to before the second, test from there on.
        Each is the time at which the interactions before it come nearest to their share of all (of two equally near, the earlier one),
        of those that leave something for every part with a share.

        Raises:
            DataError: order by time where an interaction has none; fewer times than parts.
        """
        if order != "random" and np.isnan(self.times).any():
            raise DataError(f"{int(np.isnan(self.times).sum())} interactions have no time; split with --split=random")
        if order == "global-time":
            return self._split_at_times(ratios)
        if order == "time":
            keys = (self.items, self.times, self.users)
        else:
            # One draw an interaction, in the order of (user, item): the order of the input does not matter.
            by_pair = np.lexsort((self.items, self.users))
            draw = np.empty(len(self))
            draw[by_pair] = np.random.default_rng(seed).random(len(self))
            keys = (self.items, draw, self.users)
        ranked = np.lexsort(keys)
        counts = np.bincount(self.users, minlength=len(self.user_tokens))
        place = np.empty(len(self), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        place[ranked] = np.arange(len(self)) - starts[self.users[ranked]]
        n = counts[self.users]
        _, valid_share, test_share = (r / sum(ratios) for r in ratios)
        test = np.where((n >= 2) & (test_share > 0), np.maximum(np.floor(test_share * n + 1e-9), 1), 0)
        valid = np.where((n >= 3) & (valid_share > 0), np.maximum(np.floor(valid_share * n + 1e-9), 1), 0)
        from_end = n - place
        return np.where(from_end <= test, TEST, np.where(from_end <= test + valid, VALID, TRAIN))

    def _split_at_times(self, ratios: tuple[float, float, float]) -> np.ndarray:
        distinct, counts = np.unique(self.times, return_counts=True)
        before = np.concatenate([[0], np.cumsum(counts)])  # interactions before each distinct time, and all
        parts = [int(r > 0) for r in ratios]
        if len(distinct) < sum(parts):
            raise DataError(f"--split=global-time: {len(distinct)} distinct times cannot make {sum(parts)} parts")
        for_train, for_test = np.abs(before[:, None] - np.cumsum(ratios)[:2] * len(self) / sum(ratios)).T
        test = int(np.argmin(for_test[: len(distinct) + 1 - parts[2]]).clip(1 + parts[1]))
        valid = 1 + int(np.argmin(for_train[1 : test + 1 - parts[1]]))
        return np.searchsorted([valid, test], np.searchsorted(distinct, self.times), side="right")

    def without_new_users(self, labels: np.ndarray) -> tuple[Table, np.ndarray]:
        """What a split leaves to judge: users who have no training interaction are left out, and items that only they had. Items that
        others have in valid or test stay, though nothing trains them: they are ranked.

        Raises:
            DataError: a part that had interactions has none any more.
        """
        known = np.zeros(len(self.user_tokens), dtype=bool)
        known[self.users[labels == TRAIN]] = True
        keep = known[self.users]
        for name, label in (("valid", VALID), ("test", TEST)):
            if (labels == label).any() and not (labels[keep] == label).any():
                raise DataError(f"--split=global-time: all users of the {name} part are new; choose other --ratios")
        return self.kept(keep).renumbered(), labels[keep]


@dataclass(frozen=True)
class Features:
    """Features of some items: `values` (R, D) and the row of each token."""

    values: np.ndarray
    row_of: dict[str, int]


def finish(
    table: Table,
    core: int,
    order: Order,
    ratios: tuple[float, float, float],
    seed: int,
    lost: Sequence[str] = (),
) -> tuple[Table, np.ndarray]:
    """What every source goes through: one of each pair, the k-core, numbers, and the split.

    Args:
        lost: what became of lines before, for the error.

    Raises:
        DataError: nothing is left; says where it went.
    """
    pairs = table.deduplicated()
    cored = pairs.core(core).renumbered()
    if not len(cored):
        why = [*lost]
        if len(table) > len(pairs):
            why.append(f"{len(table) - len(pairs)} repeat a pair of user and item")
        if len(pairs):
            users, items = len(np.unique(pairs.users)), len(np.unique(pairs.items))
            why.append(
                f"the {core}-core of the other {len(pairs)} ({users} users, {items} items) is empty; choose a smaller --core"
            )
        raise DataError(f"no interactions are left: {'; '.join(why) or 'there is no line but the header'}")
    return cored, cored.split(order, ratios, seed)


def write_mmrec(
    target: Path,
    table: Table,
    labels: np.ndarray,
    about: dict[str, Any],
    extra: Iterable[Callable[[Path], None]] = (),
) -> None:
    """A folder in the MMRec layout: `<name>.inter`, the original ids in `users.txt` and `items.txt` (line n: id n), and
    `prepared.json` with how it was made.

    Args:
        about: the settings, as plain values.
        extra: further writers, each given the folder. It is a temporary one, renamed when all of them are through.
    """
    with_times = not np.isnan(table.times).all()
    with_ratings = not np.isnan(table.ratings).all()

    def interactions(folder: Path) -> None:
        columns: dict[str, np.ndarray] = {"userID": table.users, "itemID": table.items}
        if with_ratings:
            columns["rating"] = table.ratings
        if with_times:
            columns["timestamp"] = table.times
        frame = pd.DataFrame(columns | {"x_label": labels}).sort_values(["userID", "x_label"], kind="stable")
        frame.to_csv(folder / f"{target.name}.inter", sep="\t", index=False, float_format="%.15g")
        for name, tokens in (("users", table.user_tokens), ("items", table.item_tokens)):
            (folder / f"{name}.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
        (folder / PREPARED).write_text(json.dumps({"version": __version__, **about}, indent=1) + "\n", encoding="utf-8")

    write_folder(target, [interactions, *extra])


def write_folder(target: Path, writers: Iterable[Callable[[Path], None]]) -> None:
    """Fill a temporary folder beside the target and rename it: the target is there as a whole or not at all.

    Raises:
        ConfigError: the target exists, or cannot be made where it should be.
    """
    check_target(target)
    parents = [p for p in target.absolute().parents if not p.exists()]
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-"))
    try:
        for write in writers:
            write(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in parents:
                parent.rmdir()
        raise


def check_target(target: Path) -> None:
    """Before any long work: whether `target` can be made."""
    if target.exists():
        raise ConfigError(f"--output={target}: exists already; remove it, or choose another name")
    there = next(p for p in target.absolute().parents if p.exists())
    if not there.is_dir():
        raise ConfigError(f"--output={target}: {there} is not a folder")


def text_writer(texts: Iterable[Mapping[str, str]]) -> Callable[[Path], None]:
    """Writes items.jsonl, an object a line: 'id' and the fields of each item, in the items' order."""

    def write(folder: Path) -> None:
        lines = (json.dumps(fields, ensure_ascii=False) + "\n" for fields in texts)
        (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")

    return write


def feature_writer(name: str, features: Features, items: Sequence[str]) -> Callable[[Path], None]:
    """Writes `<name>_feat.npy` for the items in their order; where some have none, `<name>_ids.txt` tells whose rows they are.

    Raises:
        DataError: no item has features.
    """
    numbers = [n for n, token in enumerate(items) if token in features.row_of]
    if not numbers:
        raise DataError(f"features '{name}': none of their ids is an item's (e.g. {listed(features.row_of, 3)})")

    def write(folder: Path) -> None:
        rows = [features.row_of[items[n]] for n in numbers]
        shape = (len(rows), features.values.shape[1])
        out = np.lib.format.open_memmap(folder / f"{name}_feat.npy", mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(rows), 4096):
            out[start : start + 4096] = features.values[rows[start : start + 4096]]
        out.flush()
        if len(numbers) < len(items):
            (folder / f"{name}_ids.txt").write_text("".join(f"{n}\n" for n in numbers), encoding="utf-8")

    return write
