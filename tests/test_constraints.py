"""Budgets of harm: bounds against closed forms and simulation, prices and switches by hand, the test's verdict."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import add_objective, make_envs
from dualppo.bench.features import REFUSAL, load_features
from dualppo.core.errors import DataError
from dualppo.exact.bounds import (
    dialogue_means,
    coins,
    t_radius,
    upper_bound,
    upper_clopper_pearson,
    upper_hoeffding,
    upper_t,
)
from dualppo.losses.advantages import leave_one_out
from dualppo.methods.base import train
from dualppo.methods.baselines import Control
from dualppo.methods.constraints import (
    AlwaysRefuse,
    Pessimistic,
    PessimisticConfig,
    Shaped,
    ShapedConfig,
    Switched,
    SwitchedConfig,
    Verified,
    VerifiedConfig,
    gains_of,
    pessimistic_cost,
    pessimism,
)
from dualppo.policies.policy import all_log_probs

SHORT = {"epochs": 2, "inner_epochs": 1, "dialogues_per_epoch": 24, "hidden": 16}


@pytest.fixture(scope="module")
def splits(toy):
    return make_envs(load_features(toy), STRESS, seed=0)


# --- bounds


@settings(deadline=None)
@given(st.integers(2, 60), st.data(), st.floats(0.01, 0.5))
def test_clopper_pearson_is_where_the_binomial_tail_is_delta(n, data, delta):
    k = data.draw(st.integers(0, n - 1))
    p = upper_clopper_pearson(torch.tensor(k), n, delta).item()
    tail = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert tail == pytest.approx(delta, rel=1e-6)
    assert upper_clopper_pearson(torch.tensor(n), n, delta).item() == 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(0.01, 0.5))
def test_every_bound_is_above_the_mean_and_falls_with_doubt(costs, delta):
    values = torch.tensor(costs, dtype=torch.double)
    for bound in (upper_t, upper_hoeffding):
        assert bound(values, delta) >= values.mean() - 1e-9
        assert bound(values, delta / 2) >= bound(values, delta) - 1e-12


def test_the_t_bound_is_scipys_interval():
    from scipy import stats

    values = torch.rand(37, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    high = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.8).high  # 10 % lie above its upper end
    assert upper_t(values, 0.1).item() == pytest.approx(high, abs=1e-12)
    assert t_radius(10**6, 0.1) == pytest.approx(stats.norm.ppf(0.9) / 1000, rel=1e-4)


def exact_pass_rate(p: float, n: int, budget: float, bound) -> float:
    """How often k of n draws with probability p pass, by enumeration of k."""
    share = torch.tensor([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)], dtype=torch.double)
    return share[[bool(bound(k) <= budget) for k in range(n + 1)]].sum().item()


@pytest.mark.parametrize(("budget", "n"), [(0.02, 60), (0.1, 40), (0.3, 25)])
def test_an_unsafe_policy_passes_an_exact_test_seldom_and_a_t_test_too_often(budget, n):
    p, delta = budget * (1 + 1e-9), 0.1

    def drawn(k):
        return (torch.arange(n) < k).double()

    exact = exact_pass_rate(p, n, budget, lambda k: upper_clopper_pearson(torch.tensor(k), n, delta))
    hoeffding = exact_pass_rate(p, n, budget, lambda k: upper_hoeffding(drawn(k), delta))
    student = exact_pass_rate(p, n, budget, lambda k: upper_t(drawn(k), delta))
    assert max(exact, hoeffding) <= delta
    if budget == 0.02:
        assert student > delta + 0.05


def test_a_coin_has_the_mean_of_its_cost():
    costs = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.double).expand(3, 40_000)
    seen = coins(costs, torch.Generator().manual_seed(0)).double().mean(1)
    assert seen[0] == 0 and seen[2] == 1 and seen[1] == pytest.approx(0.3, abs=0.01)


def test_a_dialogue_is_one_unit():
    values, ids = torch.tensor([0.0, 1.0, 0.4, 0.4, 0.4]), torch.tensor([7, 7, 2, 2, 2])
    assert dialogue_means(values, ids).tolist() == pytest.approx([0.4, 0.5])
    many = torch.arange(40) // 4
    same = (torch.arange(10) % 2).double()[many]  # the states of a dialogue say the same: four times the same thing
    by_state, by_talk = (upper_bound(same, many, 0.1, "t", unit) for unit in ("state", "dialogue"))
    assert by_state[1] == by_talk[1] == 0.5 and (by_state[2], by_talk[2]) == (40, 10) and by_talk[0] > by_state[0]
    with pytest.raises(DataError, match="two held-out dialogues or more, got 1"):
        upper_bound(same, torch.zeros(40), 0.1)
    with pytest.raises(ValueError, match="generator"):
        upper_bound(same, many, 0.1, "clopper_pearson")


# --- prices


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000))
def test_leave_one_out_is_the_mean_of_the_others(n, seed):
    values = torch.rand(2, n, generator=torch.Generator().manual_seed(seed))
    others = torch.stack([torch.cat([values[:, :i], values[:, i + 1 :]], 1).mean(1) for i in range(n)], 1)
    assert torch.allclose(leave_one_out(values), values - others, atol=1e-5)
    assert leave_one_out(torch.full((3, n), 0.7)).abs().max() == 0


def test_pessimism_has_the_gradient_of_the_bound_by_finite_differences():
    cost, kappa, eps = torch.tensor([0.1, 0.9, 0.4, 0.4], dtype=torch.double), 0.8, 1e-6
    z = torch.zeros(4, dtype=torch.double)

    def bound(z):
        pi = z.softmax(0)
        return (pi * cost).sum() + kappa * ((pi * cost**2).sum() - (pi * cost).sum() ** 2).sqrt()

    numeric = torch.stack([(bound(z + eps * e) - bound(z - eps * e)) / (2 * eps) for e in torch.eye(4).double()])
    pi, tilde = z.softmax(0), pessimistic_cost(cost, kappa)
    assert torch.allclose(pi * (tilde - (pi * tilde).sum()), numeric, atol=1e-8)
    assert torch.equal(pessimistic_cost(cost, 0.0), cost)


def test_kappa_is_the_published_one():
    "A batch of 256: .0803 by itself, .121 with a test of 1000, as HC-RLHF's defaults give."
    assert pessimism(0.1, 256, 1000) == pytest.approx(1.285 / 16 + 1.2824 / 1000**0.5, abs=1e-4)
    assert pessimism(0.1, 256, 1000) == pytest.approx(0.121, abs=5e-4)
    assert pessimism(0.1, 16, 1000) == pytest.approx(0.376, abs=5e-4)


def test_gains_leave_safety_out():
    assert gains_of((0.25, 0.5, 0.25), 1) == (0.5, 0, 0.5) and gains_of((0.0, 1.0), 1) == (1, 0)
    with pytest.raises(DataError, match="only one is safe"):
        gains_of((1.0,), 0)


def test_a_price_rises_beyond_the_budget_and_falls_within(splits):
    learner = Pessimistic(splits, PessimisticConfig(budget=0.2, c1=0, c2=0, **SHORT), 0)
    reward, high, low = torch.rand(4, 8), torch.full((4, 8), 0.5), torch.full((4, 8), 0.1)
    first = learner.price
    worth = learner.worth(reward, high)
    assert learner.price == pytest.approx(first * math.exp(0.1 * (0.5 - 0.2) / 0.2))
    assert torch.allclose(worth, (reward - learner.price * high) / (1 + learner.price))
    learner.worth(reward, low)
    assert learner.price == pytest.approx(first * math.exp(0.1 * (1.5 - 0.5)), rel=1e-6)
    wary = Pessimistic(splits, PessimisticConfig(budget=0.2, **SHORT), 0)
    mixed = torch.rand(4, 8)
    learner.price = 1.0
    learner.worth(reward, mixed), wary.worth(reward, mixed)
    assert wary.price > learner.price


def test_a_switch_asks_what_the_policy_costs(splits):
    learner = Switched(splits, SwitchedConfig(budget=0.2, tolerance=0.05, **SHORT), 0)
    reward, cost = torch.rand(4, 8), torch.full((4, 8), 0.24)
    assert torch.equal(learner.worth(reward, cost), reward) and learner.facts()["rectified"] == 0
    assert torch.equal(learner.worth(reward, cost + 0.02), -cost - 0.02) and learner.facts()["rectified"] == 0.5
    learner.reweigh()
    assert learner.weights == (0, 1)


def test_a_fixed_price_is_a_weighted_sum(splits):
    learner = Shaped(splits, ShapedConfig(penalty=3.0, **SHORT), 0)
    assert learner.weights == (0.25, 0.75)
    reward = splits.train.reward[:5, :8]
    wanted = leave_one_out(reward[..., 0] - 3 * (1 - reward[..., 1]))
    assert torch.allclose(learner.advantage(reward), wanted, atol=1e-6)


def test_a_cost_is_there_without_the_objective(splits):
    "p_harm is the cost where safety is no objective, and the weights that are shown are the objectives' own."
    alone = {part: replace(getattr(splits, part), reward=getattr(splits, part).reward[..., :1], objectives=("help",))
             for part in ("train", "dev_weights", "dev_stop", "test")}
    part = replace(splits, **alone)
    one, two = (train(s, ShapedConfig(weights=(1.0,) if s is part else (0.5, 0.5), **SHORT), 0) for s in (part, splits))
    assert torch.equal(all_log_probs(one.policy, splits.test), all_log_probs(two.policy, splits.test))
    assert one.weights == (1.0,) and two.weights == (0.5, 0.5)
    only = {name: replace(env, reward=env.reward[..., 1:], objectives=("safe",))
            for name, env in vars(splits).items() if name in alone}
    with pytest.raises(DataError, match="only one is safe"):
        train(replace(splits, **only), ShapedConfig(weights=(1.0,), **SHORT), 0)
    assert add_objective(part.train, "safe", lambda e: 1 - e.p_harm).objectives == ("help", "safe")


# --- the test


def test_the_verdict_is_in_the_facts_and_a_refused_policy_refuses(splits):
    for budget, accepted in ((0.001, False), (1.0, True)):
        run = train(splits, VerifiedConfig(base=Control("random"), budget=budget, bound="hoeffding"), 0)
        assert run.facts["accepted"] is accepted and isinstance(run.facts["bound"], float)
        assert (run.facts["bound"] <= budget) is accepted and run.facts["units"] == len(
            splits.dev_weights.dialogue.unique()
        )
        said = all_log_probs(run.policy, splits.test).exp()
        refused = (said * (splits.test.kind == REFUSAL)).sum(1)
        assert torch.allclose(said.sum(1), torch.ones(len(said)), atol=1e-5)
        assert torch.allclose(refused, torch.ones(len(said))) is not accepted
    kept = train(splits, VerifiedConfig(base=Control("random"), budget=0.001, otherwise="candidate"), 0)
    assert kept.policy == Control("random") and not kept.facts["accepted"]


def test_the_test_hands_its_budget_to_what_it_tests():
    config = VerifiedConfig(budget=0.07, delta=0.05, unit="state")
    (base,) = Verified.trains(config)
    assert (base.budget, base.delta, base.unit) == (0.07, 0.05, "state")


def test_without_a_refusal_the_least_harmful_reply_is_said(splits):
    env = replace(splits.test, kind=torch.zeros_like(splits.test.kind))
    said = AlwaysRefuse()(env, torch.arange(9))
    assert torch.equal(said.argmax(1), env.p_harm[:9].argmin(1)) and torch.allclose(said.exp().sum(1), torch.ones(9))


def test_the_test_never_looks_at_the_test_split(splits):
    config = VerifiedConfig(base=ShapedConfig(**SHORT), otherwise="candidate")
    turned = replace(splits, test=replace(splits.test, p_harm=1 - splits.test.p_harm))
    one, two = train(splits, config, 0), train(turned, config, 0)
    assert one.facts == two.facts
    moved = replace(splits, dev_weights=replace(splits.dev_weights, p_harm=splits.dev_weights.p_harm * 0))
    assert train(moved, config, 0).facts["bound"] < one.facts["bound"]
