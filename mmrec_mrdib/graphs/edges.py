"""A sparse matrix under construction: entries, normalisation, pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import scipy.sparse
import torch
from torch import Tensor

from mmrec_mrdib.graphs.segments import segment_reduce

if TYPE_CHECKING:
    from mmrec_mrdib.graphs.sparse import SparseMatrix


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
        joined = [torch.cat(pair) for pair in zip(self.tensors(), other.tensors(), strict=True)]
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
            scale = power(row_sums, -1.0)[self.rows]
        elif norm in ("both", "rows"):
            of_columns = self.sums("cols") if norm == "both" else row_sums
            scale = power(row_sums, -0.5)[self.rows] * power(of_columns, -0.5)[self.cols]
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
        from mmrec_mrdib.graphs.sparse import SparseMatrix

        return SparseMatrix(self)

    def scipy(self) -> scipy.sparse.csr_array:
        places = (self.rows.cpu().numpy(), self.cols.cpu().numpy())
        return scipy.sparse.csr_array((self.values.cpu().numpy(), places), shape=self.shape)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows, self.cols, self.values


def power(sums: Tensor, exponent: float) -> Tensor:
    return torch.where(sums > 0, sums, 1.0).pow(exponent) * (sums > 0)


def largest(graphs: Sequence[Edges]) -> Edges:
    """The entries that are in any of the graphs, each with its largest value there; a place is at most once in a graph."""
    keys, inverse = torch.unique(torch.cat([_places(g) for g in graphs]), return_inverse=True)
    values = segment_reduce(torch.cat([g.values for g in graphs]), inverse, len(keys), "max")
    n = graphs[0].shape[1]
    return Edges(keys // n, keys % n, values, graphs[0].shape)


def in_all(graphs: Sequence[Edges]) -> Edges:
    """The entries off the diagonal that are in all of the graphs, ones; a place is at most once in a graph."""
    keys, counts = torch.unique(torch.cat([_places(g) for g in graphs]), return_counts=True)
    n = graphs[0].shape[1]
    rows, cols = keys // n, keys % n
    common = Edges(rows, cols, torch.ones(len(keys), device=keys.device), graphs[0].shape)
    return common.kept((counts == len(graphs)) & (rows != cols))


def _places(edges: Edges) -> Tensor:
    return edges.rows * edges.shape[1] + edges.cols


def sample_edges(weights: Tensor, n: int) -> Tensor:
    """Ids of n entries drawn without replacement, one after the other with probability proportional to the weights, sorted.

    An exponential race: the n smallest of Exp(1) / w have exactly that law, for one sort.
    """
    race = torch.empty_like(weights).exponential_() / weights
    return torch.topk(race, n, largest=False, sorted=False).indices.sort().values


def degree_sensitive(edges: Edges) -> Tensor:
    """(E,) 1 / sqrt(deg_u deg_i): weights under which edges of popular nodes are pruned first (FREEDOM)."""
    return unit(edges).normalised("both").values


def unit(edges: Edges) -> Edges:
    return replace(edges, values=torch.ones_like(edges.values))
