"""Typing errors, rotations and what they change: closed forms, brute force, and laws that hold for every input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from toys import encode, rude

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import EnvConfig, make_envs
from dualppo.bench.features import UNSAFE, load_features
from dualppo.bench.masking import MINUS_INFINITY
from dualppo.core.errors import DataError
from dualppo.methods.baselines import Control
from dualppo.papers.perturbed import (
    NEIGHBOURS,
    angle,
    asked_anew,
    changed_top,
    mistyped,
    moved,
    nudged,
    paraphrases,
    turned_towards,
    tutorial_bench,
)
from dualppo.policies.policy import all_log_probs
from dualppo.text.exchanges import tutorial

SEEDS = st.integers(0, 2**31)


# ---- texts


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.floats(0, 1), SEEDS)
def test_slips_touch_letters_only(text, rate, seed):
    noisy = mistyped(text, rate, np.random.default_rng(seed))
    others = [c for c in text if c.lower() not in NEIGHBOURS]
    assert [c for c in noisy if c.lower() not in NEIGHBOURS] == others
    assert len(others) <= len(noisy) <= 2 * len(text)
    assert mistyped(text, 0.0, np.random.default_rng(seed)) == text
    assert noisy == mistyped(text, rate, np.random.default_rng(seed))


def test_neighbours_are_mutual():
    assert all(c in NEIGHBOURS[other] for c, near in NEIGHBOURS.items() for other in near)
    assert len(NEIGHBOURS) == 26 and all(1 <= len(near) <= 2 for near in NEIGHBOURS.values())


def test_every_slip_of_one_letter_and_its_rate():
    g = np.random.default_rng(0)
    found = [mistyped("ab", 1.0, g) for _ in range(400)]
    first, second = ("", "aa", "s"), ("b", "", "bb", "v", "n")  # each letter left out, doubled, neighbour
    assert {*found} == {"ba"} | {a + b for a in first for b in second}
    ends = [mistyped("g", 1.0, g) for _ in range(2000)]  # nothing to swap with: it stays
    shares = {text: ends.count(text) / 2000 for text in ("g", "", "gg", "f", "h")}
    assert sum(shares.values()) == 1
    assert all(
        abs(shares[text] - p) < 0.04 for text, p in {"g": 0.25, "": 0.25, "gg": 0.25, "f": 0.125, "h": 0.125}.items()
    )
    kept = np.mean([mistyped("g", 0.2, g) == "g" for _ in range(3000)])
    assert kept == pytest.approx(0.8 + 0.2 * 0.25, abs=0.03)
    assert {mistyped("G", 1.0, g) for _ in range(200)} == {"", "G", "GG", "F", "H"}


def test_there_is_a_paraphrase_of_every_query_and_it_is_another_text(tmp_path):
    ours = tutorial()
    said = paraphrases(ours)
    assert len(set(said)) == len(ours) and not {e.query for e in ours} & set(said)
    (tmp_path / "few.toml").write_text('[paraphrases]\nbeekeeping-0 = "Bees?"')
    assert paraphrases(ours[:1], tmp_path / "few.toml") == ["Bees?"]
    with pytest.raises(DataError, match="paraphrases.beekeeping-1"):
        paraphrases(ours, tmp_path / "few.toml")
    (tmp_path / "few.toml").write_text("=")
    with pytest.raises(DataError, match="is no TOML"):
        paraphrases(ours, tmp_path / "few.toml")


# ---- rotations


def unit(seed: int, n: int = 20, d: int = 16) -> torch.Tensor:
    """Unit rows in double precision."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0, 3.1))
def test_a_turn_is_by_its_angle_and_in_its_plane(seed, by):
    x, goal = unit(seed), 3 * unit(seed + 1)
    y = turned_towards(x, goal, by)
    assert torch.allclose(y.norm(dim=1), torch.ones(20, dtype=torch.double))
    assert torch.allclose(angle(x, y), torch.full((20,), by, dtype=torch.double), atol=1e-7)
    assert (torch.linalg.matrix_rank(torch.stack([x, goal, y], 1), tol=1e-8) == 2).all()
    back = turned_towards(y, x, by)
    assert torch.allclose(back, x, atol=1e-6) or by > math.pi - 0.1 or by < 1e-5


def test_turning_all_the_way_arrives():
    x, goal = unit(0), unit(1)
    assert torch.allclose(turned_towards(x, goal, angle(x, goal)), goal, atol=1e-7)
    assert torch.equal(turned_towards(x, x, 0.5), x) and torch.equal(turned_towards(x, torch.zeros_like(x), 0.5), x)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_angles_are_those_of_the_cosine(seed):
    a, b = unit(seed), unit(seed + 1)
    assert torch.allclose(angle(a, b), (a * b).sum(1).acos(), atol=1e-6) and torch.equal(angle(a, b), angle(b, a))
    assert angle(a, a).abs().max() == 0


def test_nudges_have_the_angles_and_directions_that_were_measured():
    x, by = unit(0, 200).float(), torch.tensor([0.1, 0.7])
    found = angle(x, nudged(x, by, seed=0))
    assert ((found[:, None] - by).abs().amin(1) < 1e-4).all() and 0.3 < (found > 0.4).float().mean() < 0.7
    shifts = torch.eye(16)[:2]
    y = nudged(x, by, 0, shifts)
    assert torch.equal(y, nudged(x, by, 0, shifts)) and not torch.equal(y, nudged(x, by, 1, shifts))
    small = angle(x, y) < 0.4  # of the first displacement, so only its coordinate grows
    assert (y[small, 0] > x[small, 0]).all() and (y[~small, 1] > x[~small, 1]).all()


# ---- what moved


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_changes_are_symmetric_and_blind_to_the_order_of_candidates(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(4, (30, 5), generator=g).float().log_softmax(1) for _ in range(2))  # with ties
    order = torch.randperm(5, generator=g)
    found = changed_top(a, b)
    assert torch.allclose(found, changed_top(b, a)) and torch.allclose(found, changed_top(a[:, order], b[:, order]))
    assert changed_top(a, a).abs().max() < 1e-12 and (found >= -1e-12).all() and (found <= 1).all()
    sharp = torch.randn(30, 5, generator=g)
    assert torch.equal(changed_top(sharp, b * 0 + sharp.roll(1, 1)), torch.ones(30, dtype=torch.double))


@pytest.fixture(scope="module")
def bench(toy):
    features = load_features(toy)
    return features, make_envs(features, STRESS, seed=0)


def test_the_same_query_is_the_same_environment(bench):
    features, splits = bench
    env = splits.test
    same = asked_anew(env, features.query[env.row], features.knowledge[env.row], splits.scale)
    assert torch.allclose(same.x, env.x, atol=1e-4) and torch.allclose(same.anchor, env.anchor, atol=1e-6)
    assert torch.equal(same.reward, env.reward) and same.dialogue is env.dialogue
    policy = Control("similarity")
    row = moved(all_log_probs(policy, env), all_log_probs(policy, same), env)
    assert row["changed"] < 0.01 and abs(row["kl"]) < 1e-6 and abs(row["harm change"]) < 1e-5


def test_another_query_is_another_ranking_and_a_gradual_one(bench):
    features, splits = bench
    env, policy = splits.test, Control("similarity")
    before, query = all_log_probs(policy, env), features.query[env.row]
    found = []
    for by in (0.1, 0.5, 1.2):
        other = asked_anew(env, nudged(query, torch.tensor([by]), 0), features.knowledge[env.row], splits.scale)
        found.append(moved(before, all_log_probs(policy, other), env))
    assert [r["kl"] for r in found] == sorted(r["kl"] for r in found) and found[0]["kl"] > 0
    assert found[-1]["changed"] > found[0]["changed"]


def test_kl_and_harm_by_hand(bench):
    _, splits = bench
    env = splits.test.take(torch.arange(2))
    n = env.cand.shape[1]
    uniform, first = torch.full((2, n), -math.log(n)), torch.full((2, n), MINUS_INFINITY)
    first[:, 0] = 0
    row = moved(first, uniform, env)
    graded = (env.p_grade > env.tau_metric).double()
    assert row["kl"] == pytest.approx(math.log(n), rel=1e-5) and row["changed"] == pytest.approx(1 - 1 / n)
    assert row["harm"] == pytest.approx(graded.mean().item(), abs=1e-6)
    assert row["harm change"] == pytest.approx((graded.mean() - graded[:, 0].mean()).item(), abs=1e-6)


def test_other_states_are_refused(bench):
    features, _ = bench
    splits = make_envs(features, STRESS, 0, EnvConfig(blocks=("query", "knowledge", "context")))
    env = splits.test
    with pytest.raises(DataError, match="blocks query and knowledge"):
        asked_anew(env, features.query[env.row], features.knowledge[env.row], splits.scale)


def test_the_tutorial_is_a_bench(bench):
    _, splits = bench
    ours = tutorial()
    env, query, knowledge = tutorial_bench(ours, encode, {"reward": rude, "grade": rude}, splits.scale)
    assert (
        env.cand.shape == (len(ours), 20)
        and (env.gold == 0).all()
        and torch.equal(query, encode([e.query for e in ours]))
    )
    assert all(len(set(row)) == 20 for row in env.cand.tolist())
    assert torch.allclose(env.similarity[:, 0], torch.ones(len(ours)), atol=1e-5)
    labels = torch.tensor([sum(r.label == "harmful" for r in e.replies) for e in ours])
    assert torch.equal(env.kind == UNSAFE, env.unsafe) and torch.equal(env.unsafe.sum(1), labels)
    others = env.cand.where((env.cand < len(ours)) & (env.cand != env.cand[:, :1]), torch.tensor(-1))
    assert all(env.dialogue[j] != env.dialogue[i] for i, row in enumerate(others.tolist()) for j in row if j >= 0)
    same = asked_anew(env, query, knowledge, splits.scale)
    assert torch.allclose(same.x, env.x) and torch.allclose(same.anchor, env.anchor)
    with pytest.raises(DataError, match="too many"):
        tutorial_bench(ours[:8], encode, {"reward": rude, "grade": rude}, splits.scale)
