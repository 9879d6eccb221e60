"""BM3: bootstrapped latent representations for multimodal recommendation (Zhou et al., WWW 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import full_precision, gather_rows, propagate_mean
from mmrec_mrdib.losses import frobenius, mean_cosines
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender, drop_out
from mmrec_mrdib.schema import Settings


class BM3Settings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/BM3.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    dropout: float = Field(ge=0, lt=1)
    """p, the share of a target's entries that are set to 0."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the norms of the propagated tables."""
    modality_weight: float = Field(ge=0)
    """c, the weight of the modalities' alignment losses."""
    trainable_features: bool
    """Whether the raw features train, too (public code's way)."""


class BM3(MultimodalRecommender):
    """Users and items predict each other's dropped-out copies; no negative is looked at.

    [u ; x] = LightGCN over the user-item graph of [E_u ; E_i], i = x + E_i; z^m = W_m x^m + b_m; one predictor q for all;
    targets, which get no gradient: u' = drop_p(u), i' = drop_p(i), z'^m = drop_p(z^m). s(u, i) = <q(u), q(i)>.
    Loss over the positive pairs, each term a mean of 1 - cos:
    (q(u), i') + (q(i), u') + c sum_m ((q(z_i^m), i') + (q(z_i^m), z'_i^m)) + lambda (|all u|_F + |all i|_F) / I, norms not squared.
    M >= 1. No views. z does not reach the score: as the targets are constants, the features move the ranking through q alone, and
    whatever a plug-in adds to z can only regularise. Batches hold negatives, for such a plug-in; the model's own loss ignores them.

    | reference | here |
    |---|---|
    | user_embedding.weight, item_id_embedding.weight | users, items (rows by id; 0 is padding) |
    | predictor.weight, .bias | predictor.weight, .bias |
    | image_trs, text_trs (.weight, .bias) | encoders.image, encoders.text (.weight, .bias) |
    | image_embedding.weight, text_embedding.weight | features_image, features_text (`trainable_features`) |
    | the dropped-out targets | what `target(table, rows)` returns for the pairs' users, items, then each modality's items |
    | n_layers, dropout, reg_weight, cl_weight | n_layers, dropout, reg_weight, modality_weight |

    Deviations: raw features are frozen (`trainable_features` for public code's way). Targets are dropped out for each pair of the batch,
    not once a table: the same law for every pair.
    """

    z_in_score = "no"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = BM3Settings.from_config(config)
        d = settings.embedding_size
        self.graph = self.interactions(dataset).normalised("both").both_ways().matrix()
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        self.predictor = nn.Linear(d, d)
        nn.init.xavier_normal_(self.predictor.weight)
        for m, dims in self.feature_dims.items():
            self.encoders[m] = encoder = nn.Linear(dims, d)
            nn.init.xavier_normal_(encoder.weight)
        if settings.trainable_features:
            self.train_features()

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch)

    def users_to_read(self, batch: Batch) -> Tensor | None:
        return self.only_distinct_users(batch)

    def propagate(self, enc: Encoded) -> Embeddings:
        nodes = propagate_mean(self.graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        users, items = nodes.split([self.n_users, self.n_items])
        items = items + self.items
        extra = {"norms": frobenius(users[1:], items[1:])}  # without the padding
        if enc.users is not None:
            users = gather_rows(users, enc.users)
        if enc.items is not None:
            items = gather_rows(items, enc.items)
        extra |= {"users": users, "items": items}
        return Embeddings(self.predictor(users), self.predictor(items), extra=extra)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        settings, at_users, at_items = self.settings, batch.user_rows(enc), batch.positive_rows(enc)
        user, item = self.target(emb.extra["users"], at_users), self.target(emb.extra["items"], at_items)
        aligned = mean_cosines(emb.users, at_users, item) + mean_cosines(emb.items, at_items, user)
        parts = {"bootstrap": 2 - aligned}
        if settings.modality_weight:
            with full_precision(item):
                guesses = [self.predictor(z.float()) for z in enc.z.values()]
            agree = [
                2 - mean_cosines(guess, at_items, item, self.target(z, at_items))
                for guess, z in zip(guesses, enc.z.values(), strict=True)
            ]
            parts["modalities"] = settings.modality_weight * torch.stack(agree).sum()
        if settings.reg_weight:
            parts["norms"] = settings.reg_weight / (self.n_items - 1) * emb.extra["norms"]
        return parts

    def target(self, table: Tensor, rows: Tensor) -> Tensor:
        """(B, d) what the other side of each pair predicts: a constant."""
        return drop_out(gather_rows(table.detach(), rows).float(), self.settings.dropout)
