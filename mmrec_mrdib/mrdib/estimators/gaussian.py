"""Mutual information of Gaussians in closed form: no network, no adversary (ours)."""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator

logger = logging.getLogger(__name__)
_SHRINKAGE = 1e-3  # share of the identity in the correlation matrix: canonical correlations stay below 1
_CONSTANT = 1e-4  # a column with less than this share of the largest standard deviation counts as constant


class GaussianMI(MIEstimator):
    """-1/2 ln det(I - C'C) in nats, C the canonical correlations of a and b, without the bias of a finite sample.

    Computed as 1/2 (ln det S_aa + ln det S_bb - ln det S) of the joint correlation matrix S of [a, b], shrunk by a thousandth, s, towards the
    identity. The log determinant of a sample covariance of p Gaussian columns from R rows is biased by
    sum_{i<=p} psi((R - i) / 2) - p ln((R - 1) / 2), whatever the true covariance (that of a Wishart matrix); with it taken off the estimate is
    unbiased for Gaussian data up to the shrinkage. The plug-in value is not: d = 64 independent pairs give 1.5 nats from 1,400 rows.

    p is the *rank* of each matrix, not its number of columns: a direction in which nothing varies has log determinant ln s in every sample,
    hence no bias (64 columns of rank 19 that are independent would otherwise give -1 nat). It is counted smoothly, p = tr(I - s S^-1) of the
    shrunk S, as a direction of variance l is shrunk by the share s / (l + s). What the sample's noise adds to s itself changes p by
    tr(s S^-1 - s^2 S^-2) a unit of its logarithm -ln(1 - p / R), whose second-order term is taken off, too.

    For other distributions it sees linear dependence only: it may lie on either side of the truth.
    R must exceed 2d + 1; a smaller batch says nothing, gives 0, and is told of once.
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]] = "neither"

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    @classmethod
    def create(cls, dims: tuple[int, int], hidden: int, ema_rate: float) -> Self:
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
            corr = corr + _SHRINKAGE * torch.eye(len(corr), dtype=corr.dtype, device=corr.device)
            biases = _biases(len(corr), n).to(x.device)
            of_a, of_b, joint = (_log_det(s, biases, n) for s in (corr[:d, :d], corr[d:, d:], corr))
            nats = (0.5 * (of_a + of_b - joint)).to(a.dtype)
        return Estimate(nats.detach(), weight * nats)


def _log_det(matrix: Tensor, biases: Tensor, n: int) -> Tensor:
    """ln det of a shrunk correlation matrix, the expected error of a sample of its rank taken off."""
    factor = torch.linalg.cholesky_ex(matrix).L  # of a diverged batch: NaN, which the trainer names, and no exception
    with torch.no_grad():
        flat = _SHRINKAGE * torch.cholesky_inverse(
            factor
        )  # its eigenvalues: 0 where the data vary, 1 where they do not
        rank = len(matrix) - flat.trace()
        whole = rank.nan_to_num().floor().clamp(0, len(matrix) - 1).long()
        bias = torch.lerp(biases[whole], biases[whole + 1], rank - whole)
        bias -= 0.5 * (flat.trace() - flat.square().sum()) * torch.log1p(-rank / n).square()
    return 2 * factor.diagonal().log().sum() - bias


def _biases(most: int, n: int) -> Tensor:
    """E ln det S - ln det Sigma of p = 0 ... `most` columns from n rows, (most + 1,)."""
    terms = torch.digamma((n - torch.arange(1, most + 1, dtype=torch.float64)) / 2) - math.log((n - 1) / 2)
    return torch.cat([terms.new_zeros(1), terms.cumsum(0)])
