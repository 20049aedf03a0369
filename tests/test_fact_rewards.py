"""Reward models with and without the knowledge: what a view changes, and what the path of best policies must obey."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.bench.candidates import CLEAN
from dualppo.bench.env import make_envs
from dualppo.bench.features import load_features
from dualppo.bench.reward_models import gold_pairs
from dualppo.core.errors import DataError
from dualppo.papers.fact_rewards import reply_lengths, tilted_path, turning_point, viewed, views, with_length

seeds = st.integers(0, 10**6)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_no_other_policy_at_this_distance_earns_more(seed):
    """Along the path KL and proxy rise; no random policy has more E[proxy] − β KL."""
    g = torch.Generator().manual_seed(seed)
    proxy, truth = torch.randn(2, 4, 6, generator=g, dtype=torch.double)
    path = tilted_path(proxy, {"truth": truth}, (3.0, 1.0, 0.3, 0.05))
    assert (path[["KL", "proxy"]].diff().dropna() > -1e-9).all().all()
    assert path["KL"].between(-1e-9, np.log(6) + 1e-9).all()
    for _, row in path.iterrows():
        other = torch.randn(4, 6, generator=g, dtype=torch.double).log_softmax(1)
        kl = (other.exp() * (other + np.log(6))).sum(1).mean()
        worth = (other.exp() * proxy).sum(1).mean() - row["β"] * kl
        assert worth <= row["proxy"] - row["β"] * row["KL"] + 1e-9


def test_the_path_begins_at_the_start_and_ends_in_greed():
    g = torch.Generator().manual_seed(0)
    proxy, truth = torch.randn(2, 5, 7, generator=g, dtype=torch.double)
    path = tilted_path(proxy, {"truth": truth}, (1e6, 1e-4))
    assert path["truth"].iloc[0] == pytest.approx(float(truth.mean()), abs=1e-5)
    greedy = truth.gather(1, proxy.argmax(1, keepdim=True)).mean()
    assert path["truth"].iloc[-1] == pytest.approx(float(greedy), abs=1e-9)
    assert turning_point(tilted_path(truth, {"truth": truth}), "truth")["lost"] == pytest.approx(0, abs=1e-9)


@given(seeds, st.floats(0.5, 20), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_a_score_has_no_unit(seed, scale, shift):
    g = torch.Generator().manual_seed(seed)
    score, length = torch.randn(3, 4, generator=g), torch.randint(1, 30, (3, 4), generator=g).float()
    one, two = (with_length(s, length, 0.7) for s in (score, scale * score + shift))
    assert torch.allclose(one, two, atol=1e-3)
    assert (with_length(score, length, 0.7) <= with_length(score, length, 0.0)).all()


def test_a_view_changes_the_prompt_and_nothing_else(toy):
    features = load_features(toy)
    env = make_envs(features, CLEAN, 0).test
    blind, seeing = (viewed(features, env, name) for name in ("query", "query and knowledge"))
    assert torch.equal(blind.anchor, features.query[env.row]) and torch.allclose(seeing.anchor, env.anchor, atol=1e-6)
    assert not torch.allclose(blind.anchor, seeing.anchor, atol=1e-2)
    one, two = gold_pairs(blind, 3), gold_pairs(seeing, 3)
    assert torch.equal(one.chosen, two.chosen) and torch.equal(one.rejected, two.rejected)
    assert torch.equal(blind.cand, seeing.cand) and torch.equal(blind.reward, seeing.reward)
    with pytest.raises(DataError, match="query and knowledge"):
        viewed(features, env, "knowledge")
    lengths = reply_lengths(features, env)
    assert lengths.shape == env.cand.shape and lengths[0, 0] == len(features.tokens["pool"][int(env.cand[0, 0])])


def test_both_models_are_fitted_and_score_every_candidate(toy):
    features = load_features(toy)
    both = views(features, make_envs(features, CLEAN, 0), 0)
    scores = [view.scores() for view in both.values()]
    assert all(s.shape == v.test.cand.shape and s.isfinite().all() for s, v in zip(scores, both.values()))
    assert not torch.allclose(scores[0], scores[1])
    view = both["query"]
    state = torch.tensor([2])
    direct = view.model(view.test.anchor[state].expand(3, -1), view.test.pool[view.test.cand[2, :3]])
    assert torch.allclose(scores[0][2, :3], direct, atol=1e-4)
