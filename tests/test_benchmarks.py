"""The benchmarks measure what they say: the same policy, the right number of operations, and a generated page."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dualppo.env import make_envs
from dualppo.policy import all_log_probs
from dualppo.ppo import PPO, PPOConfig

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(scope="module")
def splits(stress):
    return stress


def test_results_page_is_what_the_figures_give():
    import report
    assert (BENCHMARKS / "RESULTS.md").read_text() == report.results_text(), "benchmarks/RESULTS.md is older than its figures: python benchmarks/report.py"


def test_flops_are_what_torch_counts(splits):
    import speed
    config, env = PPOConfig(advantage="bandit", rule="fixed", gradient="autograd", inner_epochs=1), splits.dev_stop
    from dualppo import ppo
    part = type(splits)(env, env, env, env, 0.0)
    learner = PPO(part, config, 0)
    with FlopCounterMode(display=False) as counted:
        roll = ppo.roll_out(learner.policy, learner.critic, learner.env, learner.paths, learner.weights, config, learner.g)
        learner.improve(roll)
    assert counted.get_total_flops() == pytest.approx(speed.flops(env, config), rel=0.02)


def test_contestant_starts_from_the_same_policy_and_respects_the_mask(splits):
    pytest.importorskip("sb3_contrib")
    from maskable_ppo import maskable_ppo
    env, config = splits.dev_stop, PPOConfig(advantage="bandit", rule="fixed", inner_epochs=1)
    model = maskable_ppo(env, config, seed=0)
    states = torch.arange(len(env))
    with torch.no_grad():
        theirs = model.policy.distribution(states, env.allowed.numpy()).distribution.logits
    ours = all_log_probs(PPO(splits, config, 0).policy, env)
    torch.testing.assert_close(theirs.exp(), ours.exp(), atol=1e-6, rtol=0)
    before = torch.nn.utils.parameters_to_vector(model.policy.actor.parameters()).clone()
    model.learn(len(env))
    assert not torch.equal(before, torch.nn.utils.parameters_to_vector(model.policy.actor.parameters()))
    assert env.allowed[states, torch.from_numpy(model.rollout_buffer.actions).long().flatten()].all()


def test_synthetic_features_make_environments_of_the_asked_size():
    import scale
    features = scale.synthetic_features(600)
    splits = make_envs(features, scale.CandidateSpec("small", n=30, hard=8, unsafe=4, near=12), 0, scale.EnvConfig(tau_rel=0.0))
    assert abs(len(splits.train) - 600) < 60 and splits.train.cand.shape[1] == 30 and splits.train.unsafe.any()
