"""How the trainer learns from a batch: one pass and one step of the optimiser, unless a plug-in says otherwise (`Plugin.trainer_step`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

Losses = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Named parts of a loss, whose sum is minimised, and named logs."""

Closure = Callable[..., Losses]
"""closure(factor=1.0): clears the gradients, makes the losses of the batch anew (new dropout, new noise) and the gradient of `factor` times
their sum."""


class Advance(Protocol):
    def __call__(self, clip: bool = True, estimators: bool = True) -> None:
        """One step of the optimiser along the gradients, clipped if the configuration says so and `clip` does; without `estimators` those of
        mutual information stay as they are."""


class Step:
    """One pass, one step. Subclasses write `run`; there is one object an epoch."""

    def run(self, closure: Closure, advance: Advance) -> list[Losses]:
        """Learn from a batch. Returns the losses of each pass, those to report first; none of them may be NaN."""
        losses = closure()
        advance()
        return [losses]
