"""Unique information: each modality alone must predict (L_U of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrec_mrdib.losses import bpr


def margin(users: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(B,) s(u, i) - s(u, j) of inner products.

    Args:
        users: (B, d) users; as seen through modality m, p_u^m, for a unimodal score.
        positive, negative: (B, d) the pairs' items; their z^m.
    """
    return (users * (positive - negative)).sum(-1)


def unique(margins: Tensor) -> Tensor:
    """-log p(y | z^m) in nats: BPR of the unimodal scores s_m(u, i) = <p_u^m, z_i^m>.

    Args:
        margins: (B,) s_m(u, i) - s_m(u, j).
    """
    return bpr(margins, torch.zeros_like(margins))
