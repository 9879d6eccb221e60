"""MRdIB, the plug-in: any multimodal backbone with a Gaussian encoding stage and its objectives (arXiv 2509.20225)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmrec_mrdib import registry
from mmrec_mrdib.errors import ContractError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender, StepLoss
from mmrec_mrdib.mrdib.encoder import Gaussian
from mmrec_mrdib.mrdib.estimators import REGISTRY
from mmrec_mrdib.mrdib.objectives.rate import rate
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.mrdib.objectives.synergistic import synergistic
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.mrdib.weighting import TERMS, AutoWeights
from mmrec_mrdib.schema import Settings


class MRdIBSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "mrdib.yaml")

    backbone: str
    """Name of the model that is wrapped."""
    rate_weight: float = Field(ge=0)
    """alpha_1, the weight of the KL rate."""
    redundant_weight: float = Field(ge=0)
    """alpha_2, the weight of the mutual information between modalities."""
    unique_weight: float = Field(ge=0)
    """alpha_3, the weight of the unimodal predictions."""
    synergy_weight: float = Field(ge=0)
    """alpha_4, the weight of the fused prediction where no modality alone is right (ours; 0 is the paper)."""
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
    mi_estimator: Literal["mine", "club", "infonce", "gaussian"]
    """Estimator of mutual information."""
    mi_hidden_size: int = Field(ge=1)
    """Width of its hidden layer."""
    mi_ema_rate: float = Field(gt=0, lt=1)
    """Step of MINE's moving average."""
    init_log_var: float
    """log sigma^2 at the start."""
    min_log_var: float
    """Lower clamp of log sigma^2."""
    max_log_var: float
    """Upper clamp of log sigma^2."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_log_var <= self.init_log_var <= self.max_log_var:
            raise ValueError("expected min_log_var <= init_log_var <= max_log_var")
        if self.weight_bounds[0] > self.weight_bounds[1]:
            raise ValueError("expected weight_bounds=[least, largest]")
        return self


class MRdIB(MultimodalRecommender):
    """L = L_rec + alpha_1 L_KL + alpha_2 L_R + alpha_3 L_U + alpha_4 L_S around `backbone`; L_rec is all of the backbone's own loss.

    | term | formula | over |
    |---|---|---|
    | rate | sum_m E_i KL(q(z^m given x_i^m) to N(0, I)) | distinct items of the batch |
    | redundant | mean over pairs of I(z^m; z^m'), by `mi_estimator` | distinct items of the batch |
    | unique | sum_m BPR of <p_u^m, q_i^m> | pairs of the batch |
    | synergistic | BPR of s(u, i), weighted by how wrong every modality alone is (ours, off by default) | pairs of the batch |

    p_u^m and q_i^m are the backbone's own views of users and items through a modality; where it has none, p_u^m is a table owned by
    the plug-in and q_i^m is z_i^m.
    Any number of modalities; with one, L_R is 0. A term whose weight is 0 is not computed. With `weighting: auto` alpha_1 to alpha_3
    set themselves (see AutoWeights). Prediction is the backbone's, with means, and costs what the backbone's costs.

    Deviations: pairs and sums over M > 2 modalities, alpha_4 and the automatic weights are ours (the paper has two modalities).
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        for m in self.modalities:  # the backbone holds them
            delattr(self, f"features_{m}")
        self.settings = settings = MRdIBSettings.from_config(config)
        # First, so that a seed gives the backbone the parameters it has without the plug-in.
        self.backbone: MultimodalRecommender = registry.model_class(settings.backbone)(config, dataset)
        backbone = self.backbone
        with torch.no_grad():
            widths = {m: encoder(backbone.features(m)[:1]).shape[1] for m, encoder in backbone.encoders.items()}
        self.backbone.stage = Gaussian(
            widths,
            settings.init_log_var,
            settings.min_log_var,
            settings.max_log_var,
        )
        dim = next(iter(widths.values()))
        estimator = registry.load(REGISTRY[settings.mi_estimator])
        self.redundancy = Redundancy(
            tuple(widths) if settings.redundant_weight else (),
            lambda: estimator.create(dim, settings.mi_hidden_size, settings.mi_ema_rate),
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
        self.own_views = nn.ParameterDict()
        if settings.unique_weight or settings.synergy_weight:
            backbone.eval()
            offered = backbone.evaluation_embeddings().views
            backbone.train()
            for m, d in widths.items():
                if m not in offered:
                    self.own_views[m] = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))

    def step_loss(self, interaction: Any) -> StepLoss:
        """The backbone's losses and the plug-in's; logs: rate and unique by modality, mi by pair, in nats; automatic alphas."""
        batch = self.backbone.batch(interaction)
        enc, emb = self.backbone.forward_batch(batch)
        parts = dict(self.backbone.loss_parts(enc, emb, batch))
        rec = tuple(parts)
        logs: dict[str, Tensor] = {}
        weights: Mapping[str, Any] = self.weights if self.auto is None else self.auto.values()
        # Everything is over the distinct items of the batch; where the backbone encodes only these, it is over all there is.
        whole = enc.items is None
        if "rate" in weights:
            if enc.rate is None:
                raise ContractError("the encoding stage gave no variance; is the model in evaluation mode?")
            present = batch.present if whole else None
            rates = {m: rate(kl, present) for m, kl in enc.rate.items()}
            total = torch.stack(list(rates.values())).sum()
            parts["rate"] = weights["rate"] * total
            logs |= {f"rate/{m}": value.detach() for m, value in rates.items()}
            if self.auto is not None and self.training:
                self.auto.hold_rate(total.detach() / sum(z.shape[1] for z in enc.z.values()))
        if "redundant" in weights:
            distinct = {m: gather_rows(z, batch.items) for m, z in enc.z.items()} if whole else enc.z
            parts["redundant"], nats = self.redundancy(distinct, weights["redundant"])
            logs |= {f"mi/{pair}": value for pair, value in nats.items()}
        if "unique" in weights or self.settings.synergy_weight:
            margins = self._unimodal(enc, emb, batch)
        if "unique" in weights:
            uniques = {m: unique(values) for m, values in margins.items()}
            parts["unique"] = weights["unique"] * torch.stack(list(uniques.values())).sum()
            logs |= {f"unique/{m}": value.detach() for m, value in uniques.items()}
        if self.settings.synergy_weight:
            fused = batch.margins(emb.users, emb.items, enc)
            parts["synergistic"] = self.settings.synergy_weight * synergistic(fused, margins.values())
        if self.auto is not None:
            logs |= {f"alpha/{t}": value for t, value in weights.items()}
            if self.training and self.auto.due():
                terms = {t: parts[t] / weights[t] for t in ("redundant", "unique") if t in weights}
                self.auto.balance(torch.stack([parts[p] for p in rec]).sum(), terms, list(enc.z.values()))
        return StepLoss(parts, logs)

    def _unimodal(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        """s_m(u, i) - s_m(u, j) of the batch's pairs, (B,) by modality."""
        return {m: batch.margins(*pair, enc) for m, pair in self._views(enc, emb).items()}

    def _views(self, enc: Encoded, emb: Embeddings) -> dict[str, tuple[Tensor, Tensor]]:
        own = {
            m: (table if enc.users is None else gather_rows(table, enc.users), enc.z[m])
            for m, table in self.own_views.items()
        }
        return {**own, **emb.views}

    # Everything else is the backbone's.

    def propagate(self, enc: Encoded) -> Embeddings:
        return self.backbone.propagate(enc)

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        return self.backbone.loss_parts(enc, emb, batch)

    def encode_items(self, items: Tensor | None = None) -> Encoded:
        return self.backbone.encode_items(items)

    def features(self, modality: str) -> Tensor:
        return self.backbone.features(modality)

    def new_items(self, enc: Encoded) -> Tensor:
        return self.backbone.new_items(enc)

    def row_tables(self) -> list[nn.Parameter]:
        return self.backbone.row_tables()

    def before_epoch(self, epoch: int) -> None:
        if self.auto is not None:
            self.auto.begin_epoch()
        self.backbone.before_epoch(epoch)

    def evaluation_embeddings(self) -> Embeddings:
        emb = self.backbone.evaluation_embeddings()
        return dataclasses.replace(emb, views=self._views(self.encode_items(), emb))

    def predict(self, interaction: Any) -> Tensor:
        return self.backbone.predict(interaction)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.backbone.full_sort_predict(interaction)

    def mi_parameters(self) -> list[nn.Parameter]:
        return list(self.redundancy.parameters())
