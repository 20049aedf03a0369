"""The rules for the weights: what a floor does, and what it must not do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.papers.tables import _about_multiplier
from dualppo.losses.weights import Dynamic, Hypergradient, MinMax, Signal, SimplexAscent, floored_simplex


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6), st.floats(0.0, 0.4))
def test_a_floor_is_a_projection(values, floor):
    """F5: mixed in again at every step, a floor of .05 let no weight above .79 stand."""
    given_, least = torch.tensor(values, dtype=torch.double), min(floor, 1 / len(values))
    w, plain = floored_simplex(given_, floor), given_ / given_.sum()
    assert w.sum().item() == pytest.approx(1) and w.min().item() >= least - 1e-12
    ratio = (w / given_)[w > least + 1e-9]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))  # those above keep their ratio
    assert torch.allclose(floored_simplex(w, floor), w)  # a second time changes nothing
    assert plain.min() < least or torch.allclose(w, plain)  # nor does a floor that nothing touches


def test_a_floor_can_be_reached():
    assert torch.equal(floored_simplex(torch.tensor([1.0, 0.0]), 0.05), torch.tensor([0.95, 0.05]))


@pytest.mark.parametrize(
    "rule", [Hypergradient(), MinMax(), SimplexAscent(), Dynamic()], ids=lambda rule: type(rule).__name__
)
def test_where_nothing_pulls_the_weights_stay(rule):
    """The equilibrium of a rule is where its step vanishes, floor or not."""
    still = Signal(torch.full((2,), 0.5), torch.zeros(2), torch.ones(2), 0.1, lambda u: torch.ones(2))
    w = torch.tensor([0.9, 0.1])
    for _ in range(100):
        w = rule(w, still)
    assert torch.allclose(w, torch.tensor([0.9, 0.1]), atol=1e-4)


def test_a_table_says_where_the_multiplier_ended_at_its_cap():
    free, capped = ({"facts": {"lambda_at_largest": at}} for at in (False, True))
    rows = [{"method": "ppo_lag", "setting": "stress", "results": [capped, free, capped]}]
    rows += [{"method": "sft", "setting": "stress", "results": [{"facts": {}}, {}]}]
    said = _about_multiplier(rows)
    assert "λ ended at its cap" in said and "stress (2 of 3 seeds)." in said and "SFT" not in said
    assert _about_multiplier([{"method": "ppo_lag", "setting": "stress", "results": [free]}]) == ""
