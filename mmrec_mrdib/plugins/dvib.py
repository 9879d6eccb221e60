"""DVIB, "Towards Robust Multimodal Recommender Systems via Variational Information Bottleneck Distillation" (WWW 2025)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import full_precision, gather_rows
from mmrec_mrdib.graphs.neighbours import row_blocks
from mmrec_mrdib.losses import at_least_single
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender, StepLoss
from mmrec_mrdib.plugins.base import Plugin, PluginSettings, apart

LEAST_SIGMA = 1e-6
# Where the published code adds its noise; on all other backbones at z.
_SITES = {"VBPR": "sum", "MMGCN": "features", "GRCN": "propagated"}


class DVIBSettings(PluginSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/DVIB.yaml", "plugin/DVIB-{preset}.yaml")
    training: Literal["joint"]
    """The backbone's encoders are what it works on."""
    site: Literal["auto", "z", "sum", "features", "propagated"]
    """What gets noisy: each z^m, the sum of the z^m, the features, or the modalities' part of users and items."""
    sigma: Literal["item", "dim", "constant"]
    """One sigma a row, one a row and dimension, or one for all, which does not learn."""
    init_sigma: float = Field(ge=0)
    """sigma where the network says 0, as about it does at the start; constant: sigma."""
    sigma_hidden: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Widths of the hidden layers of sigma's network; none: 32, 32, and for features of width D D/2, D/4."""
    noisy_weight: float = Field(ge=0)
    """Weight of the backbone's loss from noisy representations."""
    rate_weight: float = Field(ge=0)
    """w, the weight of the KL rate."""
    rate_reduce: Literal["mean", "sum"]
    """Rate in nats per dimension, or in nats, summed over dimensions."""
    rate_items: Literal["all", "batch"]
    """Rows that it is averaged over: the whole catalogue, or the batch's."""
    prior_std: float = Field(gt=0)
    """s, the standard deviation of the prior."""
    consistency: Literal["ref", "js", "none"]
    """Loss between clean and noisy distributions: as in the published code, the Jensen-Shannon divergence, or none."""
    consistency_on: Literal["auto", "scores", "z"]
    """Distributions over all items by their scores, or over the dimensions of z."""
    consistency_weight: float = Field(ge=0)
    """c."""
    consistency_mix: Literal["convex", "add"]
    """(1 - c) of the backbone's loss, or all of it, beside c of the consistency."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.sigma != "constant" and not 0 < self.init_sigma < 1:
            raise ValueError("a learnt sigma is between 0 and 1: expected 0 < init_sigma < 1, or --sigma=constant")
        if self.rate_weight and not self.init_sigma:
            raise ValueError("the rate is infinite without noise: with --init_sigma=0, --rate_weight=0")
        if self.consistency_mix == "convex" and self.consistency_weight > 1:
            raise ValueError("convex: expected consistency_weight of at most 1")
        return self


class DVIB(Plugin):
    """L = (1 - c) (l(x) + l(x~)) + c L_con + w L_KL around `backbone`, l its own loss, x~ = x + sigma(x) eps, eps ~ N(0, I) anew each step.

    | term | formula | weight |
    |---|---|---|
    | the backbone's, noisy_... | l with x and with x~, added | `noisy_weight`, 1 in the paper |
    | rate | KL(N(x, sigma^2) to N(0, s^2)) = 1/2 (x^2 / s^2 + sigma^2 / s^2 - 1 - ln(sigma^2 / s^2)), mean over rows and dimensions; sum over sites | w |
    | consistency | of P and Q, the softmax of clean and of noisy logits; mean over rows, sum over sites | c |

    sigma(x) = sigmoid(f(x)), one number a row, f: D-32-32-1 with ReLUs; at the start about 0.5. `consistency: ref`, with M = (P + Q) / 2:
    1/2 sum_j M_j (2 ln M_j - ln softmax(P)_j - ln softmax(Q)_j), as the published code has it. P and Q are probabilities already, and get a second
    softmax: of J columns that is about ln J - H(M) - |M|^2 + 1/J, not 0 for P = Q: a confidence penalty. `js`: the Jensen-Shannon divergence,
    1/2 KL(P to M) + 1/2 KL(Q to M), in nats.

    | backbone | x, one sigma-net each | what is doubled | P, Q over |
    |---|---|---|---|
    | VBPR | sum_m z^m (its weights normal after Glorot, biases 0) | all | all items by score, rows: the batch's users |
    | FREEDOM | each z^m | the auxiliary BPR | dimensions of z^m, rows: all items |
    | BM3 | each z^m, one net for all | the modalities' alignment | dimensions of q(z^m), rows: the batch's items |
    | GRCN | [y^1 ; ... ; y^M] of users and items | all | as VBPR |
    | MMGCN | the features (net D - D/2 - D/4 - 1) | all | as VBPR |
    | others | each z^m | all; what reads z, where z does not reach the score | as VBPR; as FREEDOM where z does not reach the score |

    The last line is our extrapolation. Not for LATTICE, whose steps but an epoch's first read no z, and for backbones none of whose losses does (DAMRS);
    one modality and more. Padding is in no mean and no softmax. Scores are the backbone's, without noise; networks play no part in them.

    Deviations: sigma is at least 1e-6 everywhere (FREEDOM 1e-15 and GRCN 0 in public code). BM3's second consistency, of the targets, is constant and left out. Preset
    `constant`: the paper's ablation with one sigma for all and no rate. Units, defaults that are not published: docs/plugins.md.
    """

    settings_class = DVIBSettings

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings: DVIBSettings = self.settings
        name, host = settings.backbone, self.backbone
        if not self.featured:
            raise ConfigError(f"{name}+DVIB: {name} has no modality representations that could be made noisy")
        if host.z_in_score == "through the graph":
            raise ConfigError(f"{name}+DVIB: only the first step of an epoch reads {name}'s modality representations")
        self.site = _SITES.get(name, "z") if settings.site == "auto" else settings.site
        if self.site == "sum" and name != "VBPR":
            raise ConfigError(f"--site=sum: only VBPR's score reads a sum of modality representations, not {name}'s")
        reaches = host.z_in_score != "no"
        self.on = ("scores" if reaches else "z") if settings.consistency_on == "auto" else settings.consistency_on
        self.c = settings.consistency_weight if settings.consistency != "none" else 0.0
        if self.c and self.on == "scores" and type(host).score is not MultimodalRecommender.score:
            raise ConfigError(f"--consistency_on=scores: {name}'s scores are no inner products; choose z")
        self.epsilon = Normals(config["seed"])
        self.levels = nn.ModuleDict()
        with apart(config):
            sites, doubled = self._probe(reaches)
            self.doubled = doubled
            if settings.sigma != "constant":
                shared: nn.Module | None = None
                for site, width in sites.items():
                    level = shared or self._level(width)
                    shared = level if name == "BM3" else None
                    self.levels[site] = level
        over_all = self.on == "scores" or name != "BM3"
        self.whole = bool(settings.rate_weight and settings.rate_items == "all") or bool(self.c and over_all)

    def _probe(self, reaches: bool) -> tuple[dict[str, int], frozenset[str] | None]:
        """Width of each site, and the names of the losses that noise reaches; None: all."""
        device = next(self.backbone.parameters()).device
        one = torch.ones(1, dtype=torch.long, device=device)
        batch = Batch(one, one, one + 1 if self.n_items > 2 else one, self.n_items)
        self.backbone.eval()
        enc, emb = self.forward_batch(batch)
        if self.site == "propagated" and "content_users" not in emb.extra:
            raise ConfigError(
                f"--site=propagated: {self.settings.backbone}'s users and items have no part of modalities alone"
            )
        widths = {site: x.shape[1] for site, x in self._clean(enc, emb).items()}
        doubled: frozenset[str] | None = None
        if not reaches:
            parts, z = self.backbone.loss_parts(enc, emb, batch), list(enc.z.values())
            doubled = frozenset(
                name
                for name, part in parts.items()
                if part.requires_grad
                and any(g is not None for g in torch.autograd.grad(part, z, retain_graph=True, allow_unused=True))
            )
            if not doubled:
                raise ConfigError(
                    f"{self.settings.backbone}+DVIB: no term of its loss reads the modality representations, with these parameters"
                )
        self.backbone.train()
        return widths, doubled

    def _level(self, width: int) -> NoiseLevel:
        settings: DVIBSettings = self.settings
        hidden = settings.sigma_hidden
        if hidden is None:
            hidden = (max(width // 2, 1), max(width // 4, 1)) if self.site == "features" else (32, 32)
        outputs = width if settings.sigma == "dim" else 1
        return NoiseLevel(width, hidden, outputs, settings.init_sigma, glorot=self.site == "sum")

    # The step.

    def step_loss(self, interaction: Any) -> StepLoss:
        """The backbone's losses, the same of noisy representations as noisy_..., rate and consistency; logs by site: rate and standard_rate in nats
        per dimension under N(0, s^2) and N(0, 1), mean sigma, and rms, the root of the mean of x^2."""
        settings: DVIBSettings = self.settings
        w, w_noisy, c = settings.rate_weight, settings.noisy_weight, self.c
        if not (w or w_noisy or c):
            return super().step_loss(interaction)
        batch = self.batch(interaction)
        enc, emb = self.forward_batch(batch)
        parts = dict(self.backbone.loss_parts(enc, emb, batch))
        clean = {site: at_least_single(x) for site, x in self._clean(enc, emb).items()}
        sigmas = {site: self.sigma(site, x) for site, x in clean.items()}
        if w_noisy or c:
            noise = {site: sigmas[site] * self.epsilon(x) for site, x in clean.items()}
            noisy = self._noisy(enc, emb, noise)
        if w_noisy:
            again = self.backbone.loss_parts(*noisy, batch)
            names = again if self.doubled is None else self.doubled
            parts |= {f"noisy_{name}": w_noisy * again[name] for name in names}
        if c:
            if settings.consistency_mix == "convex":
                parts = {name: (1 - c) * part for name, part in parts.items()}
            parts["consistency"] = c * self._consistency((enc, emb), noisy, batch)
        logs: dict[str, Tensor] = {}
        if w:
            parts["rate"] = w * self._rate(clean, sigmas, enc, batch, logs)
        return StepLoss(parts, logs)

    def sigma(self, site: str, x: Tensor) -> Tensor:
        """(R, 1), or (R, D) with `sigma: dim`, of rows (R, D)."""
        if site not in self.levels:
            return x.new_full((len(x), 1), self.settings.init_sigma)
        level: Tensor = self.levels[site](x)
        return level

    def _clean(self, enc: Encoded, emb: Embeddings) -> dict[str, Tensor]:
        """Site -> (R, D) what gets noisy."""
        if self.site == "z":
            return dict(enc.z)
        if self.site == "sum":
            return {"sum": torch.stack(list(enc.z.values())).sum(0)}
        if self.site == "propagated":
            return {"content": torch.cat([emb.extra["content_users"], emb.extra["content_items"]])}
        rows = {m: self.features(m) for m in enc.z}
        return rows if enc.items is None else {m: gather_rows(x, enc.items) for m, x in rows.items()}

    def _noisy(self, enc: Encoded, emb: Embeddings, noise: Mapping[str, Tensor]) -> tuple[Encoded, Embeddings]:
        """The rest of the backbone's pass from noisy x."""
        if self.site == "propagated":
            users, items = (noise["content"] + self._clean(enc, emb)["content"]).split([len(emb.users), len(emb.items)])
            width = users.shape[1]
            of_users, of_items = (
                torch.cat([table[:, :-width], part], 1) for table, part in ((emb.users, users), (emb.items, items))
            )
            extra = {**emb.extra, "content_users": users, "content_items": items}
            return enc, replace(emb, users=of_users, items=of_items, extra=extra)
        if self.site == "features":
            clean = self._clean(enc, emb)
            z = {m: self.backbone.encoders[m](clean[m] + noise[m]) for m in enc.z}
        elif self.site == "sum":  # of which only the sum is read
            first = next(iter(enc.z))
            z = {m: x + noise["sum"] if m == first else x for m, x in enc.z.items()}
        else:
            z = {m: x + noise[m] for m, x in enc.z.items()}
        noisy = replace(enc, z=z)
        if self.doubled is None:
            return noisy, self.backbone.propagate(noisy)
        # Users and items are not made of z: one propagation is enough.
        views = {m: (u, z[m] if x is enc.z[m] else x) for m, (u, x) in emb.views.items()}
        return noisy, replace(emb, views=views)

    def _rate(
        self,
        clean: Mapping[str, Tensor],
        sigmas: Mapping[str, Tensor],
        enc: Encoded,
        batch: Batch,
        logs: dict[str, Tensor],
    ) -> Tensor:
        settings: DVIBSettings = self.settings
        rows = self._rows(enc, batch, settings.rate_items == "batch")
        rates = []
        for site, x in clean.items():
            square, sigma = x.square().mean(1), sigmas[site]
            per_dim = {s: gather_rows(kl(square, sigma, s), rows).mean() for s in (settings.prior_std, 1.0)}
            rates.append(per_dim[settings.prior_std] * (x.shape[1] if settings.rate_reduce == "sum" else 1))
            logs[f"rate/{site}"] = per_dim[settings.prior_std].detach()
            logs[f"standard_rate/{site}"] = per_dim[1.0].detach()
            logs[f"sigma/{site}"] = gather_rows(sigma.detach(), rows).mean()
            logs[f"rms/{site}"] = gather_rows(square.detach(), rows).mean().sqrt()
        return torch.stack(rates).sum()

    def _rows(self, enc: Encoded, batch: Batch, of_batch: bool) -> Tensor:
        """Rows of a site without the padding: the batch's, or all."""
        if enc.items is not None:
            return torch.arange(len(enc.items), device=enc.items.device)
        users, items = batch.distinct_users, batch.items
        if not of_batch:
            users, items = (torch.arange(1, n, device=users.device) for n in (self.n_users, self.n_items))
        return items if self.site != "propagated" else torch.cat([users, items + self.n_users])

    def _consistency(
        self, clean: tuple[Encoded, Embeddings], noisy: tuple[Encoded, Embeddings], batch: Batch
    ) -> Tensor:
        kind: Literal["ref", "js"] = self.settings.consistency
        enc = clean[0]
        if self.on == "scores":
            users, counts = torch.unique(batch.users, return_counts=True)
            rows = users if enc.users is None else torch.searchsorted(enc.users, users)
            first, second = ((gather_rows(emb.users, rows), emb.items[1:]) for _, emb in (clean, noisy))
            return consistency_of_scores(first, second, counts / counts.sum(), kind)
        p, q = (dict(e.z) if self.site == "features" else self._clean(e, emb) for e, emb in (clean, noisy))
        bm3 = self.settings.backbone == "BM3"
        rows = batch.positive_rows(enc) if bm3 else self._rows(enc, batch, of_batch=False)
        terms = []
        for site in p:
            a, b = (at_least_single(gather_rows(x[site], rows)) for x in (p, q))
            with full_precision(a):
                if bm3:
                    a, b = self.backbone.predictor(a), self.backbone.predictor(b)
                terms.append(consistency(a, b, kind).mean())
        return torch.stack(terms).sum()


class Normals(nn.Module):
    """Standard normal numbers in the shape of a tensor, told by a seed and by how often there were any: the backbone's random numbers stay what
    they are without them, and a resumed run goes on where it was."""

    drawn: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.count = seed, 0
        self.register_buffer("drawn", torch.tensor(0))
        self.register_load_state_dict_post_hook(lambda module, keys: setattr(module, "count", int(module.drawn)))

    def forward(self, like: Tensor) -> Tensor:
        generator = torch.Generator(device=like.device).manual_seed(self.seed * 1_000_003 + self.count)
        self.count += 1
        self.drawn.fill_(self.count)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


class NoiseLevel(nn.Module):
    """sigma = sigmoid(f(x) + ln(s / (1 - s))), (R, D) -> (R, outputs): s where f is 0; f is a network of ReLUs.

    Args:
        glorot: weights normal after Glorot and biases 0; otherwise PyTorch's defaults.
    """

    def __init__(self, width: int, hidden: Sequence[int], outputs: int, start: float, glorot: bool) -> None:
        super().__init__()
        sizes = [width, *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.offset = math.log(start / (1 - start))
        for name, parameter in self.named_parameters() if glorot else ():
            nn.init.xavier_normal_(parameter) if name.endswith("weight") else nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        with full_precision(x):
            for layer in hidden:
                x = torch.relu(layer(x))
            return torch.sigmoid(last(x) + self.offset).clamp_min(LEAST_SIGMA)


def kl(square: Tensor, sigma: Tensor, prior_std: float) -> Tensor:
    """(R,) KL(N(x, diag sigma^2) || N(0, s^2 I)) of each row in nats per dimension.

    Args:
        square: (R,) mean of x^2 over the dimensions.
        sigma: (R, D), or (R, 1): one for all dimensions.
        prior_std: s.
    """
    ratio = (sigma / prior_std).square()
    return 0.5 * (square / prior_std**2 + (ratio - 1 - ratio.log()).mean(1))


def consistency(p: Tensor, q: Tensor, kind: Literal["ref", "js"]) -> Tensor:
    """(R,) the loss of each row between the softmax P and Q of logits (R, J), see `DVIB`; in nats."""
    log_p, log_q = torch.log_softmax(p, 1), torch.log_softmax(q, 1)
    p, q = log_p.exp(), log_q.exp()
    m = (p + q) / 2
    log_m = m.clamp_min(torch.finfo(m.dtype).tiny).log()
    if kind == "js":
        return 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(1)
    return (m * (log_m - (torch.log_softmax(p, 1) + torch.log_softmax(q, 1)) / 2)).sum(1)


def consistency_of_scores(
    clean: tuple[Tensor, Tensor], noisy: tuple[Tensor, Tensor], weights: Tensor, kind: Literal["ref", "js"]
) -> Tensor:
    """`consistency` between all scores of some users, clean and noisy, the weighted sum over the users; in blocks of users.

    Args:
        clean, noisy: (R, d) users and (J, d) items, whose inner products are the logits.
        weights: (R,) of the users.
    """
    tables = [at_least_single(x) for x in (*clean, *noisy)]
    with full_precision(tables[0]):
        total: Tensor = _OfScores.apply(weights, kind, *tables)
    return total


class _OfScores(torch.autograd.Function):
    """The closed-form gradient is made on the way: no (R, J) matrix outlives its block."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, kind: str, *tables: Tensor) -> Tensor:
        users, items = tables[::2], tables[1::2]
        grads = [torch.zeros_like(x) for x in tables]
        total = weights.new_zeros(())
        for block in row_blocks(len(users[0]), 2 * len(items[0])):
            logits = [torch.mm(u[block], i.T) for u, i in zip(users, items, strict=True)]
            shares = [torch.softmax(x, 1) for x in logits]
            m = torch.add(*shares).mul_(0.5)
            log_m = m.clamp_min(torch.finfo(m.dtype).tiny).log_()
            # Slopes in P and in Q, but for what is constant in a row: that has no part in the slopes in the logits.
            if kind == "js":
                slopes = [(x - torch.logsumexp(x, 1, keepdim=True)).sub_(log_m).mul_(0.5) for x in logits]
                loss = torch.stack([torch.linalg.vecdot(p, x) for p, x in zip(shares, slopes, strict=True)]).sum(0)
            else:
                # ln softmax(P) = P - ln sum exp P, and the entries of M sum to 1
                seconds = [p.exp() for p in shares]
                sums = [x.sum(1, keepdim=True) for x in seconds]
                log_m.sub_(m)
                loss = torch.linalg.vecdot(m, log_m) + torch.cat(sums, 1).log().mean(1)
                log_m.sub_(m).mul_(0.5)
                slopes = [x.mul_(0.5 / n).add_(log_m) for x, n in zip(seconds, sums, strict=True)]
            weight = weights[block]
            total += torch.dot(loss, weight)
            for n, (p, slope) in enumerate(zip(shares, slopes, strict=True)):
                slope.sub_(torch.linalg.vecdot(p, slope)[:, None]).mul_(p).mul_(weight[:, None])
                grads[2 * n][block] = slope @ items[n]
                grads[2 * n + 1].addmm_(slope.T, users[n][block])
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of: Tensor) -> tuple[Any, ...]:
        return None, None, *(g * of[0] for g in ctx.saved_tensors)
