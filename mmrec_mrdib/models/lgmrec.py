"""LGMRec: local and global graph learning for multimodal recommendation (Guo et al., AAAI 2024)."""

from __future__ import annotations

import functools
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import full_precision, propagate_mean
from mmrec_mrdib.losses import bpr, frobenius, info_nce_against_all
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class LGMRecSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/LGMRec.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations of the ids over the user-item graph."""
    n_modality_layers: int = Field(ge=0)
    """Propagations of the modalities over the user-item graph."""
    n_hyper_layers: int = Field(ge=1)
    """Propagations over each modality's hypergraph."""
    n_hyperedges: int = Field(ge=1)
    """H, hyperedges of a modality."""
    keep_rate: float = Field(gt=0, le=1)
    """Share of the incidences that a training step keeps."""
    gumbel_noise: Literal["training", "always", "never"]
    """When incidences are drawn instead of being a plain softmax."""
    global_weight: float = Field(ge=0)
    """alpha, the weight of the hypergraphs' representations."""
    contrast_weight: float = Field(ge=0)
    """c, the weight of the contrast between the modalities' hypergraphs."""
    temperature: float = Field(gt=0)
    """tau of the incidences and of the contrast."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the norms of the batch's rows."""


class LGMRec(MultimodalRecommender):
    """Ids and modalities apart over the user-item graph (local), and a learnt hypergraph a modality (global).

    c = LightGCN([E_u ; E_i]); z^m = W_m x^m; e^m = A^n_modality_layers [D_u^-1 R z^m ; z^m], the last layer alone;
    local = c + sum_m e^m at length 1. Incidences: H_i^m = softmax((X^m V_m + g) / tau), H_u^m = softmax((R X^m V_m + g) / tau) over the
    hyperedges, g Gumbel noise, then dropped out; x <- H_i (H_i^T x) n_hyper_layers times from c's items, u = H_u (H_i^T x); q^m = [u ; x].
    all = local + alpha sum_m q^m at length 1; s(u, i) = <all_u, all_i>.
    Loss: BPR + c sum over the batch and over m < m' of InfoNCE(q_u^m, q_u^m'; all users) + InfoNCE(q_i^m, q_i^m'; all items)
    + lambda (|u|_F + |i|_F + |j|_F) / B, unsquared. M >= 1: with one modality there is no contrast. Views: e_u^m and e_i^m at length 1.
    The hyperedges read the features themselves, so under MRdIB that path stays deterministic.

    | reference | here |
    |---|---|
    | user_embedding.weight, item_id_embedding.weight | users, items (rows by id; 0 is padding) |
    | W_m: item_image_trs, item_text_trs (D_m, d) | encoders.image.weight, encoders.text.weight (d, D_m): transposed |
    | V_m: v_hyper, t_hyper (D_m, H) | hyperedges.image, hyperedges.text (D_m, H) |
    | Gumbel noise, in the order items-v, users-v, items-t, users-t | what `gumbel(logits)` returns, in that order |
    | n_ui_layers, n_mm_layers, n_hyper_layer, hyper_num | n_layers, n_modality_layers, n_hyper_layers, n_hyperedges |
    | keep_rate, alpha, cl_weight, reg_weight | keep_rate, global_weight, contrast_weight, reg_weight |

    Deviations: evaluation is without noise (public code draws it then, too, so that scores are random: `gumbel_noise=always`, drawn
    once an evaluation). The padding is in no hyperedge and no denominator. Contrasts of M > 2 modalities are ours.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = LGMRecSettings.from_config(config)
        d = settings.embedding_size
        interactions = self.interactions(dataset)
        self.graph = interactions.normalised("both").both_ways().matrix()
        self.taken = interactions.matrix()  # R
        self.mean = interactions.normalised("mean").matrix()  # D_u^-1 R
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        self.hyperedges = nn.ParameterDict()
        for m, dims in self.feature_dims.items():
            self.encoders[m] = encoder = nn.Linear(dims, d, bias=False)
            nn.init.xavier_uniform_(encoder.weight)
            self.hyperedges[m] = nn.init.xavier_uniform_(nn.Parameter(torch.empty(dims, settings.n_hyperedges)))

    def propagate(self, enc: Encoded) -> Embeddings:
        sizes = [self.n_users, self.n_items]
        content = propagate_mean(self.graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        z = torch.cat(list(enc.z.values()), 1)
        x = torch.cat([self.mean(z), z])  # all modalities side by side
        for _ in range(self.settings.n_modality_layers):
            x = self.graph(x)
        modal = [F.normalize(e) for e in x.chunk(len(enc.z), 1)]
        views = {m: e.split(sizes) for m, e in zip(enc.z, modal, strict=True)}
        of_items = content[self.n_users :]
        hyper = {m: self._hypergraph(m, of_items) for m in enc.z}
        together = F.normalize(functools.reduce(torch.add, hyper.values()))
        nodes = functools.reduce(torch.add, modal, content) + self.settings.global_weight * together
        users, items = nodes.split(sizes)
        return Embeddings(users, items, views, hyper)

    def _hypergraph(self, modality: str, x: Tensor) -> Tensor:
        """(U + I, d) q^m from the items (I, d)."""
        features = self.features(modality)
        with full_precision(x):
            logits = features @ self.hyperedges[modality]
            of_items, of_users = self._incidence(logits), self._incidence(self.taken(logits))
            for _ in range(self.settings.n_hyper_layers):
                edges = of_items[1:].T @ x[1:]  # without the padding
                x = of_items @ edges
            return torch.cat([of_users @ edges, x])

    def _incidence(self, logits: Tensor) -> Tensor:
        settings = self.settings
        if settings.gumbel_noise == "always" or (self.training and settings.gumbel_noise == "training"):
            logits = logits + self.gumbel(logits)
        return F.dropout(torch.softmax(logits / settings.temperature, 1), 1 - settings.keep_rate, self.training)

    @staticmethod
    def gumbel(logits: Tensor) -> Tensor:
        """Standard Gumbel noise of the logits' shape: a modality's items, then its users."""
        return -torch.empty_like(logits).exponential_().log()

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if settings.contrast_weight and len(emb.extra) > 1:
            halves = [q.split([self.n_users, self.n_items]) for q in emb.extra.values()]
            means = [
                info_nce_against_all(one[side], other[side], rows, settings.temperature)
                for one, other in combinations(halves, 2)
                for side, rows in enumerate((batch.users, batch.positive))
            ]
            parts["contrast"] = settings.contrast_weight * len(batch.users) * torch.stack(means).sum()
        if settings.reg_weight:
            u, (i, j) = batch.users_of(emb.users, enc), batch.items_of(emb.items, enc)
            parts["l2"] = settings.reg_weight / len(u) * frobenius(u, i, j)
        return parts
