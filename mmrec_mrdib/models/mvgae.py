"""MVGAE: multi-modal variational graph auto-encoder (Yi & Chen, TMM 2021)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import Edges, full_precision, gather_rows
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender
from mmrec_mrdib.schema import Settings

MAX_LOG_VAR = 10.0  # of a sample and of a rate; not of an expert


class MVGAESettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/MVGAE.yaml")

    embedding_size: int = Field(ge=1)
    """d, the width of the latent variables."""
    hidden_size: int = Field(ge=1)
    """h, the width of z^m, of preferences, and of what the first convolution reads."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout after each convolution."""
    noise_scale: float = Field(ge=0)
    """Factor of a sample's deviation from its mean in training."""
    kl_weight: float = Field(ge=0)
    """beta, the weight of the latent variables' rate."""
    reference_margin: bool
    """Whether pairs are judged as a widespread implementation does (see Deviations)."""


class Head(nn.Module):
    """G lrelu(conv(x)) + lrelu(S x): the mean or the log variance of the latent variables, (N, d)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv, self.dense, self.skip = _linear(d, d), _linear(d, d), _linear(d, d)

    def forward(self, x: Tensor, around: Tensor, dropout: float) -> Tensor:
        """From nodes (N, d) and the means of their neighbourhoods (N, d)."""
        return self.dense(_activated(self.conv(around), dropout)) + F.leaky_relu(self.skip(x))


class Channel(nn.Module):
    """A graph encoder: user preferences, a convolution, two heads."""

    def __init__(self, n_users: int, hidden: int, d: int) -> None:
        super().__init__()
        self.preference = nn.init.xavier_normal_(nn.Parameter(torch.empty(n_users, hidden)))
        self.conv, self.dense = _linear(hidden, d), _linear(d, d)
        self.mean, self.log_var = Head(d), Head(d)


class MVGAE(MultimodalRecommender):
    """A variational graph encoder a modality and one of ids; Gaussians, fused as a product of experts.

    With A the mean over a node's neighbours and itself, conv(x) = dropout(A x W + b, at length 1). Channel c: x = [P ; features' side] at
    length 1, the side z^m = W_m x^m + b_m (I, h), for ids a map of a free table; x <- lrelu(G lrelu(conv_1 x));
    mu = G_mu lrelu(conv_mu x) + lrelu(S_mu x), and the same for the log variance l. Fused: mu* = sum_c mu_c / v_c / sum_c 1 / v_c,
    v* = 1 / sum_c 1 / v_c, v = e^l. Latents t = mu + noise_scale * e^(l / 2) * noise in training, mu otherwise.
    s(u, i) = <sigmoid(t*_u), sigmoid(t*_i)>.
    Loss, summed over the fused latents and each channel's: sum over the batch of -log2 sigmoid(s_ui - s_uj) + beta KL, in nats, mean over nodes.
    M >= 1. Views: sigmoid of modality m's latents of users and items. Under MRdIB the rate acts on z^m before it is brought to length 1: of
    a sample, only the direction goes on.

    Reference name -> ours (public code; n: 0 for v, 1 for t, then c, our modalities in their order and ids; linear weights out x in in both):

    | reference | ours |
    |---|---|
    | {v,t}_gcn.MLP, c_gcn.MLP (.weight, .bias) | encoders.<modality>, embed |
    | {v,t,c}_gcn.preference (not trained there) | channels.<n>.preference |
    | collaborative (I x d, not trained there) | items |
    | {v,t,c}_gcn.conv_embed_1.weight (in x out), .bias | channels.<n>.conv.weight (transposed), .bias |
    | {v,t,c}_gcn.g_layer1 | channels.<n>.dense |
    | {v,t,c}_gcn.conv_embed_4, g_layer4, linear_layer4 | channels.<n>.mean.conv (weight transposed), .dense, .skip |
    | {v,t,c}_gcn.conv_embed_5, g_layer5, linear_layer5 | channels.<n>.log_var.conv (weight transposed), .dense, .skip |
    | linear_layer1, conv_embed_2, linear_layer2, g_layer2 | not there: they have no effect |

    Deviations: preferences and the free table train (in public code they keep their random start). A widespread implementation takes
    the sigmoid of both scores before their difference, and for a user's negative the one of all the batch's that scores highest
    (`reference_margin: true`); its loss compares users with users, for item ids lack their offset: not followed. One convolution; the final
    table is made anew for each evaluation, without dropout.
    """

    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = MVGAESettings.from_config(config)
        d, hidden, n_nodes = settings.embedding_size, settings.hidden_size, self.n_users + self.n_items
        both = self.interactions(dataset).both_ways()
        own = torch.arange(n_nodes, device=both.rows.device)
        loops = Edges(own, own, torch.ones(n_nodes, device=own.device), both.shape)
        self.mean = (both + loops).normalised("mean").matrix()
        self.items = nn.init.xavier_normal_(nn.Parameter(torch.empty(self.n_items, d)))
        self.embed = _linear(d, hidden)
        for m, dims in self.feature_dims.items():
            self.encoders[m] = _linear(dims, hidden)
        self.channels = nn.ModuleList(Channel(self.n_users, hidden, d) for _ in range(len(self.modalities) + 1))

    def propagate(self, enc: Encoded) -> Embeddings:
        mean, log_var = self.latents([*enc.z.values(), self.embed(self.items)])
        # experts -> all: the fused latents, then the channels'
        precision = 1 / (log_var.exp() + 1e-8)
        total = precision.sum(0)
        mean = torch.cat([((mean * precision).sum(0) / total)[None], mean])
        log_var = torch.cat([-total.log()[None], log_var])
        t = mean
        if self.training and self.settings.noise_scale:
            noise = torch.randn_like(mean)
            t = mean + self.settings.noise_scale * noise * (log_var.clamp(max=MAX_LOG_VAR) / 2).exp()
        pairs: list[tuple[Tensor, Tensor]] = [(x[: self.n_users], x[self.n_users :]) for x in torch.sigmoid(t)]
        views = dict(zip(enc.z, pairs[1:-1], strict=True))
        extra = {"mean": mean, "log_var": log_var, "id_users": pairs[-1][0], "id_items": pairs[-1][1]}
        return Embeddings(pairs[0][0], pairs[0][1], views, extra)

    def latents(self, sides: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(M + 1, N, d) means and log variances of the channels, from the items' side of each (I, h)."""
        channels: list[Channel] = list(self.channels)  # type: ignore[arg-type]
        p = self.settings.dropout if self.training else 0.0
        pairs = list(zip(channels, sides, strict=True))
        inputs = [F.linear(F.normalize(torch.cat([c.preference, side])), c.conv.weight) for c, side in pairs]
        x = [
            F.leaky_relu(c.dense(_activated(around + c.conv.bias, p)))
            for c, around in zip(channels, self.around(inputs), strict=True)
        ]
        triples = list(zip(channels, x, self.around(x), strict=True))
        means = [c.mean(nodes, around, p).float() for c, nodes, around in triples]
        log_vars = [c.log_var(nodes, around, p).float() for c, nodes, around in triples]
        return torch.stack(means), torch.stack(log_vars)

    def around(self, x: list[Tensor]) -> tuple[Tensor, ...]:
        """Means over neighbourhoods, all channels in one product."""
        return self.mean(torch.cat(x, 1)).split(x[0].shape[1], 1)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        pairs = [(emb.users, emb.items), *emb.views.values(), (emb.extra["id_users"], emb.extra["id_items"])]
        parts = {"rec": torch.stack([self.reconstruction(*pair, batch, enc) for pair in pairs]).sum()}
        if self.settings.kl_weight:
            parts["kl"] = self.settings.kl_weight * self.rates(emb).sum()
        return parts

    def reconstruction(self, users: Tensor, items: Tensor, batch: Batch, enc: Encoded) -> Tensor:
        """Sum over the pairs of -log2 sigmoid(s_ui - s_uj)."""
        margins = batch.margins(users, items, enc)
        if self.settings.reference_margin:
            u, (i, _) = batch.users_of(users, enc), batch.items_of(items, enc)
            margins = torch.sigmoid((u * i).sum(1)) - torch.sigmoid(highest(u, items, batch))
        return F.softplus(-margins).sum() / math.log(2)

    def rates(self, emb: Embeddings) -> Tensor:
        """(M + 2,) KL(N(mu, v) || N(0, 1)) in nats, mean over users and items, of the fused latents and each channel's."""
        log_var = emb.extra["log_var"].clamp(max=MAX_LOG_VAR)
        terms = (emb.extra["mean"].square() + log_var.exp() - 1 - log_var).sum(-1) / 2
        users, items = terms.split([self.n_users, self.n_items], 1)
        return torch.cat([users[:, 1:], items[:, 1:]], 1).mean(1)  # without the paddings


def highest(users: Tensor, items: Tensor, batch: Batch) -> Tensor:
    """(B,) the largest inner product of each of the rows (B, d) with a negative of the batch; items (I, d)."""
    assert batch.negative is not None
    candidates = gather_rows(items, torch.unique(batch.negative))
    with torch.no_grad(), full_precision(users):
        at = (users @ candidates.T).argmax(1)
    return (users * gather_rows(candidates, at)).sum(1)


def _activated(x: Tensor, dropout: float) -> Tensor:
    """What follows the linear part of a convolution."""
    return F.leaky_relu(F.dropout(F.normalize(x), dropout))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_normal_(layer.weight)
    return layer
