"""MENTOR: multi-level self-supervised learning for multimodal recommendation (Xu et al., AAAI 2025)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.losses import bpr, info_nce_against_all, moment_gaps
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.models.freedom import ItemGraphSettings, mixed_item_graph
from mmrec_mrdib.models.shared import perturbed


class MENTORSettings(ItemGraphSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/MENTOR.yaml")

    embedding_size: int = Field(ge=1)
    """d, of each modality."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the mean squares of preferences and fusion weights."""
    align_weight: float = Field(ge=0)
    """w_a, the weight of the gaps between the tables' means and variances."""
    contrast_weight: float = Field(ge=0)
    """w_g, the weight of the contrast of the noisy tables."""
    temperature: float = Field(gt=0)
    """tau, its temperature."""
    contrast_anchors: int = Field(ge=1)
    """Users and items, drawn in each step, that its means are taken over; all, if there are no more."""
    noise: float = Field(ge=0)
    """Length of the noise in the noisy tables."""


class Encoder(nn.Module):
    """One of the model's encoders beside those of the contract: preferences P (U, d), and T, W_b lrelu(W_a x) (D -> 4d -> d)."""

    def __init__(self, n_users: int, dims: int, d: int) -> None:
        super().__init__()
        self.preferences = nn.init.xavier_normal_(nn.Parameter(torch.empty(n_users, d)))
        self.content = two_layers(dims, d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.preferences, self.content(x)


def two_layers(dims: int, d: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dims, 4 * d), nn.LeakyReLU(), nn.Linear(4 * d, d))


class MENTOR(MultimodalRecommender):
    """Propagation a modality over the user-item graph and over an item-item graph, aligned with ids by moments, contrasted under noise.

    z^m = W_b lrelu(W_a x^m) (D_m -> 4d -> d). An encoder (P, z) gives y = sum_l A^l nrm([P ; z]), l = 0 ... n_layers, and items
    y_i <- y_i + (S^n_item_layers y)_i, S = sum_m w_m L(kNN_k(X^m)), FREEDOM's. There is one a modality, one of a table of ids, and two noisy ones
    a modality, with parameters of their own, in which each A h of a layer is A h + noise sign(A h) nrm(rho), rho uniform, fresh.
    Tables of width M d: r = [w_um y_u^m, y_i^m] side by side; n1, n2 the same of the noisy encoders; q the ids', r_m modality m's, M times over.
    s(u, i) = <r_u, r_i>.
    Loss: mean -log2 sigmoid(s_ui - s_uj) + lambda (sum_m mean of (P_u^m)^2 over the batch + mean w^2)
    + w_a sum over pairs of {q, r, r_1 ... r_M} (|var - var'| + |mean - mean'|), over all entries
    + w_g (InfoNCE(n1_u, n2_u) + InfoNCE(n1_i, n2_i)), over all users and all items. M >= 1. Views: y_u^m and y_i^m.
    The noisy encoders share with the score only w, so w_g reaches the ranking through w alone. Under MRdIB the rate acts on z^m before it is
    brought to length 1: of a sample, only the direction goes on.

    | reference | ours |
    |---|---|
    | v_gcn.preference, t_gcn.preference | preferences.image, preferences.text |
    | v_gcn.MLP, v_gcn.MLP_1 (t_gcn: text) | encoders.image.0, encoders.image.2 |
    | id_feat; id_gcn.preference, id_gcn.MLP, id_gcn.MLP_1 | ids; guide.preferences, guide.content.0, guide.content.2 |
    | v_gcn_n1.preference, .MLP, .MLP_1 (n2: noisy.1; t_gcn: text) | noisy.0.image.preferences, .content.0, .content.2 |
    | weight_u (U, M, 1) | fusion (U, M) |
    | weight_i, mlp, MLP_user, image_trs, text_trs, image_embedding, text_embedding | none: they have no gradient |

    Deviations: public code's masked term (its w_f) has no gradient and is left out: it would add a number to the logged loss. InfoNCE's mean is over
    `contrast_anchors` users and items drawn in each step, against all: an unbiased estimate, the same where there are no more of them.
    The final table is made anew for each evaluation (there it is the last training step's). Without `modality_weights`,
    text gets 0.9 and the others share 0.1.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = MENTORSettings.from_config(config)
        d = settings.embedding_size
        self.graph = self.interactions(dataset).normalised("both").both_ways().matrix()
        self.item_graph = mixed_item_graph(self, settings)
        self.preferences = nn.ParameterDict()
        for m, dims in self.feature_dims.items():
            self.preferences[m] = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users, d)))
            self.encoders[m] = two_layers(dims, d)
        fusion = nn.init.xavier_normal_(torch.empty(self.n_users, len(self.modalities)))
        self.fusion = nn.Parameter(torch.softmax(fusion, 1))  # w_um; a softmax at the start only
        if settings.align_weight:
            self.ids = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_items, d)))
            self.guide = Encoder(self.n_users, d, d)
        self.noisy = nn.ModuleList()
        if settings.contrast_weight:
            for _ in range(2):
                own = {m: Encoder(self.n_users, dims, d) for m, dims in self.feature_dims.items()}
                self.noisy.append(nn.ModuleDict(own))

    def propagate(self, enc: Encoded) -> Embeddings:
        clean = [(self.preferences[m], z) for m, z in enc.z.items()]
        noisy: list[tuple[Tensor, Tensor]] = []
        if self.training:  # what only the losses need
            if self.settings.align_weight:
                clean.append(self.guide(self.ids))
            for encoders in self.noisy:
                assert isinstance(encoders, nn.ModuleDict)
                noisy += [encoder(self.features(m)) for m, encoder in encoders.items()]
        m = len(enc.z)
        sizes = [m, len(clean) - m, len(noisy)]
        users, items = (table.split(sizes, 1) for table in self.spread(clean, noisy))
        views = dict(zip(enc.z, zip(users[0].unbind(1), items[0].unbind(1), strict=True), strict=True))
        fused = (self.fusion[:, :, None] * users[0]).flatten(1)
        extra = {"guide_users": users[1], "guide_items": items[1], "noisy_users": users[2], "noisy_items": items[2]}
        return Embeddings(fused, items[0].flatten(1), views, extra)

    def spread(self, clean: list[tuple[Tensor, Tensor]], noisy: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """(U, K, d) and (I, K, d) y of K encoders (P, z), side by side through one product a layer."""
        h = y = torch.cat([F.normalize(torch.cat(pair)) for pair in clean + noisy], 1)
        d = y.shape[1] // len(clean + noisy)
        for _ in range(self.settings.n_layers):
            h = self.graph(h)
            if noisy:
                kept, others = h.split([len(clean) * d, len(noisy) * d], 1)
                others = others.unflatten(1, (-1, d))
                others = perturbed(others, self.draw(others.shape), self.settings.noise)
                h = torch.cat([kept, others.flatten(1)], 1)
            y = y + h
        users, items = y.split([self.n_users, self.n_items])
        h = items
        for _ in range(self.settings.n_item_layers):
            h = self.item_graph(h)
        return users.unflatten(1, (-1, d)), (items + h).unflatten(1, (-1, d))

    def draw(self, shape: torch.Size) -> Tensor:
        """(U + I, 2M, d) uniform rho of the noisy encoders in one layer."""
        return torch.rand(shape, device=self.fusion.device)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        settings, extra = self.settings, emb.extra
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc)) / math.log(2)}
        if settings.reg_weight:
            squares = [gather_rows(p, batch.users).square().mean() for p in self.preferences.values()]
            parts["l2"] = settings.reg_weight * torch.stack([*squares, self.fusion[1:].square().mean()]).sum()
        if settings.align_weight:
            pairs = [*emb.views.values(), (extra["guide_users"].squeeze(1), extra["guide_items"].squeeze(1))]
            alone = [torch.cat([u[1:], i[1:]]).repeat(1, len(enc.z)) for u, i in pairs]  # r_1 ... r_M and q
            fused = torch.cat([emb.users[1:], emb.items[1:]])
            parts["align"] = settings.align_weight * moment_gaps(fused, *alone)
        if settings.contrast_weight:
            contrast = self.noisy_against_noisy(extra["noisy_users"], extra["noisy_items"])
            parts["contrast"] = settings.contrast_weight * contrast
        return parts

    def noisy_against_noisy(self, users: Tensor, items: Tensor) -> Tensor:
        """InfoNCE between the two noisy tables, of users (U, 2M, d) and of items (I, 2M, d)."""
        users = self.fusion.repeat(1, 2)[:, :, None] * users
        terms = []
        for table in (users, items):
            a, b = table.unflatten(1, (2, -1)).flatten(2).unbind(1)
            terms.append(info_nce_against_all(a, b, self.anchors(len(table)), self.settings.temperature))
        return terms[0] + terms[1]

    def anchors(self, n: int) -> Tensor:
        """Ids of the users or items, of which there are n with the padding, that the contrast's mean is over."""
        device, some = self.fusion.device, self.settings.contrast_anchors
        return torch.arange(1, n, device=device) if n - 1 <= some else 1 + torch.randperm(n - 1, device=device)[:some]
