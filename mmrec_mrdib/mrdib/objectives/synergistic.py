"""Synergistic information: what only the fusion can predict (the paper's L_S, with a weight of its own: ours)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmrec_mrdib.losses import bpr


def synergistic(fused: Tensor, unimodal: Iterable[Tensor]) -> Tensor:
    """BPR of the fused score in nats, hardest for the pairs that no modality alone ranks right.

    mean of w (-ln sigmoid(s(u, i) - s(u, j))), w = 1 - max_m sigmoid(s_m(u, i) - s_m(u, j)), scaled to mean 1 over the batch, constant
    for the gradient: the unimodal scores are not made worse so that the fusion may shine.

    Args:
        fused: (B,) s(u, i) - s(u, j).
        unimodal: of each modality (B,) s_m(u, i) - s_m(u, j).
    """
    with torch.no_grad():
        weight = torch.sigmoid(-torch.stack(list(unimodal)).amax(0))
        weight = weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)
    return bpr(fused, weight)
