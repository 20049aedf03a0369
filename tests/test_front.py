"""The exact front against linear programming and brute force, on random problems with ties."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog

from dualppo.exact.front import front, hypervolume, kl_optimum

grids = st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


def problem(g: torch.Generator, states: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Harm and help on a coarse grid, so that there are ties."""
    return tuple(torch.randint(0, 6, (states, n), generator=g).double() / 5 for _ in range(2))


@settings(max_examples=60, deadline=None)
@given(grids, st.integers(1, 4), st.integers(1, 5), st.floats(0, 1))
def test_front_equals_linear_programming(g, states, n, budget):
    harm, help_ = problem(g, states, n)
    program = linprog(
        -help_.flatten().numpy() / states,
        A_ub=harm.flatten().numpy()[None] / states,
        b_ub=[budget],
        A_eq=np.kron(np.eye(states), np.ones(n)),
        b_eq=np.ones(states),
        bounds=(0, 1),
    )
    ours = front(harm, help_).help_at(budget).item()
    if program.status == 0 and budget >= harm.amin(1).mean() + 1e-9:
        assert ours == pytest.approx(-program.fun, abs=1e-7)
    elif budget < harm.amin(1).mean() - 1e-7:
        assert np.isnan(ours) and program.status == 2


@settings(max_examples=40, deadline=None)
@given(grids, st.integers(1, 3), st.integers(1, 4))
def test_no_policy_lies_above_the_front_and_its_corners_are_policies(g, states, n):
    harm, help_ = problem(g, states, n)
    line, rows = front(harm, help_), range(states)
    every = [
        (harm[rows, c].mean().item(), help_[rows, c].mean().item()) for c in itertools.product(range(n), repeat=states)
    ]
    assert all(line.regret(x, y) > -1e-9 for x, y in every)
    assert all(
        min(abs(x - a) + abs(y - b) for a, b in every) < 1e-9 for x, y in zip(line.harm.tolist(), line.help.tolist())
    )
    assert (line.harm.diff() >= 0).all() and (line.help.diff() >= -1e-12).all() and (line.price.diff() <= 0).all()


@settings(max_examples=40, deadline=None)
@given(grids, st.integers(1, 5), st.integers(2, 6))
def test_the_front_on_a_safe_set_is_that_of_the_allowed_candidates(g, states, n):
    harm, help_ = problem(g, states, n)
    allowed = torch.rand(states, n, generator=g) < 0.6
    allowed[:, 0] = True
    line = front(harm, help_, allowed)
    worse = front(
        torch.where(allowed, harm, 1.0), torch.where(allowed, help_, -1.0)
    )  # a forbidden one replaced by a useless one
    for budget in line.harm[0] + torch.linspace(1e-6, 1, 7):
        assert line.help_at(budget).item() == pytest.approx(worse.help_at(budget).item(), abs=1e-9)
    assert line.help[-1] <= front(harm, help_).help[-1] + 1e-12


@settings(max_examples=30, deadline=None)
@given(grids, st.floats(0.05, 5))
def test_nothing_beats_the_closed_form_of_the_kl_optimum(g, beta):
    reference, value = torch.randn(4, 6, generator=g).double().log_softmax(1), torch.rand(4, 6, generator=g).double()

    def gain(logp):
        return (logp.exp() * value).sum(1) - beta * (logp.exp() * (logp - reference)).sum(1)

    best = kl_optimum(reference, value, beta)
    assert torch.allclose(gain(best), beta * torch.logsumexp(reference + value / beta, 1))
    assert (gain((best + 0.3 * torch.randn(4, 6, generator=g)).log_softmax(1)) <= gain(best) + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(grids, st.integers(1, 6))
def test_hypervolume_equals_counting_the_dominated_area(g, n):
    harm, help_ = (torch.randint(0, 10, (n,), generator=g) / 10 for _ in range(2))
    cells = [(x, y) for x in range(10) for y in range(10)]
    dominated = sum(
        any(h <= x / 10 + 1e-6 and u >= (y + 1) / 10 - 1e-6 for h, u in zip(harm.tolist(), help_.tolist()))
        for x, y in cells
    )
    assert hypervolume(harm.tolist(), help_.tolist(), (1.0, 0.0)) == pytest.approx(dominated / 100, abs=1e-6)
