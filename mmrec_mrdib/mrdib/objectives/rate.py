"""Rate of the information bottleneck: how much z says about x."""

from __future__ import annotations

import torch
from torch import Tensor


def rate(kl: Tensor, present: Tensor | None = None) -> Tensor:
    """Mean over items of KL(q(z|x) || N(0, s^2 I)) in nats, an upper bound of I(X; Z) (Alemi et al., ICLR 2017).

    Args:
        kl: (R,) of each item, summed over dimensions (see `Encoded.rate`).
        present: (R,) bool, the rows to average over; None: all.
    """
    if present is None:
        return kl.mean()
    weights = present.to(kl.dtype)
    return torch.dot(kl, weights / weights.sum())
