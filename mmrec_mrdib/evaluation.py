"""Full-ranking evaluation: every item but the masked ones is ranked for every user of a split, without a loop over users.

RecBole's metric classes still compute every ranking metric that is not one of the six here (coverage, Gini index, ...).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrec_mrdib.distributed import ALONE, Ranks
from mmrec_mrdib.errors import NonFiniteLossError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.process import available_memory

logger = logging.getLogger(__name__)
RECBOLE_ONLY = ("itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage")
MIN_USERS = 32  # at a time, however many items there are: fewer would read all items for next to nothing
PAIRS = 2048  # scored at a time by models without full ranking: ConvNCF takes 200 kB for each
# Scores at a time: a CPU's caches gain nothing beyond the first, a GPU's launches nothing beyond the second.
AUTO = 1 << 20, 1 << 28
BYTES_A_SCORE = 16  # the score, a product it is added to, whether it is relevant, and what top-k needs
PER_USER = ("recall", "ndcg", "precision", "map", "hit", "mrr")


def scores_in_memory(configured: int | str, device: torch.device) -> int:
    """User-item scores that are computed at a time, a number or 'auto': by the memory that is free on the device, of which they take a
    quarter at most. How many they are changes no ranking."""
    if configured != "auto":
        return int(configured)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    fitting = AUTO[0] if free is None else free // (4 * BYTES_A_SCORE)
    n = min(max(fitting, AUTO[0]), AUTO[1] if device.type == "cuda" else AUTO[0])
    told = "unknown" if free is None else f"{free / 2**30:.1f} GiB"
    logger.info("eval_batch_size=auto: %d scores at a time (memory free on %s: %s)", n, device, told)
    return n


def by_user(users: Tensor, items: Tensor, n_users: int) -> tuple[Tensor, Tensor]:
    """(indptr (U+1,), items sorted by user): the rows of a sparse matrix."""
    order = torch.argsort(users, stable=True)
    indptr = torch.zeros(n_users + 1, dtype=torch.long, device=users.device)
    torch.cumsum(torch.bincount(users, minlength=n_users), 0, out=indptr[1:])
    return indptr, items[order]


def cells(users: Tensor, indptr: Tensor, items: Tensor, n_items: int) -> tuple[Tensor, Tensor]:
    """Flat positions row * I + item, in a (B, I) score matrix of these users, of the items that `by_user` lists for them;
    and how many they are for each user (B,)."""
    counts = indptr[users + 1] - indptr[users]
    row = torch.repeat_interleave(torch.arange(len(users), device=users.device), counts)
    start = torch.repeat_interleave(indptr[users] - torch.cumsum(counts, 0) + counts, counts)
    return row * n_items + items[start + torch.arange(len(row), device=users.device)], counts


@dataclass(frozen=True)
class Block:
    """Users of one evaluation step and their cells in the (B, I) score matrix, as flat positions row * I + item."""

    users: Tensor
    masked: Tensor
    relevant: Tensor
    n_relevant: Tensor


class RankingSplit:
    """An evaluated split: its users, their relevant items, and the items left out of their rankings.

    Args:
        name: 'valid' or 'test'.
        users, items: (E,) the split's interactions.
        masks: pairs (users, items) of interactions whose items are not ranked for their user.
        scores_in_memory: user-item scores computed at a time, but those of MIN_USERS at least.
        padded: whether item 0 is padding, which is never ranked.
        ranks: number of processes that share the blocks: as many for each.
    """

    def __init__(
        self,
        name: str,
        users: Tensor,
        items: Tensor,
        masks: Sequence[tuple[Tensor, Tensor]],
        n_users: int,
        n_items: int,
        scores_in_memory: int,
        padded: bool = True,
        ranks: int = 1,
    ) -> None:
        self.name = name
        self.n_items = n_items
        self.users = torch.unique(users)
        per_block = max(scores_in_memory // n_items, MIN_USERS)
        if ranks > 1:
            rounds = -(-len(self.users) // (ranks * per_block))
            per_block = max(-(-len(self.users) // (ranks * rounds)), 1)
        relevant = by_user(users, items, n_users)
        pad = torch.arange(n_users if padded else 0, device=users.device)
        mask_users = torch.cat([pad, *(u for u, _ in masks)])
        mask_items = torch.cat([torch.zeros_like(pad), *(i for _, i in masks)])
        masked = by_user(mask_users, mask_items, n_users)
        self.blocks: list[Block] = []
        for part in self.users.split(per_block):
            hits, counts = cells(part, *relevant, n_items)
            self.blocks.append(Block(part, cells(part, *masked, n_items)[0], hits, counts))

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)


@dataclass
class Ranking:
    """Outcome of a full ranking.

    Attributes:
        users: (N,) internal ids of the evaluated users.
        per_user: 'recall@20', ... -> (N,) float64 values.
        other: values of metrics that have no per-user value (RecBole's), by name.
    """

    users: np.ndarray
    per_user: dict[str, np.ndarray]
    other: dict[str, float] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.per_user.items()} | self.other


def score_all(model: Any, users: Tensor, user_field: str, n_items: int) -> Tensor:
    """(B, I) scores of users (B,), on their device; of models that score pairs only (RecBole's NeuMF, ...) pair by pair, in blocks."""
    recboles = sys.modules.get("recbole.model.abstract_recommender")  # not loaded: the model is none of RecBole's
    if recboles is None:
        scores = model.full_sort_predict({user_field: users})
        return scores.to(users.device).view(len(users), n_items)
    from recbole.data.interaction import Interaction

    if getattr(type(model), "full_sort_predict", None) is not recboles.AbstractRecommender.full_sort_predict:
        scores = model.full_sort_predict(Interaction({user_field: users}))
    else:
        pairs = torch.cartesian_prod(users, torch.arange(n_items, device=users.device))
        blocks = (Interaction({user_field: p[:, 0], model.ITEM_ID: p[:, 1]}) for p in pairs.split(PAIRS))
        scores = torch.cat([model.predict(block).reshape(-1) for block in blocks])
    return scores.to(users.device).view(len(users), n_items)


def topk(model: Any, block: Block, user_field: str, n_items: int, k: int) -> tuple[Tensor, Tensor]:
    """Best k items of each user of a block (B, k), and whether each is relevant (B, k) bool; one of score -inf is not ranked, and no hit."""
    scores = score_all(model, block.users, user_field, n_items)
    scores.view(-1)[block.masked] = -torch.inf
    values, best = torch.topk(scores, k, dim=1)
    _check_scores(model, values)
    relevant = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    relevant[block.relevant] = True
    return best, relevant.view_as(scores).gather(1, best) & (values > -torch.inf)


def _check_scores(model: Any, values: Tensor) -> None:
    """`values` are each user's largest: NaN counts as the largest."""
    if bool(values.isnan().any()):
        raise NonFiniteLossError(
            f"{type(model).__name__} scores items with NaN: its parameters or the data let it diverge"
        )


@torch.no_grad()
def rank(
    model: Any,
    split: RankingSplit,
    metrics: Sequence[str],
    ks: Sequence[int],
    user_field: str,
    recbole_metrics: Mapping[str, Any] | None = None,
    recbole_data: Any = None,
    ranks: Ranks = ALONE,
) -> Ranking:
    """Rank the split with the model (in evaluation mode) and compute the metrics at each k.

    Args:
        metrics: names out of `PER_USER`.
        user_field: the name under which the model reads user ids.
        recbole_metrics: name -> RecBole metric object, for the others.
        recbole_data: RecBole's DataStruct with what these need of the training data.
        ranks: processes that rank some blocks of users each; all return the whole.
    """
    width = min(max(ks), split.n_items)
    part = ranks.part(len(split))
    with ranks.agreeing():
        outcome = [topk(model, block, user_field, split.n_items, width) for block in split.blocks[part]]
    if ranks.several:
        at, n = sum(len(block.users) for block in split.blocks[: part.start]), len(split.users)
        best, hit = (ranks.joined([pair[i] for pair in outcome], at, n, width) for i in (0, 1))
        hit = hit.bool()
    else:
        best, hit = (torch.cat(parts) for parts in zip(*outcome, strict=True))
    n_relevant = torch.cat([block.n_relevant for block in split])
    per_user = _per_user(hit, n_relevant, metrics, ks)
    other: dict[str, float] = {}
    if recbole_metrics:
        recbole_data.set("rec.items", best.cpu())
        recbole_data.set("rec.topk", torch.cat([hit.long(), n_relevant[:, None]], 1).cpu())
        for metric in recbole_metrics.values():
            other |= {name: float(value) for name, value in metric.calculate_metric(recbole_data).items()}
    return Ranking(split.users.cpu().numpy(), per_user, other)


def _per_user(hit: Tensor, n_relevant: Tensor, metrics: Sequence[str], ks: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        f"{name}@{k}": values.cpu().numpy()
        for name in metrics
        for k, values in ranking_metric(name, hit, n_relevant, ks).items()
    }


@torch.no_grad()
def rank_ladder(
    model: Any,
    split: RankingSplit,
    metrics: Sequence[str],
    ks: Sequence[int],
    user_field: str,
    judge: str,
    bigger: bool = True,
) -> Ranking:
    """`rank` of a model with a readout (`plugins/channel.py`) at several of its weights, scores being made once; the model takes the weight
    that is best by `judge`, of equally good ones the smallest.

    Args:
        judge: a metric at a k, as in 'recall@20'.
        bigger: whether more of it is better.

    Returns:
        The ranking at that weight.
    """
    unit, rungs, ladder = model.scale([block.users for block in split]), model.rungs(), model.settings.readout_ladder
    width = min(max(ks), split.n_items)
    hits: dict[int, list[Tensor]] = {rung: [] for rung in rungs}
    content = model.catalogue()[1]
    for block in split:
        scores = model.host_scores(block.users)
        scores.view(-1)[block.masked] = -torch.inf
        beside = model.profiles(block.users) @ content.T
        relevant = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        relevant[block.relevant] = True
        for rung in rungs:
            values, best = torch.topk(torch.add(scores, beside, alpha=ladder[rung] * unit), width, dim=1)
            _check_scores(model, values)
            hits[rung].append(relevant.view_as(scores).gather(1, best))
    n_relevant = torch.cat([block.n_relevant for block in split])
    rankings = {
        rung: Ranking(split.users.cpu().numpy(), _per_user(torch.cat(hit), n_relevant, metrics, ks))
        for rung, hit in hits.items()
    }
    sign = 1 if bigger else -1
    chosen = max(rungs, key=lambda rung: (sign * rankings[rung].means[judge], -rung))
    model.choose(chosen, unit)
    return rankings[chosen]


class NewItems:
    """A model as `rank` takes it, that ranks only items held out of training, from their modality representations.

    Args:
        model: keeps the contract, in evaluation mode.
        items: (R,) sorted internal ids of the held-out items.

    Raises:
        ConfigError: the model is not defined for such items.
    """

    def __init__(self, model: Any, items: Tensor) -> None:
        self.model, self.items = model, items
        with torch.no_grad():
            self.scorer = model.new_scorer({m: gather_rows(model.features(m), items) for m in model.modalities}, items)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        known = self.scorer(interaction[self.model.USER_ID])
        scores = known.new_full((len(known), self.model.n_items), -torch.inf)
        scores[:, self.items] = known
        return scores


class Popularity:
    """A model as `rank` takes it, that ranks for everyone by how many interactions an item has in training: what knows neither users
    nor features must be beaten by what knows them.

    Args:
        items: (E,) items of the training interactions. Of equally popular ones the smaller id comes first.
        user_field: see `rank`.
    """

    def __init__(self, items: Tensor, n_items: int, user_field: str) -> None:
        order = torch.bincount(items, minlength=n_items).argsort(descending=True, stable=True)
        self.scores = torch.empty(n_items, device=items.device)
        self.scores[order] = torch.arange(n_items, 0, -1.0, device=items.device)
        self.user_field = user_field

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.scores.repeat(len(interaction[self.user_field]), 1)


class Unimodal:
    """A model as `rank` takes it, that ranks by one modality alone: s_m(u, i) = <p_u^m, q_i^m>.

    Args:
        model: keeps the contract.
        users, items: (U, d) and (I, d), p^m and q^m.
    """

    def __init__(self, model: Any, users: Tensor, items: Tensor) -> None:
        self.model, self.users, self.items = model, users.to(model.device), items.to(model.device)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.users[interaction[self.model.USER_ID]] @ self.items.T


def ranking_metric(name: str, hit: Tensor, n_relevant: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    """A metric of each user at each k, (N,) float64.

    Args:
        hit: (N, K) bool, whether the item at each rank is relevant.
        n_relevant: (N,) number of relevant items, at least 1.

    Recall = hits / n; Precision = hits / k; NDCG with binary gains, ideal over min(k, n); MAP = sum of precision at the
    hits / min(k, n); Hit = any; MRR = 1 / rank of the first hit. As in RecBole's metric classes.
    """
    hit = hit.to(torch.float64)
    rank_ = torch.arange(1, hit.shape[1] + 1, dtype=torch.float64, device=hit.device)
    n = n_relevant.to(torch.float64)
    hits = hit.cumsum(1)
    match name:
        case "recall" | "precision" | "hit":
            gain, norm = hits, None
        case "ndcg":
            gain, norm = (hit / torch.log2(rank_ + 1)).cumsum(1), (1 / torch.log2(rank_ + 1)).cumsum(0)
        case "map":
            gain, norm = (hit * hits / rank_).cumsum(1), rank_
        case "mrr":
            gain, norm = (hit * (hits == 1) / rank_).cumsum(1), None
        case _:
            raise ValueError(f"no per-user metric '{name}'; expected one of {', '.join(PER_USER)}")
    out = {}
    for k in ks:
        at = gain[:, min(k, hit.shape[1]) - 1]
        if name == "recall":
            at = at / n
        elif name == "precision":
            at = at / k
        elif name == "hit":
            at = (at > 0).to(torch.float64)
        elif norm is not None:
            at = at / norm[n_relevant.clamp(max=min(k, len(norm))) - 1]
        out[k] = at
    return out
