"""Dropout, a control: representations with entries, or whole modalities, left out while training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.models.base import Encoded, drop_out
from mmrec_mrdib.plugins.base import JointSettings, Plugin


class DropoutSettings(JointSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/Dropout.yaml", "plugin/Dropout-{preset}.yaml")

    z_dropout: float = Field(ge=0, lt=1)
    """p, the share that is left out."""
    z_dropout_unit: Literal["entry", "modality"]
    """What is left out: entries of z^m, or all of one modality of an item."""


class Dropout(Plugin):
    """entry: z^m is set to 0 where a coin of probability p says so, an entry at a time, and divided by 1 - p elsewhere. modality: each item
    loses, with probability p, one of its modalities, drawn at random, and the mean of z^m over the encoded items stands in, a constant for the
    gradient; two modalities or more. Evaluation reads all of z^m.
    """

    settings_class = DropoutSettings
    needs_features = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if self.settings.z_dropout_unit == "modality" and len(self.modalities) < 2:
            raise ConfigError("--z_dropout_unit=modality: needs two modalities; --z_dropout_unit=entry works with one")

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        return True

    def encode_items(self, items: Tensor | None = None) -> Encoded:
        enc = super().encode_items(items)
        if not (self.training and self.settings.z_dropout):
            return enc
        generator = self.draws.on(next(iter(enc.z.values())).device)
        if self.settings.z_dropout_unit == "modality":
            return replace(enc, z=self._without_modalities(enc, generator))
        return replace(enc, z={m: drop_out(z, self.settings.z_dropout, generator) for m, z in enc.z.items()})

    def _without_modalities(self, enc: Encoded, generator: torch.Generator) -> Mapping[str, Tensor]:
        first = next(iter(enc.z.values()))
        coins = torch.rand(len(first), generator=generator, device=first.device)
        lost = torch.randint(len(enc.z), (len(first),), generator=generator, device=first.device)
        lost = lost.masked_fill_(coins >= self.settings.z_dropout, -1)
        known = slice(1, None) if enc.items is None else slice(None)  # row 0 of the catalogue is padding
        means = {m: z[known].detach().mean(0) for m, z in enc.z.items()}
        return {m: torch.where((lost == n)[:, None], means[m], z) for n, (m, z) in enumerate(enc.z.items())}
