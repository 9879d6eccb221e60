"""L2, a control: what the rate of an information bottleneck does to the means, without noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrec_mrdib.losses import squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, StepLoss
from mmrec_mrdib.plugins.base import JointSettings, Plugin


class L2Settings(JointSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/L2.yaml", "plugin/L2-{preset}.yaml")

    z_l2_weight: float = Field(ge=0)
    """lambda."""


class L2(Plugin):
    """Adds lambda sum_m mean over the distinct items of the batch of 1/2 |mu^m|^2: the part of KL(N(mu, diag sigma^2) to N(0, I)) that is in mu,
    in its units, so that lambda is MRdIB's alpha_1 (`rate_reduce: sum`).
    """

    settings_class = L2Settings
    needs_features = False

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        return True

    def terms(self, enc: Encoded | None, emb: Embeddings | None, batch: Batch, host: Mapping[str, Tensor]) -> StepLoss:
        if not self.settings.z_l2_weight:
            return StepLoss({})
        assert enc is not None
        rows = {m: batch.distinct_items_of(mean, enc) for m, mean in enc.mean.items()}
        halves = {m: 0.5 * squares(mean) / len(mean) for m, mean in rows.items()}
        logs = {f"z_l2/{m}": value.detach() for m, value in halves.items()}
        return StepLoss({"z_l2": self.settings.z_l2_weight * torch.stack(list(halves.values())).sum()}, logs)
