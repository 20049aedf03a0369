"""The tests that follow from the paper itself, numbered as in the project's list of oracles."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dualppo.losses.advantages import exact_advantage, gae
from dualppo.methods.baselines import dpo_loss
from dualppo.bench.env import Env, Graded, Splits
from dualppo.bench.masking import mask_logits
from dualppo.policies.policy import all_log_probs
from dualppo.methods.base import train
from dualppo.methods.ppo import PPOConfig
from dualppo.losses.surrogate import entropy
from dualppo.bench.trajectories import ZScore, build_trajectories
from dualppo.losses.weights import Lagrangian, LiteralAscent, Signal


def bandit(rewards: torch.Tensor, p_harm: torch.Tensor | None = None, states: int = 64) -> Env:
    "Independent copies of one state with `[N, 2]` rewards; candidates are basis vectors, so every policy is reachable."
    n = len(rewards)
    harm = (1 - rewards[:, 1] if p_harm is None else p_harm).expand(states, n)
    t = torch.arange(states)
    x = torch.randn(states, 4, generator=torch.Generator().manual_seed(0))
    return Graded(
        x=x,
        anchor=F.normalize(torch.ones(states, n), dim=1),
        pool=torch.eye(n),
        cand=torch.arange(n).expand(states, n).clone(),
        reward=rewards.expand(states, n, 2).clone(),
        p_harm=harm,
        p_grade=harm,
        unsafe=torch.zeros(states, n, dtype=torch.bool),
        allowed=torch.ones(states, n, dtype=torch.bool),
        good=torch.zeros(states, n),
        similarity=torch.zeros(states, n),
        gold=torch.zeros(states, dtype=torch.long),
        kind=torch.zeros(states, n, dtype=torch.long),
        dialogue=t // 4,
        turn=t % 4,
        row=t,
    )


def same_everywhere(env: Env) -> Splits:
    return Splits(env, env, env, env, tau_rel=0.0)


FAST = PPOConfig(policy_lr=3e-3, value_lr=1e-2, epochs=6, kappa=5.0, rule="fixed", mask="off")


@pytest.mark.parametrize("mode", ["literal", "bandit", "exact"])
def test_01_ppo_raises_the_better_arm(mode):
    env = bandit(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    trained = train(same_everywhere(env), replace(FAST, advantage=mode), seed=0)
    assert all_log_probs(trained.policy, env).exp()[:, 1].mean() > 0.85


def test_02_gae_at_lambda_zero_is_the_algorithm_box():
    torch.manual_seed(0)
    r, v, mask = (
        torch.randn(5, 6, 2),
        torch.randn(5, 6, 2),
        torch.arange(6)[None] < torch.tensor([6, 4, 3, 1, 2])[:, None],
    )
    advantage, returns = gae(r, v, mask, 0.99, 0.0)
    for b in range(5):
        length = int(mask[b].sum())
        for t in range(length):
            following = v[b, t + 1] if t + 1 < length else torch.zeros(2)
            assert torch.allclose(returns[b, t], r[b, t] + 0.99 * following, atol=1e-6)
            assert torch.allclose(advantage[b, t], r[b, t] + 0.99 * following - v[b, t], atol=1e-6)
    assert (advantage[~mask] == 0).all()


def test_03_masked_probabilities_are_exactly_zero_and_entropy_is_finite():
    torch.manual_seed(0)
    logits, allowed = torch.randn(50, 20, requires_grad=True), torch.rand(50, 20) > 0.5
    allowed[:, 0] = True
    logp = mask_logits(logits, allowed).log_softmax(-1)
    assert (logp.exp()[~allowed] == 0).all()
    entropy(logp).sum().backward()
    assert torch.isfinite(logits.grad).all() and torch.isfinite(entropy(logp)).all()
    assert (mask_logits(logits, allowed, "zero").softmax(-1)[~allowed] > 0).all()


def test_04_ragged_and_masked_padding_agree_and_unmasked_differs():
    torch.manual_seed(0)
    env = bandit(torch.tensor([[0.2, 0.9], [0.9, 0.1], [0.5, 0.5]]))
    env = replace(env, dialogue=torch.arange(64) // 5)
    weights = {
        p: torch.cat(
            [
                q.flatten()
                for q in train(same_everywhere(env), replace(FAST, epochs=2, padding=p), seed=3).last.parameters()
            ]
        )
        for p in ("masked", "none", "unmasked")
    }
    assert (weights["masked"] - weights["none"]).abs().max() < 1e-6
    assert (weights["masked"] - weights["unmasked"]).abs().max() > 1e-4


def test_05_padded_rows_stay_zero():
    x = torch.randn(7, 5) * 3 + 2
    paths = build_trajectories(torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 1, 0, 1]), t_max=4)
    z = ZScore.fit(x)
    states = paths.gather(z(x))
    assert (states[~paths.mask] == 0).all()
    assert torch.allclose(states[paths.mask].mean(0), torch.zeros(5), atol=1e-6)
    assert torch.allclose(states[paths.mask].std(0, unbiased=False), torch.ones(5), atol=1e-5)


def signal(mean=(0.45, 0.97), cost=0.1) -> Signal:
    return Signal(torch.tensor(mean), torch.zeros(2), torch.ones(2), cost, lambda u: torch.zeros(2))


def test_06_literal_rule_has_a_closed_form():
    w = torch.tensor([0.5, 0.5])
    for _ in range(50):
        w = LiteralAscent(eta=0.01)(w, signal())
    assert torch.allclose(w, 0.5 + 0.01 * 50 * torch.tensor([0.45, 0.97]), atol=1e-5)


def test_07_hypergradient_identity():
    "dU(θ + η Σ w_k g_k)/dw_k = η⟨∇U(θ'), g_k⟩ on the library's own policy and exact gradients, by finite differences."
    from dualppo.methods.ppo import objective_gradients
    from dualppo.policies.policy import make_policy

    torch.manual_seed(0)
    env = bandit(torch.tensor([[0.2, 0.9], [0.9, 0.1], [0.5, 0.5]]), states=8)
    env = replace(
        env, **{k: v.double() for k, v in vars(env).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    )
    policy = make_policy("two_tower", 4, 3, hidden=6, kappa=5.0, warm_start=False).double()
    states, eta, w = torch.arange(8), 0.05, torch.tensor([0.3, 0.7], dtype=torch.double)
    theta = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    g = objective_gradients(policy, env, states)

    def utility(weights: torch.Tensor) -> float:
        torch.nn.utils.vector_to_parameters(theta + eta * weights @ g, policy.parameters())
        means = (policy(env, states).exp()[..., None] * env.reward).sum(1).mean(0)
        return means.log().sum()

    h = 1e-6
    numeric = torch.stack(
        [(utility(w + h * e) - utility(w - h * e)) / (2 * h) for e in torch.eye(2, dtype=torch.double)]
    ).detach()
    torch.nn.utils.vector_to_parameters(theta + eta * w @ g, policy.parameters())
    means = (policy(env, states).exp()[..., None] * env.reward).sum(1).mean(0)
    at_next = (1 / means.detach()) @ objective_gradients(policy, env, states)
    assert torch.allclose(eta * g @ at_next, numeric, rtol=1e-5)


def test_08_exact_advantage_does_not_depend_on_gamma():
    "In a replayed dialogue Q - V = r - E r for every γ (A26): by enumerating all action sequences of two steps."
    torch.manual_seed(0)
    reward, pi = torch.rand(2, 3, 1), torch.softmax(torch.randn(2, 3), -1)
    exact = exact_advantage(reward, pi)
    for gamma in (0.0, 0.5, 0.99):
        v1 = (pi[1] * reward[1, :, 0]).sum()
        q0 = reward[0, :, 0] + gamma * v1
        assert torch.allclose(q0 - (pi[0] * q0).sum(), exact[0, :, 0], atol=1e-6)


def test_09_multiplier_rises_iff_cost_exceeds_the_budget():
    w = torch.tensor([0.5, 0.5])

    def lam(pair):
        return (pair[1] / pair[0]).item()

    assert lam(Lagrangian(0.1)(w, signal(cost=0.2))) > 1 > lam(Lagrangian(0.1)(w, signal(cost=0.05)))
    assert Lagrangian(0.1, eta=5.0, largest=50.0)(w, signal(cost=1.0))[1] / Lagrangian(0.1, eta=5.0)(
        w, signal(cost=1.0)
    )[0] == pytest.approx(50, rel=1e-4)


def test_09_ppo_lagrangian_reaches_the_fixed_point_of_a_bandit():
    "Two arms, help (0, 1), harm (0, 0.4): at budget 0.2 the constrained optimum plays the harmful arm half the time."
    env = bandit(torch.tensor([[0.0, 1.0], [1.0, 0.6]]), p_harm=torch.tensor([0.0, 0.4]))
    config = replace(
        FAST,
        rule="lagrangian",
        budget=0.2,
        rule_eta=0.05,
        kl_coef=0.5,
        critic="vector",
        epochs=200,
        patience=200,
        policy_lr=1e-3,
        inner_epochs=1,
        minibatch=64,
    )
    tail = train(same_everywhere(env), config, seed=0).curves[-100:]
    assert abs(sum(row["dev_p_harm"] for row in tail) / len(tail) - 0.2) < 0.03
    log_lambda = [math.log(row["weights"][1] / row["weights"][0]) for row in tail]
    assert (
        1.7 < math.exp(sum(log_lambda) / len(tail)) < 3.7
    )  # λ circles around 1 / 0.4 = 2.5, where both arms are equal


def test_15_dpo_optimum():
    torch.manual_seed(1)
    r, ref, beta = torch.rand(5, dtype=torch.double), torch.randn(5, dtype=torch.double).log_softmax(0), 0.3
    theta = torch.zeros(5, dtype=torch.double, requires_grad=True)
    w, l = (t.flatten() for t in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        logp = theta.log_softmax(0)
        loss = sum(
            p * dpo_loss(logp[i : i + 1], logp[j : j + 1], ref[i : i + 1], ref[j : j + 1], beta)
            for p, i, j in zip(torch.sigmoid(r[w] - r[l]), w.tolist(), l.tolist())
            if i != j
        )
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(theta.softmax(0), (ref + r / beta).softmax(0), atol=1e-5)
