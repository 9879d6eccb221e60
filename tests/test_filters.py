"""Intervals in RecBole's forms, and the interactions that they leave."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_mrdib.data.filters import Intervals, by_number
from mmrec_mrdib.errors import ConfigError


@pytest.mark.parametrize(
    ("given_", "within"),
    [
        ("[2,4)", [2, 3]), ("(2,4]", [3, 4]), ("[8,inf)", []), ("[1,1];(3,9)", [1, 4, 5]), ([2, 3], [2, 3]), ([4, "inf"], [4, 5]),
        ('"[1,2]"', [1, 2]), ("(-inf, 1]", [0, 1]),
    ],
)  # fmt: skip
def test_intervals(given_, within):
    values = np.array([*range(6), np.nan])
    assert values[Intervals("x", given_)(values)].tolist() == within


@pytest.mark.parametrize("wrong", ["", "8", "[8]", "[8,", "{1,2}", "[5,2]", "[a,b]", [1, 2, 3], "[1,2];", True])
def test_what_is_no_interval(wrong):
    with pytest.raises(ConfigError, match=r"--val_interval\.rating=.*\[8,inf\)"):
        Intervals("val_interval.rating", wrong)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40), st.integers(0, 3), st.integers(0, 6))
def test_by_number_is_the_repeated_removal(rows, low, more):
    high = low + more
    users, items = (np.array([r[c] for r in rows], dtype=np.int64) for c in (0, 1))
    limits = [Intervals("u", f"[{low},{high}]"), Intervals("i", f"[{low},inf)")]
    left = list(range(len(rows)))
    while True:
        per_user, per_item = [users[n] for n in left], [items[n] for n in left]
        kept = [n for n in left if low <= per_user.count(users[n]) <= high and low <= per_item.count(items[n])]
        if kept == left:
            break
        left = kept
    keep, gone = by_number([users, items], limits)
    assert np.flatnonzero(keep).tolist() == left
    assert not set(users[keep]) & set(np.flatnonzero(gone[0])) and not set(items[keep]) & set(np.flatnonzero(gone[1]))
