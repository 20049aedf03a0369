"""Several labels on one feature map: scikit-learn's ridge, R² by hand, the weighed sum, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from dualppo.bench.multi_label import (
    LabelledReplies,
    MultiLabel,
    choose_strengths,
    held_out_r2,
    labelled_candidates,
    ridge_heads,
)
from dualppo.bench.reward_models import pair_features
from dualppo.core.errors import DataError


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def made(n: int = 240, noise: float = 0.5, d: int = 5, seed: int = 0) -> LabelledReplies:
    x, y = unit(n // 4, d, seed=seed + 1).repeat_interleave(4, 0), unit(n, d, seed=seed + 2)
    g = torch.Generator().manual_seed(7)
    planted = torch.randn(2, 3 * d + 1, generator=g)
    values = pair_features(x, y) @ planted.T
    values += noise * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 3))
    state = torch.arange(n) // 4
    return LabelledReplies(("a", "b"), x, y, values, state, state // 3)


@pytest.mark.parametrize("strength", [1e-3, 0.3, 5.0])
def test_heads_are_scikit_learns_ridge(strength):
    data = made()
    phi = pair_features(data.prompt, data.reply).double().numpy()
    standard = StandardScaler().fit_transform(phi)
    other = Ridge(alpha=strength * len(phi)).fit(standard, data.values.double().numpy())
    said = ridge_heads(data, strength)(data.prompt, data.reply)
    np.testing.assert_allclose(said.numpy(), other.predict(standard), atol=2e-4)


def test_every_head_is_what_it_would_be_alone_at_its_own_strength():
    data = made()
    both = ridge_heads(data, [0.01, 1.0])
    for k, strength in enumerate((0.01, 1.0)):
        alone = replace(data, labels=data.labels[k : k + 1], values=data.values[:, k : k + 1])
        torch.testing.assert_close(ridge_heads(alone, strength).weight[0], both.weight[k], atol=1e-5, rtol=1e-4)


def test_the_gradient_vanishes_at_the_solution():
    data = made()
    heads = ridge_heads(data, 0.05)
    phi = pair_features(data.prompt, data.reply).double()
    scale = phi.std(0, correction=0)
    w = (heads.weight.double() * scale).requires_grad_()
    said = ((phi - phi.mean(0)) / scale) @ w.T + data.values.double().mean(0)
    (0.5 * (said - data.values).square().mean(0).sum() + 0.05 / 2 * w.square().sum()).backward()
    assert w.grad.abs().max() < 1e-5


def test_dead_features_get_no_weight():
    data = made()
    dead = [torch.cat([v, torch.zeros(len(v), 1)], 1) for v in (data.prompt, data.reply)]
    heads = ridge_heads(LabelledReplies(data.labels, *dead, data.values, data.state, data.group), 0.1)
    assert (heads.weight[:, [5, 11, 17]] == 0).all()


def test_r2_is_scikit_learns_and_within_states_ignores_what_is_common_to_them():
    data, new = made(), made(seed=20)
    heads = ridge_heads(data, 0.01)
    rows = held_out_r2(heads, new)
    said = heads(new.prompt, new.reply)
    for k, row in enumerate(rows):
        assert row["label"] == new.labels[k] and row["low"] <= row["r2"] <= row["high"]
        assert row["r2"] == pytest.approx(r2_score(new.values[:, k], said[:, k]), abs=1e-6)
        blocks = [v[:, k].view(-1, 4) for v in (new.values, said)]
        inner = [(v - v.mean(1, keepdim=True)).flatten() for v in blocks]
        assert row["within"] == pytest.approx(r2_score(*inner), abs=1e-5)
    shift = torch.randn(60, 1, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 0)
    moved = LabelledReplies(new.labels, new.prompt, new.reply, new.values + 10 * shift, new.state, new.group)
    for before, after in zip(rows, held_out_r2(heads, moved)):
        assert after["within"] == pytest.approx(before["within"], abs=1e-4) and after["r2"] < 0.5 * before["r2"]


def test_noise_holds_nothing_and_the_truth_everything():
    data = made(noise=0.0)
    assert all(row["r2"] > 0.999 for row in held_out_r2(ridge_heads(data, 1e-8), made(noise=0.0, seed=20)))
    g = torch.Generator().manual_seed(0)
    noise = replace(data, labels=("n",), values=torch.randn(240, 1, generator=g))
    other = replace(noise, reply=unit(240, 5, seed=50), values=torch.randn(240, 1, generator=g))
    assert held_out_r2(ridge_heads(noise, 1.0), other)[0]["r2"] < 0.05


def test_strengths_follow_the_noise():
    quiet, loud = (choose_strengths(made(600, noise=noise)) for noise in (0.05, 5.0))
    assert max(quiet) < min(loud)


def test_candidates_and_the_weighed_sum_are_the_calls_one_by_one():
    heads = ridge_heads(made(), 0.1)
    x, y = unit(3, 5, seed=5), unit(3, 4, 5, seed=6)
    flat = heads(x.repeat_interleave(4, 0), y.flatten(0, 1)).view(3, 4, 2)
    torch.testing.assert_close(heads.candidates(x, y), flat, atol=1e-4, rtol=1e-4)
    one = heads.weighed((0.3, 0.7)).candidates(x, y)
    expected = flat @ torch.tensor([0.3, 0.7])
    torch.testing.assert_close(one - one.mean(), expected - expected.mean(), atol=1e-4, rtol=1e-3)
    with pytest.raises(DataError, match="1 weights for 2 labels"):
        heads.weighed((1.0,))


def test_labels_of_an_environment(stress):
    env, states = stress.test, torch.tensor([4, 0, 9])
    data = labelled_candidates(env, {"help": env.column("help"), "safe": env.column("safe")}, states)
    assert len(data) == 60 and torch.equal(data.values[20:40, 0], env.column("help")[0])
    torch.testing.assert_close(data.reply[45], env.pool[env.cand[9, 5]])
    torch.testing.assert_close(data.prompt[45], env.anchor[9])
    assert data.group[45] == env.dialogue[9] and data.state[45] == 9
    with pytest.raises(DataError, match="shape"):
        labelled_candidates(env, {"help": env.column("help")[:, :3]}, states)
    with pytest.raises(DataError, match="finite"):
        labelled_candidates(env, {"help": env.column("help") * torch.nan}, states)


def test_bad_strengths_are_refused():
    for bad in (0.0, [0.1], [0.1, -1.0]):
        with pytest.raises(DataError, match="strengths > 0"):
            ridge_heads(made(), bad)
    assert isinstance(ridge_heads(made(), 1), MultiLabel)
