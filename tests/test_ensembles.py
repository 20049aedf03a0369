"""Ensembles of reward models: group bootstrap, penalties and their limits, held-out members, measures of doubt."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dualppo.bench.ensembles import (
    Ensemble,
    accuracy_by_doubt,
    centred,
    doubt_finds_errors,
    doubts,
    fit_ensemble,
    group_bootstrap,
    held_out_margins,
    penalised,
    risk_averse,
    worst_case,
)
from dualppo.bench.reward_models import Pairs, RewardModel, cross_fitted, fit_reward_model, margins
from dualppo.core.errors import DataError


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def some_pairs(n: int = 120, d: int = 6, groups: int = 30) -> Pairs:
    return Pairs(unit(n, d, seed=1), unit(n, d, seed=2), unit(n, d, seed=3), torch.arange(n) % groups * 7 + 3)


MEMBERS = arrays(np.float64, st.tuples(st.integers(2, 7), st.integers(1, 5)), elements=st.floats(-50, 50)).map(
    torch.from_numpy
)


@settings(max_examples=80, deadline=None)
@given(MEMBERS)
def test_the_worst_case_lies_within_samuelsons_bound(scores):
    bound = penalised(scores, (len(scores) - 1) ** 0.5)
    assert (worst_case(scores) >= bound - 1e-9).all() and (worst_case(scores) <= penalised(scores, 0.0) + 1e-12).all()
    if len(scores) == 2:
        assert torch.allclose(worst_case(scores), bound)


@settings(max_examples=80, deadline=None)
@given(MEMBERS, st.floats(0.01, 5))
def test_risk_leads_from_the_mean_to_the_worst_case(scores, risk):
    value, more = risk_averse(scores, risk), risk_averse(scores, 2 * risk)
    assert (value <= scores.mean(0) + 1e-9).all() and (more <= value + 1e-9).all()
    assert (more >= worst_case(scores) - 1e-9).all()
    slack = torch.tensor(float(len(scores))).log() / 1e6
    assert (risk_averse(scores, 1e6) - worst_case(scores)).abs().max() <= slack + 1e-9
    assert torch.allclose(risk_averse(scores + 3, risk), value + 3)


def test_small_risk_is_half_the_variance():
    scores = torch.randn(6, 50, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    slope = (scores.mean(0) - risk_averse(scores, 1e-5)) / 1e-5
    assert torch.allclose(slope, scores.var(0, correction=0) / 2, atol=1e-4)


def test_penalty_is_numpys_standard_deviation_and_not_negative():
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]])
    assert torch.allclose(penalised(scores, 2.0), torch.tensor([4 - 2 * np.std([1, 3, 8]), 2.0], dtype=torch.float))
    with pytest.raises(DataError, match="penalty"):
        penalised(scores, -0.1)
    with pytest.raises(DataError, match="risk"):
        risk_averse(scores, 0.0)


def test_centring_leaves_no_mean_and_ignores_each_members_zero():
    g = torch.Generator().manual_seed(0)
    scores, logp = torch.randn(4, 5, 6, generator=g), torch.randn(5, 6, generator=g).log_softmax(1)
    found = centred(scores, logp)
    assert (logp.exp() * found).sum(-1).abs().max() < 1e-6
    shifted = scores + torch.randn(4, 5, 1, generator=g)
    assert torch.allclose(centred(shifted, logp), found, atol=1e-5)


def test_bootstrap_draws_whole_groups_as_often_as_numpy_would_count():
    pairs = some_pairs()
    seen = torch.zeros(30)
    for seed in range(60):
        drawn = group_bootstrap(pairs, torch.Generator().manual_seed(seed))
        names, counts = drawn.group.unique(return_counts=True)
        assert (counts % 4 == 0).all() and counts.sum() == 120, "groups of four pairs stay whole"
        seen[(names - 3) // 7] += 1
    assert abs(seen.mean() / 60 - (1 - (1 - 1 / 30) ** 30)) < 0.02, "a group is left out with probability (1 − 1/G)^G"
    rows = group_bootstrap(pairs, torch.Generator().manual_seed(0))
    at = (rows.prompt[:, None] - pairs.prompt[None]).abs().sum(2).argmin(1)
    assert torch.equal(pairs.chosen[at], rows.chosen) and torch.equal(pairs.group[at], rows.group)


def test_members_are_fits_on_the_drawn_pairs():
    pairs = some_pairs()
    ensemble, g = fit_ensemble(pairs, 0.1, 3, seed=5), torch.Generator().manual_seed(5)
    for member in ensemble.members:
        assert torch.equal(member.weight, fit_reward_model(group_bootstrap(pairs, g), 0.1).weight)
    assert torch.equal(ensemble(pairs.prompt, pairs.chosen)[1], ensemble.members[1](pairs.prompt, pairs.chosen))
    torch.testing.assert_close(ensemble.margins(pairs)[2], margins(ensemble.members[2], pairs))
    x, y = unit(5, 6), unit(5, 4, 6, seed=1)
    one_by_one = ensemble(x.repeat_interleave(4, 0), y.flatten(0, 1)).view(3, 5, 4)
    torch.testing.assert_close(ensemble.candidates(x, y), one_by_one, rtol=1e-4, atol=1e-4)
    assert torch.equal(fit_ensemble(pairs, 0.1, 3, seed=5).margins(pairs), ensemble.margins(pairs))


def test_what_is_no_ensemble_gets_a_sentence():
    with pytest.raises(DataError, match="two members"):
        Ensemble((RewardModel(torch.ones(7)),))
    with pytest.raises(DataError, match="two groups"):
        fit_ensemble(some_pairs(groups=1), 0.1, 3, 0)
    with pytest.raises(DataError, match="folds"):
        held_out_margins(some_pairs(groups=4), lambda seen: lambda p: torch.zeros(len(p)))


def test_held_out_margins_are_those_of_cross_fitting_and_never_see_the_group():
    pairs = some_pairs()
    one = held_out_margins(pairs, lambda seen: lambda p: margins(fit_reward_model(seen, 0.1), p))
    assert torch.equal(one, cross_fitted(pairs, 0.1))

    def never_seen(seen):
        return lambda new: torch.isin(new.group, seen.group).float()[None].expand(3, -1)

    assert held_out_margins(pairs, never_seen).sum() == 0
    order = held_out_margins(pairs, lambda seen: lambda new: new.prompt[:, 0])
    assert torch.equal(order, pairs.prompt[:, 0]), "in the order of the pairs"


def test_doubt_is_scored_against_errors():
    right = torch.tensor([[2.0, 3.0, 5.0, -0.2], [2.2, 3.0, 5.2, 0.1]])
    assert doubt_finds_errors(right)["small margin"] == 1.0 and doubts(right)["scatter"][1] == 0
    assert doubt_finds_errors(right)["scatter / margin"] == 1.0
    coin = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    coin = coin + torch.randn(4000, generator=torch.Generator().manual_seed(1))
    assert abs(doubt_finds_errors(coin)["scatter"] - 0.5) < 0.03
    with pytest.raises(DataError, match="all are wrong"):
        doubt_finds_errors(torch.ones(3, 4))
    parts = accuracy_by_doubt(right, "small margin", parts=2)
    assert [p["n"] for p in parts] == [2, 2] and [p["accuracy"] for p in parts] == [1.0, 0.5]
