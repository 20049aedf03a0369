"""The benchmarks measure what they say: the same policy, the right number of operations, and a generated page."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dualppo.bench.env import make_envs
from dualppo.policies.policy import all_log_probs
from dualppo.methods.ppo import PPO, PPOConfig

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(scope="module")
def splits(stress):
    return stress


def test_results_page_is_what_the_figures_give():
    import report

    assert (BENCHMARKS / "RESULTS.md").read_text() == report.results_text(), (
        "benchmarks/RESULTS.md is older than its figures: python benchmarks/report.py"
    )


def test_flops_are_what_torch_counts(splits):
    import speed

    config, env = PPOConfig(advantage="bandit", rule="fixed", gradient="autograd", inner_epochs=1), splits.dev_stop
    from dualppo.methods import ppo

    part = type(splits)(env, env, env, env, 0.0)
    learner = PPO(part, config, 0)
    with FlopCounterMode(display=False) as counted:
        roll = ppo.roll_out(
            learner.policy, learner.critic, learner.env, learner.paths, learner.weights, config, learner.g
        )
        learner.improve(roll)
    assert counted.get_total_flops() == pytest.approx(speed.flops(env, config), rel=0.02)


def test_steps_of_an_update_are_a_hand_count():
    import roofline

    s = roofline.Shape(batch=2, features=3, width=5, candidates=7, hidden=4)
    steps = {step.name: (step.flops, step.near, step.far) for step in roofline.update_steps(s, cache=10**6)}
    assert s.parameters == (3 * 4 + 4) + (4 * 5 + 5) + (3 * 4 + 4) + (4 + 1)
    assert steps == {
        "gather": (0, 0, 2 * (7 * 5 + 3 + 5) * 4),
        "first layers": (96, 96, 0),
        "policy's output": (80, 80, 0),
        "critic's output": (16, 16, 0),
        "logits": (140, 0, 0),
        "gradient of the policy's output": (140, 0, 0),
        "critic's hidden units": (16, 16, 0),
        "critic's output weights": (16, 16, 0),
        "policy's output weights": (80, 80, 0),
        "policy's hidden units": (80, 80, 0),
        "first layers' weights": (96, 96, 0),
        "Adam": (0, 7 * 62 * 4, 0),
    }
    small = roofline.update_steps(s, cache=279)  # the gathered copy has 2 * 7 * 5 * 4 = 280 bytes
    assert {step.name: step.near for step in small if step.near != steps[step.name][1]} == {
        "gather": 280,
        "logits": 280,
        "gradient of the policy's output": 280,
    }


def test_least_time_takes_the_slower_of_arithmetic_and_traffic_step_by_step():
    import roofline

    machine = roofline.Machine(rate=10.0, near=4.0, far=2.0, cache=0)
    steps = [roofline.Step("a", "products", flops=100, near=8), roofline.Step("b", "Adam", flops=10, near=8, far=6)]
    assert roofline.least(steps, machine) == 10.0 + (2.0 + 3.0)


def test_parts_and_rest_add_up_to_the_update():
    import roofline

    s = roofline.Shape(batch=2, features=3, width=5, candidates=7, hidden=4)
    machine = roofline.Machine(1e9, 1e9, 1e9, 10**6)
    steps, parts = roofline.update_steps(s, 10**6), dict.fromkeys(roofline.PARTS, 3.0)
    rows = roofline.balance(steps, machine, parts, dict.fromkeys(parts, 1.0), 20.0, 4.0)
    assert sum(row["measured"] for row in rows.values()) == 20.0 and rows["not in the parts"]["measured"] == 8.0
    assert sum(row["least"] for row in rows.values()) == pytest.approx(roofline.least(steps, machine))


def test_timed_products_are_those_of_an_update(splits):
    import roofline

    env, config = splits.dev_stop, PPOConfig(advantage="bandit", rule="fixed")
    part = type(splits)(env, env, env, env, 0.0)
    for learner in (PPO(part, config, 0), roofline.narrow_learner(part, config)):
        shape = roofline.shape_of(learner.splits.train, learner.config, config.minibatch)
        assert learner.optimiser.theta.numel() == shape.parameters
        for name, work in roofline.part_works(learner, learner.sample()).items():
            with FlopCounterMode(display=False) as counted:
                work()
            steps = [step for step in roofline.update_steps(shape, 0) if step.part == name]
            assert counted.get_total_flops() == sum(step.flops for step in steps), name


def test_share_of_the_roofline_is_a_share():
    figures = json.loads((BENCHMARKS / "results" / "roofline.json").read_text())
    assert 0 < figures["share"] <= 1.2 and figures["share"] == pytest.approx(figures["least"] / figures["whole"])
    for name in ("products", "Adam", "gather"):
        assert 0 < figures["parts"][name]["least"] / figures["parts"][name]["measured"] <= 1.2, name


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
    splits = make_envs(
        features, scale.CandidateSpec("small", n=30, hard=8, unsafe=4, near=12), 0, scale.EnvConfig(tau_rel=0.0)
    )
    assert abs(len(splits.train) - 600) < 60 and splits.train.cand.shape[1] == 30 and splits.train.unsafe.any()
