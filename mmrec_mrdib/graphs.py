"""Every graph of every model: built, normalised, pruned, cached and multiplied here.

A graph under construction is an `Edges` (a sparse matrix as rows, columns and values); what a model keeps is a
`SparseMatrix`, which multiplies dense matrices by CSR products with a backward of its own. Ids are RecBole's: id 0 is the
padding of users and of items, and never has an edge.

    interactions -> Edges.normalised("both").both_ways().matrix()      the symmetrically normalised user-item graph
    nearest(features, 10, True, "auto").normalised("rows").matrix()    an item-item graph from features

Nothing here holds items x items or users x users entries: similarities are made in blocks of rows.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib import paths

try:
    import torch_scatter
except (ImportError, OSError):  # OSError: built against another PyTorch
    torch_scatter = None

with warnings.catch_warnings():  # PyTorch says once a process that CSR tensors are in beta: here, where nobody listens
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0), (1, 1))
logger = logging.getLogger(__name__)
CACHE_VERSION = 1  # raise it when a builder below computes something else
_BLOCK = 1 << 24  # entries of a dense block, 64 MB of float32


# A sparse matrix under construction.


@dataclass(frozen=True)
class Edges:
    """A sparse matrix as a list of entries; entries at one place count as their sum.

    Attributes:
        rows, cols: (E,) int64 places.
        values: (E,) float32.
        shape: numbers of rows and of columns.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.values)

    def __add__(self, other: Edges) -> Edges:
        assert self.shape == other.shape
        joined = [torch.cat(pair) for pair in zip(self._tensors(), other._tensors(), strict=True)]
        return Edges(joined[0], joined[1], joined[2], self.shape)

    def scaled(self, factor: float | Tensor) -> Edges:
        """The same places, each value times the factor, () or (E,)."""
        return replace(self, values=self.values * factor)

    def kept(self, which: Tensor) -> Edges:
        """The entries that an (E,) mask or ids select."""
        return Edges(self.rows[which], self.cols[which], self.values[which], self.shape)

    def sums(self, axis: Literal["rows", "cols"]) -> Tensor:
        """Sum of the values of each row or of each column, float64."""
        index, size = (self.rows, self.shape[0]) if axis == "rows" else (self.cols, self.shape[1])
        return torch.bincount(index, self.values.double(), minlength=size)

    def normalised(self, norm: Literal["both", "rows", "mean"]) -> Edges:
        """Values divided by

        - 'both': sqrt(sum of the row * sum of the column), the symmetric normalisation D_r^-1/2 A D_c^-1/2;
        - 'rows': sqrt(sum of row a * sum of row b) for a square matrix, the row sums in both factors even where it is not
          symmetric (the papers' L of a kNN graph);
        - 'mean': the sum of the row, D^-1 A.

        Rows and columns whose sum is 0 stay without weight. Sums must not be negative.
        """
        row_sums = self.sums("rows")
        if norm == "mean":
            scale = _power(row_sums, -1.0)[self.rows]
        elif norm in ("both", "rows"):
            of_columns = self.sums("cols") if norm == "both" else row_sums
            scale = _power(row_sums, -0.5)[self.rows] * _power(of_columns, -0.5)[self.cols]
        else:
            raise ValueError(f"norm={norm!r}: expected both, rows or mean")
        return replace(self, values=(self.values.double() * scale).float())

    def both_ways(self) -> Edges:
        """The square (U + I) form [[0, A], [A^T, 0]] of a bipartite (U, I) matrix: users first, then items."""
        n_users, n_items = self.shape
        rows = torch.cat([self.rows, self.cols + n_users])
        cols = torch.cat([self.cols + n_users, self.rows])
        return Edges(rows, cols, self.values.repeat(2), (n_users + n_items, n_users + n_items))

    def coalesced(self) -> Edges:
        """Entries sorted by row and column, those at one place added up."""
        places = torch.stack([self.rows, self.cols])
        entries = torch.sparse_coo_tensor(places, self.values, self.shape, check_invariants=False).coalesce()
        rows, cols = entries.indices()
        return Edges(rows, cols, entries.values(), self.shape)

    def matrix(self) -> SparseMatrix:
        return SparseMatrix(self)

    def scipy(self) -> scipy.sparse.csr_array:
        places = (self.rows.cpu().numpy(), self.cols.cpu().numpy())
        return scipy.sparse.csr_array((self.values.cpu().numpy(), places), shape=self.shape)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows, self.cols, self.values


def _power(sums: Tensor, exponent: float) -> Tensor:
    return torch.where(sums > 0, sums, 1.0).pow(exponent) * (sums > 0)


# Multiplication.


class SparseMatrix(nn.Module):
    """A constant sparse matrix that multiplies dense ones; moves between devices with the model, is in no checkpoint.

    CSR products, forward and backward; the transpose that the backward needs is stored, unless the matrix is symmetric.
    Several times as fast as COO `torch.sparse.mm` and segment sums (docs/performance.md).
    """

    values: Tensor

    def __init__(self, edges: Edges) -> None:
        super().__init__()
        edges = edges.coalesced()
        self.shape = edges.shape
        order = torch.argsort(edges.cols, stable=True)
        flipped = Edges(edges.cols[order], edges.rows[order], edges.values[order], (edges.shape[1], edges.shape[0]))
        self.symmetric = edges.shape == flipped.shape and all(
            torch.equal(a, b) for a, b in zip(edges._tensors(), flipped._tensors(), strict=True)
        )
        self._register("", edges)
        if not self.symmetric:
            self._register("t_", flipped)

    def _register(self, prefix: str, edges: Edges) -> None:
        counts = torch.bincount(edges.rows, minlength=edges.shape[0])
        self.register_buffer(f"{prefix}crow", F.pad(counts.cumsum(0), (1, 0)), persistent=False)
        self.register_buffer(f"{prefix}col", edges.cols, persistent=False)
        self.register_buffer(f"{prefix}values", edges.values, persistent=False)

    def csr(self, transposed: bool = False) -> Tensor:
        """The matrix, or its transpose, as PyTorch's CSR tensor (no copy)."""
        prefix = "t_" if transposed and not self.symmetric else ""
        crow, col, values = (getattr(self, prefix + name) for name in ("crow", "col", "values"))
        shape = self.shape[::-1] if transposed else self.shape
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        """A x for a (C, d) matrix, (R, d)."""
        out: Tensor = _Product.apply(x.float(), self, False)
        return out

    def transposed(self, x: Tensor) -> Tensor:
        """A^T x for an (R, d) matrix, (C, d)."""
        out: Tensor = _Product.apply(x.float(), self, True)
        return out

    def __len__(self) -> int:
        return len(self.values)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {len(self)} entries"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, transposed: bool) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        with full_precision(x):
            return matrix.csr(transposed) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.matrix.csr(not ctx.transposed) @ grads[0], None, None


def full_precision(x: Tensor) -> torch.autocast:
    """A block without autocast (`enable_amp`), for kernels that have no half-precision form or lose too much by it."""
    return torch.autocast(x.device.type, enabled=False)


def propagate_mean(matrix: SparseMatrix, x: Tensor, layers: int) -> Tensor:
    """LightGCN's layers: the mean of A^l x over l = 0 ... `layers` (He et al., SIGIR 2020, eq. 7 and 8), shape of x."""
    total = x
    for _ in range(layers):
        x = matrix(x)
        total = total + x
    return total / (layers + 1)


# Interactions.


def sample_edges(weights: Tensor, n: int) -> Tensor:
    """Ids of n entries drawn without replacement, one after the other with probability proportional to the weights, sorted.

    An exponential race: the n smallest of Exp(1) / w have exactly that law, for one sort.
    """
    race = torch.empty_like(weights).exponential_() / weights
    return torch.topk(race, n, largest=False, sorted=False).indices.sort().values


def degree_sensitive(edges: Edges) -> Tensor:
    """(E,) 1 / sqrt(deg_u deg_i): weights under which edges of popular nodes are pruned first (FREEDOM)."""
    return _unit(edges).normalised("both").values


def _unit(edges: Edges) -> Edges:
    return replace(edges, values=torch.ones_like(edges.values))


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
        stop = max(start + 1, int(np.searchsorted(work, work[start] + _BLOCK, side="right")) - 1)
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


# Graphs from features. Row 0 of features is padding.


def _inverse_norms(features: Tensor) -> Tensor:
    return _power(torch.linalg.vector_norm(features, dim=1), -1.0)


def _row_blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _cosines(features: Tensor, scale: Tensor, rows: slice) -> Tensor:
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
    scale = _inverse_norms(features)
    unknown = (scale == 0).nonzero().flatten()
    k = min(k, n - len(unknown))
    cosines, ids = [], []
    for block in _row_blocks(n, n):
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
    return _unit(edges) + loops


EXACT_UP_TO = 50_000  # items; beyond, comparing all with all takes minutes a modality
MIN_RECALL = 0.955  # of an approximate graph on a sample; 0.95 of the whole, but for a chance in a hundred


def nearest(features: Tensor, k: int, weighted: bool, method: str) -> Edges:
    """`knn` or `approximate_knn`, as `method` says, from the cache if it is there.

    Args:
        method: 'exact', 'approximate', or 'auto': exact for up to 50,000 items.
    """
    exact = method == "exact" or (method == "auto" and len(features) <= EXACT_UP_TO)
    return cached(knn if exact else approximate_knn, features, k, weighted)


def approximate_knn(features: Tensor, k: int, weighted: bool) -> Edges:
    """`knn` with at least MIN_RECALL of the true neighbours: an item is compared with the items of some cells alone (an inverted file).

    Items are put into about 4 sqrt(I) cells (spherical k-means); each item searches the cells whose centres are nearest to it, all items
    that search a cell at once, in one product of dense matrices. How many cells is not guessed: a true neighbour is found if and
    only if its cell is searched, so the true neighbours of 2,000 items drawn at random, and where their cells stand in the order
    of search, tell the recall for any number of cells. The smallest that is enough is taken.

    Time O(I^1.5 D) for a constant number of searched cells; memory: two copies of the features.
    """
    scale = _inverse_norms(features)
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
        for who in everybody.split(max(1, _BLOCK // len(members))):
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
    for part in sample.split(max(1, _BLOCK // len(rows))):
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
    parts = rows.split(max(1, _BLOCK // len(centres)))
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


def interests(interactions: Edges, features: Sequence[Tensor], n: int) -> Edges:
    """(U, I), ones: K_u, the union over modalities of the n items of largest sum of cosines to the user's items (SOIL).

    Negative cosines count as 0. Memory: blocks of columns, O(block * (U + I)).
    """
    n_users, n_items = interactions.shape
    taken = _unit(interactions).matrix()
    places = []
    for x in features:
        scale = _inverse_norms(x)
        best = torch.zeros(n_users, 0)
        ids = torch.zeros(n_users, 0, dtype=torch.long)
        for block in _row_blocks(n_items, n_items + 2 * n_users):
            scores = taken(_cosines(x, scale, block).clamp_(min=0).T.contiguous())
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
    takers, interested = _unit(interactions).scipy().T.tocsr(), wanted.scipy()
    scale = _inverse_norms(features)
    rows, cols, values = [], [], []
    for block in _row_blocks(n_items, n_items):
        part = (takers[block] @ interested).tocoo()
        row, col = torch.from_numpy(part.row.astype(np.int64)), torch.from_numpy(part.col.astype(np.int64))
        value = _cosines(features, scale, block).clamp_(min=0)[row, col] * torch.from_numpy(part.data)
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
    scales = [_inverse_norms(x) for x in features]
    nearest = min(n, n_items - 1)
    near, product, own = [], [], []
    for block in _row_blocks(n_items, n_items):
        products = torch.ones(())
        for x, scale in zip(features, scales, strict=True):
            products = _cosines(x, scale, block).clamp_(min=0) * products
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


# The cache.


def cached(build: Callable[..., Edges], *args: Any) -> Edges:
    """build(*args), kept in the cache folder under a hash of the builder's name and of its arguments.

    A plain npz file, never unpickled. A damaged file is told and made anew; a folder that cannot be written only costs time.
    """
    digest = hashlib.blake2b(f"{CACHE_VERSION} {build.__name__}".encode(), digest_size=12)
    _feed(digest, args)
    path = paths.cache_dir() / "graphs" / f"{build.__name__}-{digest.hexdigest()}.npz"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s: damaged (%s); the graph is built anew", path, str(error).splitlines()[0])
    started = time.perf_counter()
    edges = build(*args)
    logger.info("graph %s: %d entries, %.1f s", build.__name__, len(edges), time.perf_counter() - started)
    buffer = io.BytesIO()
    rows, cols, values = (x.cpu().numpy() for x in edges._tensors())
    np.savez(buffer, rows=rows, cols=cols, values=values, shape=np.asarray(edges.shape))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.write_atomically(path, buffer.getbuffer())
    except OSError as error:
        logger.info("%s: cannot be written (%s); the graph will be built again next time", path, error)
    return edges


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    elif isinstance(value, Edges):
        _feed(digest, (*value._tensors(), *value.shape))
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _feed(digest, part)
    else:
        digest.update(repr(value).encode())


def _read(path: Path) -> Edges:
    with np.load(path, allow_pickle=False) as file:
        rows, cols, values, shape = (file[name] for name in ("rows", "cols", "values", "shape"))
    n_rows, n_cols = (int(n) for n in shape)
    sound = rows.dtype == cols.dtype == np.int64 and values.dtype == np.float32 and rows.ndim == 1
    sound = sound and rows.shape == cols.shape == values.shape
    if not sound or (
        len(rows) and not (0 <= rows.min() <= rows.max() < n_rows and 0 <= cols.min() <= cols.max() < n_cols)
    ):
        raise ValueError("not the entries of a sparse matrix")
    return Edges(torch.from_numpy(rows), torch.from_numpy(cols), torch.from_numpy(values), (n_rows, n_cols))


# Rows and segments.


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] for a (N, d) table and (B,) ids; the backward of `index_select` takes a third of `embedding`'s time, and that a
    fraction of indexing's (docs/performance.md)."""
    return table.index_select(0, ids)


def segment_reduce(values: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    """Reduce the rows of `values` that share an index.

    Args:
        values: (E, ...) rows.
        index: (E,) segment of each row, 0 <= index < size.
        size: number of segments S.
        reduce: 'sum', 'mean', 'max' or 'min'; empty segments give 0.

    Returns:
        (S, ...)
    """
    if reduce not in ("sum", "mean", "max", "min"):
        raise ValueError(f"reduce={reduce!r}: expected sum, mean, max or min")
    if torch_scatter is not None:
        return torch_scatter.scatter(values, index, dim=0, dim_size=size, reduce=reduce)
    return _native_reduce(values, index, size, reduce)


def _native_reduce(values: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    out = values.new_zeros(size, *values.shape[1:])
    if reduce == "sum":
        return out.index_add(0, index, values)
    kind = {"mean": "mean", "max": "amax", "min": "amin"}[reduce]
    at = index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return out.scatter_reduce(0, at, values, kind, include_self=False)


def segment_softmax(scores: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax of (E,) or (E, h) scores within each segment; the values of a segment sum to 1."""
    top = segment_reduce(scores.detach(), index, size, "max")
    weights = torch.exp(scores - top[index])
    return weights / segment_reduce(weights, index, size, "sum")[index]
