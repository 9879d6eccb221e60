"""What an estimator of mutual information is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn


class Estimate(NamedTuple):
    """An estimate of I(A; B).

    Attributes:
        nats: () the estimate, detached.
        loss: () to be minimised over everything at once: it teaches the estimator with weight 1 and pushes the
            representations towards independence with the weight given. Its value means nothing by itself.
    """

    nats: Tensor
    loss: Tensor


class MIEstimator(nn.Module, ABC):
    """Estimates I(A; B) from paired samples a (R, d), b (R, d'), one row an item, all items distinct.

    One of one's own: a subclass in a file, and a line in `registry.ESTIMATORS` (or an entry point of the group `mmrec_mrdib.estimators`).
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]]
    """Whether the estimate bounds the truth from below or above (in expectation, for a fixed estimator)."""

    @classmethod
    @abstractmethod
    def create(cls, dims: tuple[int, int], hidden: int, ema_rate: float) -> Self:
        """An estimator for vectors a and b of these widths; each takes what it needs of the rest."""

    @abstractmethod
    def forward(self, a: Tensor, b: Tensor, weight: float | Tensor) -> Estimate:
        """
        Args:
            a, b: (R, d) and (R, d'), row-aligned.
            weight: how hard a and b are pushed towards independence; the estimator itself always learns with weight 1.
        """

    @staticmethod
    def nothing(a: Tensor, b: Tensor) -> Estimate:
        """For batches too small to say anything: 0, with a gradient of 0."""
        zero = (a.sum() + b.sum()) * 0.0
        return Estimate(zero.detach(), zero)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float | Tensor) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * -ctx.weight, None


def reverse_gradient(x: Tensor, weight: float | Tensor) -> Tensor:
    """x itself; the gradient that flows back through it is multiplied by -weight (Ganin & Lempitsky, ICML 2015)."""
    return _Reverse.apply(x, weight)


def random_shift(n: int) -> int:
    """Uniform over 1 ... n - 1. Pairing row r with row r + shift (mod n) never pairs a row with itself, and over many draws
    pairs any two rows equally often: a product sample for the price of a copy. From PyTorch's CPU stream: no device waits."""
    return int(torch.randint(1, n, ()))
