"""DA-MRS: denoising and aligning multi-modal content and user feedback (Xv et al., KDD 2024). Registered as DAMRS."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.errors import DataError
from mmrec_mrdib.graphs import (
    Edges,
    agreeing_knn,
    cached,
    cooccurrence,
    full_precision,
    gather_rows,
    propagate_mean,
)
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings

POSITIVES = 10  # neighbours in each of the discrimination's two lists
TEMPERATURE = 0.2  # of the discrimination
BLOCK = 1 << 20  # cosines of the discrimination at a time


class DAMRSSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/DAMRS.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    n_item_layers: int = Field(ge=1)
    """Propagations over each item-item graph."""
    knn_k: int = Field(ge=1)
    """Neighbours of an item in a modality's graph, itself included."""
    alignment_weight: float = Field(ge=0)
    """lambda_kl, the weight of the alignment of content and feedback."""
    discrimination_weight: float = Field(ge=0)
    """lambda_nd, the weight of the neighbour discrimination."""


class DAMRS(MultimodalRecommender):
    """LightGCN plus one item table over M + 1 item-item graphs: a denoised one a modality, and one of what is taken together.

    [e_u ; e_i] = LightGCN([E_u ; E_i]); h^g = L(G^g)^n_item_layers E_i; h = mean_g h^g; s(u, i) = <e_u, e_i + h_i>.
    G^m: the k nearest items in modality m of those that all modalities find nearer than average (`graphs.agreeing_knn`); G^behaviour:
    the item itself and the 2 with most users in common, at least 2. All binary and frozen.
    Loss: weighted BPR + lambda_kl alignment + lambda_nd discrimination, over the batch and its distinct users and items.
    - BPR: -w+ ln sigmoid(s_ui - s_uj) - w- ln sigmoid(s_uj - s_ui). With a_g = sigmoid <e_u, h_i^g / |h_i^g|>, w+ = mean_g a_g e^(-2 var_g a_g);
      w- = max_g a_g - nu where mean_g a_g < nu, nu the mean of a_g over views and negatives of the batch: a positive that content thinks
      less of than of a negative. Both within [0, 1], without gradient.
    - Alignment: mean over users x items of KL(p || q) + KL(q || p), p = sigmoid <e_u, e_i / |e_i|>, q = sigmoid <e_u, h_i / |h_i|>.
    - Discrimination, mean over views g and items: -ln(J / all) - ln(O / (all - J)), sums of e^(cos(h_i^g, h_j^g) / 0.2) over all items j, over the
      10 of largest Q_g + sum_g' Q_g', Q_g the softmax over j of the cosines, and over the 10 others of largest Q_g.
    M >= 1; at least 20 items. Views: <e_u, z_i^m>, z^m = W_m x^m + b_m. No score and no loss of DA-MRS holds z: features act through the frozen graphs alone,
    the encoders learn under MRdIB only, and a plug-in can only regularise.

    Reference name -> ours (public code):

    | reference | ours |
    |---|---|
    | user_embedding.weight, item_id_embedding.weight | users, items |
    | image_trs, text_trs (.weight, .bias; without effect) | encoders.<modality> |
    | image_embedding.weight, text_embedding.weight (without effect) | features_<modality>, a buffer |
    | graphs of s, v, t | item_graphs: the modalities in their order, then behaviour |

    Deviations: the behaviour graph is counted here (public code reads a file). Items that lack a modality keep themselves as their only
    neighbour in the modalities' graphs (there, one such item switches the denoising off).
    """

    z_in_score = "no"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = DAMRSSettings.from_config(config)
        if self.n_items - 1 < 2 * POSITIVES:
            raise DataError(
                f"DAMRS needs {2 * POSITIVES} items or more, found {self.n_items - 1}: each item is told from the others by two lists "
                f"of {POSITIVES} neighbours"
            )
        d, taken = settings.embedding_size, self.interactions(dataset)
        self.graph = taken.normalised("both").both_ways().matrix()
        features = [self.known_features(m) for m in self.modalities]
        graphs = [cached(agreeing_knn, features, n, settings.knn_k) for n in range(len(features))]
        graphs.append(taken_together(taken))
        self.item_graphs = nn.ModuleList(edges.normalised("rows").matrix() for edges in graphs)
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        for m, dims in self.feature_dims.items():
            self.encoders[m] = nn.Linear(dims, d)

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch)

    def propagate(self, enc: Encoded) -> Embeddings:
        nodes = propagate_mean(self.graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        users, own = nodes.split([self.n_users, self.n_items])
        views = []
        for graph in self.item_graphs:
            h = self.items
            for _ in range(self.settings.n_item_layers):
                h = graph(h)
            views.append(h)
        h = torch.stack(views)  # (M + 1, I, d)
        content = h.mean(0)
        items = own + content
        if enc.items is not None:
            items = gather_rows(items, enc.items)
        extra = {"own": own, "content": content, "h": h}
        return Embeddings(users, items, {m: (users, z) for m, z in enc.z.items()}, extra)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        margins = batch.margins(emb.users, emb.items, enc)
        h = F.normalize(emb.extra["h"], dim=-1)
        liked, disliked = weights(emb.users.detach(), h.detach(), batch)
        parts = {"bpr": bpr(margins, liked) + bpr(-margins, disliked)}
        if settings.alignment_weight:
            users = gather_rows(emb.users, batch.distinct_users)
            sides = [F.normalize(gather_rows(emb.extra[name], batch.items)) for name in ("own", "content")]
            with full_precision(users):
                parts["align"] = settings.alignment_weight * alignment(users @ sides[0].T, users @ sides[1].T)
        if settings.discrimination_weight:
            parts["discriminate"] = settings.discrimination_weight * discrimination(h, batch.items).mean()
        return parts


def taken_together(interactions: Edges) -> Edges:
    """(I, I), ones: each item itself and the two with most users in common, at least two."""
    flipped = Edges(interactions.cols, interactions.rows, interactions.values, interactions.shape[::-1])
    common = cached(cooccurrence, flipped, 2)
    common = common.kept(common.values >= 2)
    own = torch.arange(1, interactions.shape[1], device=common.rows.device)
    places = torch.cat([common.rows, own]), torch.cat([common.cols, own])
    return Edges(*places, torch.ones(len(places[0]), device=own.device), common.shape)


def weights(users: Tensor, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B,) w+ and w- of the pairs, from (U, d) users and (M + 1, I, d) views of length 1."""
    assert batch.negative is not None
    u = gather_rows(users, batch.users)
    of_positive, of_negative = (
        torch.sigmoid((h.index_select(1, items) * u).sum(-1)) for items in (batch.positive, batch.negative)
    )
    mean, usual = of_positive.mean(0), of_negative.mean()
    liked = mean * torch.exp(-2 * of_positive.var(0))
    disliked = (of_positive.amax(0) - usual) * (mean < usual)
    return liked.clamp(0, 1), disliked.clamp(0, 1)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean of KL(p || q) + KL(q || p) of Bernoulli p = sigmoid(x), q = sigmoid(y), which is (p - q)(x - y); in nats."""
    return ((torch.sigmoid(x) - torch.sigmoid(y)) * (x - y)).mean()


def discrimination(h: Tensor, ids: Tensor) -> Tensor:
    """(G,) the neighbour discrimination of each view, mean over the (R,) items `ids`, in nats; h (G, I, d), rows of length 1, row 0 padding."""
    with full_precision(h):
        out: Tensor = _Discrimination.apply(h, ids)
    return out


class _Discrimination(torch.autograd.Function):
    """Loss and closed-form gradient in one pass over blocks of rows: no R x I matrix outlives its block."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, ids: Tensor) -> Tensor:
        grad, losses = torch.zeros_like(h), h.new_zeros(len(h))
        for rows in ids.split(max(1, BLOCK // h.shape[1])):
            anchors = h.index_select(1, rows)
            cosines = torch.bmm(anchors, h.transpose(1, 2))  # (G, R, I)
            cosines[:, :, 0] = -torch.inf
            shares = torch.softmax(cosines, -1)
            joint = shares.sum(0)
            for g in range(len(h)):
                cos = cosines[g]
                near = torch.topk(shares[g].add_(joint), POSITIVES, sorted=False).indices
                others = torch.topk(cos.scatter(1, near, -torch.inf), POSITIVES, sorted=False).indices
                e = cos.div_(TEMPERATURE).exp_()  # at most e^5
                e_near, e_others = e.gather(1, near), e.gather(1, others)
                of_near, of_others = e_near.sum(1), e_others.sum(1)
                rest = e.scatter_(1, near, 0).sum(1)  # summed, not subtracted: a difference would cancel
                both = of_near + rest
                p, q = of_near / both + 1e-9, of_others / rest + 1e-9
                losses[g] -= (p.log() + q.log()).sum()
                # d loss / d e of: the rest, near, and (added) others
                of_p, of_q = 1 / (both * p), 1 / (rest * q)
                on_all = of_p * of_near / both
                slope = e.mul_((on_all + of_q * of_others / rest)[:, None])
                slope.scatter_(1, near, e_near * (on_all - of_p)[:, None])
                slope.scatter_add_(1, others, -e_others * of_q[:, None])
                grad[g].addmm_(slope.T, anchors[g], alpha=1 / TEMPERATURE)
                grad[g].index_add_(0, rows, slope @ h[g], alpha=1 / TEMPERATURE)
        ctx.save_for_backward(grad.div_(len(ids)))
        return losses / len(ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0][:, None, None], None
