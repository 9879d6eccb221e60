"""Unique and synergistic predictions by a softmax over items of the batch (ours; see docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs import full_precision
from mmrec_mrdib.losses import at_least_single


def contrast(
    users: Tensor,
    positives: Tensor,
    candidates: Tensor,
    blocked: Tensor,
    weights: Tensor,
    temperature: float,
    widths: Sequence[int],
    alone: bool = True,
) -> tuple[Tensor, Tensor]:
    """-ln softmax of each pair's own item among itself and the candidates, by each modality alone and by all together, in nats.

    unique_m = mean_b of -ln softmax_k <p_b^m, zhat_k^m> / t at k = own(b); synergistic: the same with the logits summed over the modalities,
    which only their fusion predicts. Means are weighted. Tables hold the modalities side by side, D = sum_m d_m.

    Args:
        users: (B, D) p_b.
        positives: (B, D) zhat of each pair's own item.
        candidates: (C, D) zhat of the items it is compared with.
        blocked: (B, C) bool, the candidates that are no negatives of a pair: its own item and the user's others.
        weights: (B,) of the pairs; their sum is above 0, or the losses are 0.
        temperature: t.
        widths: d_m of the modalities.
        alone: whether the unique terms are wanted; without, only their sum is computed.

    Returns:
        (M,) unique, or (0,), and () synergistic.
    """
    tables = [at_least_single(x) for x in (users, positives, candidates)]
    with full_precision(tables[0]):
        losses: Tensor = _Contrast.apply(blocked, weights, 1 / temperature, list(widths) if alone else [], *tables)
    return losses[:-1], losses[-1]


class _Contrast(torch.autograd.Function):
    """The closed-form gradient, softmax - one-hot: one (B, C) matrix a loss is kept, no further ones are made."""

    @staticmethod
    def forward(
        ctx: Any,
        blocked: Tensor,
        weights: Tensor,
        scale: float,
        widths: list[int],
        users: Tensor,
        positives: Tensor,
        candidates: Tensor,
    ) -> Tensor:
        share = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        if widths:
            sides = zip(*(x.split(widths, 1) for x in (users, positives, candidates)), strict=True)
            logits, true = map(list, zip(*((torch.mm(p, z.T), (p * q).sum(1)) for p, q, z in sides), strict=True))
            # The same tensor would be overwritten: together comes first, and apart.
            logits.append(logits[0].clone() if len(logits) == 1 else torch.stack(logits).sum(0))
            true.append(torch.stack(true).sum(0))
        else:
            logits, true = [torch.mm(users, candidates.T)], [(users * positives).sum(1)]
        losses, at_true = [], []
        for x, t in zip(logits, true, strict=True):
            x.mul_(scale).masked_fill_(blocked, -torch.inf)
            t = t * scale
            top = torch.maximum(x.amax(1), t) if x.shape[1] else t
            x.sub_(top[:, None]).exp_()  # in place: becomes the softmax
            own = (t - top).exp_()
            sums = x.sum(1) + own
            losses.append(torch.dot(sums.log() + top - t, share))
            x.mul_((share / sums)[:, None])
            at_true.append((own / sums - 1) * share)
        ctx.save_for_backward(users, positives, candidates, *logits, *at_true)
        ctx.scale, ctx.widths = scale, widths
        return torch.stack(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        users, positives, candidates, *slopes = ctx.saved_tensors
        n = len(slopes) // 2
        *logits, together = slopes[:n]
        *at_true, own = slopes[n:]
        of = grads[0] * ctx.scale
        if not ctx.widths:
            slope, own = together * of[0], (own * of[0])[:, None]
            return (None,) * 4 + (
                torch.addcmul(slope @ candidates, own, positives), own * users, slope.T @ users
            )  # fmt: skip
        parts = []
        for m, (p, q, z) in enumerate(
            zip(*(x.split(ctx.widths, 1) for x in (users, positives, candidates)), strict=True)
        ):
            slope = torch.mul(logits[m], of[m]).add_(together * of[-1])
            mine = (at_true[m] * of[m] + own * of[-1])[:, None]
            parts.append((torch.addcmul(slope @ z, mine, q), mine * p, slope.T @ p))
        return (None,) * 4 + tuple(torch.cat(side, 1) for side in zip(*parts, strict=True))
