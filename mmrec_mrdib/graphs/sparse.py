"""A sparse matrix that multiplies dense ones, and what a graph model does with it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs.edges import Edges, degree_sensitive, sample_edges

with warnings.catch_warnings():  # PyTorch says once a process that CSR tensors are in beta: here, where nobody listens
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0), (1, 1))


class SparseMatrix(nn.Module):
    """A constant sparse matrix that multiplies dense ones; moves between devices with the model, is in no checkpoint.

    CSR products, forward and backward; the transpose that the backward needs is stored, unless the matrix is symmetric.
    Several times as fast as COO `torch.sparse.mm` and segment sums (docs/performance.md).
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    mirrored: Tensor | None

    def __init__(self, edges: Edges) -> None:
        super().__init__()
        edges = edges.coalesced()
        self.shape = edges.shape
        order = torch.argsort(edges.cols, stable=True)
        flipped = Edges(edges.cols[order], edges.rows[order], edges.values[order], (edges.shape[1], edges.shape[0]))
        self.symmetric = edges.shape == flipped.shape and all(
            torch.equal(a, b) for a, b in zip(edges.tensors(), flipped.tensors(), strict=True)
        )
        self._register("", edges)
        self.register_buffer("mirrored", None, persistent=False)  # where each entry of the transpose is, once needed
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

    def edges(self) -> Edges:
        """The entries, sorted by row and column."""
        rows = torch.repeat_interleave(torch.arange(self.shape[0], device=self.values.device), self.crow.diff())
        return Edges(rows, self.col, self.values, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """A x for a (C, d) matrix, (R, d)."""
        out: Tensor = _Product.apply(x.float(), self, False)
        return out

    def transposed(self, x: Tensor) -> Tensor:
        """A^T x for an (R, d) matrix, (C, d)."""
        out: Tensor = _Product.apply(x.float(), self, True)
        return out

    def reweighted(self, factors: Tensor) -> SparseMatrix:
        """The same places, each value times its factor (E,), in the order of `values`: cheap enough for each step."""
        if self.mirrored is None:
            self.mirrored = torch.argsort(self.col, stable=True)
        out = SparseMatrix.__new__(SparseMatrix)
        nn.Module.__init__(out)
        out.shape, out.symmetric, out.mirrored = self.shape, False, self.mirrored
        out.crow, out.col, out.values = self.crow, self.col, self.values * factors
        prefix = "" if self.symmetric else "t_"
        out.t_crow, out.t_col = getattr(self, f"{prefix}crow"), getattr(self, f"{prefix}col")
        out.t_values = gather_rows(out.values, self.mirrored)
        return out

    def __len__(self) -> int:
        return len(self.values)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {len(self)} entries"


class Pruner(nn.Module):
    """Draws some of a user-item graph's edges, and makes of them its symmetric form, normalised by their own degrees.

    Args:
        interactions: (U, I).
    """

    users: Tensor
    items: Tensor
    weights: Tensor

    def __init__(self, interactions: Edges) -> None:
        super().__init__()
        self.shape = interactions.shape
        self.register_buffer("users", interactions.rows, persistent=False)
        self.register_buffer("items", interactions.cols, persistent=False)
        self.register_buffer("weights", degree_sensitive(interactions), persistent=False)

    def draw(self, share: float, uniform: bool = False) -> SparseMatrix:
        """floor(share E) of the E edges, without replacement: with probability proportional to 1 / sqrt(deg_u deg_i), or uniformly."""
        n = int(share * len(self.weights))
        if uniform:
            kept = torch.randperm(len(self.weights), device=self.weights.device)[:n]
        else:
            kept = sample_edges(self.weights, n)
        ones = self.weights.new_ones(n)
        return Edges(self.users[kept], self.items[kept], ones, self.shape).normalised("both").both_ways().matrix()


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


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] for a (N, d) table and (B,) ids; the backward of `index_select` takes a third of `embedding`'s time, and that a
    fraction of indexing's (docs/performance.md)."""
    return table.index_select(0, ids)


def occurrences(ids: Tensor, size: int) -> Tensor:
    """(size,) how often each id occurs. On a GPU nothing waits for it, as it would for `bincount`, which asks for the largest id."""
    return ids.new_zeros(size).scatter_add_(0, ids, torch.ones_like(ids))
