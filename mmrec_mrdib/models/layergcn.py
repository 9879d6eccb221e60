"""LayerGCN, a plain baseline: layer-refined graph convolution (Zhou et al., ICDE 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import Pruner, SparseMatrix
from mmrec_mrdib.losses import cosines, squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class LayerGCNSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/LayerGCN.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=1)
    """Propagations over the user-item graph."""
    edge_dropout: float = Field(ge=0, lt=1)
    """rho, the share of user-item edges left out in an epoch."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the L2 term."""


class LayerGCN(MultimodalRecommender):
    """x_l = cos(A x_(l-1), x_0) A x_(l-1), row by row, x_0 = [E_u ; E_i]; users and items are the rows of sum_l x_l, l = 1 ... n_layers.

    Without features. Loss: sum over the batch of -ln sigmoid(s_ui - s_uj) + lambda / 2 (|E_u|^2 + |E_i|^2 + |E_j|^2), sums, not means.
    Each epoch keeps floor((1 - rho) |E|) edges, normalised anew: drawn with probability proportional to 1 / sqrt(deg_u deg_i) in the
    first epoch and every second after it, uniformly in the others; evaluation uses all.

    | reference | here |
    |---|---|
    | user_embeddings, item_embeddings | users, items (rows by id; 0 is padding) |
    | the training graph of an epoch | pruned, a SparseMatrix (U + I, U + I), or None: graph |
    | dropout | edge_dropout |

    Deviations: none known. RecBole's own Trainer announces no epoch, and then all edges are used.
    """

    z_in_score = "no"
    needs_features = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = LayerGCNSettings.from_config(config)
        interactions = self.interactions(dataset)
        self.graph = interactions.normalised("both").both_ways().matrix()
        self.pruner = Pruner(interactions)
        self.pruned: SparseMatrix | None = None
        d = settings.embedding_size
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))

    def before_epoch(self, epoch: int) -> None:
        if self.settings.edge_dropout:
            self.pruned = self.pruner.draw(1 - self.settings.edge_dropout, uniform=epoch % 2 == 1)

    def propagate(self, enc: Encoded) -> Embeddings:
        graph = self.pruned if self.training and self.pruned is not None else self.graph
        x = ego = torch.cat([self.users, self.items])
        total = torch.zeros_like(ego)
        for _ in range(self.settings.n_layers):
            x = graph(x)
            x = cosines(x, ego)[:, None] * x
            total = total + x
        users, items = total.split([self.n_users, self.n_items])
        return Embeddings(users, items)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": F.softplus(-batch.margins(emb.users, emb.items, enc)).sum()}
        if self.settings.reg_weight:
            rows = batch.users_of(self.users, enc), *batch.items_of(self.items, enc)
            parts["l2"] = self.settings.reg_weight / 2 * squares(*rows)
        return parts
