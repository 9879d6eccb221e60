"""Unimodal, a control: each modality alone must predict, and nothing else is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, StepLoss
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.plugins.base import JointSettings, Plugin
from mmrec_mrdib.plugins.views import Views, check_negatives


class UnimodalSettings(JointSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/Unimodal.yaml", "plugin/Unimodal-{preset}.yaml")

    unimodal_weight: float = Field(ge=0)
    """alpha_3."""


class Unimodal(Plugin):
    """Adds alpha_3 sum_m BPR of <p_u^m, q_i^m>, users and items as the backbone sees them through a modality; where it has no such view,
    p_u^m is a table of the plug-in's and q_i^m is z_i^m (`plugins/views.py`). It is MRdIB (paper) with alpha_1 = alpha_2 = 0 and without noise.
    """

    settings_class = UnimodalSettings
    needs_features = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        check_negatives(self, "Unimodal", "choose another model")
        self.own_views = Views(self.core if self.settings.unimodal_weight else None)

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        return True

    def terms(self, enc: Encoded | None, emb: Embeddings | None, batch: Batch, host: Mapping[str, Tensor]) -> StepLoss:
        if not self.settings.unimodal_weight:
            return StepLoss({})
        assert enc is not None and emb is not None
        losses = {m: unique(margins) for m, margins in self.own_views.margins(enc, emb, batch).items()}
        logs = {f"unimodal/{m}": value.detach() for m, value in losses.items()}
        return StepLoss({"unimodal": self.settings.unimodal_weight * torch.stack(list(losses.values())).sum()}, logs)
