"""MINE: a lower bound of mutual information by a network (Belghazi et al., ICML 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs import full_precision
from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator, random_shift


class _Loss(torch.autograd.Function):
    """-bound and its closed-form gradient in one node: half of autograd's passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, last: Tensor,
        shift: int, push: float | Tensor, average_of: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        w_a, w_b = weight.split([a.shape[1], b.shape[1]], dim=1)
        left, right = torch.addmm(bias, a, w_a.T), b @ w_b.T
        joint = (left + right).relu_()
        product = left  # (left + right rolled by shift), without a rolled copy
        product[shift:] += right[:-shift]
        product[:shift] += right[-shift:]
        product.relu_()
        of_joint, of_product = (joint @ last).mean(), product @ last
        log_mean = torch.logsumexp(of_product, 0) - math.log(len(a))
        log_average = average_of(log_mean)
        # d/dtheta of exp(log_mean - log_average) is E[e^T dT] / average: the corrected gradient of the logarithm.
        shares = torch.exp(of_product - log_average).div_(len(a))
        ctx.save_for_backward(a, b, weight, last, joint, product, shares)
        ctx.shift, ctx.push = shift, push
        nats = of_joint - log_mean
        ctx.mark_non_differentiable(nats)
        return torch.exp(log_mean - log_average) - of_joint, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, weight, last, joint, product, shares = ctx.saved_tensors
        relu_backward = torch.ops.aten.threshold_backward
        each = -grads[0] / len(a)  # what every joint pair's T gets
        of_product = shares * grads[0]
        right = relu_backward((last * each).expand_as(joint), joint, 0)
        rolled = relu_backward(torch.outer(of_product, last), product, 0)
        left = right + rolled
        right[: -ctx.shift] += rolled[ctx.shift :]
        right[-ctx.shift :] += rolled[: ctx.shift]
        of_weight = torch.cat([left.T @ a, right.T @ b], 1)
        of_last = torch.addmv(joint.sum(0) * each, product.T, of_product)
        w_a, w_b = (weight * -ctx.push).split(
            [a.shape[1], b.shape[1]], dim=1
        )  # the reversal: a and b get -push times their gradient
        return left @ w_a, right @ w_b, of_weight, left.sum(0), of_last, None, None, None


class MINE(MIEstimator):
    """Donsker-Varadhan bound E_joint[T(a, b)] - log E_product[e^T(a, b')], in nats (eq. 5); T: MLP d + d' -> h -> 1, ReLU.

    The network *maximises* the bound, the representations *minimise* it. Minimising one sum over both would only teach
    the network to report little. So the gradient of the representations is reversed and the loss is -bound:
    one backward pass, in which T ascends with weight 1 and a, b descend with `weight`.

    Product samples pair each item with another one (the R distinct items, shifted against each other). The gradient of the logarithm
    is corrected by a moving average of E_product[e^T] in place of its batch value, which is biased (section 3.2).

    Deviations: the first layer of T is applied to a and b apart, W [a; b] = W_a a + W_b b, and its halves are shifted
    instead of the inputs: the same function, half the cost. Memory O(R h).
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]] = "lower"

    def __init__(self, dims: tuple[int, int], hidden: int, ema_rate: float) -> None:
        super().__init__()
        self.ema_rate = ema_rate
        self.first = nn.Linear(sum(dims), hidden)
        self.last = nn.Linear(hidden, 1, bias=False)  # the bound does not change when a constant is added to T
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.xavier_uniform_(self.last.weight)
        nn.init.zeros_(self.first.bias)
        # log of the moving average of E_product[e^T]; NaN: no batch seen yet.
        self.log_average: Tensor
        self.register_buffer("log_average", torch.tensor(math.nan))

    @classmethod
    def create(cls, dims: tuple[int, int], hidden: int, ema_rate: float) -> Self:
        return cls(dims, hidden, ema_rate)

    def scores(self, a: Tensor, b: Tensor) -> Tensor:
        """T(a_r, b_r), (R,)."""
        scores: Tensor = self.last(torch.relu(self.first(torch.cat([a, b], 1)))).squeeze(1)
        return scores

    def forward(self, a: Tensor, b: Tensor, weight: float | Tensor) -> Estimate:
        if len(a) < 2:  # no product sample exists
            return self.nothing(a, b)
        with full_precision(a):
            first, last = self.first, self.last.weight[0]
            loss, nats = _Loss.apply(
                a.float(), b.float(), first.weight, first.bias, last, random_shift(len(a)), weight, self._average
            )
        return Estimate(nats, loss)

    def _average(self, log_mean: Tensor) -> Tensor:
        """log of the moving average of E_product[e^T], after this batch."""
        seen = self.log_average
        if self.training:
            moved = torch.logaddexp(seen + math.log1p(-self.ema_rate), log_mean + math.log(self.ema_rate))
            seen.copy_(torch.where(seen.isnan(), log_mean, moved))
        return torch.where(seen.isnan(), log_mean, seen)
