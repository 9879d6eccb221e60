"""Paired tests against SciPy, known cases and the null."""

import numpy as np
import pytest
from scipy import stats

from mmrec_mrdib.significance import (
    cliques,
    critical_difference,
    friedman,
    holm,
    holm_level,
    iman_davenport,
    paired_bootstrap,
    paired_t,
    smallest_over_seeds,
    smallest_over_users,
    wilcoxon,
)


def test_paired_t_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    assert paired_t(a - b).p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    # by hand: mean 2, sd 1, n 4: t = 4, three degrees of freedom
    by_hand = paired_t(np.array([1.0, 2, 3, 2]))
    d = np.array([1.0, 2, 3, 2])
    t = d.mean() / (d.std(ddof=1) / 2)
    assert by_hand.p == pytest.approx(2 * stats.t.sf(t, 3)) and by_hand.effect == pytest.approx(t / 2)


def test_wilcoxon_is_scipys_and_takes_ties_and_zeros():
    rng = np.random.default_rng(0)
    d = rng.normal(0.3, 1, 50).round(1)  # ties
    d[:10] = 0
    assert wilcoxon(d).p == pytest.approx(stats.wilcoxon(d, zero_method="pratt").pvalue)


def test_bootstrap_agrees_with_the_t_test_where_that_is_exact():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.05, 0.1):
        d = rng.normal(shift, 1, 1000)
        assert paired_bootstrap(d).p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    scipy = stats.bootstrap((d,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
    lower, upper = scipy.confidence_interval
    assert (paired_bootstrap(d).p < 0.05) == (not lower <= 0 <= upper)


def test_the_same_seed_gives_the_same_p():
    d = np.random.default_rng(0).normal(0.05, 1, 500)
    assert paired_bootstrap(d, seed=1) == paired_bootstrap(d, seed=1)
    assert paired_bootstrap(d, seed=1).p != paired_bootstrap(d, seed=2).p


@pytest.mark.parametrize(
    "test", [lambda d: paired_bootstrap(d, resamples=400), wilcoxon, paired_t], ids=["bootstrap", "wilcoxon", "t"]
)
def test_p_values_are_uniform_under_the_null(test):
    """Users' metrics as they are: many equal to 0, on a coarse grid."""
    rng = np.random.default_rng(1)
    p = []
    for _ in range(400):
        d = rng.choice([0, 0.05, 0.1, 0.2], size=300) * rng.choice([-1, 1], size=300)
        p.append(test(d).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085


def test_no_difference_is_no_evidence():
    for test in (paired_bootstrap, wilcoxon, paired_t):
        assert test(np.zeros(10)) == (1.0, 0.0, 10)
    assert paired_t(np.array([0.5])).p == 1.0  # one seed says nothing
    with pytest.raises(ValueError, match="finite"):
        paired_t(np.array([np.nan, 1.0]))


def test_holm_by_hand():
    # 4 tests: 0.01 x 4, 0.02 x 3, 0.03 x 2, then never falling
    assert holm([0.03, 0.01, 0.02, 0.035]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_alarm():
    rng = np.random.default_rng(0)
    alarms = np.mean([min(holm(rng.random(8))) < 0.05 for _ in range(2000)])
    assert 0.03 < alarms < 0.065


def test_the_level_that_holm_applies_is_where_its_verdict_turns():
    rng = np.random.default_rng(0)
    assert (
        holm_level([], 0.05) == 0.05 and holm_level([0.001, 0.9], 0.05) == 0.025 and holm_level([0.9] * 4, 0.05) == 0.01
    )
    for _ in range(200):
        others = (rng.random(rng.integers(0, 8)) ** 4).tolist()
        level = holm_level(others, 0.05)
        assert holm([level * (1 - 1e-9), *others])[0] < 0.05 <= holm([level * (1 + 1e-9), *others])[0]


def test_smallest_differences_are_where_the_tests_turn():
    rng = np.random.default_rng(0)
    for level in (0.05, 0.01):
        seeds = rng.normal(size=5)
        smallest = smallest_over_seeds(seeds, level)
        above, below = (paired_t(seeds - seeds.mean() + f * smallest).p for f in (1 + 1e-6, 1 - 1e-6))
        assert above < level < below
        users = rng.choice([0, 0.05, 0.1, 0.2], size=400) * rng.choice([-1, 1], size=400)
        smallest = smallest_over_users(users, level)
        assert paired_bootstrap(users - users.mean() + smallest).p == pytest.approx(level, rel=0.25)
    assert smallest_over_users(users, 1e-5) == np.inf  # no p is below 1 / 10,001


# Demsar (JMLR 7, 2006): ranks of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets (table 6), and quantiles (table 5).
RANKS = np.array([
    [4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1], [2.5, 2.5, 4, 1],
    [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3], [3, 1, 4, 2],
])  # fmt: skip
Q_05 = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)  # k = 2 to 10
Q_10 = (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920)


def test_friedman_of_demsars_example():
    found = friedman(1 - RANKS / 10)  # accuracies in this order, equal ones included
    assert np.round(found.ranks, 3).tolist() == [3.143, 2.000, 2.893, 1.964]
    ties = sum(t**3 - t for t in (2, 2, 4, 2)) / (14 * 4 * (4**2 - 1))
    assert found.chi2 * (1 - ties) == pytest.approx(9.28, abs=0.005)  # he does not correct for ties
    f, p = iman_davenport(9.28, 14, 4)
    assert f == pytest.approx(3.69, abs=0.005) and (p < 0.05) == (f > 2.85)  # his critical value of F(3, 39)
    assert found.chi2_p == pytest.approx(stats.chi2.sf(found.chi2, 3))
    # With ties, F is the one of an analysis of variance of the ranks by treatment and block.
    total, treatments = ((RANKS - 2.5) ** 2).sum(), 14 * ((RANKS.mean(0) - 2.5) ** 2).sum()
    anova = (treatments / 3) / ((total - treatments) / 39)
    assert found.f == pytest.approx(anova) and found.f_p == pytest.approx(stats.f.sf(anova, 3, 39))


def test_critical_differences_are_demsars():
    for level, table in ((0.05, Q_05), (0.10, Q_10)):
        for k, q in zip(range(2, 11), table, strict=True):
            assert critical_difference(k * (k + 1), k, level) * 6**0.5 == pytest.approx(q, abs=0.0008)
    assert critical_difference(14, 4, 0.05) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(14, 4, 0.10) == pytest.approx(1.12, abs=0.005)


def test_cliques_are_what_no_difference_parts():
    ranks = friedman(-RANKS).ranks
    assert cliques(ranks, 1.25) == [[3, 1, 2, 0]]  # at 0.05 none of the four differ
    assert cliques(ranks, 1.12) == [[3, 1, 2], [2, 0]]  # at 0.10: C4.5+cf belongs to both
    assert cliques([1.0, 3.0, 5.0], 1.5) == [] and cliques([2.0, 1.0, 2.0], 1.0) == [[0, 2]]


def test_ranks_that_all_agree_or_all_tie():
    same = friedman(np.tile([3.0, 1.0, 2.0], (4, 1)))
    assert same.ranks == [1, 3, 2] and same.chi2 == pytest.approx(8) and same.f == np.inf
    assert same.f_p == pytest.approx(1 / 6**3)  # of the 3! orders, three times that of the first block
    paired = friedman(np.tile([1.0, 1.0, 2.0], (3, 1)))
    assert paired.ranks == [2.5, 2.5, 1] and paired.f_p == pytest.approx(1 / 3**2)
    assert friedman(np.ones((3, 4))) == ([2.5] * 4, 0.0, 1.0, 0.0, 1.0)
    rounding = friedman(np.array([[0.1 + 0.2, 0.3, 0.1], [0.3, 0.1 + 0.2, 0.1], [0.2, 0.4, 0.3]]))
    assert rounding.ranks == pytest.approx([2, 4 / 3, 8 / 3])
    for few in (np.ones((1, 3)), np.ones((4, 2)), np.array([[1, 2, np.nan], [1, 2, 3]])):
        with pytest.raises(ValueError, match="two blocks and three treatments"):
            friedman(few)


def test_friedman_keeps_its_level_and_sees_a_difference():
    rng = np.random.default_rng(0)
    p = [friedman(rng.normal(size=(8, 4))).f_p for _ in range(400)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.075
    assert friedman(rng.normal([0, 0, 0, 3], size=(8, 4))).f_p < 0.01
