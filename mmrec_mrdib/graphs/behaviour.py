"""Graphs from interactions beyond the user-item graph itself: users with common items, SOIL's second-order interests, PGL's spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from mmrec_mrdib.graphs.cache import cached
from mmrec_mrdib.graphs.edges import Edges, unit
from mmrec_mrdib.graphs.neighbours import BLOCK, cosines_to_all, inverse_norms, row_blocks
from mmrec_mrdib.graphs.segments import segment_softmax


def cooccurrence(interactions: Edges, k: int) -> Edges:
    """(U, U): for each user the k others with most items in common (at least one), and that number; ties to the lower id.

    A A^T in blocks of rows, sparse throughout.
    """
    a = interactions.scipy()
    a.data[:] = 1.0
    flipped = a.T.tocsr()
    n_users = interactions.shape[0]
    parts = []
    # the entries of a block of the product are bounded by those of its summands
    work = np.concatenate([[0], np.cumsum(a @ np.diff(flipped.indptr).astype(np.float64))])
    start = 0
    while start < n_users:
        stop = max(start + 1, int(np.searchsorted(work, work[start] + BLOCK, side="right")) - 1)
        counts = (a[start:stop] @ flipped).tocoo()
        row, col, value = counts.row + start, counts.col, counts.data
        other = row != col
        row, col, value = row[other], col[other], value[other]
        order = np.lexsort((col, -value, row))
        row, col, value = row[order], col[order], value[order]
        first = np.searchsorted(row, row)  # where each row begins
        top = np.arange(len(row)) - first < k
        parts.append((row[top], col[top], value[top]))
        start = stop
    rows, cols, values = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Edges(
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(cols.astype(np.int64)),
        torch.from_numpy(values.astype(np.float32)),
        (n_users, n_users),
    )


def similar_users(interactions: Edges, k: int) -> Edges:
    """(U, U): `cooccurrence` with the softmax of each user's numbers as values; they sum to 1, or there are none (DualGNN, DRAGON)."""
    common = cached(cooccurrence, interactions, k)
    return replace(common, values=segment_softmax(common.values, common.rows, common.shape[0]))


def interests(interactions: Edges, features: Sequence[Tensor], n: int) -> Edges:
    """(U, I), ones: K_u, the union over modalities of the n items of largest sum of cosines to the user's items (SOIL).

    Negative cosines count as 0. Memory: blocks of columns, O(block * (U + I)).
    """
    n_users, n_items = interactions.shape
    taken = unit(interactions).matrix()
    places = []
    for x in features:
        scale = inverse_norms(x)
        best = torch.zeros(n_users, 0)
        ids = torch.zeros(n_users, 0, dtype=torch.long)
        for block in row_blocks(n_items, n_items + 2 * n_users):
            scores = taken(cosines_to_all(x, scale, block).clamp_(min=0).T.contiguous())
            columns = torch.arange(block.start, block.stop).expand(n_users, -1)
            best, at = torch.topk(torch.cat([best, scores], 1), min(n, best.shape[1] + scores.shape[1]), dim=1)
            ids = torch.cat([ids, columns], 1).gather(1, at)
        users, _ = (best > 0).nonzero(as_tuple=True)
        places.append(users * n_items + ids[best > 0])
    keys = torch.unique(torch.cat(places))
    return Edges(keys // n_items, keys % n_items, torch.ones(len(keys)), interactions.shape)


def interest_graph(interactions: Edges, wanted: Edges, features: Tensor) -> Edges:
    """(I, I): cosine(t, k) times the number of users who have item t and whose interests `wanted` hold k (SOIL).

    Negative cosines count as 0; zero entries are left out. Sparse counts, cosines in blocks of rows.
    """
    n_items = interactions.shape[1]
    takers, interested = unit(interactions).scipy().T.tocsr(), wanted.scipy()
    scale = inverse_norms(features)
    rows, cols, values = [], [], []
    for block in row_blocks(n_items, n_items):
        part = (takers[block] @ interested).tocoo()
        row, col = torch.from_numpy(part.row.astype(np.int64)), torch.from_numpy(part.col.astype(np.int64))
        value = cosines_to_all(features, scale, block).clamp_(min=0)[row, col] * torch.from_numpy(part.data)
        keep = value > 0
        rows.append(row[keep] + block.start)
        cols.append(col[keep])
        values.append(value[keep])
    return Edges(torch.cat(rows), torch.cat(cols), torch.cat(values).float(), (n_items, n_items))


def interest_edges(interactions: Edges, features: Sequence[Tensor], n: int) -> Edges:
    """(U, I): second-order interests of a user (SOIL), weighted by the product over modalities of the cosines.

    Of all pairs (t, k) of an item t of the user and any item k, those |T_u| + n of largest product: each (t, t), whose
    product is 1, and the n largest others. A pair adds its product to the edge (u, k). An item t can contribute at most its n
    nearest others, so that a list of n a row is all that is kept of the items x items products.
    """
    n_items = interactions.shape[1]
    scales = [inverse_norms(x) for x in features]
    nearest = min(n, n_items - 1)
    near, product, own = [], [], []
    for block in row_blocks(n_items, n_items):
        products = torch.ones(())
        for x, scale in zip(features, scales, strict=True):
            products = cosines_to_all(x, scale, block).clamp_(min=0) * products
        here = torch.arange(block.start, block.stop)[:, None]
        own.append(products.gather(1, here).squeeze(1))
        top = torch.topk(products.scatter_(1, here, -1.0), nearest, dim=1)
        near.append(top.indices)
        product.append(top.values)
    ids, weights = torch.cat(near), torch.cat(product)
    users, items = interactions.rows, interactions.cols
    loops = Edges(users, items, torch.cat(own)[items], interactions.shape)
    pool = Edges(users.repeat_interleave(nearest), ids[items].flatten(), weights[items].flatten(), interactions.shape)
    order = torch.argsort(pool.values, descending=True, stable=True)
    pool = pool.kept(order[torch.argsort(pool.rows[order], stable=True)])  # by user, largest first
    rank = torch.arange(len(pool)) - torch.searchsorted(pool.rows, pool.rows)
    edges = loops + pool.kept(rank < n)
    return edges.kept(edges.values > 0).coalesced()


def principal(normalised: Edges, rank: int, keep: int, least: float) -> Edges:
    """(U, I) entries of sum_{j <= keep} s_j s_{rank - keep + j} u_j v_j^T that are at least `least` in size (PGL's global graph).

    s_1 >= ... >= s_rank are the largest singular values of the normalised (U, I) matrix and u_j, v_j their vectors: the largest values
    are weighted by the least of those computed. The square graph's spectrum has every s twice, so this is its part of 2 keep triplets of 2 rank.
    Lanczos, then blocks of rows; with fewer rows or columns than 3 rank, dense.
    """
    matrix = normalised.scipy().astype(np.float64)
    if min(matrix.shape) < 3 * rank:
        u, s, vt = np.linalg.svd(matrix.toarray(), full_matrices=False)
        s = np.pad(s, (0, max(0, rank - len(s))))
    else:
        start = np.random.default_rng(0).normal(size=min(matrix.shape))
        u, s, vt = scipy.sparse.linalg.svds(matrix, rank, v0=start)
        u, s, vt = u[:, ::-1], s[::-1], vt[::-1]
    keep = min(keep, len(vt))
    left = torch.from_numpy(u[:, :keep] * (s[:keep] * s[rank - keep : rank])).float()
    right = torch.from_numpy(vt[:keep].copy()).float()
    rows, cols, values = [], [], []
    for block in row_blocks(*normalised.shape):
        entries = left[block] @ right
        row, col = (entries.abs() >= least).nonzero(as_tuple=True)
        rows.append(row + block.start)
        cols.append(col)
        values.append(entries[row, col])
    return Edges(torch.cat(rows), torch.cat(cols), torch.cat(values), normalised.shape)
