"""GUME: graphs and user modalities enhancement for long-tail multimodal recommendation (Lin et al., CIKM 2024)."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import Edges, SparseMatrix, gather_rows, in_all, nearest, propagate_mean
from mmrec_mrdib.losses import info_nce, moment_gaps, squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded
from mmrec_mrdib.models.mgcn import MGCN
from mmrec_mrdib.models.shared import GatedSettings, perturbed


class GUMESettings(GatedSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/GUME.yaml")

    extended_reg_weight: float = Field(ge=0)
    """lambda_2, the weight of the L2 term of the extended items."""
    moment_weight: float = Field(ge=0)
    """w_vt, the weight of the gap between the modalities' means and variances."""
    user_contrast_weight: float = Field(ge=0)
    """w_um, the weight of the contrast of the users' extended side."""
    user_temperature: float = Field(gt=0)
    """tau_u, its temperature."""
    noise: float = Field(ge=0)
    """Length of the noise that its views are perturbed by."""


class GUME(MGCN):
    """MGCN over a user-item graph that also joins items that are near in every modality, with extended tables of users.

    J_ij = 1 where j != i is among the k nearest of i in all modalities; A = D^-1/2 [[0, R], [R^T, J]] D^-1/2, D its row sums, in place of the user-item
    graph and R its upper right block; content, q^m, c^m, side and s(u, i) as MGCN's. Extended: e = mean_m LightGCN([E_u^m ; q^m]) over A.
    Loss: MGCN's, with its L2 and its contrast of side and content (temperature tau_b), + lambda_2 / 2 |e_i|^2 / B of the positives
    + w_vt sum over pairs of modalities (|var c^m - var c^m'| + |mean c^m - mean c^m'|), over all entries,
    + w_um (InfoNCE(e_u, side_u) + V(side_u) + V(e_u)), V(y) = InfoNCE of two views y + noise sign(y) nrm(rho), rho uniform, drawn a user of the batch.
    M >= 1; with one modality J is its own graph. e is in the loss alone, and is one propagation, of the tables' mean. Views: R q^m and q^m.

    | reference | ours |
    |---|---|
    | user_embedding.weight, item_id_embedding.weight | users, items |
    | extended_image_user.weight, extended_text_user.weight | extended.image, extended.text |
    | image_embedding.weight, text_embedding.weight | features_image, features_text, with trainable_features |
    | image_reduce_dim, text_reduce_dim (.weight, .bias) | encoders.image, encoders.text |
    | image_trans_dim.0, text_trans_dim.0 | purifiers.image.gate, purifiers.text.gate |
    | separate_coarse.0, separate_coarse.2.weight | fuser.hidden, fuser.score.weight |
    | image_behavior.0, text_behavior.0 | preferences.image, preferences.text |

    Deviations: raw features are frozen (`trainable_features` for public code's way). Negative cosines of the graphs count as 0.
    Neighbours for J are as many as for the graphs, knn_k (always 10 in public code).
    """

    settings_class: ClassVar[type[GatedSettings]] = GUMESettings
    settings: GUMESettings

    def make_encoder(self, dims: int, d: int) -> nn.Module:
        return nn.Linear(dims, d)

    def graphs(self, dataset: Any) -> tuple[SparseMatrix, SparseMatrix, dict[str, SparseMatrix]]:
        settings, n = self.settings, self.n_users
        near = [nearest(self.known_features(m), settings.knn_k, False, settings.knn_method) for m in self.modalities]
        common = in_all(near)
        square = self.interactions(dataset).both_ways()
        square = square + Edges(common.rows + n, common.cols + n, common.values, square.shape)
        square = square.normalised("rows")
        upper = square.kept(square.rows < n)
        block = Edges(upper.rows, upper.cols - n, upper.values, (n, self.n_items))
        return square.matrix(), block.matrix(), {m: self.knn_graph(m).matrix() for m in self.modalities}

    def build_fusion(self, d: int) -> None:
        super().build_fusion(d)
        self.extended = nn.ParameterDict(
            {m: nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d))) for m in self.modalities}
        )

    def extend(self, views: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """(U, d) and (I, d) e."""
        users = functools.reduce(torch.add, self.extended.values())
        items = functools.reduce(torch.add, [q for _, q in views.values()])
        nodes = propagate_mean(self.graph, torch.cat([users, items]) / len(views), self.settings.n_layers)
        return nodes.split([self.n_users, self.n_items])

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        parts = super().loss_parts(enc, emb, batch)
        views = dict(emb.views)
        if settings.moment_weight and len(views) > 1:
            tables = [torch.cat([users[1:], items[1:]]) for users, items in views.values()]
            parts["moments"] = settings.moment_weight * moment_gaps(*tables)
        if settings.extended_reg_weight or settings.user_contrast_weight:
            users, items = self.extend(views)
        if settings.extended_reg_weight:
            scale = settings.extended_reg_weight / (2 * settings.train_batch_size)
            parts["extended_l2"] = scale * squares(gather_rows(items, batch.positive))
        if settings.user_contrast_weight:
            _, (side, _) = self.halves(emb)
            terms = info_nce(users, side, batch.users, batch.users, settings.user_temperature)
            terms = terms + self.two_views(side, batch) + self.two_views(users, batch)
            parts["user_contrast"] = settings.user_contrast_weight * terms
        return parts

    def two_views(self, table: Tensor, batch: Batch) -> Tensor:
        """InfoNCE of two noisy views of the batch's users; one draw for each of the distinct users and views."""
        ids = batch.distinct_users
        rows, places = gather_rows(table, ids), torch.searchsorted(ids, batch.users)
        a, b = (perturbed(rows, self.draw(ids, rows.shape[1]), self.settings.noise) for _ in range(2))
        return info_nce(a, b, places, places, self.settings.user_temperature)

    def draw(self, ids: Tensor, width: int) -> Tensor:
        """(R, d) uniform rho for the users."""
        return torch.rand(len(ids), width, device=ids.device)
