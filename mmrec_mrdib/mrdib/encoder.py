"""The stochastic encoding stage of MRdIB (arXiv 2509.20225, section on the multimodal information bottleneck)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.losses import at_least_single
from mmrec_mrdib.models.base import EncodingStage


class _Sample(torch.autograd.Function):
    """z = mu + sigma eps and KL(N(mu, diag sigma^2) || N(0, I)) of each row in nats, 1/2 sum_d (mu^2 + sigma^2 - 1 - log sigma^2), for
    log sigma^2 clamped to bounds; the closed-form gradient, in one node, saves passes over memory and an exponential. Where the clamp
    holds, no gradient reaches the head."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, raw: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        log_var = raw.clamp(low, high)
        sigma = (0.5 * log_var).exp_()
        excess = torch.square(sigma).sub_(1.0)
        kl = log_var.neg_().add_(excess).addcmul_(mean, mean).sum(dim=-1).mul_(0.5)
        spread = torch.randn_like(mean).mul_(sigma)
        ctx.save_for_backward(mean, raw, spread, excess)
        ctx.bounds = (low, high)
        ctx.set_materialize_grads(False)
        return mean + spread, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor, None, None]:
        mean, raw, spread, excess = ctx.saved_tensors
        of_z, of_kl = grads
        if of_z is None:
            of_z = torch.zeros_like(mean)
        inner, of_mean = of_z * spread, of_z
        if of_kl is not None:
            of_kl = of_kl.unsqueeze(-1)
            inner.addcmul_(excess, of_kl)  # d kl / d log sigma^2 = (sigma^2 - 1) / 2
            of_mean = torch.addcmul(of_z, mean, of_kl)
        return of_mean, torch.ops.aten.hardtanh_backward(inner.mul_(0.5), raw, *ctx.bounds), None, None


class Gaussian(EncodingStage):
    """q(z|x) = N(mu(x), diag sigma^2(x)): mu is the backbone's own encoder, log sigma^2 one linear head on its output.

    Training: z = mu + sigma * eps, one eps a step. Evaluation: z = mu, and the head is not even computed. The head reads
    mu(x) and not x itself: sigma stays a function of x, at d^2 parameters and cost in place of D_m d.

    Args:
        dims: modality -> d, the width of its representation.
        init_log_var: bias of the head at the start (its weights are 0, so that training begins almost deterministic).
        min_log_var, max_log_var: clamp of log sigma^2.
    """

    def __init__(self, dims: Mapping[str, int], init_log_var: float, min_log_var: float, max_log_var: float) -> None:
        super().__init__()
        self.bounds = (min_log_var, max_log_var)
        self.heads = nn.ModuleDict({m: nn.Linear(d, d) for m, d in dims.items()})
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, init_log_var)

    def encode(
        self, modality: str, encoder: Callable[[Tensor], Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mean = encoder(features)
        if not self.training:
            return mean, mean, None
        raw = self.heads[modality](mean)
        z, kl = _Sample.apply(at_least_single(mean), at_least_single(raw), *self.bounds)  # a rate is a loss
        return z, mean, kl
