"""The stochastic encoding stage of MRdIB (arXiv 2509.20225, section on the multimodal information bottleneck)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.encoded import EncodingStage
from mmrec_mrdib.losses import at_least_single


class _Sample(torch.autograd.Function):
    """z = mu + sigma eps and KL(N(mu, diag sigma^2) || N(0, s^2 I)) of each row in nats, 1/2 sum_d ((mu^2 + sigma^2) / s^2 - 1 -
    log(sigma^2 / s^2)), for log sigma^2 clamped to bounds; the closed-form gradient, in one node, saves passes over memory and an exponential. Where the clamp
    holds, no gradient reaches the head."""

    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        raw: Tensor,
        low: float,
        high: float,
        prior: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        log_var = raw.clamp(low, high)
        sigma = (0.5 * log_var).exp_()
        precision = 1.0 / prior**2
        excess = torch.square(sigma).mul_(precision).sub_(1.0)
        kl = log_var.neg_().add_(excess).addcmul_(mean, mean, value=precision).sum(dim=-1)
        kl = kl.add_(mean.shape[-1] * 2 * math.log(prior)).mul_(0.5)
        spread = torch.empty_like(mean).normal_(generator=generator).mul_(sigma)
        ctx.save_for_backward(mean, raw, spread, excess)
        ctx.bounds, ctx.precision = (low, high), precision
        ctx.set_materialize_grads(False)
        return mean + spread, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, raw, spread, excess = ctx.saved_tensors
        of_z, of_kl = grads
        if of_z is None:
            of_z = torch.zeros_like(mean)
        inner, of_mean = of_z * spread, of_z
        if of_kl is not None:
            of_kl = of_kl.unsqueeze(-1)
            inner.addcmul_(excess, of_kl)  # d kl / d log sigma^2 = (sigma^2 / s^2 - 1) / 2
            of_mean = torch.addcmul(of_z, mean, of_kl, value=ctx.precision)
        return of_mean, torch.ops.aten.hardtanh_backward(inner.mul_(0.5), raw, *ctx.bounds), None, None, None, None


class Gaussian(EncodingStage):
    """q(z|x) = N(mu(x), diag sigma^2(x)): mu is the encoder, log sigma^2 one linear head on its output.

    Training: z = mu + sigma * eps, one eps a step. Evaluation: z = mu, and the head is not even computed. The head reads
    mu(x) and not x itself: sigma stays a function of x, at d^2 parameters and cost in place of D_m d.

    Args:
        dims: modality -> d, the width of its representation.
        init_log_var: log sigma^2 at the start (the head's weights are 0, so that training begins almost deterministic).
        min_log_var, max_log_var: clamp of log sigma^2.
        sigma: 'dim': one sigma an item and dimension; 'item': one an item; 'constant': one for all, which does not learn.
        prior_std: s of the prior N(0, s^2 I).
        scales: modality -> mean square of mu that the three log variances are relative to; none: 1, they are absolute.
        stream: device -> the generator that eps is drawn from; none: PyTorch's.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        init_log_var: float,
        min_log_var: float,
        max_log_var: float,
        sigma: Literal["dim", "item", "constant"] = "dim",
        prior_std: float = 1.0,
        scales: Mapping[str, float] | None = None,
        stream: Callable[[torch.device], torch.Generator] | None = None,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.prior_std = prior_std
        self.bounds = dict.fromkeys(dims, (min_log_var, max_log_var))
        self.start = dict.fromkeys(dims, init_log_var)
        self.heads = nn.ModuleDict(
            {m: nn.Linear(d, 1 if sigma == "item" else d) for m, d in dims.items() if sigma != "constant"}
        )
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, init_log_var)
        for m, scale in (scales or {}).items():
            self.make_relative(m, scale)

    def make_relative(self, modality: str, scale: float, begins: bool = True) -> None:
        """Take a modality's three log variances, so far absolute, as relative to a mean square of mu.

        Args:
            begins: whether sigma is to start from there; otherwise the head has learned already, and only the bounds are told.
        """
        offset = math.log(scale)
        low, high = self.bounds[modality]
        self.bounds[modality], self.start[modality] = (low + offset, high + offset), self.start[modality] + offset
        if begins and modality in self.heads:
            head = self.heads[modality]
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, self.start[modality])

    def encode(
        self, modality: str, encoder: Callable[[Tensor], Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mean = encoder(features)
        if not self.training:
            return mean, mean, None
        constant = torch.full_like(mean, self.start[modality]) if not self.heads else None
        raw = self.heads[modality](mean).expand_as(mean) if constant is None else constant
        raw = at_least_single(raw)  # a rate is a loss
        generator = self.stream(mean.device) if self.stream is not None else None
        z, kl = _Sample.apply(at_least_single(mean), raw, *self.bounds[modality], self.prior_std, generator)
        return z, mean, kl


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) mean and 1 / standard deviation of the columns of (I, D), without the padding row 0. For a constant column the second is 0: its
    rounding must not be blown up to unit variance."""
    known = features[1:].float()
    mean, std = known.mean(0), known.std(0, correction=0)
    varies = std > 1e-6 * torch.maximum(std.max(), mean.abs())
    return mean, torch.where(varies, 1 / std, 0.0)


class Linear(nn.Module):
    """mu(x) = W (x - mean) / std + b, (R, D) -> (R, d), for models that have no encoder of their own.

    W starts as the d leading principal components of the standardised features, scaled to a mean square of 1 over the catalogue: at first,
    cosines of mu are close to cosines of the features.

    Args:
        features: (I, D), row 0 padding.
        width: d; dimensions beyond the rank of the features start at 0.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, features: Tensor, width: int) -> None:
        super().__init__()
        known = features[1:].float()
        for name, value in zip(("mean", "inverse_std"), standardisation(features), strict=True):
            self.register_buffer(name, value)
        x = (known - self.mean) * self.inverse_std
        k = min(width, *x.shape)
        with torch.random.fork_rng(devices=[]):  # the same components whatever was drawn before
            torch.manual_seed(0)
            v = torch.svd_lowrank(x, k, niter=4)[2]
        weight = x.new_zeros(width, x.shape[1])
        weight[:k] = v.T
        square = (x @ v).square().sum() / (len(x) * width)
        self.weight = nn.Parameter(weight / square.sqrt().clamp_min(torch.finfo(x.dtype).tiny))
        self.bias = nn.Parameter(x.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.inverse_std  # d x D in place of R x D
        return F.linear(x, weight, self.bias - weight @ self.mean)
