"""The stochastic encoding stage of MRdIB (arXiv 2509.20225, section on the multimodal information bottleneck)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmrec_mrdib.models.base import EncodingStage


class Gaussian(EncodingStage):
    """q(z|x) = N(mu(x), diag sigma^2(x)): mu is the backbone's own encoder, log sigma^2 one linear head on the features.

    Training: z = mu + sigma * eps, one eps a step. Evaluation: z = mu, and the head is not even computed.

    Args:
        dims: modality -> (D_m, d), features and representation.
        init_log_var: bias of the head at the start (its weights are 0, so that training begins almost deterministic).
        min_log_var, max_log_var: clamp of log sigma^2.
    """

    def __init__(
        self, dims: Mapping[str, tuple[int, int]], init_log_var: float, min_log_var: float, max_log_var: float
    ) -> None:
        super().__init__()
        self.bounds = (min_log_var, max_log_var)
        self.heads = nn.ModuleDict({m: nn.Linear(n, d) for m, (n, d) in dims.items()})
        for head in self.heads.values():
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, init_log_var)

    def encode(
        self, modality: str, encoder: Callable[[Tensor], Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mean = encoder(features)
        if not self.training:
            return mean, mean, None
        log_var = self.heads[modality](features).clamp(*self.bounds)
        return mean + (0.5 * log_var).exp() * torch.randn_like(mean), mean, log_var
