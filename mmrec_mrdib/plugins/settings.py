"""Settings that plug-ins share. No RecBole here (see `mrdib/settings.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from mmrec_mrdib.schema import Control, Settings


class JointSettings(Settings):
    """Of a plug-in that always trains together with its backbone."""

    backbone: str
    """Name of the model that is wrapped: a plain one, or one with plug-ins of its own."""
    preset: str | None = None
    """Name of a set of values, properties/plugin/<Plugin>-<preset>.yaml, that replaces the defaults."""


class PluginSettings(JointSettings):
    training: Literal["staged", "joint"]
    """staged: the backbone is trained first, as it is without the plug-in, and stays as it was; joint: both at once."""


class ChannelSettings(PluginSettings):
    readout: Literal["late", "none"]
    """late: the content score is added to the backbone's; none: scores are the backbone's."""
    readout_ladder: tuple[Annotated[float, Field(ge=0)], ...]
    """Weights w to choose from on validation, in units of (spread of the backbone's scores) / (spread of the content scores)."""
    content_control: Control | None = None
    """Take the information out of the features that the content score is made of, and keep their form; the backbone's stay."""
    split_seed: int
    """Seed of that control."""
    stage_epochs: int = Field(ge=1, default=1)
    """staged: upper bound of the plug-in's own epochs."""
    stage_patience: int = Field(ge=1, default=1)
    """staged: evaluations in a row without a better valid metric that end them."""
    stage_batch_size: int = Field(ge=1, default=2048)
    """staged: pairs a step of the plug-in's own epochs."""
    stage_learning_rate: float = Field(gt=0, default=0.01)
    """staged: step size of the plug-in's own parameters."""

    @field_validator("readout_ladder")
    @classmethod
    def _sorted(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)) or value[0] != 0:
            raise ValueError("expected ascending weights that begin with 0, as in [0, 0.2, 0.4]")
        return value
