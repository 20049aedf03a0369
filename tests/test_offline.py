"""Learning from a pool: A-LoL by enumeration, dense DPO by hand and by differences, revisions and verdicts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.core.errors import DataError
from dualppo.methods.baselines import dpo_loss
from dualppo.writing.cached_head import toy_policy
from dualppo.writing.constitution import (
    PRINCIPLES,
    Constitution,
    ConstitutionConfig,
    critique_request,
    own_verdict,
    pair_agreement,
    question_of,
    revised,
    revision_request,
    yes_share,
)
from dualppo.writing.course import WRITERS, teach, writer_row
from dualppo.writing.dense import Dense, DenseConfig, corrected_tokens, dense_log_prob
from dualppo.writing.offline import Offline, OfflineConfig, offline_losses, token_weights, worth_of
from dualppo.writing.prompts import Prompt, toy_task
from dualppo.writing.writer import Writer, WriterConfig, writer_of

SHORT = {"iterations": 3, "prompts": 3, "group": 3, "longest": 4, "lr": 1e-2, "pool": 8}
VARIANTS = ("alol", "alol_ref_free", "alol_seq", "alol_kl", "rlol", "wbc", "rgold", "nll")


def drawn(seed: int, n: int = 5, t: int = 4):
    g = torch.Generator().manual_seed(seed)
    logp, start = (-torch.rand(2, n, t, generator=g, dtype=torch.double) * 3).unbind()
    mask = torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)
    return logp, start, mask, torch.rand(n, generator=g, dtype=torch.double)


# ---- the losses of replies


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_weights_that_stand_still(variant):
    """By central differences of the loss in which the importance weights are numbers."""
    logp, start, mask, worth = drawn(1)
    logp.requires_grad_()
    (slope,) = torch.autograd.grad(offline_losses(variant, logp, start, mask, worth).sum(), logp)
    weights, eps = token_weights(variant, logp, start, mask), 1e-6
    beta = 0.05 if variant == "alol_kl" else 0.0

    def frozen(values):
        return float((-worth[:, None] * weights * values * mask).sum() + beta * ((values - start) * mask).sum())

    for i in range(logp.numel()):
        step = torch.zeros(logp.numel(), dtype=torch.double)
        step[i] = eps
        up, down = (frozen(logp.detach() + sign * step.view_as(logp)) for sign in (1, -1))
        assert slope.flatten()[i].item() == pytest.approx((up - down) / (2 * eps), abs=1e-7)
    assert not weights.requires_grad


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_ratios_stay_in_their_range(seed, clip):
    logp, start, mask, _ = drawn(seed)
    for variant in ("alol", "alol_seq", "rlol"):
        weights = token_weights(variant, logp, start, mask, clip)
        assert weights.min() >= 1 - clip - 1e-12 and weights.max() <= 1 + clip + 1e-12
        assert torch.equal(token_weights(variant, start, start, mask, clip), torch.ones_like(start))
    padded = torch.where(mask, logp, 7.0), torch.where(mask, start, -3.0)
    for variant in VARIANTS:
        one, two = (offline_losses(variant, a, b, mask, torch.ones(5)) for a, b in ((logp, start), padded))
        assert torch.allclose(one, two)


def test_alol_climbs_the_printed_objective_and_the_released_step_its_square():
    """Five one-token replies, drawn as released or alike: the mean step over what is drawn is the printed gradient, or
    that of (A⁺)²."""
    z = torch.tensor([0.0, 0.5, -0.4, 0.3, 0.1], dtype=torch.double, requires_grad=True)
    start = torch.tensor([0.2, 0.0, 0.0, 0.1, -0.3], dtype=torch.double).log_softmax(0)
    reward = torch.tensor([0.9, 0.4, 0.1, 0.6, 0.7], dtype=torch.double)
    better = worth_of("alol", reward, start.exp() @ reward)
    ratio = (z.detach().log_softmax(0) - start).exp().clamp(0.1, 1.9)
    logp, mask = z.log_softmax(0), torch.ones(5, 1, dtype=torch.bool)
    losses = offline_losses("alol", logp[:, None], start[:, None], mask, better)
    for chances, power in ((start.exp() * (better > 0), 1), (start.exp() * better, 2)):
        (step,) = torch.autograd.grad((chances / chances.sum()) @ losses, z, retain_graph=True)
        printed = (start.exp() * better**power * ratio) @ logp
        (slope,) = torch.autograd.grad(printed, z, retain_graph=True)
        assert torch.allclose(-step * chances.sum(), slope)


def test_only_the_better_half_is_drawn():
    lesson = toy_task().seen()
    for priority in (True, False):
        writer = Offline(lesson, toy_policy(), OfflineConfig(**SHORT, priority=priority), 0)
        reward = (writer.pool.reward @ writer.weights).view(-1, 3)
        advantage = (reward - reward.mean(1, keepdim=True)).flatten()
        assert torch.allclose(writer.worth, advantage.clamp(min=0), atol=1e-5)
        rows = torch.cat([writer.pick() for _ in range(300)])
        assert (advantage[rows] > 0).all() and len(rows) == 300 * 9
        share = torch.bincount(rows, minlength=24) / len(rows)
        expected = writer.worth if priority else (writer.worth > 0).float()
        assert (share - expected / expected.sum()).abs().max() < 0.05
    every = Offline(lesson, toy_policy(), OfflineConfig(**SHORT, variant="nll"), 0)
    assert (every.worth == 1).all()


def test_the_pool_is_the_starts_and_scored_once():
    calls = []

    def counted(prompts, replies):
        calls.append(len(replies))
        return torch.tensor([float(len(reply)) for reply in replies]) / 40

    lesson = replace(toy_task().seen(), rewards={"safe": counted})
    writer = Offline(lesson, toy_policy(), OfflineConfig(**SHORT, weights=(1.0,)), 0)
    for _ in range(3):
        writer.step()
    assert calls == [24]
    begun = toy_policy()
    read = begun.prefill([p.text for p in lesson.train])[writer.pool.asked]
    assert torch.allclose(begun.reference(read, writer.pool.replies), writer.pool.start, atol=1e-4)
    assert list(writer.pool.texts) == begun.texts(writer.pool.replies)


def test_a_pool_without_a_better_half_is_refused():
    lesson = replace(toy_task().seen(), rewards={"safe": lambda prompts, replies: torch.full((len(replies),), 0.3)})
    for config in (OfflineConfig(**SHORT), DenseConfig(**SHORT), ConstitutionConfig(**SHORT, minibatch=3, critique=3)):
        with pytest.raises(DataError, match="raise pool"):
            writer_of(config)(lesson, toy_policy(), config, 0)


def test_what_a_pool_cannot_do_is_refused():
    for changes in ({"mask": "zero"}, {"rule": "minmax"}, {"mask": "rejection"}):
        with pytest.raises(ValueError, match="mask"):
            OfflineConfig(**changes)
    with pytest.raises(ValueError, match="alol"):
        WriterConfig(loss="offline")
    with pytest.raises(ValueError, match="loss"):
        OfflineConfig(loss="clip")
    shared = toy_policy()
    shared.processes = 2
    for name in ("alol", "ddpo", "constitution"):
        with pytest.raises(DataError, match="one process"):
            teach(toy_task(), shared, replace(writer_row(name).config, **SHORT), 0)


def test_every_configuration_has_its_learner():
    for row in WRITERS.values():
        made = writer_of(row.config)
        assert issubclass(made, Writer) and (made is Writer) == (type(row.config) is WriterConfig)


# ---- dense DPO


def test_segments_by_hand():
    assert corrected_tokens([1, 2, 3, 4, 5], [1, 2, 3, 9, 5]) == ([False] * 3 + [True] * 2,) * 2
    assert corrected_tokens([1, 2, 3], [1, 2, 3]) == ([False] * 3,) * 2
    assert corrected_tokens([1, 2, 3, 4, 5, 6], [4, 5, 6]) == ([True] * 3 + [False] * 3, [False] * 3)
    assert corrected_tokens([1, 2], [1, 2]) == ([True] * 2,) * 2
    assert corrected_tokens([1, 2], [1, 2], 2) == ([False] * 2,) * 2
    assert corrected_tokens([], [1]) == ([], [True])


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_what_is_unchanged_is_in_both(one, other, least):
    first, second = corrected_tokens(one, other, least)
    assert len(first) == len(one) and len(second) == len(other)
    kept = [[x for x, gone in zip(tokens, marks) if not gone] for tokens, marks in ((one, first), (other, second))]
    assert kept[0] == kept[1] and (not kept[0] or len(kept[0]) >= least)


def test_dense_dpo_is_dpo_where_nothing_weighs_more():
    logp, start, mask, _ = drawn(2, 4)
    changed = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    plain = (logp * mask).sum(1)
    assert torch.allclose(dense_log_prob(logp, mask, changed, 1.0, averaged=False), plain)
    assert torch.allclose(dense_log_prob(logp, mask, changed, 1.0), plain / mask.sum(1))
    assert torch.allclose(dense_log_prob(torch.ones(4, 4), mask, changed, 5.0), torch.ones(4))
    heavy = dense_log_prob(logp, mask, changed, 3.0, averaged=False)
    assert torch.allclose(heavy - plain, 2 * (logp * mask * changed).sum(1))


def test_the_gradient_of_dense_dpo_by_differences():
    logp, start, mask, _ = drawn(3, 2)
    other, begun, seen, _ = drawn(4, 2)
    changed = torch.tensor([[True, False, True, False], [False, True, True, False]])
    gamma, beta, eps = 5.0, 0.5, 1e-6

    def loss(values):
        parts = ((values, mask), (other, seen), (start, mask), (begun, seen))
        return dpo_loss(*(dense_log_prob(x, m, changed, gamma) for x, m in parts), beta)

    values = logp.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(values), values)
    for i in range(logp.numel()):
        step = torch.zeros(logp.numel(), dtype=torch.double)
        step[i] = eps
        up, down = (float(loss(logp + sign * step.view_as(logp))) for sign in (1, -1))
        assert slope.flatten()[i].item() == pytest.approx((up - down) / (2 * eps), abs=1e-7)
    weight = torch.where(changed, gamma, 1.0).double() * mask
    by_hand = weight / weight.sum(1, keepdim=True)
    assert torch.allclose(slope / slope.sum(1, keepdim=True), by_hand)  # a corrected token moves γ times as far


def test_corrections_share_their_beginning_and_the_reward_orders_them():
    lesson = toy_task().seen()
    writer = Dense(lesson, toy_policy(), DenseConfig(**SHORT | {"longest": 6, "pool": 20}), 0)
    better, worse = writer.better, writer.worse
    assert torch.equal(better.asked, worse.asked)
    assert ((better.reward - worse.reward) @ writer.weights > 0).all()
    same = (better.replies.tokens == worse.replies.tokens).int().cumprod(1).sum(1)
    assert (same >= 3).any() and (same[same < 6] < 6).any()
    for row, agreed in enumerate(same.tolist()):
        if agreed >= 3:
            assert not writer.corrected[0][row, :agreed].any() and not writer.corrected[1][row, :agreed].any()
    references = Dense(lesson, toy_policy(), DenseConfig(**SHORT, correction="reference"), 0)
    assert set(references.better.texts) == {"i like good tea thanks"}
    assert torch.isfinite(torch.tensor(references.step()["loss"]))


# ---- a constitution


def test_requests_hold_what_they_ask_about():
    prompt = Prompt("how are you")
    for kind in PRINCIPLES:
        assert all(kind.critique in r and "fine" in r for r in [critique_request(kind, prompt, "fine")])
        assert "too short" in revision_request(kind, prompt, "fine", "too short") and kind.revise
        assert "critic" not in revision_request(kind, prompt, "fine", "")
        assert kind.question in question_of(kind, prompt, "fine") and prompt.text in question_of(kind, prompt, "fine")
    assert len({kind.name for kind in PRINCIPLES}) == len(PRINCIPLES)
    long = Prompt("word " * 5000)
    assert len(question_of(PRINCIPLES[0], long, "fine")) < 1000


def test_revisions_are_a_pure_function_of_the_dice():
    policy, prompts = toy_policy(), [Prompt("how are you")] * 5
    dice = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    one, two = (revised(policy, prompts, ["good"] * 5, PRINCIPLES, (dice[0], dice[1]), n) for n in (2, 12))
    assert one == two and len(one.revisions) == len(one.critiques) == 5


def test_a_verdict_is_a_share_and_the_starts():
    policy = toy_policy()
    requests = ["how are you", "be rude"]
    share = yes_share(policy, requests, ("good", "bad"))
    turned = yes_share(policy, requests, ("bad", "good"))
    assert torch.allclose(share + turned, torch.ones(2)) and ((share > 0) & (share < 1)).all()
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3
    assert torch.allclose(yes_share(policy, requests, ("good", "bad")), share)
    with pytest.raises(DataError, match="Yes"):
        own_verdict(policy)([Prompt("a")], ["b"])
    assert pair_agreement(torch.tensor([[0.2, 0.1]]), torch.tensor([[0.0, 1.0]])) == (0, 1)
    assert pair_agreement(torch.tensor([[0.1, 0.1]]), torch.tensor([[0.0, 1.0]])) == (0, 0)


def test_the_first_stage_imitates_better_revisions_and_the_second_goes_on():
    settings = SHORT | {"minibatch": 3, "pool": 16, "critique": 3, "imitated": 2}
    writer = Constitution(toy_task().seen(), toy_policy(), ConstitutionConfig(**settings), 0)
    assert len(writer.texts) == int(writer.better.sum()) == len(writer.targets) > 0
    told = [writer.lesson.train[i] for i in writer.targets.tolist()]
    assert all(writer.policy.writes(text) for text in writer.texts) and len(told) == len(writer.texts)
    rows = [writer.step() for _ in range(3)]
    assert ["help" in row for row in rows] == [False, False, True]
