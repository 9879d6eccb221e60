"""FREEDOM: freezing item-item and denoising user-item graphs (Zhou & Shen, MM 2023)."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import Pruner, SparseMatrix, gather_rows, mixed_neighbours, propagate_mean
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class ItemGraphSettings(Settings):
    """What FREEDOM, DRAGON, PGL and MENTOR have in common: the frozen item-item graph."""

    n_item_layers: int = Field(ge=0)
    """Propagations over the item-item graph."""
    knn_k: int = Field(ge=1)
    """Neighbours of an item in a modality's graph, itself included."""
    knn_method: Literal["auto", "exact", "approximate"]
    """How they are found, see `graphs.nearest`."""
    modality_weights: dict[str, float] | None = None
    """Share of each modality's graph in the item-item graph; they sum to 1."""


class FREEDOMSettings(ItemGraphSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/FREEDOM.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    edge_dropout: float = Field(ge=0, lt=1)
    """rho, the share of user-item edges left out in an epoch."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the unimodal BPR losses."""
    trainable_features: bool
    """Whether the raw features train, too (public code's way)."""


class FREEDOM(MultimodalRecommender):
    """LightGCN over a pruned user-item graph plus a frozen item-item graph of the features.

    S = sum_m w_m L(kNN_k(X^m)), binary; h = S^n_item_layers E_i; [e_u ; e_i] = LightGCN over the user-item graph;
    s(u, i) = <e_u, e_i + h_i>. Each epoch keeps floor((1 - rho) |E|) edges, drawn with probability proportional to
    1 / sqrt(deg_u deg_i), normalised anew; evaluation uses all.
    Loss: BPR + lambda sum_m BPR(<e_u, z^m>), z^m = W_m x^m + b_m. M >= 1.
    Views: <e_u, z_i^m>. The modality representations reach the score through that second term alone, and it is the very term that MRdIB calls
    unique: MRdIB's `unique_weight` adds to lambda.

    The trainer announces each epoch (`before_epoch`); RecBole's own Trainer does not, and then all edges are used.

    Deviations: raw features are frozen (`trainable_features` for public code's way). Without `modality_weights`, text gets 0.9 and
    the others share 0.1, as in the paper; without a modality named text, all are equal.
    """

    z_in_score = "no"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = FREEDOMSettings.from_config(config)
        d = settings.embedding_size
        self.n_layers, self.n_item_layers = settings.n_layers, settings.n_item_layers
        self.edge_dropout, self.reg_weight = settings.edge_dropout, settings.reg_weight
        interactions = self.interactions(dataset)
        self.pruner = Pruner(interactions)
        self.graph = interactions.normalised("both").both_ways().matrix()
        self.pruned: SparseMatrix | None = None
        self.item_graph = mixed_item_graph(self, settings)
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        for m, dims in self.feature_dims.items():
            self.encoders[m] = nn.Linear(dims, d)
        if settings.trainable_features:
            self.train_features()

    def before_epoch(self, epoch: int) -> None:
        if self.edge_dropout:
            self.pruned = self.pruner.draw(1 - self.edge_dropout)

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch)

    def propagate(self, enc: Encoded) -> Embeddings:
        graph = self.pruned if self.training and self.pruned is not None else self.graph
        nodes = propagate_mean(graph, torch.cat([self.users, self.items]), self.n_layers)
        users, items = nodes.split([self.n_users, self.n_items])
        h = self.items
        for _ in range(self.n_item_layers):
            h = self.item_graph(h)
        items = items + h
        if enc.items is not None:
            items = gather_rows(items, enc.items)
        return Embeddings(users, items, {m: (users, z) for m, z in enc.z.items()})

    def new_items(self, enc: Encoded) -> Tensor:
        return functools.reduce(torch.add, enc.z.values())  # <e_u, z^m>, as the auxiliary losses train it

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.reg_weight:
            of_modalities = [bpr(batch.margins(emb.users, z, enc)) for z in enc.z.values()]
            parts["modalities"] = self.reg_weight * torch.stack(of_modalities).sum()
        return parts


def mixed_item_graph(model: MultimodalRecommender, settings: ItemGraphSettings) -> SparseMatrix:
    """S = sum_m w_m L(kNN_k(X^m)), (I, I), of the model's features."""
    weights = modality_weights(settings.modality_weights, model.modalities)
    features = {m: model.known_features(m) for m in model.modalities}
    return mixed_neighbours(features, weights, settings.knn_k, settings.knn_method).matrix()


def modality_weights(given: dict[str, float] | None, modalities: tuple[str, ...]) -> dict[str, float]:
    """Shares of the modalities' graphs, summing to 1.

    Raises:
        ConfigError: other modalities than those in use, a negative share, or another sum.
    """
    if given is None:
        if "text" not in modalities or len(modalities) == 1:
            return dict.fromkeys(modalities, 1 / len(modalities))
        return {m: 0.9 if m == "text" else 0.1 / (len(modalities) - 1) for m in modalities}
    if set(given) != set(modalities) or min(given.values()) < 0 or abs(sum(given.values()) - 1) > 1e-6:
        example = ", ".join(f"{m}: {1 / len(modalities):.3g}" for m in modalities)
        raise ConfigError(
            f"--modality_weights={given}: expected one share a modality in use, none negative, summing to 1, as in {{{example}}}"
        )
    return {m: given[m] for m in modalities}
