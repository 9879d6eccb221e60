"""Pure losses that several models share: tensors in, a scalar out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs import full_precision, gather_rows, occurrences
from mmrec_mrdib.graphs.neighbours import row_blocks


def at_least_single(x: Tensor) -> Tensor:
    """x, in float32 where mixed precision has made it a half-precision tensor: what losses are computed from."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def margin(users: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(B,) s(u, i) - s(u, j) of inner products, from (B, d) rows of the pairs' users and items."""
    return (users * (positive - negative)).sum(-1)


def bpr(margins: Tensor, weight: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking: mean of -ln sigmoid(s_ui - s_uj) (Rendle et al., UAI 2009), in nats.

    Args:
        margins: (B,) s_ui - s_uj.
        weight: (B,) factors of the terms, or None.
    """
    losses = F.softplus(-at_least_single(margins))
    return (losses if weight is None else losses * weight).mean()


def squares(*rows: Tensor) -> Tensor:
    """Sum of the squares of all entries of the given matrices."""
    return torch.stack([r.float().square().sum() for r in rows]).sum()


def frobenius(*rows: Tensor, summed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Sum of the Frobenius norms (not squared) of the given matrices: the regulariser of the MMRec line's VBPR.

    Args:
        summed: where each of several processes has some rows of the matrices, adds up a tensor over them: norms and gradients are then those
            of all rows, and the value is this process's part |own|^2 / |all| of them, which add up to the norms.
    """
    total: Tensor = _Frobenius.apply(summed, *rows)
    return total


class _Frobenius(torch.autograd.Function):
    """The gradient of a norm, x / |x| (0 at 0), in one pass over memory a matrix; autograd's takes three."""

    @staticmethod
    def forward(ctx: Any, summed: Callable[[Tensor], Tensor] | None, *rows: Tensor) -> Tensor:
        norms = torch.stack([torch.linalg.vector_norm(r) for r in rows])
        parts = norms
        if summed is not None:
            own = norms.square()
            norms = summed(own).sqrt()
            parts = torch.where(norms > 0, own / norms, 0.0)
        ctx.save_for_backward(norms, *rows)
        return parts.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        norms, *rows = ctx.saved_tensors
        scales = torch.where(norms > 0, grads[0] / norms, 0.0).unbind()
        return (None, *(r * scale for r, scale in zip(rows, scales, strict=True)))


def moment_gaps(*tables: Tensor) -> Tensor:
    """Sum over pairs of tables of |var - var'| + |mean - mean'|, over all entries, the variances unbiased (GUME, MENTOR)."""
    moments = torch.stack([torch.stack(torch.var_mean(x.float())) for x in tables])  # (tables, 2)
    return (moments[:, None] - moments).abs().sum() / 2


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float32 cosines of the rows of two (B, d) matrices; of a row of zeros 0."""
    return F.cosine_similarity(a.float(), b.float(), dim=1)


def mean_cosines(online: Tensor, rows: Tensor, *targets: Tensor) -> Tensor:
    """Sum over the targets of the mean over n of cos(online[rows[n]], target[n]), where targets are constants.

    As they get no gradient, their directions are added up for each row of the table first: nothing is gathered, and the
    table's rows are brought to length 1 once.

    Args:
        online: (R, d) table.
        rows: (B,) its row in each pair.
        targets: (B, d) each.
    """
    with torch.no_grad():
        directions = functools.reduce(torch.add, [F.normalize(t.float()) for t in targets])
        pull = torch.zeros(online.shape, device=online.device).index_add_(0, rows, directions)
    return (F.normalize(online.float()) * pull).sum() / len(rows)


def info_nce(a: Tensor, b: Tensor, rows: Tensor, cols: Tensor, temperature: float, cosine: bool = True) -> Tensor:
    """InfoNCE with in-batch negatives: mean over n of -ln(exp(c_nn / t) / sum_n' exp(c_nn' / t)), in nats.

    c_nn' is the cosine of a[rows[n]] and b[cols[n']], or their inner product. A batch names the same user or item many times; the sum is taken over
    the distinct ones with their multiplicities, which is the same value for a fraction of the B x B products.

    Args:
        a: (R, d) and b: (C, d) tables.
        rows, cols: (B,) ids of the pairs; the same tensor where both tables are of the same things.
        temperature: t.
        cosine: whether lengths do not count.
    """
    a_ids, a_counts, a_at = _distinct(rows, len(a))
    b_ids, b_counts, b_at = (a_ids, a_counts, a_at) if cols is rows else _distinct(cols, len(b))
    a, b = gather_rows(a, a_ids).float(), gather_rows(b, b_ids).float()
    if cosine:
        a, b = F.normalize(a), F.normalize(b)
    weights = a_counts / len(rows)
    if cols is rows:
        positive = ((a * b).sum(1) * weights).sum()
    else:
        positive = (gather_rows(a, a_at) * gather_rows(b, b_at)).sum(1).mean()
    with full_precision(a):
        partition: Tensor = _WeightedLogSumExp.apply(a, b, weights, b_counts.log(), 1 / temperature)
    return partition - positive / temperature


def info_nce_against_all(a: Tensor, b: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """InfoNCE against every user or item: mean over n of -ln(exp(c_rr / t) / sum_s exp(c_rs / t)), r = rows[n], in nats.

    c_rs is the cosine of a[r] and b[s], s all rows of b but the padding, row 0. Memory: blocks of distinct rows.

    Args:
        a, b: (N, d) tables of the same things.
        rows: (B,) ids, none of them 0.
        temperature: t.
    """
    ids, counts, _ = _distinct(rows, len(a))
    a, b = F.normalize(gather_rows(a, ids).float()), F.normalize(b[1:].float())
    weights = counts / len(rows)
    positive = ((a * gather_rows(b, ids - 1)).sum(1) * weights).sum()
    with full_precision(a):
        partition: Tensor = _WeightedLogSumExp.apply(a, b, weights, b.new_zeros(len(b)), 1 / temperature)
    return partition - positive / temperature


def log_partition(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """sum_r w_r ln sum_c exp(<a_r, b_c>) of (R, d) and (C, d) tables in float32, weights (R,); in blocks of rows."""
    with full_precision(a):
        total: Tensor = _WeightedLogSumExp.apply(a, b, weights, b.new_zeros(len(b)), 1.0)
    return total


def _distinct(ids: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids (R,), how often each occurs (R,), and where among them each id is (B,)."""
    counts = occurrences(ids, size)
    present = counts > 0
    distinct = present.nonzero().flatten()
    return distinct, counts.index_select(0, distinct).float(), (present.cumsum(0) - 1)[ids]


class _WeightedLogSumExp(torch.autograd.Function):
    """sum_r w_r ln sum_c exp(scale <a_r, b_c> + shift_c); the closed-form gradient is made on the way, so that no (R, C) matrix is kept."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weights: Tensor, shift: Tensor, scale: float) -> Tensor:
        total, grad_a, grad_b = a.new_zeros(()), torch.empty_like(a), torch.zeros_like(b)
        for block in row_blocks(len(a), len(b)):
            logits = torch.addmm(shift, a[block], b.T, alpha=scale)
            top = logits.amax(1, keepdim=True)
            terms = logits.sub_(top).exp_()
            sums = terms.sum(1)
            total += ((sums.log() + top.squeeze(1)) * weights[block]).sum()
            if any(ctx.needs_input_grad):
                pull = (weights[block] / sums * scale).unsqueeze(1)
                grad_a[block] = (terms @ b) * pull
                if ctx.needs_input_grad[1]:
                    grad_b.addmm_(terms.T, a[block] * pull)
        ctx.save_for_backward(grad_a, grad_b)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_a, grad_b = ctx.saved_tensors
        return grad_a * grads[0], grad_b * grads[0], None, None, None
