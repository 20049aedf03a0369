"""Calibration, temperature, length and copying: against scikit-learn, by hand, and laws that hold for every input."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import make_envs
from dualppo.bench.features import REFERENCE, load_features
from dualppo.bench.masking import MINUS_INFINITY
from dualppo.core.errors import DataError
from dualppo.methods.baselines import Control
from dualppo.papers.trust import (
    TEMPERATURES,
    brier_score,
    calibration_floor,
    confidence,
    fit_temperature,
    mass_bins,
    mass_reliability,
    tempered,
    trust_row,
    trust_table,
    wording,
)
from dualppo.policies.policy import all_log_probs
from dualppo.text.harm import calibration_error

SEEDS = st.integers(0, 2**31)


def table_of(seed: int, states: int = 30, n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Log-probabilities `[states, n]`, a slot of each state, and the generator that drew them."""
    g = torch.Generator().manual_seed(seed)
    logp = (2 * torch.randn(states, n, generator=g)).log_softmax(1)
    return logp, torch.randint(n, (states,), generator=g), g


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 12))
def test_the_curve_is_sklearns(seed, bins):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(20 * bins, generator=g).double()
    y = torch.bernoulli(p, generator=g)
    table = mass_reliability(p, y, bins)
    observed, predicted = calibration_curve(y, p, n_bins=bins, strategy="quantile")
    assert np.allclose(table.observed, observed) and np.allclose(table.predicted, predicted)
    assert (table.rows == 20).all()  # of equal mass


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_whole_weights_are_repeated_rows(seed):
    g = torch.Generator().manual_seed(seed)
    p, times = torch.rand(40, generator=g), torch.randint(1, 4, (40,), generator=g)
    y = torch.bernoulli(p, generator=g)
    weighted = mass_reliability(p, y, 5, times)
    repeated = mass_reliability(p.repeat_interleave(times), y.repeat_interleave(times), 5)
    assert np.allclose(weighted[["weight", "predicted", "observed"]], repeated[["weight", "predicted", "observed"]])


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_order_is_nothing_and_equal_predictions_stay_together(seed):
    g = torch.Generator().manual_seed(seed)
    p, y = torch.randint(4, (50,), generator=g) / 4, torch.randint(2, (50,), generator=g).float()
    order = torch.randperm(50, generator=g)
    assert torch.equal(mass_bins(p)[order], mass_bins(p[order]))
    assert all(len(mass_bins(p)[p == value].unique()) == 1 for value in p.unique())
    a, b = mass_reliability(p, y), mass_reliability(p[order], y[order])
    assert calibration_error(a) == pytest.approx(calibration_error(b))


def test_an_error_of_a_bin_is_that_of_its_outcomes():
    p = torch.tensor([0.2, 0.2, 0.2, 0.2])
    table = mass_reliability(p, torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert table.error.item() == pytest.approx((0.2 * 0.8 / 4) ** 0.5)
    assert calibration_floor(table) == pytest.approx((2 / np.pi * 0.2 * 0.8 / 4) ** 0.5)
    assert calibration_error(table) == pytest.approx(0.05)


def test_the_floor_is_what_true_predictions_get():
    g = torch.Generator().manual_seed(1)
    p = torch.rand(300, generator=g)
    drawn = [calibration_error(mass_reliability(p, torch.bernoulli(p, generator=g))) for _ in range(150)]
    floor = calibration_floor(mass_reliability(p, p))
    assert np.mean(drawn) == pytest.approx(floor, rel=0.08)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_brier_is_sklearns_one_against_the_rest(seed):
    logp, gold, _ = table_of(seed)
    ours = brier_score(logp.double(), gold)
    each = sum(brier_score_loss((gold == j).int(), logp[:, j].double().exp()) for j in range(6))
    assert ours.mean().item() == pytest.approx(each, abs=1e-6)
    assert (ours >= 0).all() and (ours <= 2).all()


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_order_of_candidates_is_nothing(seed):
    logp, gold, g = table_of(seed)
    order = torch.randperm(6, generator=g)
    logp2, gold2 = logp[:, order], order.argsort()[gold]
    for a, b in zip(
        (*confidence(logp, gold), brier_score(logp, gold)), (*confidence(logp2, gold2), brier_score(logp2, gold2))
    ):
        assert torch.allclose(a, b, atol=1e-6)
    assert fit_temperature(logp, gold) == pytest.approx(fit_temperature(logp2, gold2), rel=1e-4)


def test_ties_share_the_top():
    sure, right = confidence(torch.tensor([[0.4, 0.4, 0.2]]).log(), torch.tensor([1]))
    assert (sure.item(), right.item()) == (pytest.approx(0.4), 0.5)
    assert confidence(torch.tensor([[0.4, 0.4, 0.2]]).log(), torch.tensor([2]))[1].item() == 0


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.2, 5))
def test_a_temperature_keeps_the_order_and_itself(seed, temperature):
    logp, _, _ = table_of(seed)
    at = tempered(logp, temperature)
    assert torch.equal(at.argsort(1), logp.argsort(1)) and torch.allclose(at.exp().sum(1), torch.ones(30), atol=1e-5)
    assert torch.allclose(tempered(at, 1 / temperature), logp, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_no_other_temperature_explains_more(seed):
    logp, gold, _ = table_of(seed)

    def nll(temperature: float) -> float:
        return -tempered(logp.double(), temperature).gather(1, gold[:, None]).mean().item()

    best = fit_temperature(logp, gold)
    assert TEMPERATURES[0] <= best <= TEMPERATURES[1]
    assert nll(best) <= min(nll(t) for t in np.geomspace(*TEMPERATURES, 60)) + 1e-9


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.5, 4))
def test_the_best_temperature_of_a_tempered_policy(seed, temperature):
    logp, _, g = table_of(seed, 400)
    gold = torch.multinomial(logp.exp(), 1, generator=g).squeeze(1)
    best = fit_temperature(logp, gold)
    assert fit_temperature(tempered(logp, temperature), gold) == pytest.approx(best / temperature, rel=1e-3)


def test_forbidden_and_absent_replies_do_not_fit_and_the_ends_are_kept():
    logp, gold, _ = table_of(0)
    with_others = torch.cat([logp, torch.tensor([[0.0] + [MINUS_INFINITY] * 5, logp[0].tolist()])])
    assert fit_temperature(with_others, torch.cat([gold, torch.tensor([3, -1])])) == fit_temperature(logp, gold)
    assert fit_temperature(logp, logp.argmax(1)) == TEMPERATURES[0]
    assert fit_temperature(logp, logp.argmin(1)) == TEMPERATURES[1]
    with pytest.raises(DataError, match="no state has the human's reply"):
        fit_temperature(logp, torch.full((30,), -1))


# ---- on features


@pytest.fixture(scope="module")
def bench(toy):
    features = load_features(toy)
    return features, make_envs(features, STRESS, seed=0)


def test_wording_is_counted_word_by_word(bench):
    features, splits = bench
    rows, replies = splits.test.row[:20], splits.test.cand[:20]
    found = wording(features, rows, replies)
    for i, row in enumerate(rows.tolist()):
        for j, reply in enumerate(replies[i].tolist()):
            said = Counter(features.tokens["pool"][reply].tolist())
            assert found["length"][i, j] == said.total()
            for source in ("knowledge", "query"):
                shared = (said & Counter(features.tokens[source][row].tolist())).total()
                assert found[f"from_{source}"][i, j].item() == pytest.approx(shared / said.total(), abs=1e-6)
    again = wording(features, rows, replies)  # the features are as they were
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_without_tokens_nothing_is_said_of_words(bench):
    from dataclasses import replace

    features, splits = bench
    row = trust_row(all_log_probs(Control("similarity"), splits.test), splits.test, replace(features, tokens={}))
    assert np.isnan(row["length"]) and np.isnan(row["from_query_human"]) and row["brier"] > 0


def test_the_human_is_calibrated_and_reads_as_the_human(bench):
    features, splits = bench
    row = trust_row(all_log_probs(Control("human"), splits.human), splits.human, features)
    assert row["asked"] == row["accuracy"] == 1 and row["ece"] == row["brier"] == row["nll"] == row["forbidden"] == 0
    for name in ("length", "from_knowledge", "from_query"):
        assert row[name] == pytest.approx(row[f"{name}_human"]) and row[name] == pytest.approx(row[f"{name}_asked"])
    own = features.bank(REFERENCE)[splits.human.row]
    lengths = [len(features.tokens["pool"][i]) for i in own.tolist()]
    assert row["length"] == pytest.approx(np.mean(lengths))


def test_a_uniform_policy_in_closed_form(bench):
    features, splits = bench
    n = splits.test.cand.shape[1]
    row = trust_row(all_log_probs(Control("random"), splits.test), splits.test, features)
    assert row["confidence"] == row["accuracy"] == pytest.approx(1 / n) and row["nll"] == pytest.approx(
        np.log(n), abs=1e-5
    )
    assert row["brier"] == pytest.approx(1 - 1 / n) and row["ece"] == pytest.approx(0, abs=1e-6)
    assert row["length"] == pytest.approx(
        wording(features, splits.test.row, splits.test.cand)["length"].mean().item(), abs=1e-4
    )


def test_a_forbidden_human_is_counted_and_not_taken_for_infinitely_unlikely(bench):
    features, splits = bench
    env = splits.test
    logp = all_log_probs(Control("random"), env).clone()
    first = int((env.gold >= 0).nonzero()[0])
    logp[first] = torch.full_like(logp[first], MINUS_INFINITY).scatter(
        0, (env.gold[first] + 1)[None] % logp.shape[1], 0.0
    )
    row = trust_row(logp, env, features)
    assert row["forbidden"] == pytest.approx(1 / int((env.gold >= 0).sum())) and row["nll"] < 10


def test_a_split_without_the_human_gives_nan(bench):
    features, splits = bench
    env = splits.test.take((splits.test.gold < 0).nonzero().squeeze(1))
    row = trust_row(all_log_probs(Control("similarity"), env), env, features)
    assert row["asked"] == 0 and np.isnan(row["ece"]) and np.isnan(row["length_asked"]) and row["length"] > 0
    table = trust_table({"a": all_log_probs(Control("similarity"), env)}, env, features)
    assert (
        list(table.columns)
        == list(row)
        == list(trust_row(all_log_probs(Control("random"), splits.test), splits.test, features))
    )
