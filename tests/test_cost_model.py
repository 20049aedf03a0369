"""Safe RLHF's cost model: the loss by hand, the convex fit against other solvers, and what contradicts itself."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from dualppo.bench.cost_model import CostModel, SignedPairs, cost_model_loss, fit_cost_model, signed_pairs
from dualppo.bench.reward_models import Pairs, bradley_terry_loss, pair_features
from dualppo.core.errors import DataError


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def signed(n: int = 200, d: int = 4, sharpness: float = 4.0) -> SignedPairs:
    """Replies with a planted cost, ordered by it, unsafe above its zero, both with noise where they may."""
    g = torch.Generator().manual_seed(3)
    x, a, b = (unit(n, d, seed=s) for s in (1, 2, 4))
    planted = torch.randn(3 * d + 1, generator=g)
    cost = [sharpness * (pair_features(x, y) @ planted) + 0.5 for y in (a, b)]
    noisy = [c + torch.randn(n, generator=g) for c in cost]
    first = noisy[0] <= noisy[1]
    low, high = torch.where(first[:, None], a, b), torch.where(first[:, None], b, a)
    return SignedPairs(
        Pairs(x, low, high, torch.arange(n)), torch.minimum(*noisy) > 0, torch.maximum(*noisy) > 0
    )


def test_loss_is_three_terms_and_its_gradient():
    g = torch.Generator().manual_seed(0)
    h, l = (torch.randn(20, generator=g, dtype=torch.double, requires_grad=True) for _ in range(2))
    u_h, u_l = torch.rand(20, generator=g) < 0.7, torch.rand(20, generator=g) < 0.3
    s_h, s_l = (torch.where(u, 1.0, -1.0) for u in (u_h, u_l))

    def log_sigmoid(v):
        return torch.log(1 / (1 + torch.exp(-v)))

    hand = -(log_sigmoid(h - l) + log_sigmoid(s_l * l) + log_sigmoid(s_h * h)).mean()
    torch.testing.assert_close(cost_model_loss(h, l, u_h, u_l), hand)
    assert torch.autograd.gradcheck(lambda a, b: cost_model_loss(a, b, u_h, u_l), (h, l))
    assert cost_model_loss(h.detach() * 0 - 900, l.detach() * 0 + 900, u_h, u_l).isfinite()


def test_the_fit_is_the_minimum_that_another_solver_finds():
    data, strength = signed(), 0.05
    model = fit_cost_model(data, strength)
    phi = [pair_features(data.pairs.prompt, y).double() for y in (data.pairs.chosen, data.pairs.rejected)]
    both = torch.cat(phi)
    mean, scale = both.mean(0), both.std(0, correction=0)

    def objective(v):
        cost = [((p - mean) / scale) @ torch.from_numpy(v[:-1]) + v[-1] for p in phi]
        loss = cost_model_loss(cost[1], cost[0], data.unsafe_rejected, data.unsafe_chosen)
        return loss.item() + strength / 2 * v[:-1] @ v[:-1]

    start = np.append((model.weight.double() * scale).numpy(), model.bias + (mean @ model.weight.double()).item())
    other = minimize(objective, np.zeros(14), method="BFGS", options={"gtol": 1e-7})
    assert objective(start) == pytest.approx(other.fun, abs=1e-6)
    np.testing.assert_allclose(start, other.x, atol=2e-3)


def test_without_signs_it_is_bradley_terry_and_without_order_a_logistic_regression():
    data = signed()
    model = fit_cost_model(data, 1e-4, signs=0.0)
    gap = model(data.pairs.prompt, data.pairs.rejected) - model(data.pairs.prompt, data.pairs.chosen)
    worse = CostModel(model.weight * 0.9, model.bias)
    other = worse(data.pairs.prompt, data.pairs.rejected) - worse(data.pairs.prompt, data.pairs.chosen)
    assert bradley_terry_loss(gap, torch.zeros(200)) < bradley_terry_loss(other, torch.zeros(200))
    only = fit_cost_model(data, 2.0, signs=1e6)  # the order counts for nothing, the ridge a millionth
    phi = torch.cat([pair_features(data.pairs.prompt, y) for y in (data.pairs.chosen, data.pairs.rejected)]).double()
    standard = ((phi - phi.mean(0)) / phi.std(0, correction=0)).numpy()
    label = torch.cat([data.unsafe_chosen, data.unsafe_rejected]).numpy()
    line = LogisticRegression(C=1e6 / (2.0 * 200), tol=1e-8, max_iter=5000).fit(standard, label)
    cost = torch.cat([only(data.pairs.prompt, y) for y in (data.pairs.chosen, data.pairs.rejected)]).numpy()
    np.testing.assert_allclose(cost, line.decision_function(standard), atol=0.05)


def test_the_zero_is_found():
    data = signed(1500, sharpness=6.0)
    model = fit_cost_model(data, 1e-3)
    cost = torch.cat([model(data.pairs.prompt, y) for y in (data.pairs.chosen, data.pairs.rejected)])
    label = torch.cat([data.unsafe_chosen, data.unsafe_rejected])
    assert ((cost > 0) == label).float().mean() > 0.85
    turned = SignedPairs(data.pairs, torch.zeros_like(data.unsafe_chosen), torch.zeros_like(data.unsafe_rejected))
    all_safe = fit_cost_model(turned, 1e-3)
    assert (all_safe(data.pairs.prompt, data.pairs.rejected) < 0).all(), "where all is safe, every cost lies below 0"


def test_contradictions_and_bad_strengths_are_refused():
    pairs = signed().pairs
    yes, no = torch.ones(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool)
    some = no.clone()
    some[[7, 9]] = True
    with pytest.raises(DataError, match="2 of 200 pairs.*first is pair 7"):
        SignedPairs(pairs, some, no)
    assert len(SignedPairs(pairs, yes, yes).take(torch.arange(5))) == 5
    for strength, signs in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(DataError, match="strength > 0, signs ≥ 0"):
            fit_cost_model(SignedPairs(pairs, no, yes), strength, signs)
    with pytest.raises(DataError, match="0 pairs"):
        fit_cost_model(SignedPairs(pairs, no, yes).take(no), 1.0)


def test_pairs_of_an_environment_are_ordered_and_signed_by_its_harm(stress):
    env = stress.dev_stop
    data = signed_pairs(env, 0)
    assert 0.9 * len(env) < len(data) <= len(env)
    at = {int(d): (env.dialogue == d).nonzero().flatten() for d in data.pairs.group.unique()}
    for i in range(0, len(data), 37):
        state = next(s for s in at[int(data.pairs.group[i])] if torch.equal(env.anchor[s], data.pairs.prompt[i]))
        said = env.pool[env.cand[state]]
        low, high = (
            env.p_harm[state][(said - y[i]).abs().sum(1) == 0] for y in (data.pairs.chosen, data.pairs.rejected)
        )
        assert low.min() < high.max()
        assert data.unsafe_chosen[i] in (low > 0.5) and data.unsafe_rejected[i] in (high > 0.5)
    assert torch.equal(signed_pairs(env, 0).pairs.chosen, data.pairs.chosen)
    assert not torch.equal(signed_pairs(env, 1).pairs.chosen, data.pairs.chosen)
