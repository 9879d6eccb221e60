"""Unique information: each modality alone must predict (L_U of the paper)."""

from __future__ import annotations

from torch import Tensor

from mmrec_mrdib.losses import bpr


def unique(margins: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log p(y | z^m) in nats: BPR of the unimodal scores s_m(u, i) = <p_u^m, z_i^m>.

    Args:
        margins: (B,) s_m(u, i) - s_m(u, j).
        weight: (B,) factors of the terms, or None.
    """
    return bpr(margins, weight)
