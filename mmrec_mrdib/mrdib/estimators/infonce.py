"""InfoNCE as an estimator: a lower bound of mutual information (van den Oord et al., 2018; Poole et al., ICML 2019)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mmrec_mrdib.graphs import full_precision
from mmrec_mrdib.mrdib.estimators.base import Estimate, MIEstimator, reverse_gradient

_GROUP = 512  # items that are told apart from each other: the estimate cannot exceed log 512 = 6.2 nats


class InfoNCE(MIEstimator):
    """E[f(a_i, b_i) - log mean_j e^f(a_i, b_j)] in nats, j over i's group of K items; at most log K.

    The critic f(a, b) = <g(a), h(b)> / sqrt(h) with MLPs g, h: d -> h -> h maximises the bound, the representations, through a
    gradient-reversal layer, minimise it (see MINE). The batch's R items fall into groups of K <= 512, each row's group by its number
    modulo the number of groups: R K scores, whatever the batch. Up to one row a group is left out so that all are of one size.
    """

    direction: ClassVar[Literal["lower", "upper", "neither"]] = "lower"

    def __init__(self, dims: tuple[int, int], hidden: int) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(dims[0], hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        # A last bias of h would add <g(a_i), c>, the same for every j: the bound does not see it.
        self.right = nn.Sequential(nn.Linear(dims[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden, bias=False))
        for name, parameter in self.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(parameter)

    @classmethod
    def create(cls, dims: tuple[int, int], hidden: int, ema_rate: float) -> Self:
        return cls(dims, hidden)

    def forward(self, a: Tensor, b: Tensor, weight: float | Tensor) -> Estimate:
        if len(a) < 2:
            return self.nothing(a, b)
        groups = -(-len(a) // _GROUP)
        size = len(a) // groups
        a, b = (reverse_gradient(x[: groups * size], weight) for x in (a, b))
        with full_precision(a):
            g, h = (
                net(x.float()).view(size, groups, -1).transpose(0, 1) for net, x in ((self.left, a), (self.right, b))
            )
            scores = g @ h.transpose(1, 2) / math.sqrt(g.shape[2])  # (groups, K, K)
            own = scores.diagonal(dim1=1, dim2=2)
            bound = (own - torch.logsumexp(scores, 2)).mean() + math.log(size)
        return Estimate(bound.detach(), -bound)
