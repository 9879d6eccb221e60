"""Is a difference between two models more than chance? Paired tests, effect sizes, a correction for many of them, and how large a difference
would have had to be. And of several models over several tasks: do their ranks differ (Friedman), and which (Nemenyi)?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000
_CELLS = 1 << 22  # resampled values in memory at a time


class Outcome(NamedTuple):
    """
    Attributes:
        p: two-sided p-value.
        effect: Cohen's d of the paired differences, mean / standard deviation; 0 where all are 0.
        n: number of pairs.
    """

    p: float
    effect: float
    n: int


def paired_bootstrap(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Outcome:
    """Two-sided test that the mean difference over users is 0 (Efron & Tibshirani, 1993, section 16.4): differences, centred so that the
    null holds, are drawn with replacement; p is the share of means at least as far from 0 as the one observed, that one included.

    Args:
        differences: (N,) one number a user, variant minus plain.
    """
    d = _finite(differences)
    observed = abs(d.mean())
    if not d.any():
        return Outcome(1.0, 0.0, len(d))
    centred = d - d.mean()
    rng = np.random.default_rng(seed)
    extreme, block = 0, max(1, _CELLS // len(d))
    for start in range(0, resamples, block):
        drawn = rng.integers(len(d), size=(min(block, resamples - start), len(d)))
        # Rounding must not make the observed mean more extreme than itself.
        extreme += int((np.abs(centred[drawn].mean(axis=1)) >= observed * (1 - 1e-12)).sum())
    return Outcome((extreme + 1) / (resamples + 1), _cohen(d), len(d))


def wilcoxon(differences: np.ndarray) -> Outcome:
    """Wilcoxon's signed-rank test over users, ties and zeros after Pratt (scipy)."""
    d = _finite(differences)
    if not d.any():
        return Outcome(1.0, 0.0, len(d))
    return Outcome(float(stats.wilcoxon(d, zero_method="pratt").pvalue), _cohen(d), len(d))


def paired_t(differences: np.ndarray) -> Outcome:
    """Student's t over seeds (scipy)."""
    d = _finite(differences)
    if len(d) < 2 or not d.any():
        return Outcome(1.0, _cohen(d), len(d))
    if d.std() == 0:  # every seed gives the very same difference
        return Outcome(0.0, _cohen(d), len(d))
    return Outcome(float(stats.ttest_1samp(d, 0.0).pvalue), _cohen(d), len(d))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm, 1979): the k-th smallest of m times m - k + 1, never falling, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    out = np.empty_like(p)
    out[order] = adjusted
    return out.tolist()


def holm_level(others: Sequence[float], level: float) -> float:
    """The largest p-value that Holm's correction would still call significant, beside the p-values of the other tests.

    With j of the m - 1 others rejected before it, the step-down procedure compares this one with level / (m - j).
    """
    m, rejected = len(others) + 1, 0
    for p in sorted(others):
        if p * (m - rejected) >= level:  # as `holm` and "below level" have it
            break
        rejected += 1
    return level / (m - rejected)


def smallest_over_seeds(differences: np.ndarray, level: float) -> float:
    """The smallest mean difference that `paired_t` would call significant, had the seeds scattered as they do: t_{1 - level / 2, n - 1} s / sqrt(n)."""
    d = _finite(differences)
    return float(stats.t.isf(level / 2, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5)


def smallest_over_users(differences: np.ndarray, level: float, resamples: int = RESAMPLES) -> float:
    """The same for `paired_bootstrap`, whose means are close to normal: z_{1 - level / 2} s / sqrt(n); inf where no p can be as small."""
    d = _finite(differences)
    return float(stats.norm.isf(level / 2) * d.std() / len(d) ** 0.5) if level * (resamples + 1) > 1 else float("inf")


class Friedman(NamedTuple):
    """
    Attributes:
        ranks: mean rank of each treatment, 1: the best.
        chi2, chi2_p: Friedman's statistic, corrected for ties, and its p-value, chi-square with k - 1 degrees of freedom.
        f, f_p: Iman and Davenport's statistic and its p-value; infinite where all blocks rank alike.
    """

    ranks: list[float]
    chi2: float
    chi2_p: float
    f: float
    f_p: float


def friedman(values: np.ndarray) -> Friedman:
    """Do k treatments rank alike? Over N blocks, larger values are better and equal ones share the mean of their ranks (Demsar, JMLR 7, 2006,
    section 3.2.2; the statistic and its correction for ties are SciPy's).

    Args:
        values: (N, k), two blocks and three treatments at least.

    Raises:
        ValueError: fewer, or values that are not finite.
    """
    v = np.asarray(values, dtype=np.float64).round(12)  # what differs by rounding alone is a tie
    if v.ndim != 2 or v.shape[0] < 2 or v.shape[1] < 3 or not np.isfinite(v).all():
        raise ValueError(f"expected two blocks and three treatments or more, all finite, found shape {v.shape}")
    ranks = stats.rankdata(-v, axis=1)
    if (v == v[:, :1]).all():  # nothing is ranked anywhere
        return Friedman(ranks.mean(axis=0).tolist(), 0.0, 1.0, 0.0, 1.0)
    chi2, chi2_p = map(float, stats.friedmanchisquare(*v.T))
    if (ranks == ranks[0]).all():  # F is infinite; its p: that all blocks come out in the order of the first by chance
        orders = math.factorial(v.shape[1]) / math.prod(map(math.factorial, Counter(ranks[0]).values()))
        return Friedman(ranks[0].tolist(), chi2, chi2_p, math.inf, orders ** (1 - len(v)))
    return Friedman(ranks.mean(axis=0).tolist(), chi2, chi2_p, *iman_davenport(chi2, *v.shape))


def iman_davenport(chi2: float, blocks: int, treatments: int) -> tuple[float, float]:
    """(F, p): Friedman's statistic in its less conservative form, F with k - 1 and (k - 1)(N - 1) degrees of freedom (Iman & Davenport, 1980)."""
    n, k = blocks, treatments
    f = (n - 1) * chi2 / (n * (k - 1) - chi2)
    return f, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))


def critical_difference(blocks: int, treatments: int, level: float) -> float:
    """Nemenyi's: mean ranks over N blocks that differ by less are not told apart (Demsar, 2006): q sqrt(k (k + 1) / 6N), q the quantile of the
    studentized range of k with infinite degrees of freedom, over sqrt(2)."""
    q = float(stats.studentized_range.isf(level, treatments, np.inf)) / math.sqrt(2)
    return q * math.sqrt(treatments * (treatments + 1) / (6 * blocks))


def cliques(ranks: Sequence[float], difference: float) -> list[list[int]]:
    """The largest groups of two or more whose mean ranks lie within a critical difference, as indices, best rank first."""
    order = sorted(range(len(ranks)), key=lambda n: ranks[n])
    out: list[list[int]] = []
    end = 0
    for start, first in enumerate(order):
        group = [n for n in order[start:] if ranks[n] - ranks[first] < difference]
        if len(group) > 1 and start + len(group) > end:  # not inside the one before
            out.append(group)
            end = start + len(group)
    return out


def _cohen(d: np.ndarray) -> float:
    if len(d) < 2 or not d.any():
        return 0.0
    spread = d.std(ddof=1)
    return float(d.mean() / spread) if spread > 0 else float(np.copysign(np.inf, d.mean()))


def _finite(differences: np.ndarray) -> np.ndarray:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not len(d) or not np.isfinite(d).all():
        raise ValueError(f"expected a row of finite differences, found shape {d.shape}")
    return d.round(12)  # what differs by rounding alone is a tie, or 0
