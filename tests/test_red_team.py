"""Attacks chosen, moved and counted: against enumeration, and within what an attacker may do."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import make_envs
from dualppo.bench.features import load_features
from dualppo.core.errors import DataError
from dualppo.methods.baselines import Control
from dualppo.papers.red_team import (
    attack_front,
    best_of_prompts,
    chosen_attacks,
    diversity,
    expected,
    graded_harm,
    guide,
    perturbed,
    transferred,
    turned_query,
    with_query,
)
from dualppo.policies.policy import all_log_probs


@pytest.fixture(scope="module")
def features(toy):
    return load_features(toy)


@pytest.fixture(scope="module")
def splits(features):
    return make_envs(features, STRESS, seed=0)


def drawn(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=g), normalize(torch.randn(n, d, generator=g), dim=1)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 999), st.floats(0, 1), st.data())
def test_every_attack_is_the_best_given_those_before(n, seed, weight, data):
    harm, query = drawn(n, 4, seed)
    k = data.draw(st.integers(1, n))
    chosen = chosen_attacks(harm, query, k, weight).tolist()
    assert len(set(chosen)) == k and chosen[0] == int(harm.argmax())

    def score(i, before):
        return float((1 - weight) * harm[i] - weight * max(float(query[i] @ query[j]) for j in before))

    for at in range(1, k):
        before = chosen[:at]
        best = max(score(i, before) for i in range(n) if i not in before)
        assert score(chosen[at], before) == pytest.approx(best, abs=1e-5)
    with pytest.raises(DataError, match="a budget of"):
        chosen_attacks(harm, query, n + 1, weight)


def test_without_a_weight_no_other_choice_does_more_harm():
    harm, query = drawn(7, 3, 1)
    ours = harm[chosen_attacks(harm, query, 3, 0.0)].sum()
    assert ours == pytest.approx(max(float(harm[list(some)].sum()) for some in combinations(range(7), 3)))


def test_diversity_by_hand():
    axes = torch.eye(3)
    assert diversity(axes) == pytest.approx(1) and diversity(axes[:1].expand(4, 3)) == pytest.approx(0)
    assert diversity(torch.stack([axes[0], -axes[0]])) == pytest.approx(2) and math.isnan(diversity(axes[:1]))


@settings(deadline=None)
@given(st.integers(0, 999), st.floats(0.05, 0.99))
def test_a_turned_query_stays_in_the_ball_and_goes_no_further_than_its_neighbour(seed, rho):
    _, u = drawn(8, 6, seed)
    query, other = u[:4], u[4:]
    turn = turned_query(query, other, rho)
    assert torch.allclose(turn.norm(dim=1), torch.ones(4), atol=1e-5)
    kept, there = (turn * query).sum(1), (query * other).sum(1)
    assert (kept >= rho - 1e-5).all() and torch.allclose(kept, there.clamp(min=rho), atol=1e-5)
    assert ((turn * other).sum(1) >= there - 1e-5).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_best_of_prompts_is_the_mean_over_all_subsets(values, data):
    m = data.draw(st.integers(1, len(values)))
    every = [max(some) for some in combinations(values, m)]
    assert best_of_prompts(values, m) == pytest.approx(sum(every) / len(every))


def test_no_more_prompts_than_there_are():
    for m in (0, 3):
        with pytest.raises(ValueError, match="must lie in"):
            best_of_prompts([0.1, 0.2], m)


def test_the_query_that_was_there_gives_the_environment_that_was_there(features, splits):
    env = splits.test
    same = with_query(env, features.query[env.row], features.knowledge[env.row], splits.scale)
    assert torch.allclose(same.x, env.x, atol=1e-4) and torch.allclose(same.anchor, env.anchor, atol=1e-5)


def test_an_attack_on_a_query_never_helps_the_defender_and_reads_no_grade(features, splits):
    env, policy = splits.test, Control("similarity")
    before = expected(all_log_probs(policy, env), env.p_harm)
    worse = perturbed(policy, env, features, splits.scale, splits.train.row, 0.6, near=3)
    after = expected(all_log_probs(policy, worse), env.p_harm)
    assert (after >= before - 1e-5).all() and after.mean() > before.mean()
    blind = perturbed(policy, replace(env, p_grade=1 - env.p_grade), features, splits.scale, splits.train.row, 0.6, 3)
    assert torch.equal(blind.x, worse.x) and torch.equal(worse.cand, env.cand)


def test_what_is_chosen_against_a_policy_is_its_own_worst(features, splits):
    env = splits.test
    said = {name: all_log_probs(Control(name), env) for name in ("random", "similarity", "safest")}
    query = features.query[env.row]
    moved = transferred(said, env, query, 10)
    front = attack_front(said["similarity"], env, query, 10, (0.0, 1.0))
    assert moved.loc["similarity", "similarity"] == pytest.approx(front.success[0.0])
    assert front.seen[0.0] >= front.seen[1.0] and front.diversity[1.0] >= front.diversity[0.0]
    found = guide(said["similarity"], env, 10)
    graded = expected(said["similarity"], graded_harm(env))
    assert found["led by the grader"] == pytest.approx(graded.sort().values[-10:].mean().item())
    assert found["led by the grader"] >= found["led by p_harm"] and -1 <= found["rank correlation"] <= 1
