"""MMGCN: multi-modal graph convolution network (Wei et al., MM 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import SparseMatrix, gather_rows
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings


class MMGCNSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/MMGCN.yaml")

    embedding_size: int = Field(ge=1)
    """d, the width of everything."""
    n_layers: int = Field(ge=1)
    """Layers of each modality's graph network."""
    reg_weight: float = Field(ge=0)
    """lambda, the weight of the mean squares of ids and preferences."""


class Layer(nn.Module):
    """x <- lrelu([h ; x'] W_3), h = lrelu(Mean(x W_1)), x' = lrelu(x W_2) + E_id: aggregation and combination."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.neighbours = nn.Linear(d, d, bias=False)
        self.own = nn.Linear(d, d)
        self.combine = nn.Linear(2 * d, d)
        for linear in (self.neighbours, self.own, self.combine):
            nn.init.xavier_normal_(linear.weight)

    def forward(self, x: Tensor, ids: Tensor, mean: SparseMatrix) -> Tensor:
        h = F.leaky_relu(mean(self.neighbours(x)))
        own = F.leaky_relu(self.own(x)) + ids
        return F.leaky_relu(self.combine(torch.cat([h, own], 1)))


class MMGCN(MultimodalRecommender):
    """A graph network a modality over the user-item graph; users and items are the mean of its outputs.

    x_0^m = rows of [P^m ; z^m] at length 1, z^m = W_m x^m + b_m; then `Layer`s, whose neighbourhood mean is D^-1 A both ways and
    whose id table E_id is shared by the modalities. s(u, i) = <mean_m x_u^m, mean_m x_i^m>.
    Loss: BPR + lambda (mean E_id^2 of the batch's users and items + mean P^2). M >= 1.
    Views: the user and item rows of modality m's output. Under MRdIB the rate acts on z^m before it is brought to length 1: of a
    sample, only the direction goes on.

    Deviations: all tables train (a widespread implementation registers neither P^m nor E_id as parameters) and every
    modality is projected to width d (there the first to 256, the others not at all), so that <p_u^m, z_i^m> is defined.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = MMGCNSettings.from_config(config)
        d = settings.embedding_size
        self.reg_weight = settings.reg_weight
        self.mean = self.interactions(dataset).both_ways().normalised("mean").matrix()
        self.ids = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users + self.n_items, d)))
        self.preferences = nn.ParameterDict()
        self.layers = nn.ModuleDict()
        for m, dims in self.feature_dims.items():
            self.preferences[m] = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users, d)))
            self.encoders[m] = encoder = nn.Linear(dims, d)
            nn.init.xavier_normal_(encoder.weight)
            self.layers[m] = nn.ModuleList(Layer(d) for _ in range(settings.n_layers))

    def propagate(self, enc: Encoded) -> Embeddings:
        outputs: dict[str, Tensor] = {}
        for m, z in enc.z.items():
            x = F.normalize(torch.cat([self.preferences[m], z]))
            layers = self.layers[m]
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = layer(x, self.ids, self.mean)
            outputs[m] = x
        fused = torch.stack(list(outputs.values())).mean(0)
        sizes = [self.n_users, self.n_items]
        users, items = fused.split(sizes)
        views = {m: x.split(sizes) for m, x in outputs.items()}
        return Embeddings(users, items, views)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts = {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}
        if self.reg_weight:
            assert batch.negative is not None
            nodes = torch.cat([batch.users, batch.positive + self.n_users, batch.negative + self.n_users])
            preferences = torch.stack([p[1:].square().mean() for p in self.preferences.values()])
            parts["l2"] = self.reg_weight * (gather_rows(self.ids, nodes).square().mean() + preferences.mean())
        return parts
