"""SLMRec: self-supervised learning for multimedia recommendation (Tao et al., TMM 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import full_precision, gather_rows
from mmrec_mrdib.losses import info_nce
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class SLMRecSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/SLMRec.yaml")

    embedding_size: int = Field(ge=2)
    """d."""
    n_layers: int = Field(ge=0)
    """Propagations over the user-item graph."""
    temperature: float = Field(gt=0)
    """tau, of the main loss."""
    ssl_temperature: float = Field(gt=0)
    """tau_s, of the self-supervised loss."""
    ssl_weight: float = Field(ge=0)
    """alpha, the weight of the self-supervised loss."""


class SLMRec(MultimodalRecommender):
    """A LightGCN a channel (ids and each modality) with one user table for all, joined by linear maps; items whose channels agree.

    z^m = W_m x^m + b_m, x^m at length 1; Y^0 = LightGCN([E_u ; E_i]), Y^m = LightGCN([E_u ; z^m]);
    e_u = Phi_u [Y_u^0 ; ... ; Y_u^M], e_i = Phi_i [Y_i^0 ; ... ; Y_i^M], s(u, i) = <e_u, e_i>.
    Loss: cross-entropy of the batch's pairs, cos(e_u, e_i) / tau against all items of the batch, + alpha times that of the chain
    ("fine and coarse" task, FAC): a_1 = g Y_i^0, a_k = G_k a_(k-1), each a_k against H_k Y_i^k by inner products / tau_s, modalities in
    their order, the last of several in width d / 2; the negatives are the batch's other items. M >= 1.
    With two modalities the last map has a further hop G, where the paper has its acoustic modality. Views: Y_u^m and Y_i^m.

    Negatives are drawn with each pair, but only MRdIB's terms look at them.

    Reference name -> ours (public code; v, t are our modalities in their order; weights out x in in both):

    | reference | ours |
    |---|---|
    | embedding_user.weight, embedding_item.weight | users, items |
    | v_dense, t_dense (.weight, .bias) | encoders.<modality> |
    | embedding_user_after_GCN, embedding_item_after_GCN | fuse_users, fuse_items (inputs: ids, then modalities) |
    | g_i_iv | start (g) |
    | g_v_iv, g_t_ivat | matches.<modality> (H) |
    | g_iv_iva, g_iva_ivat | hops.0, hops.1 (G) |
    | g_a_iva | not there: it has no effect |

    Deviations: scores are the inner products themselves; public code takes their sigmoid, the same ranking up to where float32 rounds it
    to 1. Final tables are made anew for each evaluation. The other tasks (FD, FM) are left out. Weight decay (properties) is part of the model.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = SLMRecSettings.from_config(config)
        d, half, n = settings.embedding_size, settings.embedding_size // 2, len(self.modalities)
        self.block = self.interactions(dataset).normalised("both").matrix()  # (U, I)
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))
        self.items = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_items, d)))
        self.fuse_users, self.fuse_items = _linear((n + 1) * d, d), _linear((n + 1) * d, d)
        self.start = _linear(d, d)
        self.matches = nn.ModuleDict()
        widths = [d] * max(n - 1, 1) + [half] * (n > 1)
        for (m, dims), width in zip(self.feature_dims.items(), widths, strict=True):
            self.register_buffer(f"features_{m}", F.normalize(self.features(m)), persistent=False)
            self.encoders[m] = _linear(dims, d)
            self.matches[m] = _linear(d, width)
        self.hops = nn.ModuleList()
        if n > 1:
            self.hops.extend([*(_linear(d, d) for _ in range(max(n, 3) - 2)), _linear(d, half)])

    def spread(self, x: Tensor, of_items: bool) -> tuple[Tensor, Tensor]:
        """LightGCN's (users, items) where one side starts at x and the other at 0: each layer moves everything to the other side."""
        sides = [x, x.new_zeros(self.n_users if of_items else self.n_items, x.shape[1])]
        for layer in range(self.settings.n_layers):
            at_items = of_items == (layer % 2 == 0)
            x = self.block(x) if at_items else self.block.transposed(x)
            sides[(layer + 1) % 2] = sides[(layer + 1) % 2] + x
        first, second = (side / (self.settings.n_layers + 1) for side in sides)
        return (second, first) if of_items else (first, second)

    def propagate(self, enc: Encoded) -> Embeddings:
        d = self.settings.embedding_size
        # The channels differ in the items' side alone: what users start from is propagated once, in a fraction of the time.
        channels = torch.cat([self.items, *(z.float() for z in enc.z.values())], 1)
        own, other = self.spread(self.users, of_items=False), self.spread(channels, of_items=True)
        users, items = (y + x.repeat(1, len(enc.z) + 1) for x, y in zip(own, other, strict=True))
        of_users, of_items = users.split(d, 1), items.split(d, 1)
        views = {m: (of_users[n], of_items[n]) for n, m in enumerate(enc.z, 1)}
        return Embeddings(self.fuse_users(users), self.fuse_items(items), views, {"ids": of_items[0]})

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        parts = {"main": info_nce(emb.users, emb.items, batch.users, batch.positive, settings.temperature)}
        if settings.ssl_weight:
            with full_precision(emb.users):
                parts["ssl"] = settings.ssl_weight * torch.stack(self.chain(emb, batch)).sum()
        return parts

    def chain(self, emb: Embeddings, batch: Batch) -> list[Tensor]:
        """Each modality's cross-entropy, in nats."""
        distinct, at = torch.unique(batch.positive, return_inverse=True)
        a = self.start(gather_rows(emb.extra["ids"], distinct))
        losses: list[Tensor] = []
        for n, (m, (_, y)) in enumerate(emb.views.items()):
            # before the last comparison, all hops that are left
            for hop in self.hops[n - 1 : n if n < len(emb.views) - 1 else None] if n else []:
                a = hop(a)
            b = self.matches[m](gather_rows(y, distinct))
            losses.append(info_nce(a, b, at, at, self.settings.ssl_temperature, cosine=False))
        return losses


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    return layer
