"""Settings of MRdIB, the same for its two entrances: the plug-in around a model of the contract, and `hosts/attach.py` for any other."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mmrec_mrdib import registry
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.plugins.settings import ChannelSettings


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
