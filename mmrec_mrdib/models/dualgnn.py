"""DualGNN: dual graph neural network for multimedia recommendation (Wang et al., TMM 2021)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import gather_rows, similar_users
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class UserGraphSettings(Settings):
    """What DualGNN and DRAGON have in common."""

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=1)
    """Propagations over the user-item graph."""
    n_neighbours: int = Field(ge=1)
    """Co-occurring users whose representations a user adds to its own."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the mean squares of preferences and fusion weights."""


class UserGraphModel(MultimodalRecommender):
    """What DualGNN and DRAGON have in common: propagation a modality, fusion weights of each user, the user-user graph, the loss."""

    z_in_score = "yes"
    settings_class: ClassVar[type[UserGraphSettings]]

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings_class.from_config(config)
        d = settings.embedding_size
        self.n_layers, self.reg_weight = settings.n_layers, settings.reg_weight
        interactions = self.interactions(dataset)
        self.graph = interactions.normalised("both").both_ways().matrix()
        self.user_graph = similar_users(interactions, settings.n_neighbours).matrix()
        self.preferences = nn.ParameterDict()
        for m, dims in self.feature_dims.items():
            self.preferences[m] = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users, d)))
            self.encoders[m] = self.encoder(dims, d)
        self.fusion = self.shares(self.n_users)  # w_um
        self.build(settings)

    def encoder(self, dims: int, d: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dims, 4 * d), nn.LeakyReLU(), nn.Linear(4 * d, d))

    def build(self, settings: Any) -> None:
        """What else the model has."""

    def shares(self, n: int) -> nn.Parameter:
        """(n, M) weights of the modalities; a softmax at the start only."""
        return nn.Parameter(torch.softmax(nn.init.xavier_normal_(torch.empty(n, len(self.encoders))), 1))

    def fuse(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """(U, d') and (I, d') from the modalities' (U, M, d) and (I, M, d)."""
        raise NotImplementedError

    def propagate(self, enc: Encoded) -> Embeddings:
        # All modalities side by side: one product a layer.
        x = rep = torch.cat([F.normalize(torch.cat([self.preferences[m], z])) for m, z in enc.z.items()], 1)
        for _ in range(self.n_layers):
            x = self.graph(x)
            rep = rep + x
        of_users, of_items = rep.unflatten(1, (len(enc.z), -1)).split([self.n_users, self.n_items])
        users, items = self.fuse(of_users, of_items)
        views = dict(zip(enc.z, zip(of_users.unbind(1), of_items.unbind(1), strict=True), strict=True))
        return Embeddings(users + self.user_graph(users), items, views)

    def regularised(self) -> list[Tensor]:
        """Tables of fusion weights that the regulariser holds small."""
        return [self.fusion]

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc)) / math.log(2)}
        if self.reg_weight:
            rows = [gather_rows(p, batch.users).square().mean() for p in self.preferences.values()]
            weights = [w[1:].square().mean() for w in self.regularised()]
            parts["l2"] = self.reg_weight * torch.stack(rows + weights).sum()
        return parts


class DualGNNSettings(UserGraphSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/DualGNN.yaml")

    reference_fusion: bool
    """Whether users are fused from the first modality's sum with the others, as in public code (see Deviations)."""
    reference_item_weights: bool
    """Whether there is a table of item weights that only the regulariser knows, as in public code."""


class DualGNN(UserGraphModel):
    """Propagation a modality over the user-item graph, fused with weights of each user, then over a user-user graph.

    z^m = W_b lrelu(W_a x^m) (D_m -> 4d -> d); x_0^m = rows of [P^m ; z^m] at length 1; rep^m = sum_l A^l x_0^m, l = 0 ... n_layers.
    rep_u = sum_m w_um rep_u^m, plus the mean of rep_v over the n_neighbours users v with most items in common with u, weighted by
    the softmax of those numbers; rep_i = sum_m rep_i^m; s(u, i) = <rep_u, rep_i>.
    Loss: mean -log2 sigmoid(s_ui - s_uj) + lambda (sum_m mean of (P_u^m)^2 over the batch + mean w^2). M >= 1.
    Views: rep_u^m and rep_i^m. Under MRdIB the rate acts on z^m before it is brought to length 1: of a sample, only the direction goes on.

    | reference | here |
    |---|---|
    | v_gcn.preference, t_gcn.preference (or v_preference, t_preference) | preferences.image, preferences.text (rows by id; 0 is padding) |
    | v_gcn.MLP, t_gcn.MLP (.weight, .bias) | encoders.image.0, encoders.text.0 |
    | v_gcn.MLP_1, t_gcn.MLP_1 (.weight, .bias) | encoders.image.2, encoders.text.2 |
    | weight_u (U, M, 1), weight_i (I, M, 1) | fusion (U, M), item_weights (I, M; `reference_item_weights`) |
    | the user graph of an epoch | user_graph, a SparseMatrix (U, U) |
    | MLP_v, MLP_t, MLP_user | none: they take part in nothing |

    Deviations: users with fewer than n_neighbours keep a short list (public code fills it up by drawing from it anew each
    epoch, which moves the weights at random and makes an evaluation depend on when it is done); the final table is made
    anew for each evaluation (there it is the last training step's). Public code sums the items' representation in place of the
    first modality's, before the users are fused: rep_u = w_u1 sum_m rep_u^m + sum_{m > 1} w_um rep_u^m (`reference_fusion`); and its
    regulariser has the mean squares of a table of item weights that nothing else uses (`reference_item_weights`).
    """

    settings_class = DualGNNSettings

    def encoder(self, dims: int, d: int) -> nn.Module:
        encoder = super().encoder(dims, d)
        for linear in encoder.children():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_normal_(linear.weight)
        return encoder

    def build(self, settings: DualGNNSettings) -> None:
        self.reference_fusion = settings.reference_fusion
        self.item_weights = self.shares(self.n_items) if settings.reference_item_weights else None

    def fuse(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        if self.reference_fusion:
            users = torch.cat([users.sum(1, keepdim=True), users[:, 1:]], 1)
        return (self.fusion[:, :, None] * users).sum(1), items.sum(1)

    def regularised(self) -> list[Tensor]:
        return [self.fusion] if self.item_weights is None else [self.fusion, self.item_weights]
