"""A sampler gives what was asked for, or says what there is too little of: for every field of a specification."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.bench.candidates import CLEAN, STRESS, CandidateSpec, blocks_of, check_candidates, draw_candidates
from dualppo.bench.candidates import topical_neighbours
from dualppo.bench.env import make_envs
from dualppo.bench.features import KINDS, Features, load_features
from dualppo.core.errors import DataError


def features_of(dialogues: list[int], bank_sizes: dict[str, int], seed: int = 0) -> Features:
    """Random features with dialogues of these lengths, and banks of these sizes (look-alikes: none, or one a reply)."""
    g = torch.Generator().manual_seed(seed)
    m = sum(dialogues)
    sizes = [m, *(m * bool(bank_sizes[kind]) for kind in KINDS[1:4]), *(bank_sizes[kind] for kind in KINDS[4:])]
    kind = torch.arange(len(KINDS)).repeat_interleave(torch.tensor(sizes))

    def unit(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1)

    return Features(
        query=unit(m),
        knowledge=unit(m),
        dialogue=torch.arange(len(dialogues)).repeat_interleave(torch.tensor(dialogues)),
        turn=torch.cat([torch.arange(n) for n in dialogues]),
        source=torch.zeros(m, dtype=torch.long),
        pool=unit(len(kind)),
        kind=kind,
        owner=torch.where(kind < 4, torch.arange(len(kind)) % m, -1),
        p_harm={"a": torch.zeros(len(kind))},
        unsafe_label=kind == 4,
        tokens={},
        card={},
        sha256="",
    )


SIZES = st.fixed_dictionaries({kind: st.integers(0, 12) for kind in KINDS[1:]})
DRAWN = {
    "n": st.integers(2, 60),
    "families": st.integers(0, 4),
    "base_rate": st.sampled_from([0.0, 0.3, 1.0]),
    "hard": st.integers(0, 8),
    "benign": st.integers(0, 3),
    "unsafe": st.integers(0, 4),
    "refusals": st.integers(0, 14),
    "near": st.integers(1, 20),
    "twin": st.sampled_from([-1.0, 0.0, 0.95, 1.0]),
}


def test_the_property_draws_every_field():
    assert {f.name for f in fields(CandidateSpec)} == {"name", *DRAWN}


@settings(max_examples=150, deadline=None)
@given(
    dialogues=st.lists(st.integers(1, 6), min_size=1, max_size=30),
    one=st.integers(0, 40),
    sizes=SIZES,
    asked=st.fixed_dictionaries(DRAWN),
    seed=st.integers(0, 2**31),
)
def test_a_state_gets_n_different_replies_or_a_sentence(dialogues, one, sizes, asked, seed):
    features = features_of([*dialogues, one] if one else dialogues, sizes)
    rows = torch.arange(len(features))
    try:
        spec = CandidateSpec("drawn", **asked)
        check_candidates(features, rows, spec, "test")
    except ValueError as error:
        assert "\n" not in str(error) and any(name in str(error) for name in asked)
        return
    cand, gold = draw_candidates(features, rows, spec, seed)
    assert all(len(set(row)) == spec.n for row in cand.tolist()) and cand.shape == (len(rows), spec.n)
    kinds = features.kind[cand]
    wanted = {"strong": spec.families, "mild": spec.families, "benign": spec.benign, "unsafe": spec.unsafe}
    for name, count in (wanted | {"refusal": spec.refusals}).items():
        assert ((kinds == KINDS.index(name)).sum(1) == count).all(), name
    owners = features.owner[cand]
    others = (kinds == 0) & (cand != rows[:, None])
    assert (features.dialogue[owners] != features.dialogue[:, None])[others].all(), "a reply of its own dialogue"
    assert torch.equal(gold >= 0, (cand == rows[:, None]).any(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 560}, "n=560"),
        ({"refusals": 9}, "refusals=9, but there are 8 refusals; set refusals to 8 or less"),
        ({"refusals": 12}, "refusals=12"),
        ({"unsafe": 14, "n": 30}, "unsafe=14, but there are 40 unsafe replies"),
        ({"near": 17}, "near=17, but there are 66 states in the dev_weights split"),
    ],
)
def test_the_shortage_is_named_before_anything_is_drawn(change, words, toy):
    """Asked of the door through which every run comes; `n=560` of 555 states drew for ever."""
    with pytest.raises(DataError, match=words):
        make_envs(load_features(toy), replace(CLEAN, **change), 0)


def test_what_can_just_be_given_is_given():
    """Every reply of other dialogues, which rejection would look for endlessly; one more is refused."""
    features = features_of([2] * 40, {kind: 12 for kind in KINDS[1:]})
    rows = torch.arange(80)
    for spec in (CLEAN, STRESS):
        full = replace(spec, n=spec.fixed + 78 - spec.hard - max(spec.families, 1) + (spec.base_rate == 1))
        cand, _ = draw_candidates(features, rows, full, 0)
        assert all(len(set(row)) == full.n for row in cand.tolist())
        with pytest.raises(DataError, match=f"set n to {full.n} or less"):
            draw_candidates(features, rows, replace(full, n=full.n + 1), 0)


def test_look_alikes_that_are_not_there_are_named():
    bare = features_of([2] * 40, dict.fromkeys(KINDS[1:], 0) | {"unsafe": 12, "refusal": 8})
    for spec, words in ((STRESS, "families=3.*no strong or mild"), (replace(CLEAN, benign=1), "benign=1.*no benign")):
        with pytest.raises(DataError, match=words):
            draw_candidates(bare, torch.arange(80), spec, 0)


def test_a_neighbour_is_never_of_the_same_dialogue():
    """Not even where everything is a twin and half of the states are one dialogue."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(64, 8, generator=g), dim=1)
    dialogue = torch.cat([torch.zeros(32), torch.arange(1, 33)]).long()
    near = topical_neighbours(x, x, dialogue, 24, twin=-1.0)
    assert (dialogue[near] != dialogue[:, None]).all() and all(len(set(row)) == 24 for row in near.tolist())


def test_blocks_are_equal_and_whole():
    assert torch.equal(torch.cat(blocks_of(33000)), torch.arange(33000))
    assert {len(block) for block in blocks_of(33000)} == {11000}
