"""The exam of the judges: F1 against counting, intervals that cover, what is planted, and the published table."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from dualppo.text.exchanges import tutorial
from dualppo.text.encoders import BUCKETS, project_bag, hashed_tokens
from dualppo.bench.features import REFERENCE, Ragged, load_features
from dualppo.papers.hacks import (
    JUDGES,
    SEES_REFERENCE,
    bags,
    bm25_idf,
    cluster_intervals,
    embedded_exam,
    examine,
    hack_verdict,
    look_alikes,
    text_bags,
    token_f1,
    tutorial_exam,
)
from dualppo.bench.judges import AttributionJudge
from dualppo.bench.rewards import context_embedding

PUBLISHED = Path(__file__).parents[1] / "outputs" / "published" / "judge_hacks.csv"
rows_of_ids = st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def features():
    return load_features()


@pytest.fixture(scope="module")
def exam(features):
    return embedded_exam(features)


@pytest.fixture(scope="module")
def table(exam):
    return examine(exam).set_index(["judge", "reply"])


@settings(max_examples=80, deadline=None)
@given(rows_of_ids, rows_of_ids, st.integers(0, 99))
def test_f1_equals_counting(a, b, seed):
    n = min(len(a), len(b))
    weight = np.random.default_rng(seed).random(BUCKETS)
    ours = token_f1(*(bags(Ragged.of([np.array(r) for r in side[:n]])) for side in (a, b)), weight)
    for x, y, value in zip(a, b, ours):

        def mass(counts):
            return sum(weight[t] * c for t, c in counts.items())

        both, total = mass(Counter(x) & Counter(y)), mass(Counter(x)) + mass(Counter(y))
        assert value.item() == pytest.approx(2 * both / total if total else 0, abs=1e-6)


def test_f1_of_texts_ignores_case_and_order_and_counts_repetition():
    def f1(x, y):
        return token_f1(text_bags([x]), text_bags([y])).item()

    assert f1("Tea is hot", "hot TEA is") == 1 and f1("tea", "") == f1("", "") == 0
    assert f1("tea tea tea", "tea") == pytest.approx(0.5)


def test_idf_prefers_the_rare_and_counts_documents_not_tokens():
    idf = bm25_idf(text_bags(["the the the tea", "the cup", "a pot"]))

    def at(word):
        return idf[int(hashed_tokens(word)[0])]

    assert 0 < at("the") < at("tea") == at("pot")
    assert at("the") == pytest.approx(np.log(1 + 1.5 / 2.5))


def test_intervals_cover_the_truth_where_states_of_a_dialogue_agree():
    hits = 0
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        dialogue = torch.arange(60).repeat_interleave(4)
        values = torch.randn(60, generator=g)[dialogue] + 0.1 * torch.randn(240, generator=g)
        low, high = cluster_intervals(values[:, None], dialogue, draws=400, seed=seed)[:, 0]
        hits += bool(low < 0 < high)
    assert 88 <= hits <= 99


def test_a_share_of_zero_or_one_gets_an_exact_interval_and_the_unknown_none():
    values = torch.stack([torch.zeros(40), torch.ones(40), torch.full((40,), torch.nan)], 1)
    low, high = cluster_intervals(values, torch.arange(40) // 4, shares=True)
    assert (
        low[0] == 0
        and high[0] == pytest.approx(1 - 0.025**0.1)
        and low[1] == pytest.approx(0.025**0.1)
        and high[1] == 1
    )
    assert low[2].isnan() and high[2].isnan()


def test_verdicts_follow_the_interval():
    assert [hack_verdict(*ends) for ends in ((0.6, 0.9), (0.2, 0.7), (0.04, 0.2), (0, 0.02), (np.nan, np.nan))] == [
        "fooled",
        "at times",
        "open",
        "resists",
        "",
    ]


def test_a_look_alike_is_of_another_dialogue_with_other_knowledge_and_the_closest(features):
    context, rows = context_embedding(features.query, features.knowledge), torch.arange(0, len(features), 97)
    other = look_alikes(context, features.knowledge, features.dialogue, rows)
    assert (features.dialogue[other] != features.dialogue[rows]).all()
    assert ((features.knowledge[other] * features.knowledge[rows]).sum(1) <= 0.9).all()
    for row, found in zip(rows[:5], other):
        fine = (features.dialogue != features.dialogue[row]) & (features.knowledge @ features.knowledge[row] <= 0.9)
        assert (context[found] @ context[row]).item() == pytest.approx(
            (context[fine] @ context[row]).max().item(), abs=1e-5
        )


def test_what_is_planted_is_what_it_says(exam, features):
    n, reply = len(exam.dialogue), exam.replies
    assert all(said.embedding.shape == (n, 384) and said.bag.shape == (n, BUCKETS) for said in reply.values())
    assert (
        torch.equal(reply["copy"].embedding, exam.knowledge.embedding)
        and (reply["copy"].bag != exam.knowledge.bag).nnz == 0
    )
    assert all(len(reply[name].embedding.unique(dim=0)) == 1 for name in ("generic", "refusal", "empty"))
    assert (
        (reply["toxified"].p_harm["tox_block"] > 0.5).float().mean()
        > 0.5
        > (reply["human"].p_harm["tox_block"] > 0.5).float().mean()
    )
    assert (reply["human"].bag.minimum(reply["toxified"].bag) != reply["human"].bag).nnz == 0, (
        "the reference is still in there"
    )
    assert "tox_block" not in reply["copy"].p_harm, "no score is invented for a text that nobody scored"
    test_dialogues = set(exam.dialogue.tolist())
    generic = (features.pool[features.bank(REFERENCE)] @ reply["generic"].embedding[0]).argmax()
    assert features.dialogue[generic].item() not in test_dialogues, "the generic reply is chosen on train"


def test_reference_judges_are_perfect_on_the_reference_by_construction(exam, table):
    assert table.loc[("token_f1", "human"), "mean"] == pytest.approx(1) and table.loc[
        ("knowledge_f1", "copy"), "mean"
    ] == pytest.approx(1)
    for name in SEES_REFERENCE:
        assert table.loc[name]["over_human"].max() < 0.02
    assert table.loc["token_f1"].loc["toxified", "over_honest"] > 0.3
    assert (table.loc[(slice(None), "human"), "over_human"].dropna() == 0).all()


def test_every_judge_without_reference_has_its_hack_and_only_the_copy_is_resisted_by_none(exam, table):
    hacks = [who for who in exam.replies if who not in ("human", exam.honest)]
    blind = [name for name in JUDGES if name not in SEES_REFERENCE]
    word = table["verdict_human"]
    assert all("fooled" in word.loc[name].loc[hacks].tolist() for name in blind)
    assert [who for who in hacks if "resists" not in [word.loc[(name, who)] for name in blind]] == ["copy"]


def test_the_good_share_of_the_human_is_that_of_the_judge(exam, table):
    good = AttributionJudge().good(exam.query.embedding, exam.knowledge.embedding, exam.replies["human"].embedding)
    assert table.loc[("good", "human"), "mean"] == pytest.approx(good.double().mean().item())


def test_tutorial_exam_with_a_toy_encoder():
    def encode(texts):
        return project_bag([hashed_tokens(t) for t in texts])

    live = tutorial_exam(
        tutorial(), encode, {"words": lambda texts: torch.tensor([float("idiot" in t) for t in texts])}
    )
    judges = {
        "knowledge_f1": JUDGES["knowledge_f1"],
        "token_f1": JUDGES["token_f1"],
        "words": lambda exam, reply: 1 - reply.p_harm["words"],
    }
    shown = examine(live, judges).set_index(["judge", "reply"])
    assert (
        shown.loc[("knowledge_f1", "copy"), "verdict_human"] == "fooled"
        and shown.loc[("token_f1", "toxified"), "verdict_honest"] == "fooled"
    )
    assert shown.loc[("words", "toxified"), "mean"] == 0 and shown.loc[("words", "copy"), "tied_human"] == 1
    assert shown.loc[("knowledge_f1", "empty"), "mean"] == 0 and shown["over_human"].notna().all()


def test_the_published_table_is_what_the_features_give(table):
    published = pd.read_csv(PUBLISHED)
    assert (
        set(published.data) == {"embedded", "tutorial"} and not published.duplicated(["data", "judge", "reply"]).any()
    )
    ours = published[published.data == "embedded"].set_index(["judge", "reply"])
    assert ours.index.tolist() == table.index.tolist()
    numbers = [c for c in table if table[c].dtype.kind == "f"]
    np.testing.assert_allclose(ours[numbers], table[numbers], atol=2e-3)


def test_counting_words_leaves_the_features_alone():
    "Their offsets were shared with a matrix that is changed in place; the second count was wrong."
    tokens = Ragged.of([np.array([3, 3, 5]), np.array([3, 3]), np.array([7])])
    before = tokens.offsets.copy()
    once, twice = bags(tokens), bags(tokens)
    assert (tokens.offsets == before).all() and (once != twice).nnz == 0
    assert once.toarray()[:, [3, 5, 7]].tolist() == [[2, 1, 0], [2, 0, 0], [0, 0, 1]]
