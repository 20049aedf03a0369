"""Statistics against simulation, closed forms and scipy."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from dualppo.papers.stats import (
    clopper_pearson,
    detectable,
    hierarchical_interval,
    holm,
    items_needed,
    paired_permutation,
    probability_of_improvement,
    seed_interval,
    stratified_interval,
    tost,
    variance_components,
)

numbers = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p):
    raised = holm(p)
    assert all(a >= b - 1e-12 for a, b in zip(raised, p)) and max(raised) <= 1
    assert [raised[i] for i in np.argsort(p, kind="stable")] == sorted(raised)
    assert min(raised) == pytest.approx(min(1, len(p) * min(p)))  # the smallest is Bonferroni's


@settings(max_examples=30, deadline=None)
@given(numbers, st.integers(0, 2**31))
def test_probability_of_improvement_is_a_count_of_pairs(x, seed):
    y = np.random.default_rng(seed).uniform(-1, 1, 7).tolist()
    pairs = [(a > b) + (a == b) / 2 for a in x for b in y]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(pairs))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)


def test_a_paired_permutation_test_is_exact_for_few_seeds():
    g = np.random.default_rng(0)
    x, y = g.normal(0.4, 1, 9), g.normal(0, 1, 9)
    d = x - y
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
    brute = np.mean(np.abs((signs * d[:, None]).mean(0)) >= abs(d.mean()) - 1e-12)
    assert paired_permutation(x, y) == pytest.approx(brute, abs=1e-9)


def test_tost_is_the_interval_of_twice_the_level_inside_the_margin():
    g = np.random.default_rng(0)
    for shift in (0, 0.5, 0.9, 1.2):
        x = g.normal(shift, 1, 15)
        low, high = scipy_stats.t.interval(0.9, 14, x.mean(), scipy_stats.sem(x))
        assert (tost(x, np.zeros(15), 1.0) < 0.05) == (-1 < low and high < 1)


def test_the_hierarchical_interval_covers():
    g, hits = np.random.default_rng(0), 0
    for _ in range(200):
        effects = g.normal(0, 0.2, 15)
        found = hierarchical_interval(
            [[3] * 40] * 15, [[g.normal(e, 0.5, 3).sum() for _ in range(40)] for e in effects], draws=400
        )
        hits += found.low <= 0 <= found.high
    assert 0.85 < hits / 200 < 0.99  # percentile intervals of 15 seeds are short of 95 %


def test_variance_components_recover_what_was_put_in():
    g = np.random.default_rng(0)
    found = variance_components(g.normal(0, np.hypot(0.3, 0.1), 4000), [0.1] * 4000)
    assert found.seeds == pytest.approx(0.09, rel=0.08) and found.dialogues == pytest.approx(0.01)


def test_intervals_of_one_seed_are_not_claimed():
    assert np.isnan(seed_interval([0.5]).low) and stratified_interval([[0.0, 1.0], [0.0, 1.0]]).n == 2


@pytest.mark.parametrize(("n", "tests"), [(12, 1), (20, 39)])
def test_what_is_detectable_is_found_four_times_in_five(n, tests):
    g = np.random.default_rng(0)
    x = g.normal(detectable(0.3, n, tests), 0.3, (20_000, n))
    assert np.mean(scipy_stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05 / tests) == pytest.approx(0.8, abs=0.01)


@given(st.floats(0.01, 10), st.integers(12, 40))
@settings(max_examples=30, deadline=None)
def test_more_seeds_and_fewer_tests_detect_less(sd, n):
    assert detectable(sd, n + 1) < detectable(sd, n) < detectable(sd, n, tests=39) and detectable(
        2 * sd, n
    ) == pytest.approx(2 * detectable(sd, n))
    assert detectable(sd, 5) == detectable(sd, 10, tests=39) == np.inf  # 2/2^n is the smallest p of a sign test


def test_rare_harms():
    low, high = clopper_pearson(3, 100)
    assert scipy_stats.binom.sf(2, 100, low) == pytest.approx(0.025, abs=1e-6) and scipy_stats.binom.cdf(
        3, 100, high
    ) == pytest.approx(0.025, abs=1e-6)
    assert 4_600 < items_needed(0.01, 0.005) < 4_800 and 9_200 < items_needed(0.005, 0.0025) < 9_500
