"""GRCN: graph-refined convolutional network for implicit feedback (Wei et al., MM 2020)."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import Pattern, gather_rows
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings

logger = logging.getLogger(__name__)


class GRCNSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/GRCN.yaml")

    embedding_size: int = Field(ge=1)
    """d, the width of the id channel and of each modality's."""
    n_layers: int = Field(ge=0)
    """K: rounds of routing that make a user's preferences."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the mean squares of ids and preferences."""
    reference_routing: bool
    """Whether preferences stay where they start, as in public code (see Deviations)."""
    reference_l2: bool
    """Whether the whole first preference table is regularised as well, as in public code."""


class GRCN(MultimodalRecommender):
    """Edges of the user-item graph are weighed by what the modalities say of them, and an id channel propagates over the result.

    f^m = lrelu(z^m) at length 1, z^m = W_m x^m + b_m; p^m starts as P^m at length 1 and is routed K times:
    p_u <- p_u + sum_{i in N(u)} softmax_i(<p_u, f_i>) f_i, at length 1. On the edges both ways, with x = [p^m ; f^m]:
    a_m(s -> t) = softmax over t's neighbours s of <x_s, x_t>; y^m = x + sum_s a_m(s -> t) x_s.
    Weight of an edge: w(s -> t) = relu(max_m a_m(s -> t) C_sm), C_sm the trained confidence of node s in modality m.
    Ids: x_0 = E at length 1, y_id = x_0 + W x_0 + W^2 x_0. s(u, i) = <o_u, o_i>, o = [y_id ; y^1 ; ... ; y^M].
    Loss: BPR + lambda (mean of E_u^2 + E_i^2 over the batch's pairs + sum_m mean of (P_u^m)^2 over its users). M >= 1.
    Views: the user and item rows of y^m, whose inner product is a term of the score. Under MRdIB the rate acts on z^m before it is
    brought to length 1: of a sample, only the direction goes on.

    Reference name -> ours (public code; its modalities v, t are ours in their order):

    | reference | ours |
    |---|---|
    | model_specific_conf (N x M) | confidence |
    | id_gcn.id_embedding (N x d) | ids |
    | v_gcn.preference, t_gcn.preference | preferences.<modality> |
    | v_gcn.MLP.weight / .bias, t_gcn.MLP... | encoders.<modality>.weight / .bias |

    Rows of the first two: the users, then the items (ours with a padding row before either).

    Deviations: public code's routing is without effect, since its messages run from users to items alone; published figures are
    its (`reference_routing: true`). It regularises the whole first preference table beside the batch's rows (`reference_l2: true`). The table
    that scores are made of is made anew for each evaluation (there it is the last training step's).
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = GRCNSettings.from_config(config)
        if config["device"].type == "cuda":
            logger.warning(
                "GRCN on a GPU: a step was seen to differ from the CPU's by up to 2 %% of its loss (docs/gpu.md); --device=cpu"
            )
        d, n_nodes = settings.embedding_size, self.n_users + self.n_items
        self.edges = Pattern(self.interactions(dataset))  # users x items
        self.ids = nn.init.xavier_normal_(nn.Parameter(torch.empty(n_nodes, d)))
        self.confidence = nn.init.xavier_normal_(nn.Parameter(torch.empty(n_nodes, len(self.modalities))))
        self.preferences = nn.ParameterDict()
        for m, dims in self.feature_dims.items():
            self.preferences[m] = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users, d)))
            self.encoders[m] = encoder = nn.Linear(dims, d)
            nn.init.xavier_normal_(encoder.weight)

    def route(self, preferences: Tensor, items: Tensor) -> Tensor:
        """(U, d) preferences after K rounds of listening to the user's items (I, d)."""
        p = F.normalize(preferences)
        for _ in range(0 if self.settings.reference_routing else self.settings.n_layers):
            shares = self.edges.softmax(self.edges.dots(p, items))
            p = F.normalize(p + self.edges.product(shares, items))
        return p

    def propagate(self, enc: Encoded) -> Embeddings:
        edges, sizes = self.edges, [self.n_users, self.n_items]
        nodes = {}
        for m, z in enc.z.items():
            items = F.normalize(F.leaky_relu(z.float()))
            nodes[m] = self.route(self.preferences[m], items), items
        scores = torch.stack([edges.dots(*pair) for pair in nodes.values()], 1)
        to_user, to_item = edges.softmax(scores), edges.softmax(scores, transposed=True)  # (E, M) each
        views = {
            m: (u + edges.product(to_user[:, n], i), i + edges.product(to_item[:, n], u, transposed=True))
            for n, (m, (u, i)) in enumerate(nodes.items())
        }
        of_users, of_items = self.confidence.split(sizes)
        w_user = torch.relu((to_user * gather_rows(of_items, edges.cols)).amax(1))
        w_item = torch.relu((to_item * gather_rows(of_users, edges.rows)).amax(1))
        u, i = F.normalize(self.ids).split(sizes)
        users, items = u, i
        for _ in range(2):
            u, i = edges.product(w_user, i), edges.product(w_item, u, transposed=True)
            users, items = users + u, items + i
        content = [torch.cat(halves, 1) for halves in zip(*views.values(), strict=True)]
        extra = {"collaborative_users": users, "collaborative_items": items}
        extra |= {"content_users": content[0], "content_items": content[1]}
        return Embeddings(torch.cat([users, content[0]], 1), torch.cat([items, content[1]], 1), views, extra)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.settings.reg_weight:
            assert batch.negative is not None
            users, positive, negative = batch.users, batch.positive + self.n_users, batch.negative + self.n_users
            squares = [gather_rows(self.ids, nodes).square().mean() for nodes in (users, positive, negative)]
            terms = [squares[0] + (squares[1] + squares[2]) / 2]
            terms += [gather_rows(p, users).square().mean() for p in self.preferences.values()]
            if self.settings.reference_l2:
                terms.append(next(iter(self.preferences.values()))[1:].square().mean())
            parts["l2"] = self.settings.reg_weight * torch.stack(terms).sum()
        return parts
