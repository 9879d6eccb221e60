"""Pure losses that several models share: tensors in, a scalar out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr(positive: Tensor, negative: Tensor, weight: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking: mean of -ln sigmoid(s_ui - s_uj) (Rendle et al., UAI 2009), in nats.

    Args:
        positive, negative: (B,) scores of the pairs (u, i) and (u, j).
        weight: (B,) factors of the terms, or None.
    """
    losses = F.softplus(negative - positive)
    return (losses if weight is None else losses * weight).mean()


def frobenius(*rows: Tensor) -> Tensor:
    """Sum of the Frobenius norms (not squared) of the given matrices: the regulariser of the MMRec line's VBPR."""
    return torch.stack([torch.linalg.vector_norm(r) for r in rows]).sum()
