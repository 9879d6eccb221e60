"""VBPR: visual Bayesian personalised ranking, for any number of modalities (He & McAuley, AAAI 2016)."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.losses import bpr, frobenius
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.optim import rows
from mmrec_mrdib.schema import Settings


class VBPRSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/VBPR.yaml")

    embedding_size: int = Field(ge=1)
    """d, the width of the collaborative half and of the modality half."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the L2 term."""


class VBPR(MultimodalRecommender):
    """s(u, i) = <gamma_u, gamma_i> + <theta_u, z_i>, z_i = sum_m z_i^m, z_i^m = W_m x_i^m + b_m (eq. 4 of the paper).

    Loss: BPR + lambda (||user rows||_F + ||positive rows||_F + ||negative rows||_F) / B, rows of the batch, in both halves.
    Views: <theta_u, z_i^m>. M >= 1.

    Deviations: the paper has one modality, item biases and a visual bias; they are left out, as in the MMRec line. The linear
    map of the concatenated features is written as a sum of one map a modality, initialised with the joint fan-in.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = VBPRSettings.from_config(config)
        d = self.width = settings.embedding_size
        self.reg_weight = settings.reg_weight
        self.users = nn.Parameter(torch.empty(self.n_users, 2 * d))  # [gamma_u ; theta_u]
        self.items = nn.Parameter(torch.empty(self.n_items, d))  # gamma_i
        nn.init.xavier_uniform_(self.users)
        nn.init.xavier_uniform_(self.items)
        std = (2.0 / (sum(self.feature_dims.values()) + d)) ** 0.5
        for m, dims in self.feature_dims.items():
            self.encoders[m] = encoder = nn.Linear(dims, d)
            nn.init.normal_(encoder.weight, std=std)
            nn.init.zeros_(encoder.bias)

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch)

    def users_to_read(self, batch: Batch) -> Tensor | None:
        return self.only_distinct_users(batch)

    def row_tables(self) -> list[nn.Parameter]:
        return [self.users, self.items]

    def propagate(self, enc: Encoded) -> Embeddings:
        gamma = self.items if enc.items is None else rows(self.items, enc.items)
        users = self.users if enc.users is None else rows(self.users, enc.users)
        fused = functools.reduce(torch.add, enc.z.values())
        theta = users[:, self.width :]
        views = {m: (theta, z) for m, z in enc.z.items()}
        extra = {"collaborative_users": users[:, : self.width], "collaborative_items": gamma}
        return Embeddings(users, torch.cat([gamma, fused], dim=1), views, extra)

    def new_items(self, enc: Encoded) -> Tensor:
        z = functools.reduce(torch.add, enc.z.values())
        return torch.cat([torch.zeros_like(z), z], dim=1)  # <theta_u, z_i>: there is no gamma_i

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.reg_weight:
            u, (i, j) = batch.users_of(emb.users, enc), batch.items_of(emb.items, enc)
            parts["l2"] = self.reg_weight / len(u) * frobenius(u, i, j, summed=self.summed)
        return parts
