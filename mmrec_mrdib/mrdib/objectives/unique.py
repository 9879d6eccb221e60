"""Unique information: each modality alone must predict (L_U of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrec_mrdib.losses import bpr


def unique(users: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """-log p(y | z^m) as BPR of the unimodal scores s_m(u, i) = <p_u^m, z_i^m>, in nats.

    Args:
        users: (B, d) users as seen through modality m, p_u^m.
        positive, negative: (B, d) z^m of the pairs' items.
    """
    margin = (users * (positive - negative)).sum(-1)
    return bpr(margin, torch.zeros_like(margin))
