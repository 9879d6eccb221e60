"""CLUB: an upper bound of mutual information (Cheng et al., ICML 2020)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrec_mrdib.graphs import full_precision
from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator

_MAX_LOG_VAR = 8.0  # of q; without a bound a constant b would drive it to minus infinity


class CLUB(MIEstimator):
    """E_joint[log q(b|a)] - E_product[log q(b'|a)] in nats, q(b|a) = N(m(a), diag s^2(a)) from one MLP d -> h -> 2d' (eq. 9).

    q learns by likelihood on detached a, b; a, b descend the estimate with q held fixed. No adversary: what the
    representations minimise is the upper bound itself. It is a bound where q is close to the true conditional (theorem 3.2).

    The product takes *all* R(R - 1) pairs of two different items, not a sample of them: log q is quadratic in b, so that the mean
    over b needs only the mean of b and of b^2. O(R d h) in all, nothing of size R x R.
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]] = "upper"

    def __init__(self, dims: tuple[int, int], hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(dims[0], hidden)
        self.last = nn.Linear(hidden, 2 * dims[1])
        for layer in (self.first, self.last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def create(cls, dims: tuple[int, int], hidden: int, ema_rate: float) -> Self:
        return cls(dims, hidden)

    def conditional(self, a: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(b|a), (R, d') each; `learn`: whether gradients reach q's parameters."""
        w1, b1, w2, b2 = (p if learn else p.detach() for p in self.parameters())
        mean, raw = F.linear(F.relu(F.linear(a, w1, b1)), w2, b2).chunk(2, dim=1)
        return mean, _MAX_LOG_VAR * torch.tanh(raw / _MAX_LOG_VAR)

    def forward(self, a: Tensor, b: Tensor, weight: float | Tensor) -> Estimate:
        n = len(a)
        if n < 2:  # no product sample exists
            return self.nothing(a, b)
        with full_precision(a):
            a, b = a.float(), b.float()
            mean, log_var = self.conditional(a.detach(), learn=True)
            target = b.detach()
            nll = 0.5 * ((target - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(1).mean()
            mean, log_var = self.conditional(a, learn=False)
            # joint - all pairs, both without -log s^2 / 2, which cancels; the pairs of an item with itself among "all" are
            # taken out by the factor n / (n - 1).
            joint = (b - mean).square()
            spread = b.var(0, correction=0)
            all_pairs = (b.mean(0) - mean).square() + spread
            nats = 0.5 * ((all_pairs - joint) * (-log_var).exp()).sum(1).mean() * (n / (n - 1))
        return Estimate(nats.detach(), nll + weight * nats)
