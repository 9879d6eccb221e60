"""PGL: principal graph learning for multimedia recommendation (Yu et al., AAAI 2025)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import (
    Pruner,
    SparseMatrix,
    cached,
    gather_rows,
    principal,
    propagate_mean,
)
from mmrec_mrdib.losses import bpr, info_nce
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.models.freedom import ItemGraphSettings, mixed_item_graph


class PGLSettings(ItemGraphSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/PGL.yaml")

    embedding_size: int = Field(ge=1)
    """d, of each modality."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    principal_graph: Literal["local", "global"]
    """What training propagates over: edges drawn anew each epoch, or a part of the spectrum."""
    keep_edges: float = Field(gt=0, le=1)
    """local: the share of the edges that is drawn."""
    contrast_weight: float = Field(ge=0)
    """lambda, the weight of the contrastive loss."""
    dropout: float = Field(ge=0, lt=1)
    """Share of a row's entries that each of the contrasted views leaves out."""
    temperature: float = Field(gt=0)
    """Temperature of the contrastive loss."""
    trainable_features: bool
    """Whether the raw features train, too (public code's way)."""


class PGL(MultimodalRecommender):
    """Users' and items' modality representations over a principal part of the user-item graph, plus an item-item graph.

    z^m = W_m x^m + b_m; x_0 = [P^1 ... P^M ; nrm(z^1) ... nrm(z^M)], side by side; x = the mean of A^l x_0, l = 0 ... n_layers;
    s(u, i) = <x_u, x_i + (S^n_item_layers x_0)_i>, S = sum_m w_m L(kNN_k(X^m)), FREEDOM's. No ids. Evaluation has A = all edges, normalised; training
    a principal part of them: local, floor(keep_edges |E|) edges drawn each epoch with probability proportional to 1 / sqrt(deg_u deg_i),
    normalised anew; global, `graphs.principal`, d/8 of the spectrum's pairs, which needs a width divisible by 8.
    Loss: BPR + lambda / 2 (InfoNCE of two dropped-out views of the users + the same of the positives); lambda is 0 as published, and then
    this term is not computed. M >= 1. Views: each modality's slice of users and items.
    Under MRdIB the rate acts on z^m before it is brought to length 1: of a sample, only the direction goes on.

    The trainer announces each epoch (`before_epoch`), which draws; RecBole's own Trainer does not, and then all edges are used.

    | reference | ours |
    |---|---|
    | user_image.weight, user_text.weight (U, d) | preferences.image, preferences.text |
    | image_embedding.weight, text_embedding.weight | features_image, features_text, with trainable_features |
    | image_trs, text_trs (.weight, .bias) | encoders.image, encoders.text |
    | the epoch's graph | pruned, a SparseMatrix of both ways |

    Deviations: raw features are frozen (`trainable_features` for public code's way). Without `modality_weights`, text gets 0.9 and the others
    share 0.1, as FREEDOM's do.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = PGLSettings.from_config(config)
        d = settings.embedding_size
        interactions = self.interactions(dataset)
        self.pruner = Pruner(interactions)
        whole = interactions.normalised("both")
        self.graph = whole.both_ways().matrix()
        self.pruned: SparseMatrix | None = None
        if settings.principal_graph == "global":
            if d % 8:
                raise ConfigError(
                    f"--embedding_size={d}: PGL's global graph takes d/2 singular triplets and keeps d/8 of them; "
                    "choose a multiple of 8, or --principal_graph=local"
                )
            spectrum = cached(principal, whole, d // 2, d // 8, 1e-3)
            if not len(spectrum):
                raise ConfigError(
                    f"--embedding_size={d}: PGL's global graph of this data is empty, since it weighs by singular value "
                    f"{d // 2 - d // 8 + 1} and later ones; choose a smaller width, or --principal_graph=local"
                )
            self.pruned = spectrum.both_ways().matrix()
        self.item_graph = mixed_item_graph(self, settings)
        self.preferences = nn.ParameterDict()
        for m, dims in self.feature_dims.items():
            self.preferences[m] = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
            self.encoders[m] = nn.Linear(dims, d)
        if settings.trainable_features:
            self.train_features()

    def before_epoch(self, epoch: int) -> None:
        settings = self.settings
        if settings.principal_graph == "global" or settings.keep_edges == 1:
            return
        self.pruned = self.pruner.draw(settings.keep_edges)

    def propagate(self, enc: Encoded) -> Embeddings:
        graph = self.pruned if self.training and self.pruned is not None else self.graph
        items = torch.cat([F.normalize(z) for z in enc.z.values()], 1)
        users = torch.cat(list(self.preferences.values()), 1)
        h = items
        for _ in range(self.settings.n_item_layers):
            h = self.item_graph(h)
        nodes = propagate_mean(graph, torch.cat([users, items]), self.settings.n_layers)
        users, items = nodes.split([self.n_users, self.n_items])
        items = items + h
        d = self.settings.embedding_size
        views = dict(zip(enc.z, zip(users.split(d, 1), items.split(d, 1), strict=True), strict=True))
        return Embeddings(users, items, views)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.settings.contrast_weight:
            both = self.two_views(emb.users, batch.users) + self.two_views(emb.items, batch.positive)
            parts["contrast"] = self.settings.contrast_weight / 2 * both
        return parts

    def two_views(self, table: Tensor, ids: Tensor) -> Tensor:
        """InfoNCE of two views of the rows of a batch; each place in the batch is dropped out for itself."""
        rows = gather_rows(table, ids)
        a, b = self.dropped(rows), self.dropped(rows)
        places = torch.arange(len(ids), device=ids.device)
        return info_nce(a, b, places, places, self.settings.temperature)

    def dropped(self, rows: Tensor) -> Tensor:
        return F.dropout(rows, self.settings.dropout) if self.settings.dropout else rows
