"""MINE: a lower bound of mutual information by a network (Belghazi et al., ICML 2018)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator, random_shift, reverse_gradient


class MINE(MIEstimator):
    """Donsker-Varadhan bound E_joint[T(a, b)] - log E_product[e^T(a, b')], in nats (eq. 5); T: MLP 2d -> h -> 1, ReLU.

    The network *maximises* the bound, the representations *minimise* it. Minimising one sum over both would only teach
    the network to report little. So the representations reach T through a gradient-reversal layer and the loss is -bound:
    one backward pass, in which T ascends with weight 1 and a, b descend with `weight`.

    Product samples pair each item with another one (the R distinct items, shifted against each other). The gradient of the logarithm
    is corrected by a moving average of E_product[e^T] in place of its batch value, which is biased (section 3.2).

    Deviations: the first layer of T is applied to a and b apart, W [a; b] = W_a a + W_b b, and its halves are shifted
    instead of the inputs: the same function, half the cost. Memory O(R h).
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]] = "lower"

    def __init__(self, dim: int, hidden: int, ema_rate: float) -> None:
        super().__init__()
        self.ema_rate = ema_rate
        self.first = nn.Linear(2 * dim, hidden)
        self.last = nn.Linear(hidden, 1, bias=False)  # the bound does not change when a constant is added to T
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.xavier_uniform_(self.last.weight)
        nn.init.zeros_(self.first.bias)
        # log of the moving average of E_product[e^T]; NaN: no batch seen yet.
        self.log_average: Tensor
        self.register_buffer("log_average", torch.tensor(math.nan))

    def scores(self, a: Tensor, b: Tensor, shift: int) -> tuple[Tensor, Tensor]:
        """T on the joint pairs (a_r, b_r) and on the product pairs (a_r, b_{r - shift}), (R,) each."""
        w_a, w_b = self.first.weight.split(a.shape[1], dim=1)
        left = nn.functional.linear(a, w_a, self.first.bias)
        right = nn.functional.linear(b, w_b)
        joint = self.last(torch.relu(left + right))
        product = self.last(torch.relu(left + right.roll(shift, 0)))
        return joint.squeeze(1), product.squeeze(1)

    def forward(self, a: Tensor, b: Tensor, weight: float) -> Estimate:
        if len(a) < 2:  # no product sample exists
            zero = (a.sum() + b.sum()) * 0.0
            return Estimate(zero.detach(), zero)
        shift = random_shift(len(a))
        joint, product = self.scores(reverse_gradient(a, weight), reverse_gradient(b, weight), shift)
        log_mean = torch.logsumexp(product, 0) - math.log(len(product))
        with torch.no_grad():
            if self.training:
                seen = torch.logaddexp(
                    self.log_average + math.log1p(-self.ema_rate), log_mean + math.log(self.ema_rate)
                )
                self.log_average.copy_(torch.where(self.log_average.isnan(), log_mean, seen))
            average = torch.where(self.log_average.isnan(), log_mean, self.log_average)
        # d/dtheta of exp(log_mean - average) is E[e^T dT] / average: the corrected gradient of the logarithm.
        bound = joint.mean() - torch.exp(log_mean - average)
        return Estimate((joint.mean() - log_mean).detach(), -bound)
