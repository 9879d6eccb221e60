"""Paired tests against SciPy, known cases and the null."""

import numpy as np
import pytest
from scipy import stats

from mmrec_mrdib.significance import (
    holm,
    holm_level,
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
