"""BPR, a plain baseline: RecBole's model with the MMRec line's regulariser (Rendle et al., UAI 2009)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from mmrec_mrdib import compat
from mmrec_mrdib.losses import frobenius
from mmrec_mrdib.schema import Settings

compat.activate()

from recbole.model.general_recommender.bpr import BPR as RecBoleBPR


class BPRSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/BPR.yaml")

    reg_weight: float = Field(ge=0)
    """lambda, the weight of the norms of the batch's rows; 0 is RecBole's BPR."""


class BPR(RecBoleBPR):
    """RecBole's BPR, without features, plus lambda (|user rows|_F + |positive rows|_F + |negative rows|_F) / B, norms not squared.

    Reference user_embedding.weight, item_embedding.weight: the same names here (rows by id; 0 is padding).
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.reg_weight = BPRSettings.from_config(config).reg_weight

    def calculate_loss(self, interaction: Any) -> Tensor:
        loss = super().calculate_loss(interaction)
        if not self.reg_weight:
            return loss
        items = [self.item_embedding(interaction[field]) for field in (self.ITEM_ID, self.NEG_ITEM_ID)]
        users = self.user_embedding(interaction[self.USER_ID])
        return loss + self.reg_weight / len(users) * frobenius(users, *items)
