"""DualGNN: dual graph neural network for multimedia recommendation (Wang et al., TMM 2021)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import cached, cooccurrence, gather_rows, segment_softmax
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class DualGNNSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/DualGNN.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=1)
    """Propagations over the user-item graph."""
    n_neighbours: int = Field(ge=1)
    """Co-occurring users whose representations a user adds to its own."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the mean squares of preferences and fusion weights."""


class DualGNN(MultimodalRecommender):
    """Propagation a modality over the user-item graph, fused with weights of each user, then over a user-user graph.

    z^m = W_b lrelu(W_a x^m) (D_m -> 4d -> d); x_0^m = rows of [P^m ; z^m] at length 1; rep^m = sum_l A^l x_0^m, l = 0 ... n_layers.
    rep_u = sum_m w_um rep_u^m, plus the mean of rep_v over the n_neighbours users v with most items in common with u, weighted by
    the softmax of those numbers; rep_i = sum_m rep_i^m; s(u, i) = <rep_u, rep_i>.
    Loss: mean -log2 sigmoid(s_ui - s_uj) + lambda (sum_m mean of (P_u^m)^2 over the batch + mean w^2). M >= 1.
    Views: rep_u^m and rep_i^m. Under MRdIB the rate acts on z^m before it is brought to length 1: of a sample, only the direction goes on.

    Deviations: users with fewer than n_neighbours keep a short list (public code fills it up by drawing from it anew each
    epoch, which moves the weights at random and makes an evaluation depend on when it is done); the final table is made
    anew for each evaluation (there it is the last training step's).
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = DualGNNSettings.from_config(config)
        d = settings.embedding_size
        self.n_layers, self.reg_weight = settings.n_layers, settings.reg_weight
        interactions = self.interactions(dataset)
        self.graph = interactions.normalised("both").both_ways().matrix()
        common = cached(cooccurrence, interactions, settings.n_neighbours)
        self.user_graph = replace(common, values=segment_softmax(common.values, common.rows, self.n_users)).matrix()
        self.preferences = nn.ParameterDict()
        for m, dims in self.feature_dims.items():
            self.preferences[m] = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users, d)))
            self.encoders[m] = encoder = nn.Sequential(nn.Linear(dims, 4 * d), nn.LeakyReLU(), nn.Linear(4 * d, d))
            for linear in (encoder[0], encoder[2]):
                assert isinstance(linear, nn.Linear)
                nn.init.xavier_normal_(linear.weight)
        weights = nn.init.xavier_normal_(torch.empty(self.n_users, len(self.encoders)))
        self.fusion = nn.Parameter(torch.softmax(weights, 1))  # w_um; a softmax at the start only

    def propagate(self, enc: Encoded) -> Embeddings:
        views: dict[str, tuple[Tensor, Tensor]] = {}
        users = items = None
        for n, (m, z) in enumerate(enc.z.items()):
            x = rep = F.normalize(torch.cat([self.preferences[m], z]))
            for _ in range(self.n_layers):
                x = self.graph(x)
                rep = rep + x
            of_users, of_items = views[m] = rep.split([self.n_users, self.n_items])
            weighted = self.fusion[:, n, None] * of_users
            users = weighted if users is None else users + weighted
            items = of_items if items is None else items + of_items
        assert users is not None and items is not None
        return Embeddings(users + self.user_graph(users), items, views)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc)) / math.log(2)}
        if self.reg_weight:
            rows = torch.stack([gather_rows(p, batch.users).square().mean() for p in self.preferences.values()])
            parts["l2"] = self.reg_weight * (rows.sum() + self.fusion[1:].square().mean())
        return parts
