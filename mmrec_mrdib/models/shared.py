"""What MGCN, SOIL, SMORE and GUME share: gate the items' ids by content, propagate over items, add the views to a behaviour view."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import Edges, SparseMatrix, nearest, propagate_mean
from mmrec_mrdib.losses import bpr, info_nce, squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class GatedSettings(Settings):
    """What they have in common."""

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    n_item_layers: int = Field(ge=0)
    """Propagations over each modality's item-item graph."""
    knn_k: int = Field(ge=1)
    """Neighbours of an item in a modality's graph, itself included."""
    knn_method: Literal["auto", "exact", "approximate"]
    """How they are found, see `graphs.nearest`."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the L2 term."""
    contrast_weight: float = Field(ge=0)
    """c, the weight of the contrastive losses."""
    temperature: float = Field(gt=0)
    """Temperature of the contrastive losses."""
    train_batch_size: int = Field(ge=1)
    """B of the L2 term: the configured batch size, also for a short last batch."""
    trainable_features: bool
    """Whether the raw features train, too (public code's way)."""


class Purifier(nn.Module):
    """q = E_i * sigmoid(W z + b): the behaviour-guided purifier."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d, d)

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        return items * torch.sigmoid(self.gate(z))


class Fuser(nn.Module):
    """sum_m softmax_m(v . tanh(W c^m + b)) c^m: what the modalities have in common."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(d, d)
        self.score = nn.Linear(d, 1, bias=False)

    def forward(self, views: list[Tensor]) -> Tensor:
        scores = torch.cat([self.score(torch.tanh(self.hidden(c))) for c in views], 1)
        shares = torch.softmax(scores, 1)
        return functools.reduce(torch.add, [shares[:, m, None] * c for m, c in enumerate(views)])


def perturbed(x: Tensor, rho: Tensor, size: float) -> Tensor:
    """(..., d) x + size * sign(x) * rho / |rho|: noise of one length in each row's own orthant (Yu et al., SIGIR 2022)."""
    return x + size * torch.sign(x) * F.normalize(rho, dim=-1)


class GatedViews(MultimodalRecommender):
    """A behaviour view over the user-item graph, and views of gated item ids over item-item graphs, joined in `side`.

    q^v = G_v^n_item_layers Purifier(E_i, source^v) for each view v, c^v = [R q^v ; q^v]; content = LightGCN([E_u ; E_i]);
    s(u, i) = <all_u, all_i>, all = content + side(content, c).
    Loss: BPR + lambda / 2 (|u|^2 + |i|^2 + |j|^2) / B + c (InfoNCE(side_i, content_i) + InfoNCE(side_u, content_u)) over the
    positives of the batch. A model writes `side` (and `build_fusion`, its parameters), and where they differ `graphs` and `sources`.
    """

    z_in_score = "as a gate"
    settings_class: ClassVar[type[GatedSettings]]
    settings: GatedSettings

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = self.settings_class.from_config(config)
        d = settings.embedding_size
        self.graph, self.user_item, item_graphs = self.graphs(dataset)
        self.item_graphs = nn.ModuleDict(item_graphs)
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        self.purifiers = nn.ModuleDict()
        for v in item_graphs:
            if v in self.feature_dims:
                self.encoders[v] = self.make_encoder(self.feature_dims[v], d)
            self.purifiers[v] = Purifier(d)
        self.build_fusion(d)
        if settings.trainable_features:
            self.train_features()

    @abstractmethod
    def build_fusion(self, d: int) -> None:
        """The parameters of `side`."""

    @abstractmethod
    def side(self, content: Tensor, views: dict[str, Tensor]) -> Tensor:
        """(U + I, d) what the views (U + I, d) add to the behaviour view (U + I, d)."""

    def make_encoder(self, dims: int, d: int) -> nn.Module:
        return nn.Linear(dims, d)

    def sources(self, enc: Encoded) -> Mapping[str, Tensor]:
        """View -> (I, d) what gates the ids in it: here each modality's z."""
        return enc.z

    def graphs(self, dataset: Any) -> tuple[SparseMatrix, SparseMatrix, dict[str, SparseMatrix]]:
        """The square user-item graph, its (U, I) block R, and each view's item-item graph."""
        block = self.interactions(dataset).normalised("both")
        return block.both_ways().matrix(), block.matrix(), {m: self.knn_graph(m).matrix() for m in self.modalities}

    def knn_graph(self, modality: str) -> Edges:
        settings = self.settings
        return nearest(self.known_features(modality), settings.knn_k, True, settings.knn_method).normalised("rows")

    def propagate(self, enc: Encoded) -> Embeddings:
        content = propagate_mean(self.graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for v, source in self.sources(enc).items():
            q = self.purifiers[v](self.items, source)
            for _ in range(self.settings.n_item_layers):
                q = self.item_graphs[v](q)
            pairs[v] = (self.user_item(q), q)
        side = self.side(content, {v: torch.cat(pair) for v, pair in pairs.items()})
        users, items = (content + side).split([self.n_users, self.n_items])
        return Embeddings(users, items, {m: pairs[m] for m in enc.z}, {"content": content, "side": side})

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.settings.reg_weight:
            rows = batch.users_of(emb.users, enc), *batch.items_of(emb.items, enc)
            parts["l2"] = self.settings.reg_weight / (2 * self.settings.train_batch_size) * squares(*rows)
        if self.settings.contrast_weight:
            parts["contrast"] = self.settings.contrast_weight * self.side_against_content(emb, batch)
        return parts

    def side_against_content(self, emb: Embeddings, batch: Batch) -> Tensor:
        """InfoNCE of side against content, of the batch's positive items and of its users."""
        (content_u, content_i), (side_u, side_i) = self.halves(emb)
        t = self.settings.temperature
        of_items = info_nce(side_i, content_i, batch.positive, batch.positive, t)
        return of_items + info_nce(side_u, content_u, batch.users, batch.users, t)

    def halves(self, emb: Embeddings) -> list[tuple[Tensor, ...]]:
        """(users, items) of content and of side."""
        return [emb.extra[name].split([self.n_users, self.n_items]) for name in ("content", "side")]
