"""SelfCF, a plain baseline: self-supervised collaborative filtering without negatives (Zhou et al., TORS 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import SparseMatrix, gather_rows, propagate_mean
from mmrec_mrdib.losses import mean_cosines, squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender, drop_out
from mmrec_mrdib.schema import Settings


class SelfCFSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/SelfCF.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    dropout: float = Field(ge=0, lt=1)
    """p, the share of a target's entries that are set to 0."""
    max_edge_dropout: float = Field(ge=0, le=1)
    """A step leaves out a share of the edges that is uniform between 0 and this."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the L2 term."""


class SelfCF(MultimodalRecommender):
    """SelfCF's embedding dropout on LightGCN: users and items predict each other's dropped-out copies.

    Without features. [u ; i] = LightGCN over the user-item graph, of which a training step keeps each directed entry with probability 1 - rho,
    divided by 1 - rho, rho ~ U(0, 1) drawn anew each step. q(x) = W x + b; targets, which get no gradient: u' = drop_p(u), i' = drop_p(i).
    s(u, i) = <q(u), i> + <u, q(i)>, an inner product of [q(u) ; u] and [i ; q(i)].
    Loss over the positive pairs: - 1/2 mean cos(q(u), i') - 1/2 mean cos(q(i), u') + lambda / 2 sum (|u|^2 + |i|^2). Batches hold negatives,
    for whatever is laid around the model; its own loss ignores them.

    | reference | here |
    |---|---|
    | online_encoder.embedding_dict.user_emb, .item_emb | users, items (rows by id; 0 is padding) |
    | predictor.weight, .bias | predictor.weight, .bias |
    | the training graph of a step | what `thinned()` returns, a SparseMatrix (U + I, U + I) |
    | the dropped-out targets, users first | what `target(table, rows)` returns, users first |
    | dropout | dropout; `max_edge_dropout=0` keeps all edges |

    Deviations: none by default. 1 / (1 - rho) has no bound, and rare batches have huge losses: `max_edge_dropout` below 1 caps it.
    """

    z_in_score = "no"
    needs_features = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = SelfCFSettings.from_config(config)
        d = settings.embedding_size
        self.graph = self.interactions(dataset).normalised("both").both_ways().matrix()
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        self.predictor = nn.Linear(d, d)

    def thinned(self) -> SparseMatrix:
        """The graph of a training step."""
        most = self.settings.max_edge_dropout
        if not most:
            return self.graph
        kept = 1 - most * torch.rand((), device=self.graph.values.device)  # in (0, 1]
        return self.graph.reweighted((torch.rand_like(self.graph.values) < kept) / kept)

    def target(self, table: Tensor, rows: Tensor) -> Tensor:
        """(B, d) what the other side of each pair predicts: a constant."""
        return drop_out(gather_rows(table.detach(), rows).float(), self.settings.dropout)

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch)

    def users_to_read(self, batch: Batch) -> Tensor | None:
        return self.only_distinct_users(batch)

    def propagate(self, enc: Encoded) -> Embeddings:
        graph = self.thinned() if self.training else self.graph
        nodes = propagate_mean(graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        users, items = nodes.split([self.n_users, self.n_items])
        if enc.users is not None:
            users = gather_rows(users, enc.users)
        if enc.items is not None:
            items = gather_rows(items, enc.items)
        return Embeddings(
            torch.cat([self.predictor(users), users], 1),
            torch.cat([items, self.predictor(items)], 1),
        )

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        at_users, at_items = batch.user_rows(enc), batch.positive_rows(enc)
        predicted_u, u = emb.users.chunk(2, 1)
        i, predicted_i = emb.items.chunk(2, 1)
        user, item = self.target(u, at_users), self.target(i, at_items)
        parts = {
            "users": -mean_cosines(predicted_u, at_users, item) / 2,
            "items": -mean_cosines(predicted_i, at_items, user) / 2,
        }
        if self.settings.reg_weight:
            parts["l2"] = self.settings.reg_weight / 2 * squares(gather_rows(u, at_users), gather_rows(i, at_items))
        return parts
