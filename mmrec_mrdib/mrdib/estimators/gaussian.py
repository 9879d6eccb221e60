"""Mutual information of Gaussians in closed form: no network, no adversary (ours)."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator

logger = logging.getLogger(__name__)
_SHRINKAGE = 1e-3  # share of the identity in the correlation matrix: canonical correlations stay below 1
_CONSTANT = 1e-4  # a column with less than this share of the largest standard deviation counts as constant


class GaussianMI(MIEstimator):
    """-1/2 ln det(I - C'C) in nats, C the canonical correlations of a and b, without the bias of a finite sample.

    Computed as 1/2 (ln det S_aa + ln det S_bb - ln det S) of the joint correlation matrix S of [a, b], shrunk by a thousandth towards the
    identity. The log determinant of a sample covariance of p Gaussian columns from R rows is biased by
    sum_{i<=p} psi((R - i) / 2) - p ln((R - 1) / 2), whatever the true covariance (that of a Wishart matrix); with it taken off the estimate is
    unbiased for Gaussian data up to the shrinkage. The plug-in value is not: d = 64 independent pairs give 1.5 nats from 1,400 rows.

    For other distributions it sees linear dependence only: it may lie on either side of the truth.
    R must exceed 2d + 1; a smaller batch says nothing, gives 0, and is told of once.
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]] = "neither"

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    @classmethod
    def create(cls, dim: int, hidden: int, ema_rate: float) -> Self:
        return cls()

    def forward(self, a: Tensor, b: Tensor, weight: float | Tensor) -> Estimate:
        n, d = len(a), a.shape[1]
        if n <= d + b.shape[1] + 1:
            if not self._told:
                self._told = True
                logger.warning(
                    "mi_estimator=gaussian: a batch with %d distinct items says nothing about %d dimensions; "
                    "raise --train_batch_size, or choose another estimator",
                    n, d + b.shape[1],
                )  # fmt: skip
            return self.nothing(a, b)
        with torch.autocast(a.device.type, enabled=False):
            x = torch.cat([a, b], 1).double()  # differences of log determinants
            x = x - x.mean(0)
            std = x.square().mean(0).clamp_min(1e-24).sqrt()
            # A constant column has no correlation with anything. Its rounding noise must not be blown up to one.
            live = std > (_CONSTANT * std.max()).clamp_min(1e-10)
            x = x * torch.where(live, 1 / std, 0.0)
            corr = (x.T @ x) * ((1 - _SHRINKAGE) / n)
            corr = corr + (1.0 - corr.diagonal().detach()).diag()  # unit diagonal, constant columns included
            plug_in = 0.5 * (_log_det(corr[:d, :d]) + _log_det(corr[d:, d:]) - _log_det(corr))
            bias = _bias(x.shape[1], n).to(x.device)
            of_a, of_b = live[:d].sum(), live[d:].sum()
            nats = (plug_in - 0.5 * (bias[of_a] + bias[of_b] - bias[of_a + of_b])).to(a.dtype)
        return Estimate(nats.detach(), weight * nats)


def _log_det(matrix: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(matrix).diagonal().log().sum()


def _bias(most: int, n: int) -> Tensor:
    """E ln det S - ln det Sigma of p = 0 ... `most` columns from n rows, (most + 1,), up to a part linear in p, which cancels."""
    terms = torch.digamma((n - torch.arange(1, most + 1, dtype=torch.float64)) / 2)
    return torch.cat([terms.new_zeros(1), terms.cumsum(0)])
