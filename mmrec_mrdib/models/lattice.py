"""LATTICE: mining latent structures for multimedia recommendation (Zhang et al., MM 2021)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import (
    Edges,
    SparseMatrix,
    gather_rows,
    nearest,
    propagate_mean,
    searcher,
    segment_reduce,
)
from mmrec_mrdib.losses import bpr, squares
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class LATTICESettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/LATTICE.yaml")

    embedding_size: int = Field(ge=1)
    """d."""
    feature_embedding_size: int | None = Field(default=None, ge=1)
    """d_f, the width of z; none: d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph; 0 is matrix factorisation with the item graph."""
    n_item_layers: int = Field(ge=0)
    """Propagations over the item-item graph."""
    knn_k: int = Field(ge=1)
    """Neighbours of an item in a modality's graph, itself included."""
    knn_method: Literal["auto", "exact", "approximate"]
    """How they are found, see `graphs.nearest`."""
    skip_weight: float = Field(ge=0, le=1)
    """lambda, the share of the graph of the raw features."""
    reg_weight: float = Field(ge=0)
    """Weight of the L2 term."""
    train_batch_size: int = Field(ge=1)
    """B of the L2 term: the configured batch size, also for a short last batch."""
    trainable_features: bool
    """Whether the raw features train, too (public code's way)."""
    reference_negative: bool
    """Whether negative cosines of learnt neighbours count, as in public code (see Deviations)."""
    reference_momentum: bool
    """Whether the graph's parameters go on by momentum between two builds, as in public code (see Deviations)."""


class LATTICE(MultimodalRecommender):
    """LightGCN plus an item-item graph that is learnt from the features.

    z^m = W_m x^m + b_m; S = sum_m w_m kNN_k(z^m) valued by cosines, w = softmax(alpha); K = r^-1/2 S r^-1/2, r the row sums of S;
    G = (1 - lambda) K + lambda sum_m w_m L(kNN_k(X^m)); h = G^n_item_layers E_i;
    [e_u ; e_i] = the mean of A^l [E_u ; E_i], l = 0 ... n_layers, A = D^-1 (A + I); s(u, i) = <e_u, e_i + h_i / |h_i|>.
    Loss: BPR + reg / 2 (|u|^2 + |i|^2 + |j|^2) / B. M >= 1; with one modality w is 1 and there is no alpha. Views: none, users have no
    side of a modality.

    The graph is built with gradients in the first step after `train()`, which begins each epoch, and kept without them until the next;
    it is built anew for each evaluation. So W_m, b_m and alpha learn in one step an epoch. S and its products are gathered
    along the neighbours, O(I k d) a layer; the neighbours are found among the means of z, in blocks. Under MRdIB the cosines are of the first
    step's sample.

    | reference | ours |
    |---|---|
    | U (user_embedding.weight), I (item_id_embedding.weight) | users, items |
    | alpha | modality_logits, in the order of `modalities` |
    | F_m (m_embedding.weight) | features_m, with trainable_features |
    | T_m (m_trs) | encoders.m |

    Deviations: raw features are frozen (`trainable_features` for public code's way). Negative cosines count as 0, as in the paper; public
    code counts those of the learnt graph (`reference_negative`). Between two builds public code's gradients of the graph's parameters were zeros and
    not none under the PyTorch of its time, so that Adam's momentum moved them on (`reference_momentum`). NGCF in place of LightGCN is left out.
    """

    z_in_score = "through the graph"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings = LATTICESettings.from_config(config)
        d = settings.embedding_size
        loops = torch.arange(1, self.n_users + self.n_items)
        loops = loops[loops != self.n_users]  # neither padding
        square = self.interactions(dataset).both_ways()
        square = square + Edges(loops, loops, torch.ones(len(loops)), square.shape)
        self.graph = square.normalised("mean").matrix()
        raw = {
            m: nearest(self.known_features(m), settings.knn_k, True, settings.knn_method).normalised("rows").matrix()
            for m in self.modalities
        }
        self.raw_graphs = nn.ModuleDict(raw)
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        for m, dims in self.feature_dims.items():
            self.encoders[m] = nn.Linear(dims, settings.feature_embedding_size or d)
        several = len(self.modalities) > 1
        self.modality_logits = nn.Parameter(torch.full((len(self.modalities),), 0.5)) if several else None
        if settings.trainable_features:
            self.train_features()
        self.kept: SparseMatrix | None = None
        """G of the epoch's first step."""

    def train(self, mode: bool = True) -> LATTICE:
        if mode:
            self.kept = None
        super().train(mode)
        return self

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        return self.only_distinct(batch) if self.training and self.kept is not None else None

    def shares(self) -> Tensor:
        """(M,) w."""
        if self.modality_logits is None:
            return self.items.new_ones(1)
        return torch.softmax(self.modality_logits, 0)

    def learnt(self, enc: Encoded, shares: Tensor) -> Edges:
        """(I, I) K, an entry for each neighbour in each modality; differentiable in z and in the shares (M,)."""
        settings, n = self.settings, self.n_items
        search = searcher(n, settings.knn_method)
        rows, cols, values = [], [], []
        for share, (m, z) in zip(shares, enc.z.items(), strict=True):
            means = enc.mean[m].detach().float().clone()
            means[0] = 0  # the padding is nobody's neighbour
            near = search(means, settings.knn_k, False)
            unit = F.normalize(z.float())
            cosine = (gather_rows(unit, near.rows) * gather_rows(unit, near.cols)).sum(1)
            rows.append(near.rows)
            cols.append(near.cols)
            values.append(share * (cosine if settings.reference_negative else F.relu(cosine)))
        row, col, value = torch.cat(rows), torch.cat(cols), torch.cat(values)
        sums = segment_reduce(value, row, n, "sum")
        scale = torch.where(sums > 0, sums, torch.inf).rsqrt()
        return Edges(row, col, value * gather_rows(scale, row) * gather_rows(scale, col), (n, n))

    def mixed(self, learnt: Edges, shares: Tensor) -> SparseMatrix:
        """G without gradients, one sparse matrix."""
        skip = self.settings.skip_weight
        raw = [matrix.edges().scaled(skip * share) for matrix, share in zip(self._raw(), shares.detach(), strict=True)]
        fixed = Edges(learnt.rows, learnt.cols, learnt.values.detach(), learnt.shape)
        return functools.reduce(Edges.__add__, raw, fixed.scaled(1 - skip)).matrix()

    def item_step(self, learnt: Edges, shares: Tensor, h: Tensor) -> Tensor:
        """(I, d) G h, differentiable in everything."""
        skip = self.settings.skip_weight
        neighbours = learnt.values[:, None] * gather_rows(h.float(), learnt.cols)
        out = (1 - skip) * segment_reduce(neighbours, learnt.rows, self.n_items, "sum")
        for matrix, share in zip(self._raw(), shares, strict=True):
            out = out + skip * share * matrix(h)
        return out

    def _raw(self) -> list[SparseMatrix]:
        return list(self.raw_graphs.values())  # type: ignore[arg-type]

    def propagate(self, enc: Encoded) -> Embeddings:
        step: Callable[[Tensor], Tensor]
        if self.training and self.kept is not None:
            step = self.kept
        else:
            shares = self.shares()
            learnt = self.learnt(enc, shares)
            mixed = self.mixed(learnt, shares)
            step = functools.partial(self.item_step, learnt, shares) if self.training else mixed
        h = self.items
        for _ in range(self.settings.n_item_layers):
            h = step(h)
        nodes = propagate_mean(self.graph, torch.cat([self.users, self.items]), self.settings.n_layers)
        users, items = nodes.split([self.n_users, self.n_items])
        items = items + F.normalize(h)
        if step is self.kept and self.settings.reference_momentum:
            items = items + 0 * torch.stack([p.sum() for p in self.graph_parameters()]).sum()
        if self.training and self.kept is None:
            self.kept = mixed
        return Embeddings(users, items if enc.items is None else gather_rows(items, enc.items))

    def graph_parameters(self) -> list[nn.Parameter]:
        """All but the tables of users and items."""
        return [p for p in self.parameters() if p is not self.users and p is not self.items]

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.settings.reg_weight:
            rows = batch.users_of(emb.users, enc), *batch.items_of(emb.items, enc)
            parts["l2"] = self.settings.reg_weight / (2 * self.settings.train_batch_size) * squares(*rows)
        return parts
