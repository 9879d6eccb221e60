"""Noise, a control: representations with noise of constant size while training, nothing learned and nothing squeezed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.losses import at_least_single
from mmrec_mrdib.models.base import Batch, Encoded, EncodingStage
from mmrec_mrdib.plugins.base import Draws, JointSettings, Plugin


class NoiseSettings(JointSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/Noise.yaml", "plugin/Noise-{preset}.yaml")

    z_noise: float = Field(ge=0)
    """sigma_0, or kappa: the standard deviation of the noise, in the unit below."""
    z_noise_unit: Literal["absolute", "rms"]
    """absolute: as it is; rms: in units of the root mean square of mu^m over the distinct items of the batch, a constant for the gradient."""


class ConstantNoise(EncodingStage):
    """z^m = mu^m + sigma eps while training, mu^m in evaluation; there is no rate.

    Args:
        size: sigma, or kappa.
        relative: whether sigma is kappa times the root mean square of mu over `among`.
        draws: where eps comes from.

    Attributes:
        among: (R,) items whose mu tells its size where the whole catalogue is encoded; none: all.
    """

    def __init__(self, size: float, relative: bool, draws: Draws) -> None:
        super().__init__()
        self.size, self.relative, self.draws = size, relative, draws
        self.among: Tensor | None = None
        self._partial = False

    def forward(
        self, encoders: Mapping[str, nn.Module], features: Mapping[str, Tensor], items: Tensor | None
    ) -> Encoded:
        self._partial = items is not None
        return super().forward(encoders, features, items)

    def encode(
        self, modality: str, encoder: Callable[[Tensor], Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        mean = encoder(features)
        if not (self.training and self.size):
            return mean, mean, None
        noise = torch.empty_like(mean).normal_(generator=self.draws.on(mean.device))
        return mean + noise * (self.size * self._rms(mean) if self.relative else self.size), mean, None

    @torch.no_grad()
    def _rms(self, mean: Tensor) -> Tensor:
        rows = mean
        if not self._partial:  # otherwise it is of the batch's items alone
            rows = mean[1:] if self.among is None else mean[self.among]
        return at_least_single(rows).square().mean().sqrt().to(mean.dtype)


class Noise(Plugin):
    """What a stochastic encoder does when its noise is not learnt and its rate not paid for; what MRdIB and DVIB bring beyond this is theirs."""

    settings_class = NoiseSettings
    needs_features = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.replace_stage(ConstantNoise(self.settings.z_noise, self.settings.z_noise_unit == "rms", self.draws))

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        return frozenset({"sampling"})

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        return True

    def batch(self, interaction: Any) -> Batch:
        batch = super().batch(interaction)
        if self.settings.z_noise_unit == "rms" and self.settings.z_noise:
            self.core.stage.among = batch.items
        return batch
