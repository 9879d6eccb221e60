"""MRdIB, the plug-in: any multimodal backbone with a Gaussian encoding stage and its objectives (arXiv 2509.20225)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

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
from mmrec_mrdib.mrdib.objectives.unique import unique
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
    mi_estimator: Literal["mine"]
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
        return self


class MRdIB(MultimodalRecommender):
    """L = L_rec + alpha_1 L_KL + alpha_2 L_R + alpha_3 L_U around `backbone`; L_rec is all of the backbone's own loss.

    | term | formula | over |
    |---|---|---|
    | rate | sum_m E_i KL(q(z^m given x_i^m) to N(0, I)) | distinct items of the batch |
    | redundant | mean over pairs of I(z^m; z^m'), adversarial (see MINE) | distinct items of the batch |
    | unique | sum_m BPR of <p_u^m, z_i^m> | pairs of the batch |

    p_u^m is the backbone's own view of the user through a modality; where it has none, a table owned by the plug-in.
    Any number of modalities; with one, L_R is 0. A term whose weight is 0 is not computed. Prediction is the backbone's, with
    means, and costs what the backbone's costs.

    Deviations: pairs and sums over M > 2 modalities are ours (the paper has two).
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
            lambda: estimator(dim, settings.mi_hidden_size, settings.mi_ema_rate),
        )
        self.own_views = nn.ParameterDict()
        if settings.unique_weight:
            backbone.eval()
            offered = backbone.evaluation_embeddings().user_views
            backbone.train()
            for m, d in widths.items():
                if m not in offered:
                    self.own_views[m] = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))

    def step_loss(self, interaction: Any) -> StepLoss:
        """The backbone's losses and the plug-in's; logs: rate and unique by modality, mi by pair, in nats."""
        batch = self.backbone.batch(interaction)
        enc, emb = self.backbone.forward_batch(batch)
        parts = dict(self.backbone.loss_parts(enc, emb, batch))
        logs: dict[str, Tensor] = {}
        weights = self.settings
        # Everything is over the distinct items of the batch; where the backbone encodes only these, it is over all there is.
        whole = enc.items is None
        if weights.rate_weight:
            if enc.log_var is None:
                raise ContractError("the encoding stage gave no variance; is the model in evaluation mode?")
            present = batch.present if whole else None
            rates = {m: rate(enc.mean[m], enc.log_var[m], present) for m in enc.z}
            parts["rate"] = weights.rate_weight * torch.stack(list(rates.values())).sum()
            logs |= {f"rate/{m}": value.detach() for m, value in rates.items()}
        if weights.redundant_weight:
            distinct = {m: gather_rows(z, batch.items) for m, z in enc.z.items()} if whole else enc.z
            loss, nats = self.redundancy(distinct, weights.redundant_weight)
            if loss is not None:
                parts["redundant"] = loss
            logs |= {f"mi/{pair}": value for pair, value in nats.items()}
        if weights.unique_weight:
            uniques = self._unique(enc, emb, batch)
            parts["unique"] = weights.unique_weight * torch.stack(list(uniques.values())).sum()
            logs |= {f"unique/{m}": value.detach() for m, value in uniques.items()}
        return StepLoss(parts, logs)

    def _unique(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        views = {m: emb.user_views.get(m, self.own_views.get(m)) for m in enc.z}
        return {m: unique(batch.users_of(views[m]), *batch.items_of(z, enc)) for m, z in enc.z.items()}

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

    def before_epoch(self, epoch: int) -> None:
        self.backbone.before_epoch(epoch)

    def evaluation_embeddings(self) -> Embeddings:
        return self.backbone.evaluation_embeddings()

    def predict(self, interaction: Any) -> Tensor:
        return self.backbone.predict(interaction)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.backbone.full_sort_predict(interaction)

    def mi_parameters(self) -> list[nn.Parameter]:
        return list(self.redundancy.parameters())
