"""Weights of the objectives that set themselves while training (ours; the paper tunes them by hand)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import full_precision

TERMS = ("rate", "redundant", "unique")


class AutoWeights(nn.Module):
    """alpha_1 holds a rate, alpha_2 and alpha_3 hold shares of the gradient.

    - alpha_1 is the multiplier of the constraint "mean KL = target": log alpha_1 grows by `step` x (KL / target - 1) each step, at most by
      `step` (after Rezende & Viola, "Taming VAEs", 2018).
    - alpha_k = share_k |dL_rec / dz| / |dL_k / dz| for the others, measured at z every `interval` steps (a backward pass that ends at the
      encoders' output), averaged in the logarithm. So a term pulls at the representations with a fixed share of the pull of the
      recommendation loss, whatever the scale of either.

    All are kept within bounds. They are buffers: part of every checkpoint, and never read by the host.

    Args:
        start: term -> weight at the start, above 0, for the terms in use.
        rate_target: nats per dimension of z.
        shares: term -> share_k, for 'redundant' and 'unique'.
        bounds: least and largest weight.
        interval: steps between two measurements.
    """

    step = 0.01
    ema_rate = 0.5

    def __init__(
        self,
        start: Mapping[str, float],
        rate_target: float,
        shares: Mapping[str, float],
        bounds: tuple[float, float],
        interval: int,
    ) -> None:
        super().__init__()
        self.terms = tuple(t for t in TERMS if t in start)
        self.rate_target, self.shares, self.interval = rate_target, dict(shares), interval
        self.low, self.high = (math.log(b) for b in bounds)
        values = torch.tensor([start[t] for t in self.terms], dtype=torch.float32)
        self.log_alpha: Tensor
        self.register_buffer("log_alpha", values.log().clamp(self.low, self.high))
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._steps = 0  # the same on the host, which must not wait for the device

    def begin_epoch(self) -> None:
        self._steps = int(self.steps)  # a checkpoint may have been loaded

    def due(self) -> bool:
        """Counts a step; whether the gradients are to be measured in it."""
        self._steps += 1
        self.steps.fill_(self._steps)
        return (self._steps - 1) % self.interval == 0

    def values(self) -> dict[str, Tensor]:
        """Term -> its weight now, ()."""
        return dict(zip(self.terms, self.log_alpha.exp().unbind(), strict=True))

    @torch.no_grad()
    def hold_rate(self, rate: Tensor) -> None:
        """
        Args:
            rate: () mean KL of this step in nats per dimension.
        """
        self._move("rate", self.step * (rate / self.rate_target - 1).clamp(max=1))

    def balance(self, rec: Tensor, terms: Mapping[str, Tensor], z: Sequence[Tensor]) -> None:
        """
        Args:
            rec: () the backbone's loss.
            terms: term -> its loss () without its weight.
            z: the representations.

        Raises:
            ConfigError: `rec` does not depend on them.
        """
        with full_precision(
            rec
        ):  # a backward pass within autocast would multiply in half precision what its forward did not
            pull, pulls = _norm(rec, z), {name: _norm(loss, z) for name, loss in terms.items()}
        if float(pull) == 0:
            raise ConfigError(
                "--weighting=auto: the backbone's loss sends no gradient to its representations (as FREEDOM's with --reg_weight=0), so there is nothing "
                "to balance against; choose --weighting=fixed, or give that loss a weight"
            )
        for name, own in pulls.items():
            wanted = torch.log(self.shares[name] * pull / own)
            now = self.log_alpha[self.terms.index(name)]
            # 0 / 0 and the like (a batch of one item has no redundancy) say nothing.
            self._move(name, torch.where(wanted.isfinite(), self.ema_rate * (wanted - now), 0.0))

    @torch.no_grad()
    def _move(self, term: str, by: Tensor) -> None:
        place = self.log_alpha[self.terms.index(term)]
        place.add_(by).clamp_(self.low, self.high)


def _norm(loss: Tensor, z: Sequence[Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss, z, retain_graph=True, allow_unused=True)
    return torch.stack([g.norm() for g in grads if g is not None] or [loss.new_zeros(())]).norm()
