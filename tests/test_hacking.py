"""Best of n, exactly: against enumeration of all draws, and the known bound on its KL."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dualppo.papers.hacking import best_of_n
from dualppo.losses.surrogate import kl_divergence


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(1, 3))
def test_best_of_n_equals_enumerating_all_draws(seed, candidates, n):
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(1, candidates, generator=g).log_softmax(1)
    proxy = torch.randint(0, 3, (1, candidates), generator=g).float()
    kept = torch.zeros(candidates)
    for draw in itertools.product(range(candidates), repeat=n):
        best = max(proxy[0, j] for j in draw)
        first = next(j for j in draw if proxy[0, j] == best)
        kept[first] += math.prod(start[0, j].exp().item() for j in draw)
    assert torch.allclose(best_of_n(start, proxy, n).exp()[0], kept, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1, 30))
def test_its_kl_stays_below_the_known_bound(seed, n):
    g = torch.Generator().manual_seed(seed)
    start, proxy = torch.randn(5, 12, generator=g).log_softmax(1), torch.rand(5, 12, generator=g)
    assert (kl_divergence(best_of_n(start, proxy, n), start) <= math.log(n) - (n - 1) / n + 1e-4).all()


def test_the_proxy_only_rises():
    g = torch.Generator().manual_seed(0)
    start, proxy = torch.randn(50, 20, generator=g).log_softmax(1), torch.rand(50, 20, generator=g)
    means = [(best_of_n(start, proxy, n).exp() * proxy).sum(1).mean().item() for n in (1, 2, 4, 64, 4096)]
    assert means == sorted(means) and means[-1] == pytest.approx(proxy.amax(1).mean().item(), abs=0.02)
