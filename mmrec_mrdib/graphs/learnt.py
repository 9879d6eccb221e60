"""A sparse matrix whose places are given and whose values are learnt: attention over the edges of a graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs.edges import Edges
from mmrec_mrdib.graphs.segments import segment_softmax
from mmrec_mrdib.graphs.sparse import full_precision


class Pattern(nn.Module):
    """The E places of an (R, C) sparse matrix A, by row and column; values come with each call, (E,), and get gradients.

    Attributes:
        rows, cols: (E,) the places, in the order that values are given in.
    """

    rows: Tensor
    cols: Tensor
    crow: Tensor
    order: Tensor
    t_cols: Tensor
    t_crow: Tensor

    def __init__(self, edges: Edges) -> None:
        super().__init__()
        edges = edges.coalesced()
        self.shape = edges.shape
        order = torch.argsort(edges.cols, stable=True)
        buffers = {"rows": edges.rows, "cols": edges.cols, "order": order, "t_cols": edges.rows[order]}
        for name, ids, size in (("crow", edges.rows, edges.shape[0]), ("t_crow", edges.cols, edges.shape[1])):
            buffers[name] = F.pad(torch.bincount(ids, minlength=size).cumsum(0), (1, 0))
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """(E,) <a_r, b_c> at each place, of (R, d) and (C, d)."""
        out: Tensor = _Dots.apply(a.float(), b.float(), self)
        return out

    def product(self, values: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        """A x for (C, d), or A^T x for (R, d)."""
        out: Tensor = _Product.apply(values.float(), x.float(), self, transposed)
        return out

    def softmax(self, scores: Tensor, transposed: bool = False) -> Tensor:
        """Softmax of (E,) or (E, h) scores within each row, or each column."""
        if transposed:
            return segment_softmax(scores, self.cols, self.shape[1])
        return segment_softmax(scores, self.rows, self.shape[0])

    def times(self, values: Tensor, x: Tensor, transposed: bool) -> Tensor:
        """`product` without a gradient."""
        return self._csr(values, transposed) @ x.contiguous()

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """`dots` without a gradient. Gathering the rows would take eight times as long, and E d numbers."""
        places = self._csr(torch.zeros(len(self), device=a.device), False)
        return torch.sparse.sampled_addmm(places, a.contiguous(), b.contiguous().T, beta=0).values()

    def _csr(self, values: Tensor, transposed: bool) -> Tensor:
        if not transposed:  # cuSPARSE reads the values one after another, whatever their stride is
            return torch.sparse_csr_tensor(
                self.crow, self.cols, values.contiguous(), self.shape, check_invariants=False
            )
        values, shape = values.index_select(0, self.order), self.shape[::-1]
        return torch.sparse_csr_tensor(self.t_crow, self.t_cols, values, shape, check_invariants=False)

    def __len__(self) -> int:
        return len(self.rows)


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.pattern = pattern
        with full_precision(a):
            return pattern.dot(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        return ctx.pattern.times(grads[0], b, False), ctx.pattern.times(grads[0], a, True), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.pattern, ctx.transposed = pattern, transposed
        with full_precision(x):
            return pattern.times(values, x, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values, x = ctx.saved_tensors
        pair = (x, grads[0]) if ctx.transposed else (grads[0], x)
        return ctx.pattern.dot(*pair), ctx.pattern.times(values, grads[0], not ctx.transposed), None, None
