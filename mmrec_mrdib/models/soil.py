"""SOIL: second-order interest learning (Su et al., MM 2024)."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrec_mrdib.errors import DataError
from mmrec_mrdib.graphs import Edges, SparseMatrix, cached, interest_edges, interest_graph, interests
from mmrec_mrdib.losses import info_nce
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded
from mmrec_mrdib.models.mgcn import MGCN
from mmrec_mrdib.models.shared import Fuser, GatedSettings


class SOILSettings(GatedSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/SOIL.yaml")

    cross_weight: float = Field(ge=0)
    """c2, the weight of the contrast between users and items."""
    n_interest_items: int = Field(ge=1)
    """n_i: items a modality that a user's interests bring into the item-item graph."""
    n_interest_edges: int = Field(ge=0)
    """n_a: second-order interest edges a user, beside those to its own items."""
    reference_block: bool
    """Whether the interest edges' (U, I) block is normalised as in public code (see Deviations)."""


class SOIL(MGCN):
    """MGCN with item-item graphs that know the users' interests and user-item graphs with second-order interest edges.

    Item-item graph of m: L(interest_graph) + L(kNN_k(X^m)); user-item graph: A + 1/2 the normalised `interest_edges`, the same for
    its block R (see `graphs/` for the three). side = (sum_m c^m - common) / (M + 1), without preference gates.
    Loss: BPR + lambda L2 as MGCN's (0 in the paper) + c (InfoNCE(side_i, content_i) + InfoNCE(side_u, content_u))
    + c2 (InfoNCE(all_u, content_i) + InfoNCE(all_u, side_i)) over the positives of the batch. M >= 2: of a single
    modality nothing is left beside what it has in common with itself. Views: R q^m and q^m, as MGCN's.

    Deviations: raw features are frozen. Negative cosines count as 0 (public code's sums turn negative and its loss NaN where features
    are signed). The interest edges' block is normalised by the sums of its rows and columns; public code takes the users' sums for both,
    looked up by the item's id (`reference_block`).
    """

    settings_class: ClassVar[type[GatedSettings]] = SOILSettings
    settings: SOILSettings

    def graphs(self, dataset: Any) -> tuple[SparseMatrix, SparseMatrix, dict[str, SparseMatrix]]:
        if len(self.modalities) < 2:
            raise DataError(
                f"SOIL needs two modalities or more, found {', '.join(self.modalities)}: its side information is what "
                "modalities hold beside their common part; add one, or choose MGCN"
            )
        settings, taken = self.settings, self.interactions(dataset)
        features = [self.known_features(m) for m in self.modalities]
        wanted = cached(interests, taken, features, settings.n_interest_items)
        item_graphs = {
            m: (cached(interest_graph, taken, wanted, x).normalised("rows") + self.knn_graph(m)).matrix()
            for m, x in zip(self.modalities, features, strict=True)
        }
        interest = cached(interest_edges, taken, features, settings.n_interest_edges)
        plain, second = taken.normalised("both"), interest.normalised("both").scaled(0.5)
        square = (plain + second).both_ways().matrix()
        if settings.reference_block:
            second = _by_user_sums(interest, dataset).scaled(0.5)
        return square, (plain + second).matrix(), item_graphs

    def build_fusion(self, d: int) -> None:
        self.fuser = Fuser(d)

    def side(self, content: Tensor, views: dict[str, Tensor]) -> Tensor:
        assert self.fuser is not None
        c = list(views.values())
        return (functools.reduce(torch.add, c) - self.fuser(c)) / (len(c) + 1)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = super().loss_parts(enc, emb, batch)
        if self.settings.cross_weight:
            (_, content_i), (_, side_i) = self.halves(emb)
            t = self.settings.temperature
            both = [info_nce(emb.users, x, batch.users, batch.positive, t) for x in (content_i, side_i)]
            parts["cross"] = self.settings.cross_weight * (both[0] + both[1])
        return parts


def _by_user_sums(edges: Edges, dataset: Any) -> Edges:
    """v_ui / sqrt(sum of user u * sum of the user whose original id is item i's): public code's normalisation.

    Edges to items whose id is no user's get no weight.
    """
    sums = edges.sums("rows")
    user_of = {token: n for n, token in enumerate(dataset.field2id_token[dataset.uid_field])}
    twin = [user_of.get(token, 0) for token in dataset.field2id_token[dataset.iid_field]]
    scale = torch.where(sums > 0, sums, torch.inf).rsqrt()
    return edges.scaled((scale[edges.rows] * scale[torch.tensor(twin)][edges.cols]).float())
