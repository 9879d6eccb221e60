"""Item-item graphs from features: the nearest rows by cosine, exact or approximate. Row 0 of features is padding."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec_mrdib.graphs.cache import cached
from mmrec_mrdib.graphs.edges import Edges, power, unit
from mmrec_mrdib.graphs.sparse import gather_rows

logger = logging.getLogger(__name__)
BLOCK = 1 << 24  # entries of a dense block, 64 MB of float32


def inverse_norms(features: Tensor) -> Tensor:
    return power(torch.linalg.vector_norm(features, dim=1), -1.0)


def row_blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def cosines_to_all(features: Tensor, scale: Tensor, rows: slice) -> Tensor:
    """(R, I) cosines of some rows to all; rows without features have cosine 0. No normalised copy of the features."""
    return (features[rows] @ features.T).mul_(scale).mul_(scale[rows, None])


def knn(features: Tensor, k: int, weighted: bool) -> Edges:
    """(I, I): the k rows of largest cosine to each row, itself among them, not symmetrised; exact, in blocks of rows.

    Args:
        features: (I, D), row 0 padding.
        k: neighbours a row (all, if there are fewer items).
        weighted: values are the cosines, negative ones left out; otherwise 1.

    Items without features (a zero row) have no neighbours; unweighted, they have themselves.
    """
    n = len(features)
    scale = inverse_norms(features)
    unknown = (scale == 0).nonzero().flatten()
    k = min(k, n - len(unknown))
    cosines, ids = [], []
    for block in row_blocks(n, n):
        # A row's own length does not change which are its largest: only what is kept is divided by it.
        top = torch.topk((features[block] @ features.T).mul_(scale).index_fill_(1, unknown, -torch.inf), k, dim=1)
        cosines.append(top.values.mul_(scale[block, None]))
        ids.append(top.indices)
    return _neighbour_edges(torch.cat(ids), torch.cat(cosines), scale > 0, weighted)


def _neighbour_edges(ids: Tensor, cosines: Tensor, known: Tensor, weighted: bool) -> Edges:
    """`knn`'s result from each row's neighbours (I, k), their cosines (I, k), and whether each row has features (I,)."""
    n = len(ids)
    keep = known[:, None] & (cosines > 0 if weighted else ids >= 0)
    rows, _ = keep.nonzero(as_tuple=True)
    edges = Edges(rows, ids[keep], cosines[keep], (n, n))
    if weighted:
        return edges
    alone = (~known).nonzero().flatten()[1:]  # the padding has nothing
    loops = Edges(alone, alone, torch.ones(len(alone), device=ids.device), (n, n))
    return unit(edges) + loops


EXACT_UP_TO = 50_000  # items; beyond, comparing all with all takes minutes a modality
MIN_RECALL = 0.955  # of an approximate graph on a sample; 0.95 of the whole, but for a chance in a hundred


def searcher(n_items: int, method: str) -> Callable[[Tensor, int, bool], Edges]:
    """`knn` or `approximate_knn`.

    Args:
        method: 'exact', 'approximate', or 'auto': exact for up to 50,000 items.
    """
    return knn if method == "exact" or (method == "auto" and n_items <= EXACT_UP_TO) else approximate_knn


def nearest(features: Tensor, k: int, weighted: bool, method: str) -> Edges:
    """What `searcher(I, method)` finds, from the cache if it is there."""
    return cached(searcher(len(features), method), features, k, weighted)


def mixed_neighbours(features: Mapping[str, Tensor], weights: Mapping[str, float], k: int, method: str) -> Edges:
    """(I, I): sum_m w_m L(kNN_k(X^m)), unweighted neighbours of each modality (FREEDOM, DRAGON); see `nearest` for `method`."""
    shares = [nearest(features[m], k, False, method).normalised("rows").scaled(w) for m, w in weights.items() if w]
    return functools.reduce(Edges.__add__, shares)


def shrunk_neighbours(features: Tensor, k: int, shrink: float) -> Edges:
    """(I, I): the k largest <x_i, x_j> / (|x_i| |x_j| + shrink) of each row, valued by them (ItemKNNCBF); exact, in blocks of rows.

    Items without features (a zero row) have no neighbours and are none's; an item usually is its own.
    """
    n, norms = len(features), torch.linalg.vector_norm(features, dim=1)
    known = norms > 0
    k = min(k, int(known.sum()))
    values, ids = [], []
    for block in row_blocks(n, n):
        similarity = features[block] @ features.T
        similarity.div_(torch.addr(torch.full_like(similarity, shrink), norms[block], norms))
        top = torch.topk(similarity.masked_fill_(~known, -torch.inf), k, dim=1)
        values.append(top.values)
        ids.append(top.indices)
    kept = known[:, None].expand(n, k)
    rows, _ = kept.nonzero(as_tuple=True)
    return Edges(rows, torch.cat(ids)[kept], torch.cat(values)[kept], (n, n))


def approximate_knn(features: Tensor, k: int, weighted: bool) -> Edges:
    """`knn` with at least MIN_RECALL of the true neighbours: an item is compared with the items of some cells alone (an inverted file).

    Items are put into about 4 sqrt(I) cells (spherical k-means); each item searches the cells whose centres are nearest to it, all items
    that search a cell at once, in one product of dense matrices. How many cells is not guessed: a true neighbour is found if and
    only if its cell is searched, so the true neighbours of 2,000 items drawn at random, and where their cells stand in the order
    of search, tell the recall for any number of cells. The smallest that is enough is taken.

    Time O(I^1.5 D) for a constant number of searched cells; memory: two copies of the features.
    """
    scale = inverse_norms(features)
    known = scale > 0
    ids = known.nonzero().flatten()
    n, k = len(ids), min(k, len(ids))
    rows = gather_rows(features, ids).mul_(scale[ids, None])
    generator = torch.Generator(device=features.device).manual_seed(0)
    centres = _spherical_kmeans(rows, max(1, min(n, round(4 * n**0.5))), generator)
    cell = _nearest_centres(rows, centres, 1).flatten()
    # Rows in the order of their cells: a cell is a slice.
    order = torch.argsort(cell, stable=True)
    rows, cell, ids = rows[order], cell[order], ids[order]
    start = F.pad(torch.bincount(cell, minlength=len(centres)).cumsum(0), (1, 0)).tolist()
    searched = _cells_to_search(rows, cell, centres, k, generator)
    # Who searches a cell: the pairs (row, cell), by cell.
    wanted = _nearest_centres(rows, centres, searched).flatten()
    by_cell = torch.argsort(wanted, stable=True)
    seekers = (by_cell // searched).split(torch.bincount(wanted, minlength=len(centres)).tolist())
    cosines = torch.full((n, k), -torch.inf, device=rows.device)
    found = torch.full((n, k), -1, device=rows.device)
    for c, everybody in enumerate(seekers):
        members = rows[start[c] : start[c + 1]]
        if not len(members):
            continue
        for who in everybody.split(max(1, BLOCK // len(members))):
            top = torch.topk(gather_rows(rows, who) @ members.T, min(k, len(members)), dim=1)
            values = torch.cat([gather_rows(cosines, who), top.values], 1)
            places = torch.cat([gather_rows(found, who), top.indices + start[c]], 1)
            best = torch.topk(values, k, dim=1)
            cosines[who], found[who] = best.values, places.gather(1, best.indices)
    all_ids = torch.full((len(features), k), -1, device=rows.device)
    all_cosines = torch.full((len(features), k), -torch.inf, device=rows.device)
    all_ids[ids], all_cosines[ids] = torch.where(found < 0, -1, ids[found]), cosines  # -1: cells with fewer than k rows
    return _neighbour_edges(all_ids, all_cosines, known, weighted)


def _cells_to_search(rows: Tensor, cell: Tensor, centres: Tensor, k: int, generator: torch.Generator) -> int:
    """The smallest number of cells that finds MIN_RECALL of the true neighbours of a sample."""
    sample = torch.randint(len(rows), (min(2000, len(rows)),), generator=generator, device=rows.device)
    found = torch.zeros(len(centres), device=rows.device)
    for part in sample.split(max(1, BLOCK // len(rows))):
        true = torch.topk(rows[part] @ rows.T, k, dim=1).indices
        position = torch.argsort(_nearest_centres(rows[part], centres, len(centres)), dim=1)
        found += position.gather(1, cell[true]).flatten().bincount(minlength=len(centres))
    recall = found.cumsum(0) / (len(sample) * k)
    searched = min(int((recall < MIN_RECALL).sum()) + 1, len(centres))
    logger.info(
        "approximate neighbours: %d of %d cells searched, recall %.3f", searched, len(centres), recall[searched - 1]
    )
    return searched


def _nearest_centres(rows: Tensor, centres: Tensor, n: int) -> Tensor:
    """(R, n) the n centres nearest to each row, nearest first."""
    parts = rows.split(max(1, BLOCK // len(centres)))
    return torch.cat([torch.topk(part @ centres.T, n, dim=1).indices for part in parts])


def _spherical_kmeans(rows: Tensor, k: int, generator: torch.Generator, rounds: int = 8) -> Tensor:
    """(k, D) centres of length 1 of rows of length 1, from at most 32 rows a centre; a centre that loses all rows stays."""
    drawn = torch.randperm(len(rows), generator=generator, device=rows.device)
    rows = gather_rows(rows, drawn[: 32 * k])
    centres = rows[:k].clone()
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, _nearest_centres(rows, centres, 1).flatten(), rows)
        lengths = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
        centres = torch.where(lengths > 0, sums / lengths, centres)
    return centres


def agreeing_knn(features: Sequence[Tensor], which: int, k: int) -> Edges:
    """(I, I), ones: `knn` of the features numbered `which`, among the items that all features agree on (DA-MRS).

    An item survives in a row where in every modality its cosine is at least that modality's mean over all pairs of items, which is
    |mean of the unit rows|^2. Rows have fewer than k where fewer survive; a row without any keeps itself, as do items that lack a
    modality.
    """
    n = len(features[0])
    scales = [inverse_norms(x) for x in features]
    known = torch.stack(scales).amin(0) > 0
    means = [(x.T @ scale).square().sum() / (n - 1) ** 2 for x, scale in zip(features, scales, strict=True)]
    rows, cols = [], []
    for block in row_blocks(n, (len(features) + 1) * n):
        keep = known[block, None] & known
        for number, (x, scale, mean) in enumerate(zip(features, scales, means, strict=True)):
            cosines = cosines_to_all(x, scale, block)
            keep &= cosines >= mean
            if number == which:
                own = cosines
        top = torch.topk(own.masked_fill_(~keep, -torch.inf), min(k, n), dim=1)
        row, at = (top.values > -torch.inf).nonzero(as_tuple=True)
        rows.append(row + block.start)
        cols.append(top.indices[row, at])
    found = torch.cat(rows)
    alone = (torch.bincount(found, minlength=n) == 0).nonzero().flatten()[1:]  # the padding has nothing
    places = torch.cat([found, alone]), torch.cat([torch.cat(cols), alone])
    return Edges(*places, torch.ones(len(places[0]), device=found.device), (n, n))
