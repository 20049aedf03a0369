"""Invariants of rewards, masks, trajectories, environments, policies, metrics and the oracle."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dualppo.methods import closed_form, ppo
from dualppo.bench.candidates import CLEAN, STRESS, CandidateSpec, draw_candidates, leak_probes
from dualppo.text.encoders import state_vector
from dualppo.bench.env import EnvConfig, add_objective, make_envs
from dualppo.bench.features import BENIGN, MILD, REFERENCE, REFUSAL, STRONG, UNSAFE, load_features
from dualppo.bench.masking import safe_set
from dualppo.exact.metrics import evaluate, per_state
from dualppo.exact.oracle import help_at_budget, oracle_log_probs
from dualppo.policies.policy import Critic, all_log_probs, make_policy
from dualppo.methods.base import train
from dualppo.methods.ppo import PPOConfig
from dualppo.losses.surrogate import value_loss
from dualppo.bench.rewards import choose_tau_rel, help_reward, weighted_reward
from dualppo.bench.trajectories import build_trajectories

SMALL = PPOConfig(epochs=2, inner_epochs=1, dialogues_per_epoch=60, policy_lr=1e-4, advantage="bandit")


@pytest.fixture(scope="module")
def features():
    return load_features()


@pytest.fixture(scope="module")
def splits(stress):
    return stress


def vectors(n: int, d: int = 6):
    return st.integers(0, 2**31 - 1).map(lambda seed: torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


@given(vectors(8), vectors(8), vectors(8), st.floats(-1, 1))
def test_help_is_never_negative_and_zero_outside_the_gate(reply, reference, context, tau):
    r = help_reward(reply, reference, context, tau)
    outside = torch.nn.functional.cosine_similarity(reply, context, dim=-1) < tau
    assert ((r >= 0) & (r <= 1 + 1e-6)).all() and (r[outside] == 0).all()


@given(st.integers(0, 10**6), st.floats(0, 5), st.floats(0, 5))
def test_weighted_reward_is_linear(seed, a, b):
    r = torch.rand(7, 3, 2, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(weighted_reward(r, (a, b)), a * r[..., 0] + b * r[..., 1], atol=1e-5)


def test_gate_keeps_the_share_it_promises():
    relevance = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    tau, kept = choose_tau_rel(relevance, torch.arange(5000) // 3, folds=4, keep=0.9)
    assert tau == pytest.approx(0.1, abs=0.02) and sum(kept) / 4 == pytest.approx(0.9, abs=0.02)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_safe_set_is_never_empty(seed, tau):
    p = torch.rand(20, 6, generator=torch.Generator().manual_seed(seed))
    allowed = safe_set(p, tau)
    assert allowed.any(1).all()
    several = allowed.sum(1) > 1
    assert (p[several][allowed[several]] < tau).all()


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(tau):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        safe_set(torch.rand(2, 2), tau)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(1, 12))
def test_trajectories_hold_every_step_once(dialogue, t_max):
    ids = torch.tensor(dialogue)
    turn = torch.arange(len(dialogue))
    paths = build_trajectories(ids, turn, t_max)
    steps = paths.index[paths.mask]
    expected = [i for d in set(dialogue) for i in [j for j, x in enumerate(dialogue) if x == d][-t_max:]]
    assert sorted(steps.tolist()) == sorted(expected)
    assert all(
        (ids[row[m]] == ids[row[m][0]]).all() and (turn[row[m]].diff() > 0).all()
        for row, m in zip(paths.index, paths.mask)
    )


def test_state_is_the_concatenation_of_its_blocks():
    a, b, vision = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 2)
    assert torch.equal(state_vector([a, b, vision]), torch.cat([a, b, vision], 1))


def test_environment_is_a_pure_function_of_its_seed(features, splits):
    again = make_envs(features, STRESS, seed=0).test
    for name, value in vars(splits.test).items():
        assert (
            torch.equal(value, getattr(again, name))
            if isinstance(value, torch.Tensor)
            else value == getattr(again, name)
        ), name
    assert torch.allclose(splits.test.reward[..., 1], 1 - splits.test.p_harm)
    assert not torch.equal(splits.test.row, make_envs(features, STRESS, seed=1).test.row)


def test_no_dialogue_is_in_two_splits_and_replies_stay_in_theirs(features, splits):
    parts = [splits.train, splits.dev_weights, splits.dev_stop, splits.test]
    dialogues = [set(p.dialogue.tolist()) for p in parts]
    assert all(not a & b for i, a in enumerate(dialogues) for b in dialogues[i + 1 :])
    for part, own in zip(parts, dialogues):
        owner = features.owner[part.cand]
        assert set(features.dialogue[owner[owner >= 0]].tolist()) <= own


@pytest.mark.parametrize("spec", [CLEAN, STRESS])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_candidates_are_distinct_and_of_the_declared_kinds(features, spec, seed):
    rows = torch.arange(400)
    cand, gold = draw_candidates(features, rows, spec, seed)
    kinds = features.kind[cand]
    assert all(len(set(row)) == spec.n for row in cand.tolist())
    for kind, count in (
        (STRONG, spec.families),
        (MILD, spec.families),
        (BENIGN, spec.benign),
        (UNSAFE, spec.unsafe),
        (REFUSAL, spec.refusals),
    ):
        assert ((kinds == kind).sum(1) == count).all()
    own = features.bank(REFERENCE)[rows]
    present = gold >= 0
    assert torch.equal(cand[present, gold[present]], own[present]) and not (cand[~present] == own[~present, None]).any()


def test_stress_leaks_little(features):
    rows = torch.arange(2000)
    probes = leak_probes(features, *draw_candidates(features, rows, STRESS, seed=3))
    assert probes["slot"] < 0.1 and max(probes.values()) < 1 / 3
    one = leak_probes(features, *draw_candidates(features, rows, replace(STRESS, families=1, base_rate=1.0), seed=3))
    assert one["near_copy"] > probes["near_copy"] + 0.1  # what families prevent


def test_warm_start_is_the_similarity_ranking(splits):
    env = splits.test
    policy = make_policy("two_tower", env.x.shape[1], env.pool.shape[1], mask="off")
    similarity = torch.einsum("sd,snd->sn", env.anchor, env.pool[env.cand])
    assert torch.allclose(all_log_probs(policy, env), (40 * similarity).log_softmax(1), atol=1e-4)


def test_vector_critic_has_one_value_per_objective():
    assert Critic(8, channels=3)(torch.randn(5, 8)).shape == (5, 3)


def test_value_loss_sums_channels():
    v, g = torch.randn(9, 2), torch.randn(9, 2)
    assert torch.isclose(value_loss(v, g), ((v - g) ** 2).mean(0).sum())


@pytest.mark.parametrize("mode", ["literal", "bandit", "exact"])
def test_training_is_a_pure_function_of_its_seed(splits, mode):
    config = replace(SMALL, advantage=mode)
    one, two, other = (train(splits, config, seed) for seed in (0, 0, 1))
    assert one.curves == two.curves and one.curves != other.curves


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mask": "off"},
        {"mask": "zero"},
        {"kl_coef": 0.1},
        {"entropy_coef": 0.01},
        {"policy": "offset"},
        {"warm_start": False},
        {"critic": "vector"},
        {"advantage": "literal"},
    ],
)
def test_closed_form_equals_autograd(splits, change):
    "Both ways of step (g) and (h), in double precision, end at the same parameters after an epoch."

    def wide(env):
        floats = {k: v for k, v in vars(env).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        return replace(env, **{k: v.double() for k, v in floats.items()})

    part = wide(splits.dev_stop)
    env, config = ppo.with_padding_state(part), replace(SMALL, **change)
    torch.manual_seed(0)
    policy = make_policy(config.policy, 768, 384, warm_start=config.warm_start, mask=config.mask).double()
    critic = Critic(768, 2 if config.critic == "vector" else 1).double()
    start, paths = all_log_probs(policy, env), build_trajectories(part.dialogue, part.turn)
    roll = ppo.roll_out(
        policy, critic, env, paths, torch.tensor([0.5, 0.5]).double(), config, torch.Generator().manual_seed(1)
    )
    ends = []
    for update in (ppo.update, closed_form.closed_form_update):
        nets = copy.deepcopy(torch.nn.ModuleList([policy, critic]))
        rates = [{"params": net.parameters(), "lr": lr} for net, lr in zip(nets, (1e-4, 3e-4))]
        optimiser = (
            torch.optim.Adam(rates, fused=True) if update is ppo.update else closed_form.Adam([tuple(nets)], 1e-4, 3e-4)
        )
        update(nets[0], nets[1], optimiser, env, roll, start, config, torch.Generator().manual_seed(2))
        ends.append(torch.nn.utils.parameters_to_vector(nets.parameters()))
    assert (ends[0] - ends[1]).abs().max() < 1e-9


def test_training_leaves_the_global_generator_alone(splits):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train(splits, replace(SMALL, epochs=1), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_trained_policy_never_plays_a_forbidden_reply(splits):
    trained = train(splits, SMALL, seed=0)
    pi = all_log_probs(trained.policy, splits.test).exp()
    assert (pi[~splits.test.allowed] == 0).all()
    assert (all_log_probs(trained.policy, splits.test, mask="off").exp()[~splits.test.allowed] > 0).any()


def test_a_third_objective_reaches_the_algorithm(splits):
    three = {
        name: add_objective(
            getattr(splits, name),
            "brevity",
            lambda e: torch.rand(e.cand.shape, generator=torch.Generator().manual_seed(0)),
        )
        for name in ("train", "dev_weights", "dev_stop", "test")
    }
    trained = train(replace(splits, **three), replace(SMALL, weights=(0.4, 0.4, 0.2), critic="vector"), seed=0)
    assert len(trained.weights) == 3 and sum(trained.weights) == pytest.approx(1)


def test_metrics_are_exact_expectations(splits):
    env = splits.test
    g = torch.Generator().manual_seed(0)
    logp = (3 * torch.randn(env.cand.shape, generator=g)).log_softmax(1)
    exact = evaluate(logp, env)
    draws = torch.multinomial(logp.exp(), 500, replacement=True, generator=g)
    graded = (env.p_grade > env.tau_metric).float()
    for name, values in (
        ("good", env.good),
        ("harm", graded),
        ("help", env.reward[..., 0]),
        ("similarity", env.similarity),
    ):
        assert values.gather(1, draws).mean().item() == pytest.approx(exact[name], abs=4e-3), name
    assert exact["average_reward"] == pytest.approx((exact["help"] + 1 - exact["p_harm"]) / 2, abs=1e-6)
    assert 0 <= exact["recall_at_1"] <= exact["mrr"] <= 1


def test_ties_are_shared_not_won(splits):
    env = splits.test
    uniform = torch.zeros(env.cand.shape).log_softmax(1)
    assert per_state(uniform, env)["recall_at_1"].nanmean().item() == pytest.approx(1 / 20, abs=1e-6)


def test_oracle_beats_every_random_policy_at_its_own_harm(splits):
    env = splits.test
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        pi = (
            env.reward[..., 0] * 10 * torch.rand(1, generator=g)
            - env.p_harm * 10 * torch.rand(1, generator=g)
            + torch.randn(env.cand.shape, generator=g)
        ).softmax(1)
        harm, help_ = (pi * env.p_harm).sum(1).mean().item(), (pi * env.reward[..., 0]).sum(1).mean().item()
        best, used = help_at_budget(env, harm)
        assert best >= help_ - 1e-9 and used <= harm + 1e-9
    half = evaluate(oracle_log_probs(env), env)
    assert half["average_reward"] == pytest.approx(env.reward.mean(-1).amax(1).mean().item(), abs=1e-6)


def test_two_classifiers_are_asked_for():
    with pytest.raises(ValueError, match="cannot both reward and grade"):
        EnvConfig(reward_harm="tcc", grade_harm="tcc")


@pytest.mark.parametrize(
    "change, words", [({"n": 1}, "at least 2"), ({"base_rate": 2.0}, "lie in"), ({"hard": 40}, "raise n")]
)
def test_a_specification_that_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        CandidateSpec(**({"name": "x"} | change))
