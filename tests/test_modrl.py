"""MOLMA: fixed points, alignment against TorchJD, the ablation SOweighted, three objectives, stacks, win rates."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from dualppo.methods import modrl
from dualppo.losses.advantages import gae
from dualppo.methods.aligned_ppo import AlignedPPO, AlignedPPOConfig
from dualppo.losses.alignment import aggregator, alignment, geometry
from dualppo.losses.apa import apa_loss, kl_penalised, logit, piecewise, whiten
from dualppo.methods.base import train, train_together
from dualppo.bench.candidates import STRESS
from dualppo.core.errors import DataError
from dualppo.bench.env import add_objective, make_envs
from dualppo.bench.features import load_features
from dualppo.methods.modrl import (
    MODRL,
    MODRLConfig,
    apa_pull,
    compare_with_rivals,
    loss_gradients,
    ppo_pull,
    rivals,
    win_rate,
)
from dualppo.policies.policy import all_log_probs
from dualppo.losses.surrogate import clipped_surrogate

BRIEF = MODRLConfig(iterations=2, apa_lambda=0.1, lr=3e-5, rewards="given")


@pytest.fixture(scope="module")
def splits(stress):
    return stress


def gradients(k, p, kind="full", seed=0):
    g = torch.Generator().manual_seed(seed)
    if kind == "zero":
        return torch.zeros(k, p)
    if kind == "rank one":
        return torch.outer(torch.randn(k, generator=g), torch.randn(p, generator=g))
    return torch.randn(k, p, generator=g)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("kind", ["full", "rank one", "zero"])
def test_12_alignment_equals_torchjd(k, scale, kind):
    from torchjd.aggregation import AlignedMTL

    g = gradients(k, 40, kind, seed=k)
    theirs = AlignedMTL(pref_vector=torch.full((k,), 1 / k), scale_mode=scale)(g)
    assert torch.allclose(alignment(g, scale).mean(0) @ g, theirs, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_12_aligned_gradients_are_orthogonal_and_as_long_as_the_smallest_singular_value(k, seed):
    g = gradients(k, 30, seed=seed).double()
    aligned = alignment(g) @ g
    least = torch.linalg.svdvals(g).amin()
    assert torch.allclose(aligned @ aligned.T, least**2 * torch.eye(k, dtype=torch.double), atol=1e-8)
    polar = torch.linalg.svd(g.T, full_matrices=False)
    assert torch.allclose(aligned.T, least * polar.U @ polar.Vh, atol=1e-8)  # M18: the polar factor, scaled


def test_12_alignment_of_a_stack_is_that_of_each():
    g = torch.stack([gradients(3, 20, seed=s) for s in range(4)])
    assert torch.allclose(alignment(g)[2], alignment(g[2]), atol=1e-6)
    w = torch.tensor([0.2, 0.3, 0.5])
    assert torch.allclose(aggregator("amtl", w, "rmse")(g)[1], (alignment(g[1], "rmse") @ w) @ g[1], atol=1e-6)


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "nash_mtl", "mgda", "graddrop"])
def test_other_aggregators_do_no_harm_to_two_equal_gradients(name):
    one = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    update = aggregator(name, torch.tensor([0.5, 0.5]), runs=1)(one.repeat(2, 1)[None])[0]
    assert torch.nn.functional.cosine_similarity(update, one[0], dim=0) > 0.999 and update.norm() > 0


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(DataError, match="unknown aggregation 'mean'"):
        aggregator("mean", torch.tensor([1.0]))


def test_geometry_of_orthogonal_equal_and_opposite_gradients():
    eye, same, against = torch.eye(2), torch.ones(2, 2), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert geometry(eye)["condition"] == 1 and geometry(eye)["cosine"] == 0
    assert geometry(same)["condition"] == torch.inf and geometry(same)["cosine"] == pytest.approx(1)
    assert geometry(against)["cosine"] == pytest.approx(-1) and geometry(against)["norm_ratio"] == 2


@pytest.mark.parametrize("lam,beta", [(0.95, 0.0), (0.95, 0.01), (0.3, 0.5)])
def test_13_apa_comes_to_rest_at_the_tilted_policy(lam, beta):
    r, start = (
        torch.tensor([1.0, 0.2, -0.5, 0.1], dtype=torch.double),
        torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.double).log(),
    )
    z = (start + r / (lam + beta)).requires_grad_(
        True
    )  # at the claimed fixed point the exact on-policy gradient must vanish
    logp = z.log_softmax(0)
    pi = logp.detach().exp()
    paid = kl_penalised(r[:, None], logp.detach(), start, beta)
    advantage = paid - (pi[:, None] * paid).sum(0)
    per_action = torch.stack(
        [apa_loss(logp[j : j + 1], start[j : j + 1], advantage[j : j + 1], lam)[0] for j in range(4)]
    )
    (slope,) = torch.autograd.grad(pi @ per_action, z)
    assert slope.abs().max() < 1e-12
    other = start.clone().requires_grad_(True)  # and nowhere near it elsewhere
    logp = other.log_softmax(0)
    pi = logp.detach().exp()
    advantage = r - pi @ r
    (slope,) = torch.autograd.grad(pi @ (logp - start - advantage / lam) ** 2, other)
    assert slope.abs().max() > 1e-2


def test_14_without_alignment_the_gradient_is_that_of_so_weighted():
    g = torch.Generator().manual_seed(0)
    logp = torch.randn(9, dtype=torch.double, generator=g, requires_grad=True)
    start, a, w = (
        torch.randn(9, dtype=torch.double, generator=g),
        torch.randn(9, 3, dtype=torch.double, generator=g),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.double),
    )
    (summed,) = torch.autograd.grad(w @ apa_loss(logp, start, a, 0.95), logp)
    (single,) = torch.autograd.grad(apa_loss(logp, start, (a @ w)[:, None], 0.95)[0], logp)
    assert torch.allclose(summed, single, atol=1e-12)


def test_14_in_the_trainer_too(splits):
    m = MODRL([splits], replace(BRIEF, align="none"), [0])
    memory = m.roll_out()
    inputs = (m.actor.named, memory.states, memory.action, memory.reference)
    apart = m.aggregate(m.gradients(*inputs, memory.advantage))
    assert torch.allclose(apart, m.gradients(*inputs, memory.advantage.mean(-1, keepdim=True))[:, 0], atol=1e-6)


def test_k_gradients_in_one_pass_equal_k_backward_passes(splits):
    m = MODRL([splits], BRIEF, [0])
    memory = m.roll_out()
    found = m.gradients(m.actor.named, memory.states, memory.action, memory.reference, memory.advantage)[0]
    policy = m.policies[0]
    states = [t[0] for t in memory.states]
    parameters = list(policy.scorer.parameters())
    for k in range(2):
        logp = (
            modrl.log_probs(policy.scorer, "off", dict(policy.scorer.named_parameters()), *states)
            .gather(1, memory.action[0][:, None])
            .squeeze(1)
        )
        rows = torch.autograd.grad(
            apa_loss(logp, memory.reference[0], memory.advantage[0], BRIEF.apa_lambda)[k], parameters
        )
        assert torch.allclose(found[k], torch.cat([r.flatten() for r in rows]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", ["off", "on", "zero"])
def test_the_gradient_written_out_equals_the_vectorised_product(splits, mask):
    config = replace(BRIEF, mask=mask, loss="ppo" if mask == "on" else "apa", lr=1e-3)
    m = MODRL([splits, splits], config, [0, 1])
    m.improve(m.roll_out())  # away from the start, where the last layer is zero
    memory = m.roll_out()
    inputs = (memory.states, memory.action, memory.reference, memory.advantage)
    pull = partial(apa_pull, lam=config.apa_lambda) if config.loss == "apa" else partial(ppo_pull, clip=config.clip)
    wanted = vmap(partial(loss_gradients, m.forward, pull))(m.actor.named, *inputs)
    assert torch.allclose(m.gradients(m.actor.named, *inputs), wanted, atol=1e-5, rtol=1e-4)


def test_other_policies_go_the_general_way(splits):
    assert train(splits, replace(BRIEF, policy="offset", iterations=1), 0).curves[-1]["kl"] > 0
    assert train(splits, replace(BRIEF, policy="cross", iterations=1), 0).curves[-1]["kl"] > 0


@pytest.mark.parametrize("loss", ["apa", "ppo"])
def test_pull_is_the_derivative_of_the_loss(loss):
    g = torch.Generator().manual_seed(2)
    logp = torch.randn(20, generator=g, dtype=torch.double, requires_grad=True)
    old, a = (logp + 0.3 * torch.randn(20, generator=g)).detach(), torch.randn(20, 2, generator=g, dtype=torch.double)
    pull = apa_pull(logp.detach(), old, a, 0.5) if loss == "apa" else ppo_pull(logp.detach(), old, a, 0.2)
    for k in range(2):
        value = apa_loss(logp, old, a, 0.5)[k] if loss == "apa" else clipped_surrogate(logp, old, a[:, k], 0.2)
        assert torch.allclose(pull[k], torch.autograd.grad(value, logp)[0], atol=1e-12)


def test_one_action_makes_gae_a_difference():
    r, v = torch.randn(6, 1, 2), torch.randn(6, 1, 2)
    for gamma, lam in ((1.0, 0.95), (0.5, 0.0)):
        assert torch.equal(gae(r, v, torch.ones(6, 1, dtype=torch.bool), gamma, lam)[0], r - v)


def test_rewards_are_processed_as_written():
    raw = torch.randn(64, 2) * torch.tensor([3.0, 0.1]) + 5
    white = whiten(raw)
    assert torch.allclose(white.mean(0), torch.zeros(2), atol=1e-5) and torch.allclose(
        white.std(0, unbiased=False), torch.ones(2), atol=1e-3
    )
    assert torch.equal(whiten(torch.ones(5, 1)), torch.zeros(5, 1))
    assert torch.isfinite(logit(torch.tensor([0.0, 1.0]))).all()
    assert piecewise(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([0.4, 0.5, 0.9]), 0.5).tolist() == pytest.approx(
        [0.4, 0.9, 0.1]
    )


def test_three_objectives_train_as_two_do(splits):
    words = torch.from_numpy(np.diff(load_features().tokens["pool"].offsets)).float()

    def brevity(env):
        return 1 / (1 + words[env.cand])

    three = replace(
        splits,
        **{
            name: add_objective(getattr(splits, name), "brevity", brevity)
            for name in ("train", "dev_weights", "dev_stop", "test")
        },
    )
    short = train(
        three, replace(BRIEF, weights=(0.0, 0.0, 1.0), align="none", iterations=10, lr=1e-4), 0
    )  # all weight on the third objective

    def length(policy):
        return (all_log_probs(policy, three.dev_stop).exp() * words[three.dev_stop.cand]).sum(1).mean()

    assert length(short.policy) < length(modrl.networks(three.train, BRIEF, 0)[0]) - 0.2
    trained = train(three, replace(BRIEF, weights=(0.3, 0.3, 0.4)), 0)
    assert trained.curves[-1]["kl"] > 0 and trained.curves[-1]["condition"] >= 1
    m = MODRL([three], replace(BRIEF, weights=(0.3, 0.3, 0.4)), [0])
    assert m.improve(m.roll_out()).keys() == {"condition", "cosine", "norm_ratio"} and m.critic.named[
        "f.2.bias"
    ].shape == (1, 3)


def test_the_number_of_weights_must_fit(splits):
    with pytest.raises(ValueError, match="weights must hold one number per objective: 2 expected"):
        MODRL([splits], replace(BRIEF, weights=(0.3, 0.3, 0.4)), [0])


@pytest.mark.parametrize("change", [{"weights": (0.5, 0.6)}, {"delta": 2.0}, {"lr": 0.0}, {"memory": 0}])
def test_bad_values_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(BRIEF, **change)


def test_a_stack_trains_as_its_runs_alone(splits):
    other = make_envs(load_features(), STRESS, seed=4)
    for config in (BRIEF, replace(BRIEF, objective="weighted", optimiser="sgd", lr=0.01)):
        together = train_together([splits, other], [config, config], [3, 4])
        alone = [train(splits, config, 3), train(other, config, 4)]
        for a, b in zip(together, alone):
            for p, q in zip(a.policy.parameters(), b.policy.parameters()):
                assert torch.allclose(p, q, atol=1e-6)


def test_training_is_pure_and_learns_what_it_is_paid_for(splits):
    config = replace(BRIEF, iterations=10, lr=2e-4, objective="safe", memory=128)
    a, b = (train(splits, config, 0) for _ in range(2))
    assert a.curves == b.curves
    assert a.curves[-1]["dev_p_harm"] < a.curves[0]["dev_p_harm"] - 0.01


def test_ratio_to_the_old_policy_is_another_algorithm(splits):
    a, b = (train(splits, replace(BRIEF, reference=r), 0).curves[-1]["kl"] for r in ("start", "old"))
    assert a != b


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_win_rates_equal_enumeration_and_add_up(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, 4, generator=g).log_softmax(1) for _ in range(2))
    value = torch.randint(0, 3, (3, 4), generator=g).float()
    found = win_rate(a, b, value)
    for s in range(3):
        count = sum(
            a[s, i].exp()
            * b[s, j].exp()
            * (1.0 if value[s, i] > value[s, j] else 0.5 if value[s, i] == value[s, j] else 0.0)
            for i in range(4)
            for j in range(4)
        )
        assert found[s] == pytest.approx(float(count), abs=1e-5)
    assert torch.allclose(found + win_rate(b, a, value), torch.ones(3), atol=1e-5)


def test_a_policy_draws_with_itself_and_rivals_are_graded(splits):
    config = replace(BRIEF, rewards="models", iterations=1, rivals=True)
    found = compare_with_rivals(train(splits, config, 0), splits, config, 0)
    assert set(found["wins"]) == {"start", *rivals(config)} and set(found["wins"]["start"]) == {
        "RMhelp",
        "RMsafe",
        "cosine",
        "attribution",
        "harm",
        "grader",
    }
    assert all(0 <= rate <= 1 and error >= 0 for judges in found["wins"].values() for rate, error in judges.values())
    start = all_log_probs(modrl.networks(splits.train, config, 0)[0], splits.test)
    assert win_rate(start, start, splits.test.similarity).mean() == pytest.approx(0.5, abs=1e-5)


def test_reward_models_see_no_test_dialogue(splits):
    spoilt = replace(
        splits, test=replace(splits.test, anchor=torch.zeros_like(splits.test.anchor)), dev_weights=splits.train
    )
    config = replace(BRIEF, rewards="models")
    assert torch.equal(MODRL([splits], config, [0]).raw[0], MODRL([spoilt], config, [0]).raw[0])


def test_aligned_ppo_without_alignment_steps_along_the_weighted_sum(splits):
    learner = AlignedPPO(splits, AlignedPPOConfig(dialogues_per_epoch=10, align="none"), 0)
    roll = learner.sample()
    s, a, old, c = roll.states[:16], roll.actions[:16], roll.logp_old[:16] - 0.05, learner.config
    env, scorer = learner.env, learner.policy.scorer
    inputs = (env.x[s], env.anchor[s], torch.nn.functional.embedding(env.cand[s], env.pool), env.allowed[s])
    parameters = {name: p.detach() for name, p in scorer.named_parameters()}
    rows = loss_gradients(
        partial(modrl.log_probs, scorer, c.mask),
        partial(ppo_pull, clip=c.clip),
        parameters,
        inputs,
        a,
        old,
        roll.advantage[:16],
    )
    logp = learner.policy(env, s).gather(1, a[:, None]).squeeze(1)
    for k in range(2):
        wanted = torch.autograd.grad(
            clipped_surrogate(logp, old, roll.advantage[:16, k], c.clip), list(scorer.parameters()), retain_graph=True
        )
        assert torch.allclose(rows[k], torch.cat([w.flatten() for w in wanted]), atol=1e-6)


def test_aligned_ppo_refuses_what_it_cannot_do():
    for change, words in (
        ({"critic": "scalar"}, "known: vector"),
        ({"advantage": "exact"}, "advantage cannot be 'exact'"),
        ({"kl_coef": 0.1}, "no KL or entropy term"),
    ):
        with pytest.raises(ValueError, match=words):
            AlignedPPOConfig(**change)


def test_the_vectorised_product_holds_for_a_stack():
    g = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(5, 4)

    def forward(p, x):
        return torch.func.functional_call(layer, p, (x,)).log_softmax(-1)

    stack = {"weight": torch.randn(2, 4, 5, generator=g), "bias": torch.randn(2, 4, generator=g)}
    x, action, zero, a = (
        torch.randn(2, 7, 5, generator=g),
        torch.randint(0, 4, (2, 7), generator=g),
        torch.zeros(2, 7),
        torch.randn(2, 7, 3, generator=g),
    )
    pull = partial(apa_pull, lam=0.5)
    both = vmap(partial(loss_gradients, forward, pull))(stack, (x,), action, zero, a)
    one = loss_gradients(forward, pull, {name: v[1] for name, v in stack.items()}, (x[1],), action[1], zero[1], a[1])
    assert both.shape == (2, 3, 24) and torch.allclose(both[1], one, atol=1e-6)
