"""FETTLE, "Who To Align With: Feedback-Oriented Multi-Modal Alignment in Recommendation Systems" (SIGIR 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import full_precision, gather_rows
from mmrec_mrdib.losses import log_partition
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, StepLoss
from mmrec_mrdib.plugins.base import Plugin, PluginSettings, apart

IDS = "(ids)"  # the collaborative view, by no name that a modality can have
SHARPNESS = 0.05  # codes are divided by it before they are balanced
ROUNDS = 3  # of balancing
BOUNDS = {"instance": (1e-3, 0.5), "cluster": (0.01, 0.99)}  # of the learnt temperatures


class FETTLESettings(PluginSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/FETTLE.yaml", "plugin/FETTLE-{preset}.yaml")
    training: Literal["joint"]
    """The backbone's users and items are what it aligns."""
    instance_weight: float = Field(ge=0)
    """w_I, the weight of the item-level alignment and of its preference for what serves users better."""
    cluster_weight: float = Field(ge=0)
    """w_C, the weight of the alignment of clusters."""
    instance_temperature: float = Field(ge=BOUNDS["instance"][0], le=BOUNDS["instance"][1])
    """tau at the start."""
    cluster_temperature: float = Field(ge=BOUNDS["cluster"][0], le=BOUNDS["cluster"][1])
    """kappa at the start."""
    n_clusters: int = Field(ge=1)
    """K, prototypes of either clustering."""


class FETTLE(Plugin):
    """L = L_rec + w_I (ILA + DT) + w_C CLA around `backbone`: of any two views of an item, the one that serves the batch's users worse is aligned
    with the one that serves them better.

    Views d (collaborative) and one a modality, all of width d, M + 1 of them; x^ = x / |x| (0 for 0), sg: no gradient, P = M (M + 1) ordered pairs
    of views. a_x(i): mean over the batch's users u of i of <u^, x^_i>, no gradient. x -> y is active for i if a_y(i) > a_x(i);
    g_xy(i) = nrm(x^_i + W_xy x^_i), W_xy without bias.

    | term | formula | over |
    |---|---|---|
    | ila | sum over x -> y, over i active: -ln softmax_j of <g_xy(i), sg y^_j> / tau at j = i; divided by n | the n distinct positives |
    | dt | -1/P sum over x -> y of the mean over i active of (mean over users of i of <sg u^, g_xy(i)>) - a_x(i) | the same |
    | cla | 1/2 (CE(q_u; s_d) + CE(q_d; s_u)) + 1/P sum over x != y of CE(q_x; s_y) | pairs of the batch |

    CE(q; s) = - mean over pairs of sum_k q_k ln softmax(s / kappa)_k, in nats; s are cosines with K prototypes, of which users and d have one set, the
    items' views another; q, without gradient, is what Sinkhorn's balancing makes of exp(s / 0.05) in three rounds: each pair's assignments
    sum to 1, each prototype gets about B / K. tau and kappa are learnt, in [0.001, 0.5] and [0.01, 0.99].

    A modality's view is the backbone's own (`Embeddings.views`), users and items; where it has none, z^m and the collaborative users. The
    collaborative view is users and items as scores are made of them; of VBPR and GRCN it is their part of ids alone in g, targets and clusters,
    and the whole of them in a_d. Backbones without features get linear encoders x^m -> d of the plug-in's own, which feed these losses alone. One modality
    and more; PGL, MENTOR and DRAGON, whose users and items are wider than their views, with one modality alone. Nothing of it reaches the score:
    maps, prototypes and own encoders are dropped. Negatives are not read.

    Deviations: M other than 2; a row of zeros has direction 0, where public code gives NaN; what each backbone's views are is not published.
    """

    settings_class = FETTLESettings

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings: FETTLESettings = self.settings
        self.find_tables()
        with apart(config):
            d = self._width()
            self.own_encoders = nn.ModuleDict()
            if not self.featured:
                self.own_encoders.update({m: nn.Linear(dims, d) for m, dims in self.feature_dims.items()})
            pairs = itertools.permutations([IDS, *self.modalities], 2)
            self.maps = nn.ModuleDict({f"{x}_to_{y}": nn.Linear(d, d, bias=False) for x, y in pairs})
            # The rows of a linear layer: of users and d, and of the items' views.
            self.prototypes = nn.ParameterList(nn.Linear(d, settings.n_clusters, bias=False).weight for _ in range(2))
        self.temperatures = nn.ParameterDict(
            {
                "instance": nn.Parameter(torch.tensor(settings.instance_temperature)),
                "cluster": nn.Parameter(torch.tensor(settings.cluster_temperature)),
            }
        )

    @torch.no_grad()
    def _width(self) -> int:
        """d.

        Raises:
            ConfigError: the views are not of one width.
        """
        if not self.multimodal:
            assert self._tables is not None
            return self._tables()[0].shape[1]
        one = torch.ones(1, dtype=torch.long, device=next(self.backbone.parameters()).device)
        self.backbone.eval()
        enc, emb = self.forward_batch(Batch(one, one, one, self.n_items))
        self.backbone.train()
        d = collaborative(emb)[0].shape[1]
        for m in self.modalities if self.featured else ():
            width = self._modality(m, enc, emb)[1].shape[1]
            if width != d:
                name = self.settings.backbone
                raise ConfigError(
                    f"{name}+FETTLE: aligns views of one width, and of {name}'s items that of {m} has {width} columns, the collaborative one {d}"
                )
        return d

    def _modality(self, m: str, enc: Encoded, emb: Embeddings) -> tuple[Tensor, Tensor]:
        """Users and items as a backbone with features sees them through a modality."""
        return emb.views[m] if m in emb.views else (collaborative(emb)[0], enc.mean[m])

    @torch.no_grad()
    def _hold(self) -> None:
        """Prototypes of length 1, temperatures within bounds: what the last step has moved, before it is read."""
        for rows in self.prototypes:
            rows.copy_(F.normalize(rows))
        for name, bounds in BOUNDS.items():
            self.temperatures[name].clamp_(*bounds)

    def step_loss(self, interaction: Any) -> StepLoss:
        """The backbone's losses, instance (ILA and DT) and cluster; logs: ila, dt, the share of active directions by target view."""
        settings: FETTLESettings = self.settings
        if not (settings.instance_weight or settings.cluster_weight):
            return super().step_loss(interaction)
        if self.training:
            self._hold()
        batch = self.batch(interaction)
        parts, enc, emb = self.host_step(interaction, batch)
        ids, own = torch.unique(batch.positive, return_inverse=True)
        of_users = batch.user_rows(enc)
        of_items = ids if enc.items is None else torch.searchsorted(enc.items, ids)
        tables = [collaborative(emb)]
        if self.featured:
            tables += [self._modality(m, enc, emb) for m in self.modalities]
        users = [unit(u, of_users) for u, _ in tables]
        items = [unit(i, of_items) for _, i in tables]
        for m, encoder in self.own_encoders.items():
            users.append(users[0])
            items.append(F.normalize(encoder(gather_rows(self.features(m), ids)).float()))
        logs: dict[str, Tensor] = {}
        with full_precision(users[0]):
            if settings.instance_weight:
                liked = [audience(u, own, len(ids)) for u in users]
                served = [(u * i.detach()).sum(1) for u, i in zip(liked, items, strict=True)]
                if "collaborative_items" in emb.extra:
                    whole = audience(unit(emb.users, of_users), own, len(ids))
                    served[0] = (whole * unit(emb.items, of_items).detach()).sum(1)
                ila, dt = self._instances(liked, items, served, logs)
                parts["instance"] = settings.instance_weight * (ila + dt)
                logs |= {"ila": ila.detach(), "dt": dt.detach()}
            if settings.cluster_weight:
                distinct, who = torch.unique(of_users, return_inverse=True)
                parts["cluster"] = settings.cluster_weight * self._clusters(
                    unit(collaborative(emb)[0], distinct), items, who, own
                )
        return StepLoss(parts, logs)

    def _instances(
        self, liked: Sequence[Tensor], items: Sequence[Tensor], served: Sequence[Tensor], logs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """ILA and DT from each view's users of an item (n, d), items (n, d) and a (n,)."""
        ila, dt = items[0].new_zeros(()), items[0].new_zeros(())
        views = [IDS, *self.modalities]
        shares = dict.fromkeys(views, items[0].new_zeros(()))
        n, pairs = len(items[0]), len(self.maps)
        for x, y in itertools.permutations(range(len(views)), 2):
            active = (served[y] > served[x]).nonzero().flatten()
            shares[views[y]] = shares[views[y]] + len(active) / n / (len(views) - 1)
            if not len(active):
                continue
            source, target = gather_rows(items[x], active), items[y].detach()
            mapped = F.normalize(source + self.maps[f"{views[x]}_to_{views[y]}"](source))
            sharp = mapped / self.temperatures["instance"]
            own = (sharp * gather_rows(target, active)).sum()
            ila = ila + (log_partition(sharp, target, target.new_ones(len(active))) - own) / n
            better = (mapped * gather_rows(liked[y], active)).sum(1) - gather_rows(served[x], active)
            dt = dt - better.mean() / pairs
        logs |= {f"better/{view}": share for view, share in shares.items()}
        return ila, dt

    def _clusters(self, users: Tensor, items: Sequence[Tensor], who: Tensor, own: Tensor) -> Tensor:
        """CLA from the distinct users (m, d) and items (n, d) of each view, and the row of each pair's user and item (B,)."""
        of_users, of_views = self.prototypes
        u, i = (torch.bincount(rows, minlength=len(x)).float() for rows, x in ((who, users), (own, items[0])))
        with torch.no_grad():
            q_u, q_d = balanced(users @ of_users.T, u), balanced(items[0] @ of_users.T, i)
            # What the pairs' other sides say, summed over the pairs of a user, of an item.
            for_users = torch.zeros_like(q_u).index_add_(0, who, gather_rows(q_d, own))
            for_items = torch.zeros_like(q_d).index_add_(0, own, gather_rows(q_u, who))
            assigned = [balanced(x @ of_views.T, i) for x in items]
            together = torch.stack(assigned).sum(0)
            for_views = [(together - q) * i[:, None] for q in assigned]
        kappa = self.temperatures["cluster"]
        sides = cross_entropy(users, of_users, for_users, kappa) + cross_entropy(items[0], of_users, for_items, kappa)
        views = [cross_entropy(x, of_views, target, kappa) for x, target in zip(items, for_views, strict=True)]
        return (sides / 2 + torch.stack(views).sum() / len(self.maps)) / len(own)


def collaborative(emb: Embeddings) -> tuple[Tensor, Tensor]:
    """Users and items in the width of a view."""
    return emb.extra.get("collaborative_users", emb.users), emb.extra.get("collaborative_items", emb.items)


def unit(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table at length 1, in float32; 0 stays 0."""
    return F.normalize(gather_rows(table, rows).float())


def audience(users: Tensor, own: Tensor, n: int) -> Tensor:
    """(n, d) mean over an item's pairs of the user (B, d), without gradient; own: (B,) the row of each pair's item."""
    sums = users.new_zeros(n, users.shape[1]).index_add_(0, own, users.detach())
    return sums / torch.bincount(own, minlength=n)[:, None]


def cross_entropy(x: Tensor, prototypes: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
    """- sum over rows and prototypes of target ln softmax(<x, prototypes> / temperature), of (R, d), (K, d) and constant (R, K)."""
    agreement = (x * (targets @ prototypes)).sum()
    return log_partition(x / temperature, prototypes, targets.sum(1)) - agreement / temperature


def balanced(codes: Tensor, counts: Tensor) -> Tensor:
    """(R, K) assignments of each row that sum to 1, about evenly spread over the columns, from cosines (R, K); row r stands for counts[r] equal
    ones (Sinkhorn; Caron et al., NeurIPS 2020)."""
    kernel = torch.exp((codes - codes.max()) / SHARPNESS)
    rows = torch.ones_like(counts)
    for _ in range(ROUNDS):
        columns = 1 / ((counts * rows) @ kernel)
        rows = 1 / (kernel @ columns)
    return kernel.mul_(columns).mul_(rows[:, None])
