"""Partial information decomposition of two sources about a target (Bertschinger et al., Entropy 2014; "BROJA")."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmrec_mrdib.errors import ConfigError, ContractError


class PID(NamedTuple):
    """In bits; I(Y; X1, X2) = redundant + unique1 + unique2 + synergistic, I(Y; Xk) = redundant + unique_k."""

    redundant: float
    unique1: float
    unique2: float
    synergistic: float


def broja(joint: np.ndarray) -> PID:
    """Decompose I(Y; X1, X2).

    Among all distributions Q that share the marginals (Y, X1) and (Y, X2) with P, the least I_Q(Y; X1, X2) is what the two pairs alone
    account for; synergy is the rest, and R = I(Y; X1) + I(Y; X2) - that least value. A convex programme over
    |Y| |X1| |X2| probabilities, solved by an interior-point method (cvxpy, CLARABEL).

    Args:
        joint: (Y, X1, X2) probabilities or counts.

    Raises:
        ConfigError: cvxpy is not installed.
        ContractError: not a table of finite, non-negative numbers with a positive sum, or the solver fails.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise ConfigError("the decomposition needs cvxpy: pip install 'mmrec-mrdib[report]'") from error
    p = np.asarray(joint, dtype=np.float64)
    if p.ndim != 3 or not np.isfinite(p).all() or p.min(initial=0) < 0 or p.sum() <= 0:
        raise ContractError(f"expected a (Y, X1, X2) table of probabilities or counts, found shape {p.shape}")
    p = p / p.sum()
    p1, p2 = p.sum(2), p.sum(1)  # (Y, X1), (Y, X2): what Q shares with P
    # Where a shared marginal is 0, Q is 0: such cells are no variables, and log 0 never comes up.
    y, x1, x2 = np.nonzero((p1[:, :, None] > 0) & (p2[:, None, :] > 0))
    q = cvxpy.Variable(len(y), nonneg=True)
    of_pair = _sums(x1 * p.shape[2] + x2)
    constraints = []
    for marginal, cell in ((p1, y * p.shape[1] + x1), (p2, y * p.shape[2] + x2)):
        sums = _sums(cell)
        constraints.append(sums @ q == marginal.ravel()[np.unique(cell)])
    # sum q log(q / q(x1, x2)) = -H_Q(Y | X1, X2); H(Y) is the same for all Q.
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.rel_entr(q, of_pair.T @ (of_pair @ q)))), constraints)
    try:
        problem.solve(solver=cvxpy.CLARABEL)
    except cvxpy.SolverError as error:
        raise ContractError(f"the solver failed on a {p.shape} table: {error}") from error
    if q.value is None:
        raise ContractError(f"the solver found no solution for a {p.shape} table: {problem.status}")
    best = np.zeros_like(p)
    best[y, x1, x2] = np.maximum(q.value, 0)
    one, two = information(p1), information(p2)
    both = information(p.reshape(len(p), -1))
    # Within the solver's accuracy (1e-8) the least value lies between the larger of the two and what P has.
    least = min(max(information(best.reshape(len(p), -1)), one, two), both)
    redundant = min(max(one + two - least, 0.0), one, two)
    return PID(redundant, one - redundant, two - redundant, both - least)


def information(joint: np.ndarray) -> float:
    """I(Y; X) in bits of a (Y, X) table of probabilities or counts."""
    p = joint / joint.sum()
    product = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / product[seen])).sum())


def _sums(cell: np.ndarray) -> np.ndarray:
    """(cells, variables) 0/1 matrix that adds up the variables of each cell, in the order of the cells' numbers."""
    return (np.unique(cell)[:, None] == cell[None, :]).astype(np.float64)
