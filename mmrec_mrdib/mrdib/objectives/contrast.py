"""Unique and synergistic predictions by a softmax over the items of the batch (ours; see docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs import full_precision
from mmrec_mrdib.losses import at_least_single


def contrast(
    users: Sequence[Tensor],
    items: Sequence[Tensor],
    own: Tensor,
    blocked: tuple[Tensor, Tensor],
    weights: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """-ln softmax of each pair's own item among the items of the batch, by each modality alone and by all together, in nats.

    unique_m = mean_b of -ln softmax_k <p_b^m, zhat_k^m> / t at k = own(b); synergistic: the same with the logits summed over the modalities,
    which only their fusion predicts. Means are weighted.

    Args:
        users: of each modality (B, d) p_b^m.
        items: of each modality (R, d) zhat^m of the distinct items of the batch.
        own: (B,) the row of each pair's own item.
        blocked: (pair, row) ids of items that are no negatives of a pair: the user's other items.
        weights: (B,) of the pairs; their sum is above 0, or the losses are 0.
        temperature: t.

    Returns:
        (M,) unique and () synergistic.
    """
    tables = [at_least_single(x) for x in (*users, *items)]
    with full_precision(tables[0]):
        losses: Tensor = _Contrast.apply(own, blocked, weights, 1 / temperature, len(users), *tables)
    return losses[:-1], losses[-1]


class _Contrast(torch.autograd.Function):
    """The closed-form gradient, softmax - one-hot: one (B, R) matrix a loss is kept, no further ones are made."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, blocked: tuple[Tensor, Tensor], weights: Tensor, scale: float, n: int, *tables: Tensor
    ) -> Tensor:
        users, items = tables[:n], tables[n:]
        share = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        logits = [torch.mm(p, z.T).mul_(scale) for p, z in zip(users, items, strict=True)]
        together = logits[0].clone() if n == 1 else torch.stack(logits).sum(0)
        at = own[:, None]
        losses = []
        for x in (*logits, together):
            x[blocked] = -torch.inf
            true = x.gather(1, at)
            top = x.amax(1, keepdim=True)
            x.sub_(top).exp_()  # in place: becomes the softmax
            sums = x.sum(1, keepdim=True)
            losses.append(((sums.log() + top - true).squeeze(1) * share).sum())
            x.mul_(share[:, None] / sums)
            x.scatter_add_(1, at, -share[:, None])
        ctx.save_for_backward(*tables, *logits, together)
        ctx.n, ctx.scale = n, scale
        return torch.stack(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        n, saved = ctx.n, ctx.saved_tensors
        users, items, slopes, together = saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n], saved[3 * n]
        of = grads[0] * ctx.scale
        of_users, of_items = [], []
        for m in range(n):
            slope = torch.mul(slopes[m], of[m]).add_(together * of[n])
            of_users.append(slope @ items[m])
            of_items.append(slope.T @ users[m])
        return (None,) * 5 + (*of_users, *of_items)
