"""Mirror Gradient (Zhong et al., WWW 2024): every few steps, a step down the gradient is followed by a smaller step up it."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from mmrec_mrdib.plugins.base import JointSettings, Plugin
from mmrec_mrdib.steps import Advance, Closure, Losses, Step

logger = logging.getLogger(__name__)


class MGSettings(JointSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/MG.yaml", "plugin/MG-{preset}.yaml")

    mirror_descent: float = Field(gt=0)
    """alpha_1, the factor of the loss in the first of two steps."""
    mirror_ascent: float = Field(ge=0)
    """alpha_2, the factor of the loss, whose sign is turned, in the second."""
    mirror_period: int = Field(ge=1)
    """beta: of that many batches the first has two steps, the others one."""


class MirrorStep(Step):
    """Of the batches 0, 1, ... of an epoch those of a number that beta divides have two steps, through the same optimiser:

        theta' = theta - step(alpha_1 grad l(theta)),    theta'' = theta' - step(-alpha_2 grad l(theta')),

    both gradients on the same batch and its negatives, with new dropout and new noise in the second pass. Only the second step is clipped, and it
    leaves estimators of mutual information alone: they should fit, not unfit. The losses reported are those of the first pass.
    """

    def __init__(self, descent: float, ascent: float, period: int) -> None:
        self.descent, self.ascent, self.period = descent, ascent, period
        self.batches = 0

    def run(self, closure: Closure, advance: Advance) -> list[Losses]:
        mirrored = self.batches % self.period == 0
        self.batches += 1
        if not mirrored:
            return super().run(closure, advance)
        first = closure(self.descent)
        advance(clip=False)
        second = closure(-self.ascent)
        advance(estimators=False)
        return [first, second]


class MG(Plugin):
    """The backbone with the trainer's step replaced by `MirrorStep`; loss, gradients and score are the backbone's.

    With plain SGD of rate eta that is, to first order in eta, steps of rate (alpha_1 - alpha_2) eta with a penalty on the squared length of the
    gradient. With Adam it is not: both steps go through the same moments, which count two steps, and alpha_1 all but cancels. Any
    backbone that learns in steps, with features or without. Whatever a forward pass changes besides (moving averages of MINE, steps of automatic
    weights) it changes twice. Reference: the public code, rule and order; its `alpha1`, `alpha2`, `beta`.
    """

    settings_class = MGSettings
    needs_features = False
    any_batches = True
    _told = False

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        return frozenset({"step"})

    def calculate_loss(self, interaction: Any) -> Tensor:
        if not self._told:
            self._told = True
            logger.warning(
                "+%s changes the trainer's step, and RecBole's own Trainer takes plain ones: train with mmrec_mrdib.train",
                type(self).__name__,
            )
        return super().calculate_loss(interaction)

    def trainer_step(self) -> Step:
        return MirrorStep(self.settings.mirror_descent, self.settings.mirror_ascent, self.settings.mirror_period)
