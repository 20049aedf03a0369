"""Mixtures of Bradley–Terry models: the loss, one head, the fit, the posterior of a context, and two opposed groups."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from dualppo.bench.mixture import (
    Mixture,
    MixtureConfig,
    context_log_posterior,
    context_weights,
    em_step,
    fit_mixture,
    mixture_loss,
)
from dualppo.bench.reward_models import Pairs, bradley_terry_loss, fit_reward_model, margins
from dualppo.core.errors import DataError


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def some_pairs(n: int = 200, d: int = 6) -> Pairs:
    return Pairs(unit(n, d, seed=1), unit(n, d, seed=2), unit(n, d, seed=3), torch.arange(n))


def random_mixture(k: int, d: int = 6, seed: int = 0) -> Mixture:
    g = torch.Generator().manual_seed(seed)
    return Mixture(
        2 * torch.randn(k, 3 * d + 1, generator=g), torch.randn(k, d, generator=g), torch.randn(k, generator=g), 0.0
    )


def test_loss_by_hand_and_its_gradient_by_differences():
    g = torch.Generator().manual_seed(0)
    logits, gap = (torch.randn(7, 3, generator=g, dtype=torch.double, requires_grad=True) for _ in range(2))
    w = logits.softmax(1)
    hand = -(w / (1 + torch.exp(-gap))).sum(1).log().mean() + 0.3 * (w.mean(0) * w.mean(0).log()).sum()
    torch.testing.assert_close(mixture_loss(logits.log_softmax(1), gap, 0.3), hand)
    assert torch.autograd.gradcheck(lambda a, b: mixture_loss(a.log_softmax(1), b, 0.3), (logits, gap))
    far = torch.full((2, 2), -500.0)
    assert mixture_loss(torch.zeros(2, 2).log_softmax(1), far, 0.0).isfinite()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_loss_knows_no_order_of_heads_and_one_head_is_bradley_terry(k, seed):
    g = torch.Generator().manual_seed(seed)
    log_w, gap = torch.randn(9, k, generator=g).log_softmax(1), 3 * torch.randn(9, k, generator=g)
    order = torch.randperm(k, generator=g)
    torch.testing.assert_close(mixture_loss(log_w[:, order], gap[:, order], 0.2), mixture_loss(log_w, gap, 0.2))
    one = bradley_terry_loss(gap[:, 0], torch.zeros(9))
    torch.testing.assert_close(mixture_loss(torch.zeros(9, 1), gap[:, :1], 0.2), one)
    same = gap[:, :1].expand(-1, k)
    torch.testing.assert_close(mixture_loss(log_w, same, 0.0), one)


def test_one_head_is_the_convex_fit():
    pairs = some_pairs()
    single, mixture = fit_reward_model(pairs, 0.1), fit_mixture(pairs, MixtureConfig(heads=1, strength=0.1))
    torch.testing.assert_close(mixture.weight[0], single.weight, atol=5e-3, rtol=1e-2)
    torch.testing.assert_close(mixture.margins(pairs), margins(single, pairs), atol=5e-3, rtol=1e-2)
    assert mixture.loss <= bradley_terry_loss(margins(single, pairs), torch.zeros(200)) + 1.0


def test_more_starts_are_never_worse_and_the_seed_decides():
    pairs, base = some_pairs(), {"strength": 0.01, "spread": 0.5}
    one, three = (fit_mixture(pairs, MixtureConfig(**base, starts=starts)) for starts in (1, 3))
    assert three.loss <= one.loss
    assert torch.equal(fit_mixture(pairs, MixtureConfig(**base)).weight, one.weight)
    assert not torch.equal(fit_mixture(pairs, MixtureConfig(**base, seed=1)).weight, one.weight)
    alone = fit_mixture(pairs, MixtureConfig(heads=1, strength=0.01))
    assert one.loss < alone.loss, "two heads at these ridges fit no worse than one"


def test_margins_are_the_log_odds_of_the_mixture_and_turn_with_the_pair():
    pairs, mixture = some_pairs(), random_mixture(3)
    w, gap = mixture.log_weights(pairs.prompt).exp(), mixture.head_margins(pairs)
    p = (w * torch.sigmoid(gap)).sum(1)
    torch.testing.assert_close(mixture.margins(pairs), torch.logit(p), atol=1e-4, rtol=1e-4)
    turned = Pairs(pairs.prompt, pairs.rejected, pairs.chosen, pairs.group)
    torch.testing.assert_close(mixture.margins(turned), -mixture.margins(pairs), atol=1e-5, rtol=1e-5)
    only = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(mixture.margins(pairs, only), gap[:, 1], atol=1e-4, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 12), st.floats(0.1, 20), st.integers(0, 10_000))
def test_em_never_steps_down_and_stays_on_the_simplex(k, n, worth, seed):
    g = torch.Generator().manual_seed(seed)
    gap = 4 * torch.randn(n, k, generator=g, dtype=torch.double)
    prior, weights = (torch.randn(k, generator=g, dtype=torch.double).softmax(0) for _ in range(2))
    for _ in range(5):
        new = em_step(gap, weights, prior, worth)
        assert abs(new.sum() - 1) < 1e-9 and (new > 0).all()
        before, after = (context_log_posterior(gap, w, prior, worth) for w in (weights, new))
        assert after >= before - 1e-9
        weights = new


def test_weights_of_a_context_are_the_maximum():
    pairs, mixture = some_pairs(12), random_mixture(2)
    found = context_weights(mixture, pairs, worth=1.5, steps=2000).double()
    prior, gap = mixture.log_weights(pairs.prompt).exp().double().mean(0), mixture.head_margins(pairs).double()
    grid = torch.linspace(1e-3, 1 - 1e-3, 2001, dtype=torch.double)
    values = [context_log_posterior(gap, torch.stack([w, 1 - w]), prior, 1.5) for w in grid]
    assert abs(grid[int(torch.tensor(values).argmax())] - found[0]) < 2e-3
    heavy = context_weights(mixture, pairs, worth=1e6)
    torch.testing.assert_close(heavy.double(), prior, atol=1e-4, rtol=0)
    with pytest.raises(DataError, match="worth"):
        context_weights(mixture, pairs, worth=0.0)
    with pytest.raises(DataError, match="a pair"):
        context_weights(mixture, pairs.take(torch.zeros(12, dtype=torch.bool)))
    with pytest.raises(DataError, match="one pair"):
        fit_mixture(pairs.take(torch.zeros(12, dtype=torch.bool)))


def opposed(n: int, seed: int) -> tuple[Pairs, torch.Tensor]:
    """Two groups, told apart by a coordinate on which replies have nothing, that want opposite things."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.nn.functional.pad(8 * unit(1, 6, seed=99)[0], (1, 0))
    sign = torch.randint(2, (n,), generator=g) * 2.0 - 1
    x = torch.cat([0.8 * sign[:, None], 0.6 * unit(n, 6, seed=seed + 1)], 1)
    a, b = (torch.nn.functional.pad(unit(n, 6, seed=seed + s), (1, 0)) for s in (2, 3))
    p = torch.sigmoid(sign * ((a - b) @ theta))
    first = torch.rand(n, generator=g) < p
    chosen, rejected = torch.where(first[:, None], a, b), torch.where(first[:, None], b, a)
    return Pairs(x, chosen, rejected, torch.arange(n)), torch.maximum(p, 1 - p)


def test_one_model_cannot_serve_opposed_groups_and_a_mixture_can():
    (seen, _), (new, best) = opposed(2500, 10), opposed(4000, 20)
    single = fit_reward_model(seen, 1e-3)
    how = MixtureConfig(heads=2, strength=1e-3, router_strength=1e-3, spread=0.3)
    mixture = fit_mixture(seen, how)
    rate = {"one": (margins(single, new) > 0), "mixture": mixture.margins(new) > 0}
    rate = {name: right.float().mean().item() for name, right in rate.items()}
    assert abs(rate["one"] - 0.5) < 0.03 and abs(rate["mixture"] - best.mean()) < 0.02
    weights = mixture.log_weights(new.prompt).exp()
    side = weights[:, 0] > 0.5
    assert abs((side == (new.prompt[:, 0] > 0)).float().mean() - 0.5) > 0.48, "the router reads the group"
    heads = mixture.head_margins(new)
    assert torch.corrcoef(heads.T)[0, 1] < -0.9, "the heads want opposite things"


def test_a_permuted_mixture_is_the_same_mixture():
    pairs, mixture = some_pairs(20), random_mixture(3)
    for order in permutations(range(3)):
        at = list(order)
        other = Mixture(mixture.weight[at], mixture.slopes[at], mixture.bias[at], 0.0)
        torch.testing.assert_close(other.margins(pairs), mixture.margins(pairs), atol=1e-4, rtol=1e-4)
    both = logsigmoid(mixture.margins(pairs)).exp() + logsigmoid(-mixture.margins(pairs)).exp()
    torch.testing.assert_close(both, torch.ones(20))
