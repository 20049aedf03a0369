"""Weak to strong: the auxiliary loss by hand, the student against the convex fit, and the gap recovered."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.bench.reward_models import Pairs, fit_reward_model, pair_features
from dualppo.bench.weak_to_strong import (
    StudentConfig,
    auxiliary_confidence_loss,
    balanced_threshold,
    confident_targets,
    fit_student,
    gap_recovered,
    gap_recovered_interval,
    student_accuracy,
    three_parts,
    turned_pairs,
    warmed_up,
)
from dualppo.core.errors import DataError


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def some_pairs(n: int = 300, d: int = 4) -> Pairs:
    return Pairs(unit(n, d, seed=1), unit(n, d, seed=2), unit(n, d, seed=3), torch.arange(n) // 3)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000))
def test_the_threshold_matches_the_weak_class_balance(n, seed):
    g = torch.Generator().manual_seed(seed)
    f, weak = torch.rand(n, generator=g), torch.rand(n, generator=g)
    share = (f > balanced_threshold(f, weak)).float().mean()
    assert abs(share - weak.mean()) <= 1 / n + 1e-5


def test_the_loss_by_hand_at_every_confidence():
    g = torch.Generator().manual_seed(0)
    logits, weak = torch.randn(30, generator=g, dtype=torch.double), torch.rand(30, generator=g, dtype=torch.double)
    f = 1 / (1 + torch.exp(-logits))
    t = np.quantile(f.numpy(), 1 - weak.mean().item())
    for c in (0.0, 0.3, 1.0):
        y = (1 - c) * weak + c * (f > t).double()
        hand = -(y * f.log() + (1 - y) * (1 - f).log()).mean()
        torch.testing.assert_close(auxiliary_confidence_loss(logits, weak, c), hand)
    assert auxiliary_confidence_loss(torch.full((4,), -900.0), torch.rand(4), 0.5).isfinite()


def test_no_gradient_flows_through_the_students_own_labels():
    logits = torch.randn(10, requires_grad=True, generator=torch.Generator().manual_seed(0))
    weak = torch.rand(10, generator=torch.Generator().manual_seed(1))
    assert not confident_targets(logits.sigmoid(), weak, 0.5).requires_grad
    auxiliary_confidence_loss(logits, weak, 0.5).backward()
    target = confident_targets(logits.detach().sigmoid(), weak, 0.5)
    torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - target) / 10)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_confidence_rises_once_and_stays(steps, share, confidence):
    c = [warmed_up(step, steps, share, confidence) for step in range(steps)]
    assert all(0 <= a <= b <= confidence for a, b in zip(c, c[1:])) and c[-1] == pytest.approx(confidence)
    assert sum(v < confidence - 1e-12 for v in c) <= math.ceil(share * steps)


def test_turning_a_pair_turns_its_difference_and_its_label():
    pairs = some_pairs()
    told = turned_pairs(pairs, 0)
    delta = pair_features(pairs.prompt, pairs.chosen) - pair_features(pairs.prompt, pairs.rejected)
    sign = torch.where(told.first, 1.0, -1.0)
    torch.testing.assert_close(told.delta * sign[:, None], delta)
    assert 0.4 < told.first.float().mean() < 0.6
    weight = torch.randn(13, generator=torch.Generator().manual_seed(0))
    assert student_accuracy(weight, told) == ((delta @ weight) > 0).float().mean()
    assert student_accuracy(weight, told) == pytest.approx(1 - student_accuracy(-weight, told))


def test_with_true_labels_the_student_is_the_bradley_terry_model():
    pairs, strength = some_pairs(), 0.5
    told = turned_pairs(pairs, 0)
    student = fit_student(told.delta, told.first.float(), StudentConfig(strength=strength, steps=1500, lr=0.02))
    torch.testing.assert_close(student, fit_reward_model(pairs, strength).weight, atol=1e-2, rtol=2e-2)
    other = turned_pairs(pairs, 7)
    again = fit_student(other.delta, other.first.float(), StudentConfig(strength=strength, steps=1500, lr=0.02))
    torch.testing.assert_close(student, again, atol=1e-2, rtol=2e-2)


def test_full_confidence_ignores_the_weak_labels_but_for_their_balance():
    told = turned_pairs(some_pairs(), 0)
    how = StudentConfig(confidence=1.0, warm_up=0.0, steps=30)
    weak = torch.rand(300, generator=torch.Generator().manual_seed(0))
    one, two = (fit_student(told.delta, w, how) for w in (weak, weak.flip(0)))
    torch.testing.assert_close(one, two)


def test_groups_are_in_one_part_each():
    group = torch.arange(90) // 3 * 5
    parts = three_parts(group, 0)
    assert sorted(torch.cat(parts).tolist()) == list(range(90))
    names = [set(group[rows].tolist()) for rows in parts]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert [len(n) for n in names] == [10, 11, 9]
    assert torch.equal(three_parts(group, 0)[1], parts[1]) and not torch.equal(three_parts(group, 1)[1], parts[1])
    with pytest.raises(DataError, match="three parts"):
        three_parts(torch.zeros(9), 0)


def test_the_gap_recovered():
    assert gap_recovered([0.5, 0.6], [0.6, 0.7], [0.7, 0.8]) == pytest.approx(0.5)
    assert math.isnan(gap_recovered([0.7], [0.7], [0.7]))
    low, high = gap_recovered_interval([0.5] * 4, [0.6] * 4, [0.7] * 4)
    assert low == high == pytest.approx(0.5)
    g = np.random.default_rng(0)
    weak, noise = 0.6 + 0.01 * g.normal(size=8), 0.01 * g.normal(size=8)
    low, high = gap_recovered_interval(weak, weak + 0.05 + noise, weak + 0.1)
    assert low < gap_recovered(weak, weak + 0.05 + noise, weak + 0.1) < high and 0.3 < low < high < 0.7
    assert all(map(math.isnan, gap_recovered_interval(weak, weak, weak + noise - noise.mean())))
    assert all(map(math.isnan, gap_recovered_interval([0.5], [0.6], [0.7])))


def test_labels_that_are_none_are_refused():
    delta = torch.randn(5, 3)
    for bad in (torch.tensor([0.0, 1, 2, 0, 1]), torch.tensor([0.5, 0.5]), torch.full((5,), torch.nan)):
        with pytest.raises(DataError, match="probability"):
            fit_student(delta, bad)
    with pytest.raises(ValueError, match="confidence"):
        StudentConfig(confidence=1.5)
