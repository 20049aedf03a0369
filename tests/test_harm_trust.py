"""What harm estimators are worth, and whom they suspect: against scikit-learn and scipy, and by planted bias."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from dualppo.bench.features import BENIGN, KINDS, MILD, REFERENCE, REFUSAL, STRONG, UNSAFE, load_features
from dualppo.core.errors import DataError
from dualppo.papers.harm_trust import (
    HARMFUL,
    HARMLESS,
    Probe,
    axis_spread,
    dialogue_topics,
    group_gaps,
    harm_calibration,
    kind_rates,
    people_say,
    read_probe,
    topic_rates,
    topic_test,
)

SEEDS = st.integers(0, 2**31)
TWO = Probe(("Here is {who}.", "{Who} sings."), {"one": ("blue", "amber"), "two": ("calm",)})


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from((None, 0.05, 0.3)))
def test_scores_are_sklearns(seed, base_rate):
    g = torch.Generator().manual_seed(seed)
    p = torch.randint(50, (200,), generator=g) / 50  # with ties
    y = torch.rand(200, generator=g) < 0.2 + 0.5 * p
    found = harm_calibration(p, y, base_rate)
    share = y.double().mean()
    weight = None if base_rate is None else torch.where(y, base_rate / share, (1 - base_rate) / (1 - share))
    assert found["brier"] == pytest.approx(brier_score_loss(y.int(), p, sample_weight=weight), abs=1e-6)
    assert found["auc"] == pytest.approx(roc_auc_score(y, p))
    order = torch.randperm(200, generator=g)
    assert harm_calibration(p[order], y[order], base_rate) == pytest.approx(found)


def test_labels_are_true_and_one_label_is_refused():
    y = torch.arange(10) < 3
    assert harm_calibration(y.float(), y)["ece"] == harm_calibration(y.float(), y)["brier"] == 0
    with pytest.raises(DataError, match="all of one label"):
        harm_calibration(torch.rand(4), torch.ones(4, dtype=torch.bool))


def test_every_kind_has_a_side_and_its_rate(toy):
    features = load_features(toy)
    assert sorted((*HARMFUL, *HARMLESS)) == list(range(len(KINDS)))
    assert torch.equal(people_say(features), torch.isin(features.kind, torch.tensor([STRONG, MILD, UNSAFE])))
    rates = kind_rates(features, 0.5)  # the toy's estimators call strong tails .9, mild ones .4
    assert (rates.loc["strong", "tox_block"], rates.loc["mild", "tox_block"]) == (1, 0)
    assert (
        kind_rates(features, 0.4).loc["mild", "tcc"] == pytest.approx(1, abs=1e-9) or features.p_harm["tcc"].max() > 0
    )
    few = replace(features, kind=features.kind.where(features.kind != BENIGN, torch.tensor(REFERENCE)))
    assert "benign" not in kind_rates(few).index and rates.loc["refusal", "replies"] == int(
        (features.kind == REFUSAL).sum()
    )


# ---- groups


def test_articles_and_the_sentence_without_a_term():
    assert TWO.filled("amber") == ["Here is an amber person.", "An amber person sings."]
    assert TWO.filled() == ["Here is a person.", "A person sings."]


def test_a_planted_bias_is_found_in_closed_form():
    values = {"blue": 0.6, "amber": 0.1, "calm": 0.2}

    def harm(texts):
        return torch.tensor(
            [next((v for k, v in values.items() if k in t), 0.05) + 0.1 * ("sings" in t) for t in texts]
        )

    table = group_gaps(harm, TWO, tau=0.65).set_index("term")
    assert table.p.to_dict() == pytest.approx({"blue": 0.65, "amber": 0.15, "calm": 0.25})
    assert table.plain.tolist() == pytest.approx([0.1] * 3)
    assert table.gap["blue"] == pytest.approx(0.5) == -table.gap["amber"] and np.isnan(table.gap["calm"])
    assert table.low["blue"] == pytest.approx(0.5) == table.high["blue"]  # the same in every sentence
    assert table.alarms.to_dict() == {"blue": 0.5, "amber": 0.0, "calm": 0.0}
    spread = axis_spread(group_gaps(harm, TWO))
    assert (spread.loc["one", "most"], spread.loc["one", "least"]) == ("blue", "amber")
    assert spread.loc["one", "spread"] == pytest.approx(0.5) and spread.loc["two", "spread"] == 0


def test_the_interval_is_a_paired_t_interval():
    probe = Probe(tuple(f"{{Who}} has {i} hats." for i in range(8)), {"axis": ("red", "green", "grey")})
    g = torch.Generator().manual_seed(0)
    scores = {}

    def harm(texts):
        return torch.stack([scores.setdefault(t, torch.rand((), generator=g, dtype=torch.double)) for t in texts])

    table = group_gaps(harm, probe).set_index("term")
    p = {term: harm(probe.filled(term)).numpy() for term in ("red", "green", "grey")}
    expected = stats.ttest_rel(p["red"], (p["green"] + p["grey"]) / 2).confidence_interval()
    assert (table.low["red"], table.high["red"]) == pytest.approx((expected.low, expected.high))


@settings(max_examples=20, deadline=None)
@given(st.permutations(["red", "green", "grey", "teal"]), SEEDS)
def test_gaps_of_two_and_the_order_of_terms(terms, seed):
    def harm(texts):
        return torch.stack([torch.rand((), generator=torch.Generator().manual_seed(hash_of(t, seed))) for t in texts])

    both = [group_gaps(harm, Probe(TWO.templates, {"a": tuple(t)})).set_index("term") for t in (terms, sorted(terms))]
    assert (both[0].loc[terms, "gap"] - both[1].loc[terms, "gap"]).abs().max() < 1e-12
    assert both[0].gap.sum() == pytest.approx(0, abs=1e-9)  # what some have more the others have less


def hash_of(text: str, seed: int) -> int:
    """A number of a text that is the same in every process."""
    return (sum(ord(c) * 31**i for i, c in enumerate(text)) + seed) % 2**31


def test_our_probe_is_neutral_in_form():
    probe = read_probe()
    terms = [term for axis in probe.groups.values() for term in axis]
    assert len(set(terms)) == len(terms) and len(set(probe.templates)) == len(probe.templates)
    for term in ("", *terms):
        for text in probe.filled(term):
            assert text[0].isupper() and text.endswith(".") and "{" not in text and " a a" not in text
            assert not term or f"{term} person" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("templates = 3", "field 'templates'"),
        ('templates = ["nobody"]\n[groups]\na = ["b"]', "field 'templates'"),
        ('templates = ["{who}"]', "field 'groups'"),
        ('templates = ["{who}"]\n[groups]\na = [""]', "field 'groups'"),
        ("= 1", "is no TOML"),
    ],
)
def test_another_probe_is_refused_in_one_sentence(tmp_path, text, said):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(DataError, match=said):
        read_probe(tmp_path / "mine.toml")


# ---- topics


def test_topic_rates_are_counted():
    table = topic_rates(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 1, 1]))
    assert table.share.tolist() == [0.5, 1.0] and table.replies.tolist() == [2, 2]
    assert (table.low <= table.share).all() and (table.share <= table.high).all()


def test_the_permutation_test_keeps_its_level_and_finds_a_planted_topic():
    d, topics = torch.arange(60).repeat_interleave(4), torch.arange(60) % 5
    g = torch.Generator().manual_seed(0)
    p = [topic_test(torch.rand(240, generator=g) < 0.3, d, topics, draws=99, seed=i) for i in range(60)]
    assert np.mean(np.array(p) <= 0.1) < 0.25 and np.mean(p) == pytest.approx(0.5, abs=0.15)
    assert topic_test(topics[d] == 2, d, topics, draws=99) == 0.01
    # whole dialogues that differ are no topic: dialogues, not replies, are what is counted
    rough = [topic_test((torch.rand(60, generator=g) < 0.3)[d], d, topics, draws=99, seed=i) for i in range(60)]
    assert np.mean(np.array(rough) <= 0.1) < 0.25


def test_topics_of_dialogues(toy):
    features = load_features(toy)
    topics = dialogue_topics(features, 7)
    assert len(topics) == len(features.dialogue.unique()) and set(topics.tolist()) <= set(range(7))
    assert torch.equal(topics, dialogue_topics(features, 7))
