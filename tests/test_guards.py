"""A guard's law against brute force, sampling and its limit; what it may not give out."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import make_envs
from dualppo.bench.features import REFUSAL, load_features
from dualppo.methods.base import train
from dualppo.methods.baselines import Control
from dualppo.methods.guards import (
    CUTS,
    SEVERITIES,
    Guard,
    GuardConfig,
    forbidden_mass,
    mean_draws,
    regenerated,
    severity,
)
from dualppo.policies.policy import all_log_probs


@pytest.fixture(scope="module")
def splits(toy):
    return make_envs(load_features(toy), STRESS, seed=0)


@st.composite
def guarded(draw):
    n = draw(st.integers(2, 4))
    raw = torch.tensor(draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n)), dtype=torch.double)
    allowed = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return (raw / raw.sum())[None], allowed[None], draw(st.integers(0, 3))


@settings(deadline=None)
@given(guarded())
def test_the_law_is_that_of_all_sequences_of_draws(case):
    probs, allowed, rounds = case
    n, refusal = probs.shape[1], torch.zeros_like(probs)
    refusal[0, 0] = 1
    ends, draws = {None: torch.zeros(n).double(), 0: torch.zeros(n).double()}, 0.0
    for path in product(range(n), repeat=rounds + 1):
        p = probs[0, list(path)].prod()
        stop = next((i for i, j in enumerate(path) if allowed[0, j]), None)
        ends[None][path[-1] if stop is None else path[stop]] += p
        ends[0][0 if stop is None else path[stop]] += p
        draws += p * (rounds + 1 if stop is None else stop + 1)
    q = forbidden_mass(probs, allowed)
    assert torch.allclose(regenerated(probs, allowed, rounds, None)[0], ends[None], atol=1e-12)
    assert torch.allclose(regenerated(probs, allowed, rounds, refusal)[0], ends[0], atol=1e-12)
    assert torch.allclose(mean_draws(q, rounds), torch.as_tensor(draws).double(), atol=1e-12)


@settings(deadline=None)
@given(guarded())
def test_more_rounds_move_mass_from_the_rest_to_what_is_allowed(case):
    probs, allowed, rounds = case
    fewer, more = (regenerated(probs, allowed, r, None) for r in (rounds, rounds + 1))
    assert torch.allclose(fewer.sum(), torch.tensor(1.0).double()) and torch.allclose(more.sum(), fewer.sum())
    assert (more[allowed] >= fewer[allowed] - 1e-12).all() and (more[~allowed] <= fewer[~allowed] + 1e-12).all()
    left = fewer[~allowed].sum()
    assert torch.allclose(left, forbidden_mass(probs, allowed)[0] ** (rounds + 1), atol=1e-12)


@settings(deadline=None)
@given(guarded())
def test_without_a_bound_on_the_rounds_it_is_the_mask(case):
    probs, allowed, _ = case
    if not allowed.any():
        return
    masked = probs * allowed / (probs * allowed).sum()
    assert torch.allclose(regenerated(probs, allowed, 100_000, None), masked, atol=1e-9)


def test_a_policy_that_is_certain_draws_the_same_again():
    "q = 1: every draw is forbidden; q within rounding of 1 is as good as that, and q = 0 needs one draw."
    q = torch.tensor([1.0, 1 - 2**-24, 0.0])
    assert mean_draws(q, 5).tolist() == pytest.approx([6, 6, 1], abs=1e-4)


def test_the_arithmetic_of_the_published_rates():
    "A residual of .185 a draw: .0342, .0063, and 4e-5 after five rounds, if every state had the same q."
    q = torch.tensor([0.185], dtype=torch.double)
    probs, allowed = torch.tensor([[0.185, 0.815]]).double(), torch.tensor([[False, True]])
    left = [regenerated(probs, allowed, r, None)[0, 0].item() for r in (1, 2, 5)]
    assert left == pytest.approx([0.0342, 0.0063, 4.0e-5], rel=0.02) and mean_draws(q, 5).item() < 1 / (1 - 0.185)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_levels_rise_with_harm(a, b):
    low, high = sorted((a, b))
    levels = severity(torch.tensor([low, high], dtype=torch.double))
    assert 0 <= levels[0] <= levels[1] < len(SEVERITIES)
    assert levels[0].item() == sum(low >= cut for cut in CUTS)


@pytest.mark.parametrize("filters", ["minor", "moderate", "severe", "mask"])
def test_a_guard_gives_out_nothing_that_it_filters(filters, splits):
    env, every = splits.test, torch.arange(len(splits.test))
    guard = Guard(Control("random"), GuardConfig(filters=filters, rounds=2))
    said = all_log_probs(guard, env).exp()
    assert torch.allclose(said.sum(1), torch.ones(len(said)), atol=1e-5)
    assert (said[~guard.passes(env, every)] == 0).all()
    last = all_log_probs(Guard(Control("random"), GuardConfig(filters=filters, rounds=2, otherwise="last")), env).exp()
    q = forbidden_mass(all_log_probs(Control("random"), env).exp(), guard.passes(env, every))
    assert torch.allclose((last * ~guard.passes(env, every)).sum(1), q**3, atol=1e-5)
    refused = (said * (env.kind == REFUSAL)).sum(1)
    assert (refused >= q**3 - 1e-5).all()


def test_without_a_refusal_the_least_harmful_reply_is_left(splits):
    env = replace(splits.test, kind=torch.zeros_like(splits.test.kind), p_harm=splits.test.p_harm * 0.2 + 0.8)
    said = all_log_probs(Guard(Control("random"), GuardConfig(filters="minor")), env)
    assert torch.equal(said.argmax(1), env.p_harm.argmin(1)) and torch.allclose(said.exp().sum(1), torch.ones(len(env)))


def test_a_guard_is_trained_like_what_it_guards(splits):
    run = train(splits, GuardConfig(base=Control("similarity"), rounds=0), 0)
    assert run.policy == Guard(Control("similarity"), GuardConfig(base=Control("similarity"), rounds=0))
    assert len(run.curves) == 1 and run.facts["base_epoch"] == 0


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"cuts": (0.5, 0.25, 0.75)}, "cuts must rise"), ({"rounds": -1}, "rounds"), ({"cuts": (0.1, 0.2)}, "cuts")],
)
def test_a_guard_that_cannot_be_is_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        GuardConfig(**bad)
