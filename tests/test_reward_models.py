"""Bradley-Terry reward models: the loss, the fit, the shipped pairs, gold pairs, and the published accuracies."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import write_toy

from dualppo.bench.candidates import CLEAN, STRESS
from dualppo.core.errors import DataError
from dualppo.bench.env import make_envs
from dualppo.bench.features import REFUSAL, load_features
from dualppo.bench.reward_models import (
    STRENGTH,
    Pairs,
    RewardModel,
    accuracy_of,
    bradley_terry_loss,
    cross_fitted,
    fit_reward_model,
    gold_pairs,
    load_pairs,
    margins,
    pair_accuracy,
    pair_features,
    reward_models,
    shipped_pairs,
)

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "outputs" / "published" / "reward_models.json"


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_pairs(n: int, d: int = 6, groups: int = 50) -> Pairs:
    return Pairs(unit(n, d, seed=1), unit(n, d, seed=2), unit(n, d, seed=3), torch.arange(n) % groups)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return load_features(write_toy(tmp_path_factory.mktemp("toy") / "toy.safetensors", dialogues=440, turns=2))


@pytest.fixture(scope="module", params=[CLEAN, STRESS], ids=lambda s: s.name)
def splits(toy, request):
    return make_envs(toy, request.param, 0)


def test_loss_is_eq_3_2_and_its_gradient():
    c, r = (
        torch.randn(20, generator=torch.Generator().manual_seed(s), dtype=torch.double, requires_grad=True)
        for s in (0, 1)
    )
    loss = bradley_terry_loss(c, r)
    torch.testing.assert_close(loss, -torch.log(1 / (1 + torch.exp(r - c))).mean())
    loss.backward()
    torch.testing.assert_close(c.grad, -torch.sigmoid(r - c).detach() / 20)
    torch.testing.assert_close(r.grad, -c.grad)
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).isfinite(), (
        "no overflow where the model is surely wrong"
    )


def test_fit_is_the_minimum_of_the_penalised_loss():
    pairs, strength = random_pairs(300), 0.05
    model = fit_reward_model(pairs, strength)
    delta = (pair_features(pairs.prompt, pairs.chosen) - pair_features(pairs.prompt, pairs.rejected)).double()
    scale = delta.square().mean(0).sqrt()
    w = (model.weight.double() * scale).requires_grad_()
    (bradley_terry_loss(delta / scale @ w, torch.zeros(300).double()) + strength / 2 * w.square().sum()).backward()
    assert w.grad.abs().max() < 1e-4
    flipped = fit_reward_model(Pairs(pairs.prompt, pairs.rejected, pairs.chosen, pairs.group), strength)
    torch.testing.assert_close(flipped.weight, -model.weight, rtol=1e-2, atol=1e-2)
    assert torch.equal(fit_reward_model(pairs, strength).weight, model.weight)
    assert fit_reward_model(pairs, 10.0).weight.norm() < model.weight.norm()


def test_fit_recovers_planted_preferences():
    planted, x, a, b = (
        RewardModel(torch.randn(19, generator=torch.Generator().manual_seed(5))),
        *(unit(4000, 6, seed=s) for s in (1, 2, 3)),
    )
    first = torch.rand(4000, generator=torch.Generator().manual_seed(9)) < torch.sigmoid(
        6 * (planted(x, a) - planted(x, b))
    )
    told = Pairs(x, torch.where(first[:, None], a, b), torch.where(first[:, None], b, a), torch.arange(4000))
    found, new = fit_reward_model(told, 1e-4), Pairs(*(unit(500, 6, seed=s) for s in (7, 8, 9)), torch.arange(500))
    assert torch.corrcoef(torch.stack([margins(planted, new), margins(found, new)]))[0, 1] > 0.98
    slope = (margins(planted, new) * margins(found, new)).sum() / margins(planted, new).square().sum()
    assert 5 < slope < 7, "σ of the margin is the probability that generated the preferences"


def test_dead_features_get_no_weight_and_bad_input_a_sentence():
    pairs = random_pairs(100)
    dead = Pairs(
        *(torch.cat([v, torch.zeros(100, 1)], 1) for v in (pairs.prompt, pairs.chosen, pairs.rejected)), pairs.group
    )
    assert (fit_reward_model(dead, 0.1).weight[[6, 13, 20]] == 0).all()
    with pytest.raises(DataError, match="strength"):
        fit_reward_model(pairs, 0.0)
    with pytest.raises(DataError, match="at least one pair"):
        fit_reward_model(pairs.take(torch.zeros(100, dtype=torch.bool)), 0.1)
    with pytest.raises(DataError, match="shape"):
        pair_features(pairs.prompt, pairs.chosen[:3])
    with pytest.raises(DataError, match="columns"):
        RewardModel(torch.ones(7))(pairs.prompt, pairs.chosen)


def test_candidates_are_the_calls_one_by_one():
    x, y, model = (
        unit(5, 384),
        unit(5, 7, 384, seed=1),
        RewardModel(torch.randn(1153, generator=torch.Generator().manual_seed(2))),
    )
    torch.testing.assert_close(
        model.candidates(x, y).flatten(), model(x.repeat_interleave(7, 0), y.flatten(0, 1)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["hh_harmless", "begin"])
def test_shipped_pairs_are_whole(name):
    pairs, (tensors, card) = shipped_pairs(name), load_pairs()
    counts = card["sets"][name]["counts"]
    assert len(pairs) == counts["pairs"] and len(pairs.group.unique()) == counts["groups"] == pairs.group.max() + 1
    for v in (pairs.prompt, pairs.chosen, pairs.rejected):
        assert v.shape == (len(pairs), 384) and v.dtype == torch.float32 and v.isfinite().all()
        torch.testing.assert_close(v.norm(dim=1), torch.ones(len(pairs)))
    assert len(torch.unique(tensors[f"{name}.pairs"], dim=0)) > 0.99 * len(pairs), (
        "a pair is there twice only where people labelled the same texts twice"
    )
    assert ((pairs.chosen - pairs.rejected).norm(dim=1) > 0).float().mean() > 0.99
    assert {v.dtype for v in tensors.values()} <= {torch.int8, torch.float16, torch.int32}, "numbers only"
    assert (ROOT / "dualppo" / "assets" / "pairs.safetensors").stat().st_size <= 6e6


def test_shipped_pairs_of_another_file_are_refused(tmp_path):
    for name in ("pairs.json", "pairs.safetensors"):
        (tmp_path / name).write_bytes((ROOT / "dualppo" / "assets" / name).read_bytes())
    assert load_pairs(tmp_path)[1]["sets"]
    (tmp_path / "pairs.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match="sha256"):
        load_pairs(tmp_path)
    with pytest.raises(DataError, match="hh_harmless, begin"):
        shipped_pairs("shp")


def test_gold_pairs_reject_neither_gold_nor_refusal(splits):
    env = splits.train
    pairs, has = gold_pairs(env, 3, per_state=4), (env.gold >= 0).nonzero().squeeze(1)
    assert len(pairs) == 4 * len(has)
    state = has.repeat_interleave(4)
    torch.testing.assert_close(pairs.prompt, env.anchor[state])
    torch.testing.assert_close(pairs.chosen, env.pool[env.cand[state, env.gold[state]]])
    assert torch.equal(pairs.group, env.dialogue[state])
    at = (env.pool[env.cand[state]] - pairs.rejected[:, None]).abs().amax(2) == 0
    at &= env.kind[state] != REFUSAL
    at[torch.arange(len(state)), env.gold[state]] = False
    assert at.any(1).all(), "every rejected reply is another candidate of its state and no refusal"
    refusals = env.pool[env.cand[env.kind == REFUSAL]].unique(dim=0)
    assert (pairs.rejected @ refusals.T).max() < 1 - 1e-4
    first = pairs.rejected.view(len(has), 4, -1)
    assert ((first[:, :, None] - first[:, None]).abs().amax(3) == 0).sum((1, 2)).float().mean() < 4.5, (
        "drawn without repetition"
    )
    assert torch.equal(gold_pairs(env, 3, 4).rejected, pairs.rejected) and not torch.equal(
        gold_pairs(env, 4, 4).rejected, pairs.rejected
    )
    assert len(gold_pairs(env, 0, per_state=1000)) == (env.kind[has] != REFUSAL).sum() - len(has)


def test_reward_models_see_replies_of_the_training_environment_only(splits):
    env = splits.train
    models = reward_models(env, 0)
    assert set(models) == {"help", "safe"} == set(STRENGTH)
    blind = replace(
        env,
        x=env.x * 0,
        reward=env.reward * 0,
        p_harm=env.p_harm * 0,
        p_grade=env.p_grade * 0,
        unsafe=~env.unsafe,
        good=1 - env.good,
        similarity=env.similarity * 0,
        allowed=~env.allowed,
    )
    for name, again in reward_models(blind, 0).items():
        assert torch.equal(again.weight, models[name].weight), "no reward, grade or label is looked at"
    assert not torch.equal(reward_models(env, 1)["help"].weight, models["help"].weight)
    assert torch.equal(reward_models(env, 1)["safe"].weight, models["safe"].weight)
    assert pair_accuracy(models["help"], gold_pairs(splits.test, 0))["low"] > 0.5


def test_accuracy_has_the_exact_interval():
    found = accuracy_of(torch.tensor([1.0] * 8 + [-1.0] * 2))
    assert (found["n"], found["accuracy"]) == (10, 0.8)
    assert found["low"] == pytest.approx(0.44390, abs=1e-4) and found["high"] == pytest.approx(0.97479, abs=1e-4)
    assert accuracy_of(torch.zeros(5))["accuracy"] == 0, "a tie is not right"


def test_cross_fitting_keeps_groups_together_and_scores_noise_as_noise():
    pairs = random_pairs(400, groups=40)
    apart, seen = (
        (m > 0).float().mean() for m in (cross_fitted(pairs, 1e-3), margins(fit_reward_model(pairs, 1e-3), pairs))
    )
    assert 0.4 < apart < 0.56 < seen
    twice = Pairs(*(torch.cat([v, v]) for v in vars(pairs).values()))
    twice = replace(twice, group=torch.arange(400).repeat(2))
    assert (cross_fitted(twice, 0.01) > 0).float().mean() < 0.6, "a copy in the same group is never learnt from"
    both = pairs.join(pairs)
    assert len(both) == 800 and not torch.isin(both.group[400:], pairs.group).any()


def test_published_numbers_are_of_these_pairs_and_strengths():
    report, card = json.loads(PUBLISHED.read_text()), load_pairs()[1]
    assert report["pairs_sha256"] == card["sha256"]
    assert (
        {k: v["best"] for k, v in report["strength"].items()}
        == {k: v["used"] for k, v in report["strength"].items()}
        == STRENGTH
    )
    for rows in report["settings"].values():
        for cell in (c for row in rows.values() for c in row.values() if c):
            assert cell["low"] <= cell["accuracy"] <= cell["high"]
        assert (
            rows["safe"]["hh_harmless"]["low"] > 0.5
            and rows["help"]["begin"]["low"] > rows["cosine"]["begin"]["accuracy"]
        )
        assert rows["harm_head"]["diasafety"] is None, "fitted on them"
    hh = shipped_pairs("hh_harmless")
    again = accuracy_of(cross_fitted(hh, STRENGTH["safe"]))["accuracy"]
    assert again == pytest.approx(report["settings"]["stress"]["safe"]["hh_harmless"]["accuracy"], abs=0.005)


def test_tool_reads_dialogues(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("pairs_tool", ROOT / "tools" / "pairs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sys.modules.pop("assets", None)
    assert tool.turns("\n\nHuman: one  two\n\nthree\n\nAssistant: four") == [
        ("Human", "one two three"),
        ("Assistant", "four"),
    ]
    assert tool.distinct(["b", "a", "b"]) == (["b", "a"], [0, 1, 0])
    assert tool.equal_averages()["columns of RMhelp"]["SteamSHP-XL"] == pytest.approx((76.9 + 66.8 + 63.4) / 3)
