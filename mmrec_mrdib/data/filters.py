"""Intervals of numbers as RecBole writes them, and the part of the interactions that has so many a user and an item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmrec_mrdib.errors import ConfigError


class Intervals:
    """A union of intervals: '[8,inf)', '(0,1];[3,4)', or the list [1, 11] that YAML makes of '[1,11]'.

    Args:
        key: the parameter it was given for.

    Raises:
        ConfigError: something else.
    """

    def __init__(self, key: str, given: Any) -> None:
        text = f"[{','.join(map(str, given))}]" if isinstance(given, list | tuple) else str(given)
        self.parts: list[tuple[float, float, bool, bool]] = []
        for part in text.strip().strip("'\"").split(";"):
            part = part.strip()
            try:
                low, high = (float(x) for x in part[1:-1].split(","))
                good = part[0] in "[(" and part[-1] in "])" and low <= high
            except ValueError:
                good = False
            if not good:
                raise ConfigError(f"--{key}={given}: expected intervals such as [8,inf) or [1,5];[8,11]")
            self.parts.append((low, high, part[0] == "[", part[-1] == "]"))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Which of the numbers are within; NaN is not."""
        within = np.zeros(len(values), dtype=bool)
        for low, high, with_low, with_high in self.parts:
            above = values >= low if with_low else values > low
            within |= above & (values <= high if with_high else values < high)
        return within


def by_number(columns: Sequence[np.ndarray], limits: Sequence[Intervals | None]) -> tuple[np.ndarray, list[np.ndarray]]:
    """What is left when users and items with too few or too many interactions go, again and again until nothing changes.

    Args:
        columns: for users and for items, (E,) their number in each interaction, from 0.
        limits: how many interactions each may have.

    Returns:
        (E,) bool, the interactions that are left; for users and for items, (N,) bool, which had to go.
    """
    keep = np.ones(len(columns[0]), dtype=bool)
    sizes = [int(c.max()) + 1 if len(c) else 0 for c in columns]
    gone = [np.zeros(n, dtype=bool) for n in sizes]
    while True:
        left = np.flatnonzero(keep)
        outside = np.zeros(len(left), dtype=bool)
        for column, n, limit, out in zip(columns, sizes, limits, gone, strict=True):
            if limit is not None:
                out |= ~limit(np.bincount(column[left], minlength=n))
                outside |= out[column[left]]
        if not outside.any():
            return keep, gone
        keep[left[outside]] = False


def split_fingerprint(ids: Sequence[np.ndarray], parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """Hash of what is ranked and judged: the ids of users and of items, and their interactions in each split, in whatever order they are
    stored (hex, 16 digits). Two results with the same one can be compared.

    Args:
        ids: (U,) of the users and (I,) of the items, each once.
        parts: of each split (users (E,), items (E,)) as places in `ids`; a pair that stands there twice counts once.
    """
    digest = hashlib.blake2b(digest_size=8)
    ranks = []
    for each in ids:
        tokens = np.asarray(each).astype(str)
        order = np.argsort(tokens)
        digest.update("\n".join([*tokens[order], ""]).encode())
        ranks.append(np.empty(len(tokens), dtype=np.int64))
        ranks[-1][order] = np.arange(len(tokens))
    for users, items in parts:
        keys = np.unique(ranks[0][users] * (len(ranks[1]) + 1) + ranks[1][items])
        digest.update(str(len(keys)).encode() + keys.tobytes())
    return digest.hexdigest()
