"""Statistics against simulation, closed forms and scipy."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from dualppo.core.errors import DataError
from dualppo.exact.metrics import dialogue_standard_error
from dualppo.papers.hacks import cluster_intervals
from dualppo.papers.registration import registration
from dualppo.papers.stats import (
    answers,
    clopper_pearson,
    detectable,
    hierarchical_interval,
    holm,
    items_needed,
    least_p,
    paired_interval,
    paired_permutation,
    probability_of_improvement,
    resplit_interval,
    resplit_t,
    seed_interval,
    stratified_interval,
    tost,
    variance_components,
)
from dualppo.papers.tables import Cell

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


def record_of(seeds: list[list[float]]) -> dict:
    """A run whose seeds have dialogues of two states each."""
    return {
        "method": "m",
        "results": [
            {"seed": i, "dialogues": {"states": [2] * len(sums), "harm": sums}} for i, sums in enumerate(seeds)
        ],
    }


def bounds(found) -> tuple[float, float]:
    return found.low, found.high


INTERVALS = {  # name → the bounds that it gives `units` (and, where there are two levels, 1 stratum, 3 dialogues more)
    "seed_interval": lambda units: bounds(seed_interval(units, draws=200)),
    "seed_interval of the mean": lambda units: bounds(seed_interval(units, np.mean, draws=200)),
    "stratified_interval": lambda units: bounds(stratified_interval([[0.1, 0.2, 0.4], units], draws=200)),
    "stratified_interval, all strata": lambda units: bounds(stratified_interval([units, units], draws=200)),
    "hierarchical_interval": lambda units: bounds(
        hierarchical_interval([[2, 3, 1]] * len(units), [[u, 2 * u, 0.1] for u in units], draws=200)
    ),
    "hierarchical_interval, a dialogue a seed": lambda units: bounds(
        hierarchical_interval([[3]] * len(units), [[u] for u in units], draws=200)
    ),
    "paired_interval": lambda units: bounds(
        paired_interval(record_of([[u, 0.3] for u in units]), record_of([[0.0, 0.1]] * len(units)), "harm")
    ),
    "cluster_intervals": lambda units: cluster_intervals(
        torch.tensor(units).repeat(2)[:, None], torch.arange(len(units)).repeat(2), draws=200
    )[:, 0].tolist(),
    "dialogue_standard_error": lambda units: [
        dialogue_standard_error(torch.tensor(units).repeat(2), torch.arange(len(units)).repeat(2))
    ],
    "variance_components": lambda units: [variance_components(units, [0.0] * len(units)).seeds],
    "Cell.of": lambda units: [Cell.of(units).half],
}


@pytest.mark.parametrize("name", INTERVALS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=0, max_size=6, unique=True))
def test_an_interval_over_fewer_than_two_units_is_undefined(name, units):
    """Not of width zero, which would be the surest of all; and over two that differ it has a width."""
    if not units and name in ("cluster_intervals", "dialogue_standard_error"):
        return  # an environment has states
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(INTERVALS[name](units))
    if len(units) < 2:
        assert all(math.isnan(end) for end in found), found
    else:
        assert all(math.isfinite(end) for end in found) and found == sorted(found)


def test_an_interval_of_seeds_that_differ_has_a_width():
    for name in INTERVALS:
        low, *high = INTERVALS[name]([0.1, 0.9])
        assert (high[0] if high else low) > (low if high else 0), name


def test_a_value_without_an_interval_is_still_a_value():
    assert seed_interval([0.2]).value == 0.2 and stratified_interval([[0.2], [0.8]]).value == pytest.approx(0.5)
    assert hierarchical_interval([[3]], [[1.5]]).value == 0.5 and hierarchical_interval([], []).n == 0
    assert stratified_interval([[0.0, 1.0], [0.0, 1.0]]).n == 2


@settings(max_examples=40, deadline=None)
@given(st.floats(-1, 1), st.floats(0.001, 1))
def test_one_difference_or_none_shows_nothing(difference, margin):
    for d in ([difference], []):
        assert tost(d, [0.0] * len(d), margin) == paired_permutation(d, [0.0] * len(d)) == 1
        assert detectable(1.0, len(d)) == math.inf
    assert clopper_pearson(0, 0) == (0, 1)


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


@pytest.mark.parametrize("n", [2, 3, 6, 9, 10, 11, 12, 20])
def test_no_difference_is_said_only_where_one_could_have_been_found(n):
    """With all signs alike p is 2/2^n, and Holm multiplies it by the 60 planned tests: eleven seeds find nothing."""
    plan = registration()
    planned = plan.planned("harm", "similarity")
    asked = sum(c.kind == "difference" and c.start == "similarity" for c in plan.comparisons)
    assert planned == 60 == asked * len(plan.primary) and plan.planned("good", "letter") == asked * len(plan.readings)
    g = np.random.default_rng(n)
    base = g.normal(0.5, 0.1, n)
    for shift, sure in ((0.0, False), (0.2, True)):
        arm = base + (shift if sure else np.resize([0.1, -0.1], n)) + g.normal(0, 1e-4, n)
        runs = [answering(name, v) for name, v in (("dual_ppo", arm), ("similarity_mask", base))]
        (works,) = [a for a in answers(runs, plan, "stress") if a.id == "works" and a.metric == "harm"]
        could = 60 * 2 / 2**n < plan.level  # an oracle of its own: the p of all signs alike, times the tests
        assert could == (n >= 12) == math.isfinite(works.mde)
        expected = ("larger" if sure else "no difference found") if could else "too few seeds to tell"
        assert works.verdict == expected, (n, works)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 15))
def test_the_least_p_is_that_of_all_signs_alike(n):
    assert paired_permutation([1.0] * n, [0.0] * n) == pytest.approx(least_p(n))


def answering(method: str, values) -> dict:
    """A run with the primary metrics all alike, two dialogues a seed."""
    names = ("average_reward", "harm", "recall_at_1", "help_cosine", "good")
    results = [
        {
            "seed": i,
            "test": dict.fromkeys(names, float(v)),
            "dialogues": {"states": [1, 1]} | dict.fromkeys(names, [float(v)] * 2),
        }
        for i, v in enumerate(values)
    ]
    return {"method": method, "setting": "stress", "results": results}


def test_a_paired_interval_is_of_the_same_dialogues():
    arm, base = answering("a", [0.5, 0.7]), answering("b", [0.4, 0.5])
    assert paired_interval(arm, base, "harm").value == pytest.approx(0.15)
    other = answering("b", [0.4, 0.5])
    other["results"][0]["dialogues"]["states"] = [2, 1]
    with pytest.raises(DataError, match="other dialogues"):
        paired_interval(arm, other, "harm")
    for spoilt in (
        None,
        {},
        {"states": [1, 1]},
        {"states": [1, 1], "harm": [0.5]},
        {"states": [1, 1], "harm": [None, 1]},
    ):
        other["results"][0]["dialogues"] = spoilt  # a seed without sums is left out, and one seed has no interval
        found = paired_interval(arm, other, "harm")
        assert found.n == 1 and found.value == pytest.approx(0.2) and math.isnan(found.low)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=2, max_size=11))
def test_the_sign_test_is_that_of_all_signs(d):
    """Beside an enumeration of its own, and scipy's, which enumerates small ones too."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(d))))
    means = np.abs(signs @ np.array(d))
    expected = np.mean(means >= abs(sum(d)) - 1e-12 * np.abs(d).sum()) if any(d) else 1.0
    assert paired_permutation(d, np.zeros(len(d))) == pytest.approx(expected)


def test_twenty_signs_are_all_tried():
    x = np.linspace(0.1, 1, 20)
    assert paired_permutation(x, np.zeros(20)) == 2 / 2**20 == least_p(20)
    assert paired_permutation(-x, np.zeros(20)) == 2 / 2**20
    turned = np.where(np.arange(20) == 0, -x, x)  # the smallest turned round: one other pair of signs is as extreme
    assert paired_permutation(turned, np.zeros(20)) == 4 / 2**20


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.floats(0.05, 0.5), st.integers(0, 99))
def test_overlapping_resplits_are_less_sure(n, overlap, seed):
    d = np.random.default_rng(seed).normal(0.3, 1, n)
    plain, resplit = resplit_interval(d, np.zeros(n), 0.0), resplit_interval(d, np.zeros(n), overlap)
    wider = math.sqrt(1 + n * overlap)
    assert resplit.high - resplit.value == pytest.approx(wider * (plain.high - plain.value))
    assert resplit_t(d, np.zeros(n), 0.0) == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue)
    assert resplit_t(d, np.zeros(n), overlap) >= resplit_t(d, np.zeros(n), 0.0)
    sides = [scipy_stats.ttest_1samp(d, m, alternative=a).pvalue for m, a in ((-0.5, "greater"), (0.5, "less"))]
    assert tost(d, np.zeros(n), 0.5) == pytest.approx(max(sides))
    assert (tost(d, np.zeros(n), 0.5, overlap) - 0.5) * (tost(d, np.zeros(n), 0.5) - 0.5) >= 0


def test_the_correction_holds_the_level_where_resplits_share_data():
    """Two methods without a difference on resplits of one small pool: the naive t-test rejects far too often."""
    g, naive, corrected = np.random.default_rng(0), [], []
    for _ in range(300):
        pool = g.normal(0, 1, 100)  # differences of two methods, item by item
        d = np.array([g.permutation(pool)[:15].mean() for _ in range(20)])
        naive.append(resplit_t(d, np.zeros(20), 0.0) < 0.05)
        corrected.append(resplit_t(d, np.zeros(20), 15 / 70) < 0.05)
    assert np.mean(corrected) < 0.08 and np.mean(naive) > 0.15


def test_of_differences_that_are_none_nothing_is_detectable():
    runs = [answering(name, np.linspace(0.4, 0.6, 12)) for name in ("dual_ppo", "sft")]
    found = [a for a in answers(runs, registration(), "stress") if a.id == "sft"]
    assert {a.verdict for a in found} == {"identical"} and all(math.isnan(a.mde) and a.p == 1 for a in found)


def test_what_is_found_and_small_is_said_to_be_small():
    """Significant and equivalent at once is a finding of its own (margin of the reward: .005)."""
    base = np.random.default_rng(3).normal(0.5, 0.02, 20)
    small = base + 0.002 + np.random.default_rng(4).normal(0, 1e-4, 20)
    runs = [answering("dual_ppo", small), answering("similarity_mask", base)]
    found = {a.metric: a.verdict for a in answers(runs, registration(), "stress") if a.id == "works"}
    assert set(found.values()) == {"within the margin"}


def test_a_comparison_behind_the_mask_looks_there():
    arm, base = answering("dual_ppo_bandit", np.full(12, 0.9)), answering("sft", np.full(12, 0.9))
    for run, value in ((arm, 0.7), (base, 0.5)):
        for i, one in enumerate(run["results"]):
            one["masked"] = {name: value + 0.01 * i * (value > 0.6) for name in one["test"]}
    found = {a.id: a for a in answers([arm, base], registration(), "stress")}
    assert set(found) == {"sft_fair"} and found["sft_fair"].difference.value == pytest.approx(0.255)
