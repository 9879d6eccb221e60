"""MINE: a lower bound of mutual information by a network (Belghazi et al., ICML 2018)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs import full_precision
from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator, random_shift, reverse_gradient


class _Scores(torch.autograd.Function):
    """MINE.scores with its closed-form gradient: two thirds of autograd's passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, last: Tensor, shift: int
    ) -> tuple[Tensor, Tensor]:
        w_a, w_b = weight.split(a.shape[1], dim=1)
        left, right = torch.addmm(bias, a, w_a.T), b @ w_b.T
        joint = (left + right).relu_()
        product = left  # (left + right rolled by shift), without a rolled copy
        product[shift:] += right[:-shift]
        product[:shift] += right[-shift:]
        product.relu_()
        ctx.save_for_backward(a, b, weight, last, joint, product)
        ctx.shift = shift
        return joint @ last, product @ last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        a, b, weight, last, joint, product = ctx.saved_tensors
        w_a, w_b = weight.split(a.shape[1], dim=1)
        relu_backward = torch.ops.aten.threshold_backward
        of_joint = relu_backward(torch.outer(grads[0], last), joint, 0)
        of_product = relu_backward(torch.outer(grads[1], last), product, 0)
        left = of_joint + of_product
        right = of_joint
        right[: -ctx.shift] += of_product[ctx.shift :]
        right[-ctx.shift :] += of_product[: ctx.shift]
        of_weight = torch.cat([left.T @ a, right.T @ b], 1)
        return left @ w_a, right @ w_b, of_weight, left.sum(0), joint.T @ grads[0] + product.T @ grads[1], None


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

    @classmethod
    def create(cls, dim: int, hidden: int, ema_rate: float) -> Self:
        return cls(dim, hidden, ema_rate)

    def scores(self, a: Tensor, b: Tensor, shift: int) -> tuple[Tensor, Tensor]:
        """T on the joint pairs (a_r, b_r) and on the product pairs (a_r, b_{r - shift}), (R,) each."""
        with full_precision(a):
            first, last = self.first, self.last.weight[0]
            joint, product = _Scores.apply(a.float(), b.float(), first.weight, first.bias, last, shift)
        return joint, product

    def forward(self, a: Tensor, b: Tensor, weight: float | Tensor) -> Estimate:
        if len(a) < 2:  # no product sample exists
            return self.nothing(a, b)
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
