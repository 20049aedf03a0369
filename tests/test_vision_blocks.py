"""Blocks of the state: scale from training rows alone, absence that is not black, and a bench that stays."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualppo.bench.readable import tutorial_splits
from dualppo.core.errors import DataError
from dualppo.policies.policy import all_log_probs, make_policy
from dualppo.vision.blocks import (
    BlockSpec,
    ProjectionConfig,
    block_sensitivity,
    block_spec,
    concat,
    encode_block,
    encoded,
    encodes,
    fit_block,
    fit_projection,
    keep_blocks,
    told_apart,
    with_blocks,
    with_sight,
)


def some_block(seed: int, m: int = 30, **options):
    """A block of m rows from three sources, some of them absent."""
    draw = torch.Generator().manual_seed(seed)
    source, spec = torch.randint(3, (m,), generator=draw), BlockSpec("vision", 4, "made up", "source", True)
    values = torch.randn(m, 4, generator=draw) * (1 + source[:, None]) + 5 * source[:, None]
    return encoded(replace(spec, **options), values, torch.rand(m, generator=draw) < 0.8, source)


@given(st.integers(0, 1000))
def test_the_scale_comes_from_training_rows_alone(seed):
    block, train = some_block(seed), torch.arange(20)
    other = replace(block, values=torch.where(torch.arange(30)[:, None] < 20, block.values, 1e3 + block.values))
    a, b = (fit_block(one, train)(block) for one in (block, other))
    assert torch.equal(a, b)


@given(st.integers(0, 1000))
def test_each_source_has_mean_zero_and_scale_one_in_training(seed):
    block, train = some_block(seed), torch.arange(20)
    x = fit_block(block, train)(block)[:20]
    for source in range(3):
        rows = (block.source[:20] == source) & block.present[:20]
        if rows.sum() > 1:
            assert x[rows, :4].mean(0).abs().max() < 1e-4
            assert (x[rows, :4].std(0, unbiased=False) - 1).abs().max() < 1e-3


@given(st.integers(0, 1000))
def test_an_absent_row_is_zeros_whatever_lies_there(seed):
    block, train = some_block(seed), torch.arange(20)
    hidden = replace(block, values=torch.where(block.present[:, None], block.values, torch.full((30, 4), torch.nan)))
    x = fit_block(block, train)(hidden)
    assert torch.equal(x, fit_block(hidden, train)(block)) and (x[~block.present] == 0).all()
    assert torch.equal(x[:, 4], block.present.float())


def test_black_is_not_absent():
    block = some_block(0)
    black = replace(block, values=block.values.index_fill(0, torch.tensor([3]), 0.0), present=torch.ones(30).bool())
    gone = replace(black, present=torch.arange(30) != 3)
    fit = fit_block(block, torch.arange(20))
    assert not torch.allclose(fit(black)[3], fit(gone)[3]) and torch.equal(fit(black)[:3], fit(gone)[:3])


def test_concat_takes_any_subset_in_any_order():
    a, b = some_block(0), some_block(1, name="audio", standard="train")
    blocks = {"vision": a, "audio": b}
    fitted = {name: fit_block(block, torch.arange(20)) for name, block in blocks.items()}
    rows = torch.tensor([7, 3])
    both = concat(blocks, ("audio", "vision"), rows, fitted)
    assert torch.equal(both, torch.cat([concat(blocks, (n,), rows, fitted) for n in ("audio", "vision")], 1))
    with pytest.raises(DataError, match="did you mean vision"):
        concat(blocks, ("vison",), rows, fitted)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"values": torch.zeros(30, 3)}, r"give \[M, 4\]"),
        ({"values": torch.full((30, 4), torch.inf)}, "NaN or infinity"),
        ({"spec": BlockSpec("vision", 4)}, "not optional"),
        ({"source": torch.zeros(2)}, "give"),
    ],
)
def test_a_block_that_cannot_be_is_a_sentence(change, said):
    with pytest.raises(DataError, match=said):
        replace(some_block(0), **change)


def test_a_stranger_registers_a_block_by_a_decorator():
    @encodes("stranger", 2, optional=True)
    class Two:
        def encode(self, items):
            return torch.tensor([[float(len(i)), 1.0] for i in items])

    block = encode_block("stranger", ["ab", None])
    assert block.values[0].tolist() == [2, 1] and block.present.tolist() == [True, False]
    assert block_spec("vision").width == 1280 and block_spec("audio").width == 128 and block_spec("text").width == 384
    with pytest.raises(DataError, match="already is"):
        encodes("stranger", 2)(Two)


@pytest.fixture(scope="module")
def tutorial():
    splits = tutorial_splits()
    m = 1 + max(int(env.row.max()) for env in vars(splits).values() if hasattr(env, "row"))
    return splits, some_block(0, m)


def test_blocks_are_added_and_nothing_else_moves(tutorial):
    splits, block = tutorial
    blocked = with_blocks(splits, {"vision": block})
    for name in ("train", "dev_weights", "dev_stop", "test", "human"):
        old, new = getattr(splits, name), getattr(blocked.splits, name)
        if old is None:
            continue
        assert torch.equal(new.x[:, : old.x.shape[1]], old.x) and new.x.shape[1] == old.x.shape[1] + 5
        for field, value in vars(old).items():
            if field != "x" and isinstance(value, torch.Tensor):
                assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(getattr(new, field))), field
    kept = keep_blocks(blocked, ("text", "knowledge")).splits
    assert torch.equal(kept.test.x, splits.test.x) and torch.equal(kept.scale.mean, splits.scale.mean)
    with pytest.raises(DataError, match="rows"):
        with_blocks(splits, {"vision": block.take(torch.arange(3))})


def test_a_blind_start_does_not_change_with_the_picture_and_a_seeing_one_does(tutorial):
    splits, block = tutorial
    blocked = with_blocks(splits, {"vision": block})
    head = fit_projection(torch.randn(9, 5), torch.randn(9, 384))

    def start(env):
        return all_log_probs(make_policy("two_tower", env.x.shape[1], 384), env, "off")

    seeing = with_sight(blocked, "vision", head).test
    there = block.present[seeing.row]
    blind, seen = start(splits.test), start(seeing)
    assert torch.allclose(blind, start(blocked.splits.test))
    assert torch.allclose(blind[~there], seen[~there], atol=1e-5) and not torch.allclose(blind[there], seen[there])


def test_sensitivity_is_what_is_lost(tutorial):
    blocked = with_blocks(tutorial[0], {"vision": tutorial[1]})
    assert block_sensitivity(blocked, lambda s: s.train.x.shape[1]) == {"text": 384, "knowledge": 384, "vision": 5}


@pytest.mark.parametrize("kind", ["ridge", "contrastive"])
def test_a_linear_picture_is_brought_to_its_text(kind):
    draw = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(300, 12, generator=draw), dim=1)
    pictures = texts @ torch.randn(12, 20, generator=draw)
    head = fit_projection(pictures[:200], texts[:200], ProjectionConfig(kind=kind, strength=0.01, steps=40))
    near = (head(pictures[200:]) @ texts[200:].T).argmax(1)
    assert (near == torch.arange(100)).float().mean() > 0.9  # rows that were not fitted


def test_the_contrastive_loss_is_what_a_loop_gives():
    p, t = (
        torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(k)), dim=1)
        for k in (0, 1)
    )
    by_hand = 0.0
    for i in range(5):
        for a, b in ((p, t), (t, p)):
            by_hand -= (a[i] @ b[i] / 0.1 - torch.stack([a[i] @ b[j] / 0.1 for j in range(5)]).logsumexp(0)) / 10
    assert torch.isclose(told_apart(p, t, 0.1), by_hand)
