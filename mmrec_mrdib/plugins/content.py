"""Content, a control: the readout of MRdIB on raw features, nothing learned.

What a plug-in brings beyond this is what it has learned; what this brings is in the features and the histories as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from recbole.utils import ModelType
from torch import Tensor

from mmrec_mrdib.mrdib.encoder import standardisation
from mmrec_mrdib.plugins.channel import Channel, ChannelSettings


class ContentSettings(ChannelSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/Content.yaml", "plugin/Content-{preset}.yaml")
    training: Literal["staged"]
    """There is nothing to train jointly."""


class Content(Channel):
    """z^m = the features with columns brought to mean 0 and standard deviation 1 over the catalogue: scores are cosines of those.

    Any number of modalities, any backbone. One validation chooses the weight of the readout; there is no training.
    """

    type = ModelType.TRADITIONAL
    settings_class = ContentSettings

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        for m in self.modalities:
            mean, inverse_std = standardisation(self.features(m))
            self.register_buffer(f"mean_{m}", mean, persistent=False)
            self.register_buffer(f"inverse_std_{m}", inverse_std, persistent=False)

    def content(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: (x - getattr(self, f"mean_{m}")) * getattr(self, f"inverse_std_{m}") for m, x in features.items()}
