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
    reference_width: int | None = Field(default=None, ge=1)
    """Public code's form, and the width to which it projects the first modality (see Deviations)."""


class Layer(nn.Module):
    """x <- lrelu([h ; x'] W_3), h = lrelu(Mean(x W_1)), x' = lrelu(x W_2) + E_id: aggregation and combination, (N, width) -> (N, d)."""

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.neighbours = nn.Linear(width, width, bias=False)
        self.own = nn.Linear(width, d)
        self.combine = nn.Linear(width + d, d)
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

    | reference | here |
    |---|---|
    | id_embedding | ids (users by id, then items; 0 of each is padding) |
    | v_gcn.preference, t_gcn.preference | preferences.image, preferences.text (rows by id) |
    | v_gcn.MLP (.weight, .bias) | encoders.image (with `reference_width`, text has none) |
    | v_gcn.conv_embed_n.weight (in, out) | layers.image.n-1.neighbours.weight (out, in): transposed |
    | v_gcn.linear_layern (.weight, .bias) | layers.image.n-1.own |
    | v_gcn.g_layern (.weight, .bias) | layers.image.n-1.combine |

    Deviations: all tables train (a widespread implementation registers neither P^m nor E_id as parameters) and every modality is
    projected to width d, so that a modality's width is not that of its features. With `reference_width`, as in public code, the first is
    projected to that width, the others not at all, the first layers map to d, and the regulariser is lambda (mean of E_u^2 + E_i^2 over the
    pairs, negative ones included, + mean of the first modality's P^2); the tables train nevertheless.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = MMGCNSettings.from_config(config)
        d = settings.embedding_size
        self.reg_weight, self.reference = settings.reg_weight, settings.reference_width is not None
        self.mean = self.interactions(dataset).both_ways().normalised("mean").matrix()
        self.ids = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users + self.n_items, d)))
        self.preferences = nn.ParameterDict()
        self.layers = nn.ModuleDict()
        for n, (m, dims) in enumerate(self.feature_dims.items()):
            projected = n == 0 or not self.reference
            width = settings.reference_width or d if projected else dims
            self.preferences[m] = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_users, width)))
            self.encoders[m] = encoder = nn.Linear(dims, width) if projected else nn.Identity()
            if isinstance(encoder, nn.Linear):
                nn.init.xavier_normal_(encoder.weight)
            self.layers[m] = nn.ModuleList(Layer(d if n else width, d) for n in range(settings.n_layers))

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
            ids = gather_rows(self.ids, nodes).square()
            preferences = torch.stack([p[1:].square().mean() for p in self.preferences.values()])
            if self.reference:
                of_users, of_items = ids.tensor_split([len(batch.users)])
                squares = of_users.mean() + of_items.mean() + preferences[0]
            else:
                squares = ids.mean() + preferences.mean()
            parts["l2"] = self.reg_weight * squares
        return parts
