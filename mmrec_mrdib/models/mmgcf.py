"""MMGCF: multimodal graph collaborative filtering (UMAP 2026)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import Pruner, SparseMatrix, gather_rows, propagate_mean
from mmrec_mrdib.losses import bpr, squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class MMGCFSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/MMGCF.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    fusion: Literal["mean", "sum", "concat"]
    """phi, how an item's parts become one vector; concat: a linear map of all of them."""
    fusion_weighting: Literal["equal", "alpha", "normalized"]
    """What the parts weigh, see `MMGCF`."""
    edge_dropout: float = Field(ge=0, lt=1)
    """Share of user-item edges left out in an epoch."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the L2 term."""


class MMGCF(MultimodalRecommender):
    """LightGCN; then an item's propagated id and its modalities are fused into one vector. Users never see content.

    [e_u ; x_i] = LightGCN([E_u ; E_i]); z^m = W_m x^m + b_m; e_i = fused(x_i, z^1 ... z^M); s(u, i) = <e_u, e_i>. With phi the mean, the
    sum, or a linear map of the concatenation, by `fusion_weighting`:
    - alpha: phi(sigmoid(a) x_i, (1 - sigmoid(a)) z^1, ..., (1 - sigmoid(a)) z^M), a trained;
    - normalized: phi(M x_i, z^1, ..., z^M), all brought to length 1 before;
    - equal: phi(x_i, phi(z^1 ... z^M)); the inner phi is left out where M = 1.
    Each epoch keeps int((1 - edge_dropout) |E|) edges, drawn with probability proportional to 1 / sqrt(deg_u deg_i), normalised anew; evaluation uses all.
    Loss: BPR + lambda (|E_u|^2 + |E_i|^2 + |E_j|^2) / 2B over the ids of the batch. M >= 1.
    Views: <e_u, z_i^m> (at length 1 where `normalized`), a term of the score up to a factor; none with concat, whose map moves z^m elsewhere.

    Reference name -> ours (public code):

    | reference | ours |
    |---|---|
    | user_embedding.weight, item_id_embedding.weight | users, items |
    | image_trs, text_trs (.weight, .bias) | encoders.<modality> |
    | mm_alpha | alpha (with alpha) |
    | all_concat_layer (inputs: id, then modalities) | join (concat with alpha or normalized) |
    | mm_concat_layer, id_mm_concat_layer | join_modalities, join (concat with equal) |
    | image_embedding.weight, text_embedding.weight (frozen there, too) | features_<modality>, a buffer |

    Deviations: maps that a weighting does not use are not made. z^m has the width d of the ids.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = MMGCFSettings.from_config(config)
        d, n = settings.embedding_size, len(self.modalities)
        interactions = self.interactions(dataset)
        self.graph = interactions.normalised("both").both_ways().matrix()
        self.pruner = Pruner(interactions)
        self.pruned: SparseMatrix | None = None
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        for m, dims in self.feature_dims.items():
            self.encoders[m] = nn.Linear(dims, d)
        if settings.fusion_weighting == "alpha":
            self.alpha = nn.Parameter(torch.zeros(()))
        if settings.fusion == "concat":
            parts = 2 if settings.fusion_weighting == "equal" else n + 1
            self.join = nn.Linear(parts * d, d)
            if settings.fusion_weighting == "equal" and n > 1:
                self.join_modalities = nn.Linear(n * d, d)

    def before_epoch(self, epoch: int) -> None:
        if self.settings.edge_dropout:
            self.pruned = self.pruner.draw(1 - self.settings.edge_dropout)

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch)

    def propagate(self, enc: Encoded) -> Embeddings:
        graph = self.pruned if self.training and self.pruned is not None else self.graph
        nodes = propagate_mean(graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        users, x = nodes.split([self.n_users, self.n_items])
        if enc.items is not None:
            x = gather_rows(x, enc.items)
        z = dict(enc.z)
        if self.settings.fusion_weighting == "normalized":
            x, z = len(z) * F.normalize(x), {m: F.normalize(of_modality.float()) for m, of_modality in z.items()}
        views = {} if self.settings.fusion == "concat" else {m: (users, of_modality) for m, of_modality in z.items()}
        return Embeddings(users, self.fused(x, list(z.values())), views)

    def fused(self, x: Tensor, z: list[Tensor]) -> Tensor:
        """(R, d) items from their ids and modalities."""
        if self.settings.fusion_weighting == "equal":
            content = self.phi(z, "join_modalities") if len(z) > 1 else z[0]
            return self.phi([x, content], "join")
        if self.settings.fusion_weighting == "alpha":
            share = torch.sigmoid(self.alpha)
            x, z = share * x, [(1 - share) * of_modality for of_modality in z]
        return self.phi([x, *z], "join")

    def phi(self, parts: Sequence[Tensor], layer: str) -> Tensor:
        if self.settings.fusion == "concat":
            joined: Tensor = getattr(self, layer)(torch.cat(list(parts), 1))
            return joined
        total = functools.reduce(torch.add, parts)
        return total / len(parts) if self.settings.fusion == "mean" else total

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.settings.reg_weight:
            assert batch.negative is not None
            pairs = ((self.users, batch.users), (self.items, batch.positive), (self.items, batch.negative))
            rows = [gather_rows(table, ids) for table, ids in pairs]
            parts["l2"] = self.settings.reg_weight / (2 * len(batch.users)) * squares(*rows)
        return parts
