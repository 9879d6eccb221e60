"""Rate of the information bottleneck: how much z says about x."""

from __future__ import annotations

from torch import Tensor


def rate(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) || N(0, I)) in nats, summed over dimensions, averaged over items.

    1/2 sum_d (mu^2 + sigma^2 - 1 - log sigma^2); its mean over x is an upper bound of I(X; Z) (Alemi et al., ICLR 2017).

    Args:
        mean, log_var: (R, d).
    """
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=-1).mean()
