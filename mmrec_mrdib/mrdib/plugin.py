"""MRdIB, the plug-in (arXiv 2509.20225), and the form of it that carries the features' information into the ranking.

`--preset paper` is the method as published: the backbone's own encoders become Gaussian, and objectives are added to its loss. The default is
ours: the objectives ask that a user's *other items* predict, through encoders of the plug-in's own, and the ranking reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from mmrec_mrdib import registry
from mmrec_mrdib.errors import ConfigError, ContractError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, StepLoss
from mmrec_mrdib.mrdib.encoder import Gaussian, Linear
from mmrec_mrdib.mrdib.history import leave_one_out
from mmrec_mrdib.mrdib.objectives.contrast import contrast
from mmrec_mrdib.mrdib.objectives.rate import rate
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.mrdib.objectives.synergistic import synergistic
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.mrdib.weighting import TERMS, AutoWeights
from mmrec_mrdib.plugins.channel import Channel, ChannelSettings
from mmrec_mrdib.plugins.views import Views, check_negatives


class MRdIBSettings(ChannelSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/MRdIB.yaml", "plugin/MRdIB-{preset}.yaml")

    encoders: Literal["own", "backbone"]
    """Whose projections of the features are stochastic: the plug-in's own, or the backbone's."""
    content_size: int = Field(ge=1)
    """Width of the plug-in's own encoders."""
    user_view: Literal["history", "backbone"]
    """What decodes a modality: the user's other items, or the backbone's view of the user."""
    unique_loss: Literal["softmax", "bpr"]
    """history: softmax over the items of the batch, or BPR against the sampled negative."""
    contrast_temperature: float = Field(gt=0)
    """Similarities are divided by it, in the softmax and in BPR."""
    history_cap: int = Field(ge=1)
    """A user's pairs count as this many at most, however many it has."""
    rate_weight: float = Field(ge=0)
    """alpha_1, the weight of the KL rate."""
    rate_reduce: Literal["sum", "mean"]
    """Rate in nats, summed over the dimensions of z, or in nats per dimension."""
    prior_std: float = Field(gt=0)
    """Standard deviation of the prior."""
    redundant_weight: float = Field(ge=0)
    """alpha_2, the weight of the mutual information between modalities."""
    unique_weight: float = Field(ge=0)
    """alpha_3, the weight of the unimodal predictions."""
    synergy_weight: float = Field(ge=0)
    """alpha_4, the weight of what only the fusion of the modalities predicts (ours)."""
    weighting: Literal["fixed", "auto"]
    """fixed: alpha_1 to alpha_3 as given; auto: they set themselves, from these values on (0 stays 0)."""
    rate_target: float = Field(gt=0)
    """auto: nats per dimension that alpha_1 holds the KL at."""
    redundant_share: float = Field(gt=0)
    """auto: pull of the redundancy at z, as a share of that of the recommendation loss."""
    unique_share: float = Field(gt=0)
    """auto: the same for the unimodal predictions."""
    weight_bounds: tuple[Annotated[float, Field(gt=0)], float]
    """auto: least and largest weight."""
    balance_interval: int = Field(ge=1)
    """auto: steps between two measurements of these pulls."""
    mi_estimator: str
    """Estimator of mutual information, of `registry.ESTIMATORS`."""
    mi_hidden_size: int = Field(ge=1)
    """Width of its hidden layer."""
    mi_ema_rate: float = Field(gt=0, lt=1)
    """Step of MINE's moving average."""
    sigma: Literal["dim", "item", "constant"]
    """One sigma an item and dimension, one an item, or one for all that does not learn."""
    sigma_scale: Literal["absolute", "relative"]
    """Whether the log variances below are relative to the mean square of mu at the start."""
    init_log_var: float
    """log sigma^2 at the start."""
    min_log_var: float
    """Lower clamp of log sigma^2."""
    max_log_var: float
    """Upper clamp of log sigma^2."""
    objectives: dict[str, Annotated[float, Field(ge=0)]]
    """Further terms of the loss, of `registry.OBJECTIVES`, and their weights."""

    @field_validator("mi_estimator", "objectives")
    @classmethod
    def _known(cls, value: Any) -> Any:
        try:
            for name in [value] if isinstance(value, str) else value:
                registry.component("estimators" if isinstance(value, str) else "objectives", name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.min_log_var <= self.init_log_var <= self.max_log_var:
            raise ValueError("expected min_log_var <= init_log_var <= max_log_var")
        if self.weight_bounds[0] > self.weight_bounds[1]:
            raise ValueError("expected weight_bounds=[least, largest]")
        if self.training == "staged" and self.encoders == "backbone":
            raise ValueError("a trained backbone's encoders stay as they are: with --training=staged, --encoders=own")
        if self.encoders == "own" and self.user_view == "backbone":
            raise ValueError(
                "the backbone knows nothing of the plug-in's own encoders: with --encoders=own, --user_view=history"
            )
        if self.weighting == "auto" and self.encoders == "own":
            raise ValueError(
                "auto balances pulls at the backbone's representations: with --encoders=own, --weighting=fixed"
            )
        return self


class MRdIB(Channel):
    """L = L_rec + alpha_1 L_KL + alpha_2 L_R + alpha_3 L_U + alpha_4 L_S around `backbone`; L_rec is all of the backbone's own loss.

    z^m is a sample of N(mu^m, diag sigma^2) while training, and mu^m in evaluation; mu^m is a linear map of the features (`encoders: own`),
    or the backbone's projection (`backbone`).

    | term | formula, `user_view: history` | `user_view: backbone` (the paper) | over |
    |---|---|---|---|
    | rate | sum_m E_i KL(q(z^m given x_i^m) to N(0, s^2 I)) | the same | distinct items of the batch |
    | redundant | mean over pairs of I(z^m; z^m'), by `mi_estimator` | the same | distinct items of the batch |
    | unique | sum_m -ln softmax of <p_u^m(-i), zhat_i^m> / t | sum_m BPR of <p_u^m, q_i^m> | pairs of the batch |
    | synergistic | -ln softmax of sum_m <p_u^m(-i), zhat_i^m> / t | BPR of s(u, i), weighted by how wrong every modality alone is | pairs |

    history (ours): p_u^m(-i) is the direction of the sum of zhat over the user's other training items (`mrdib/history.py`); no negatives are
    items that the user has; pairs of users with one item have no view and do not count.
    backbone (the paper): p_u^m and q_i^m are the backbone's own views of users and items through a modality; where it has none, p_u^m
    is a table owned by the plug-in and q_i^m is z_i^m.

    With `readout: late` scores read the representations, s' = s + w sum_m <p_u^m, zhat_i^m> (`plugins/channel.py`); with `none` scores are
    the backbone's. With `training: staged` the backbone is trained first, as it is without the plug-in, and only the plug-in's own encoders
    learn after that: the gain over the backbone is then all the content's.
    Any number of modalities; with one, L_R is 0. A term whose weight is 0 is not computed. With `weighting: auto` alpha_1 to alpha_3
    set themselves (see AutoWeights).

    Deviations: pairs and sums over M > 2 modalities, alpha_4, the automatic weights, own encoders, history views and the readout are
    ours.
    """

    settings_class = MRdIBSettings
    without_features = "choose --encoders=own"

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        return cls.settings_class.from_config(config).encoders == "backbone"

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        return super().claims(config) | ({"sampling"} if cls.reads_encoders(config) else set())

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings: MRdIBSettings = self.settings
        self._check_negatives(settings)
        self.whole = self.reads_encoders(config) and settings.user_view == "history"  # histories reach beyond a batch
        self.own_encoders: nn.ModuleDict | None = None
        if settings.encoders == "own":
            features = self.content_features()
            self.own_encoders = nn.ModuleDict({m: Linear(x, settings.content_size) for m, x in features.items()})
        with torch.no_grad():
            means = self._means(self.content_features())
        widths = {m: z.shape[1] for m, z in means.items()}
        scales = {m: max(float(z[1:].square().mean()), 1e-12) for m, z in means.items()}
        stage = Gaussian(
            widths, settings.init_log_var, settings.min_log_var, settings.max_log_var, settings.sigma, settings.prior_std,
            scales if settings.sigma_scale == "relative" else None, self.draws.on,
        )  # fmt: skip
        if self.own_encoders is None:
            self.replace_stage(stage)
        else:
            self.stage = stage
        estimator = registry.component("estimators", settings.mi_estimator)
        self.redundancy = Redundancy(
            tuple(widths) if settings.redundant_weight else (),
            lambda a, b: estimator.create((widths[a], widths[b]), settings.mi_hidden_size, settings.mi_ema_rate),
        )
        self.objectives = nn.ModuleDict(
            {name: registry.component("objectives", name)(widths) for name, w in settings.objectives.items() if w}
        )
        weights = {t: getattr(settings, f"{t}_weight") for t in TERMS}
        if not self.redundancy.pairs:
            weights["redundant"] = 0.0
        self.weights = {t: weight for t, weight in weights.items() if weight}
        self.auto: AutoWeights | None = None
        if settings.weighting == "auto":
            shares = {"redundant": settings.redundant_share, "unique": settings.unique_share}
            self.auto = AutoWeights(
                self.weights, settings.rate_target, shares, settings.weight_bounds, settings.balance_interval
            )
        by_views = settings.user_view == "backbone" and (settings.unique_weight or settings.synergy_weight)
        self.own_views = Views(self.core if by_views else None)

    def _check_negatives(self, settings: MRdIBSettings) -> None:
        by_views = settings.user_view == "backbone" and (settings.unique_weight or settings.synergy_weight)
        option = "user_view=backbone" if by_views else f"unique_loss={settings.unique_loss}"
        if by_views or settings.unique_loss == "bpr":
            check_negatives(
                self, f"--{option}", "choose --user_view=history --unique_loss=softmax, or --training=staged"
            )

    # Representations.

    def _means(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoders = self.core.encoders if self.own_encoders is None else self.own_encoders
        return {m: encoders[m](x) for m, x in features.items()}

    def content(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._means(features)

    # The step.

    def terms(self, enc: Encoded | None, emb: Embeddings | None, batch: Batch, host: Mapping[str, Tensor]) -> StepLoss:
        """Logs: rate and unique by modality, mi by pair, in nats; automatic alphas."""
        settings: MRdIBSettings = self.settings
        if self.own_encoders is not None:
            enc = self.stage(self.own_encoders, *self._read(batch))
        assert enc is not None
        parts: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        weights: Mapping[str, Any] = self.weights if self.auto is None else self.auto.values()
        self._rate_and_redundancy(enc, batch, weights, parts, logs)
        if settings.user_view == "history":
            self._by_history(enc, batch, weights, parts, logs)
        else:
            assert emb is not None
            self._by_backbone(enc, emb, batch, weights, parts, logs)
        for name, objective in self.objectives.items():
            parts[f"objective/{name}"] = settings.objectives[name] * objective(enc, batch)
        if self.auto is not None:
            logs |= {f"alpha/{t}": value for t, value in weights.items()}
            if self.training and self.auto.due():
                terms = {t: parts[t] / weights[t] for t in ("redundant", "unique") if t in weights}
                self.auto.balance(torch.stack(list(host.values())).sum(), terms, list(enc.z.values()))
        return StepLoss(parts, logs)

    def _read(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Features that a step reads, and their items (R,): the batch's and its users' histories; all, where that is nearly all there is."""
        read = batch.present.clone()
        if self.settings.user_view == "history":
            read[self.histories.entries(torch.unique(batch.users))[1]] = True
        items = read.nonzero().flatten()
        features = self.content_features()
        if 4 * len(items) > 3 * self.n_items:
            return features, None
        return {m: gather_rows(x, items) for m, x in features.items()}, items

    def _rate_and_redundancy(
        self, enc: Encoded, batch: Batch, weights: Mapping[str, Any], parts: dict[str, Tensor], logs: dict[str, Tensor]
    ) -> None:
        # Everything is over the distinct items of the batch.
        if "rate" in weights:
            if enc.rate is None:
                raise ContractError("the encoding stage gave no variance; is the model in evaluation mode?")
            if enc.items is None:
                rates = {m: rate(kl, batch.present) for m, kl in enc.rate.items()}
            else:
                rates = {m: rate(batch.distinct_items_of(kl, enc)) for m, kl in enc.rate.items()}
            total = torch.stack(list(rates.values())).sum()
            if self.settings.rate_reduce == "mean":
                per_dim = [value / enc.z[m].shape[1] for m, value in rates.items()]
                parts["rate"] = weights["rate"] * torch.stack(per_dim).sum()
            else:
                parts["rate"] = weights["rate"] * total
            logs |= {f"rate/{m}": value.detach() for m, value in rates.items()}
            if self.auto is not None and self.training:
                self.auto.hold_rate(total.detach() / sum(z.shape[1] for z in enc.z.values()))
        if "redundant" in weights:
            distinct = {m: batch.distinct_items_of(z, enc) for m, z in enc.z.items()}
            parts["redundant"], nats = self.redundancy(distinct, weights["redundant"])
            logs |= {f"mi/{pair}": value for pair, value in nats.items()}

    def _by_backbone(
        self,
        enc: Encoded,
        emb: Embeddings,
        batch: Batch,
        weights: Mapping[str, Any],
        parts: dict[str, Tensor],
        logs: dict[str, Tensor],
    ) -> None:
        """Unique and synergistic by the backbone's views (the paper)."""
        alpha_4 = self.settings.synergy_weight
        if "unique" not in weights and not alpha_4:
            return
        margins = self.own_views.margins(enc, emb, batch)
        if "unique" in weights:
            uniques = {m: unique(values) for m, values in margins.items()}
            parts["unique"] = weights["unique"] * torch.stack(list(uniques.values())).sum()
            logs |= {f"unique/{m}": value.detach() for m, value in uniques.items()}
        if alpha_4:
            parts["synergistic"] = alpha_4 * synergistic(batch.margins(emb.users, emb.items, enc), margins.values())

    def _by_history(
        self, enc: Encoded, batch: Batch, weights: Mapping[str, Any], parts: dict[str, Tensor], logs: dict[str, Tensor]
    ) -> None:
        """Unique and synergistic by what the user's other items say (ours)."""
        settings: MRdIBSettings = self.settings
        alpha_4 = settings.synergy_weight
        if "unique" not in weights and not alpha_4:
            return
        lengths = self.histories.lengths(batch.users)
        # The pairs of very active users are as many as those of all the others: they count as `history_cap` pairs.
        counts = (settings.history_cap / lengths.clamp_min(1)).clamp(max=1.0) * (lengths > 1)
        widths = [z.shape[1] for z in enc.z.values()]
        unit = torch.cat([F.normalize(z) for z in enc.z.values()], 1)
        place: Tensor | None = None
        if enc.items is not None:
            place = torch.zeros(self.n_items, dtype=torch.long, device=unit.device)
            place[enc.items] = torch.arange(len(enc.items), device=unit.device)
        views = leave_one_out(self.histories, unit, batch.users, batch.positive, place, widths)

        def rows(items: Tensor) -> Tensor:
            return gather_rows(unit, items if place is None else place[items])

        t = settings.contrast_temperature
        if settings.unique_loss == "softmax":
            candidates, blocked = self._candidates(batch)
            uniques, together = contrast(
                views, rows(batch.positive), rows(candidates), blocked, counts, t, widths, "unique" in weights
            )
        else:
            assert batch.negative is not None
            products = views * (rows(batch.positive) - rows(batch.negative))
            margins = [x.sum(1) for x in products.split(widths, 1)]
            share = counts * (len(counts) / counts.sum().clamp_min(1e-12))
            uniques = torch.stack([unique(values / t, share) for values in margins])
            together = unique(torch.stack(margins).sum(0) / t, share)
        if "unique" in weights:
            parts["unique"] = weights["unique"] * uniques.sum()
            logs |= {f"unique/{m}": value for m, value in zip(enc.z, uniques.detach().unbind(), strict=True)}
        if alpha_4:
            parts["synergistic"] = alpha_4 * together

    def _candidates(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The distinct positive items of the batch (C,), and (B, C) bool, which of them each pair's user has: these, the pair's own among
        them, are no negatives."""
        items = torch.unique(batch.positive)
        column = torch.full((self.n_items,), -1, device=items.device)
        column[items] = torch.arange(len(items), device=items.device)
        users, place = torch.unique(batch.users, return_inverse=True)
        of, theirs = self.histories.entries(users)
        at = column[theirs]
        has = torch.zeros(len(users), len(items), dtype=torch.bool, device=items.device)
        has[of[at >= 0], at[at >= 0]] = True
        return items, gather_rows(has, place)

    def evaluation_embeddings(self) -> Embeddings:
        emb = super().evaluation_embeddings()
        return replace(emb, views=self.own_views.pairs(self.encode_items(), emb)) if len(self.own_views) else emb

    def before_epoch(self, epoch: int) -> None:
        if self.auto is not None:
            self.auto.begin_epoch()
        super().before_epoch(epoch)

    def mi_parameters(self) -> list[nn.Parameter]:
        return [*super().mi_parameters(), *self.redundancy.parameters()]
