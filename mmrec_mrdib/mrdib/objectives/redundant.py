"""Redundant information: modalities are pushed towards independence (L_R of the paper, for any number of modalities)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from mmrec_mrdib.mrdib.estimators.base import MIEstimator


class Redundancy(nn.Module):
    """Mean over the unordered pairs of modalities of an estimate of I(z^m; z^m').

    Args:
        modalities: M names; for M = 1 there is no pair and the loss is 0.
        estimator: makes the estimator of one pair of names.
    """

    def __init__(self, modalities: tuple[str, ...], estimator: Callable[[str, str], MIEstimator]) -> None:
        super().__init__()
        self.pairs = list(combinations(modalities, 2))
        self.estimators = nn.ModuleDict({f"{a}-{b}": estimator(a, b) for a, b in self.pairs})

    def forward(self, z: Mapping[str, Tensor], weight: float | Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Loss to be *added* (it holds `weight` already), None without pairs, and the estimates in nats by pair.

        Args:
            z: modality -> (R, d_m) representations of distinct items, row-aligned.
            weight: how hard the representations are pushed (alpha_2); estimators always learn with weight 1.
        """
        if not self.pairs:
            return None, {}
        losses, nats = [], {}
        for a, b in self.pairs:
            estimate = self.estimators[f"{a}-{b}"](z[a], z[b], weight / len(self.pairs))
            losses.append(estimate.loss)
            nats[f"{a}-{b}"] = estimate.nats
        return torch.stack(losses).sum(), nats
