"""The stochastic encoding stage of MRdIB (arXiv 2509.20225, section on the multimodal information bottleneck)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrec_mrdib.models.base import EncodingStage


class _Sample(torch.autograd.Function):
    """mu + exp(log_var / 2) * eps, reparameterised; the closed-form gradient saves passes over memory."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor) -> Tensor:
        spread = torch.randn_like(mean).mul_((0.5 * log_var).exp_())
        ctx.save_for_backward(spread)
        return mean + spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (spread,) = ctx.saved_tensors
        return grads[0], (grads[0] * spread).mul_(0.5)


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
        # hardtanh is clamp in one pass each way
        log_var = F.hardtanh(self.heads[modality](mean), *self.bounds)
        return _Sample.apply(mean, log_var), mean, log_var
