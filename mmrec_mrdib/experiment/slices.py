"""Whose interactions a model finds: those of rare items or of popular ones, of users with few items or of active ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import topk
from mmrec_mrdib.experiment.export import Trained

# The smallest count of each bin: the last has no end.
POPULARITY = (0, 1, 3, 6, 11)
HISTORY = (1, 4, 6, 11, 21)
SPLITS = ("valid", "test")


def by_popularity(trained: Trained, k: int = 20, split: str = "valid") -> dict[str, dict[str, Any]]:
    """Interactions of a split that are found in the top k, by how many training interactions their item has.

    Returns:
        Bin ('0', '1-2', ..., 'more than 10') -> 'interactions' (how many), 'found' (how many of them are among the k items that rank best
        for their user, with the items masked that evaluation masks), 'share' (found / interactions, None in an empty bin).

    Raises:
        ConfigError: a k below 1, or no such split.
    """
    _, items, found = found_in_top(trained, k, split)
    return _shares(_counts(trained, trained.dataset.iid_field, trained.dataset.item_num)[items], found, POPULARITY)


def by_history(trained: Trained, k: int = 20, split: str = "valid") -> dict[str, dict[str, Any]]:
    """As `by_popularity`, by how many training interactions the user has: '1-3', '4-5', ..., 'more than 20'."""
    users, _, found = found_in_top(trained, k, split)
    return _shares(_counts(trained, trained.dataset.uid_field, trained.dataset.user_num)[users], found, HISTORY)


@torch.no_grad()
def found_in_top(trained: Trained, k: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """(users, items, found) of the split's interactions, (E,) each: internal ids, and whether the item is in the user's top k."""
    if k < 1:
        raise ConfigError(f"k={k}: expected 1 or more")
    if split not in SPLITS:
        raise ConfigError(f"split={split}: expected one of {', '.join(SPLITS)}")
    dataset, n_items = trained.dataset, trained.dataset.item_num
    outcome = []
    for block in getattr(trained.splits, split):
        best, _ = topk(trained.model, block, dataset.uid_field, n_items, min(k, n_items))
        listed = torch.zeros(len(best), n_items, dtype=torch.bool, device=best.device).scatter_(1, best, True)
        rows = torch.div(block.relevant, n_items, rounding_mode="floor")
        outcome.append((block.users[rows], block.relevant % n_items, listed.view(-1)[block.relevant]))
    users, items, found = (torch.cat(parts).cpu() for parts in zip(*outcome, strict=True))
    return users, items, found


def _counts(trained: Trained, field: str, n: int) -> Tensor:
    """(n,) training interactions of each user or item."""
    return torch.bincount(trained.splits.parts[0].inter_feat[field], minlength=n)


def _shares(counts: Tensor, found: Tensor, starts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """
    Args:
        counts: (E,) what the interactions are binned by, starts[0] at least.
        found: (E,) bool.
        starts: the smallest count of each bin, ascending.
    """
    place = torch.bucketize(counts, torch.tensor(starts), right=True) - 1
    every, hit = (torch.bincount(p, minlength=len(starts)).tolist() for p in (place, place[found]))
    return {
        name: {"interactions": n, "found": f, "share": f / n if n else None}
        for name, n, f in zip(_names(starts), every, hit, strict=True)
    }


def _names(starts: Sequence[int]) -> list[str]:
    """'0', '1-2', 'more than 10'."""
    ends = [start - 1 for start in starts[1:]]
    named = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=False)]
    return [*named, f"more than {ends[-1]}"]
