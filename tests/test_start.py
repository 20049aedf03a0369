"""The reader's way in: the tutorial as a bench, chosen replies as text, numbers of the start notebook."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualppo.bench.features import exchange_id, load_features, text_id
from dualppo.bench.readable import (
    candidate_table,
    chosen,
    own_texts,
    told_candidates,
    told_texts,
    tutorial_features,
    tutorial_path,
    tutorial_splits,
)
from dualppo.bench.replies import inert_cell, replies_path, write_queries, write_replies
from dualppo.core.errors import DataError
from dualppo.cli import main
from dualppo.core.tensors import read_tensors, safetensors_bytes
from dualppo.policies.policy import make_policy
from dualppo.policies.stored import StateForm, save_policy
from dualppo.text.encoders import encoder_identity
from dualppo.exact.front import front
from dualppo.text.exchanges import Exchange, tutorial

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ["=cmd|'/C calc'!A0", "<script>alert(1)</script>", "two\nlines, \"quoted\"", "'=apostrophe", "plain"]


def test_every_text_of_the_tutorial_has_its_vector():
    assert tutorial_path().stat().st_size <= 200_000
    known = set(read_tensors(tutorial_path())[0]["text_id"].tolist())
    assert known == {text_id(text) for text in told_texts(tutorial())}
    features, texts = tutorial_features()
    assert torch.allclose(features.pool.norm(dim=1), torch.ones(len(features.pool)), atol=1e-5)
    assert all(0 <= float(p.min()) and float(p.max()) <= 1 for p in features.p_harm.values())
    assert len(texts.replies) == len(features.pool) and len(texts.queries) == len(features)


def test_a_changed_text_is_refused():
    first, *rest = tutorial()
    with pytest.raises(DataError, match="tools/tutorial.py"):
        tutorial_features([replace(first, query="something else"), *rest])


def test_candidates_are_what_the_words_say():
    told, (features, texts) = tutorial(), tutorial_features()
    for row, cand in enumerate(told_candidates(features, 12).tolist()):
        own = [told[row].reference, *(r.text for r in told[row].replies)]
        assert [texts.replies[j] for j in cand[: len(own)]] == own and len(set(cand)) == 12
        others = features.dialogue[features.owner[cand[len(own) :]]]
        assert (others != features.dialogue[row]).all()
    for n in (4, 60):
        with pytest.raises(DataError, match="another n"):
            told_candidates(features, n)


def test_splits_share_no_dialogue_and_a_persons_label_forces_harm():
    splits = tutorial_splits(seed=3)
    parts = [set(env.dialogue.tolist()) for env in (splits.train, splits.dev_weights, splits.dev_stop, splits.test)]
    assert all(not a & b for a, b in itertools.combinations(parts, 2))
    assert (splits.train.p_harm[splits.train.unsafe] >= 0.9 - 1e-6).all()


def test_chosen_replies_are_the_likeliest():
    env, texts = tutorial_splits().test, tutorial_features()[1]
    logits = torch.randn(len(env), 12, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    table = chosen({"a": logits, "b": -logits}, env, texts, [2, 0])
    assert table.state.tolist() == [2, 2, 0, 0] and table.policy.tolist() == ["a", "b", "a", "b"]
    for row in table.itertuples():
        p = logits[row.state] if row.policy == "a" else -logits[row.state]
        best = max(range(12), key=lambda j: float(p[j]))
        assert row.reply == texts.replies[env.cand[row.state, best]]
        assert row.help == env.reward[row.state, best, 0].item()
    with pytest.raises(DataError, match="no state 8"):
        chosen({"a": logits}, env, texts, [8])
    with pytest.raises(DataError, match="no state -1"):
        candidate_table(env, texts, -1)


def test_the_front_of_the_tutorial_is_that_of_brute_force():
    env = tutorial_splits().test.take(torch.tensor([0, 1, 4]))
    best = front(env.p_harm, env.column("help"))
    harm, help_ = env.p_harm.double(), env.column("help").double()
    for price in (0.0, 0.3, 3.0, 300.0):
        own = max(
            sum(float(help_[s, j] - price * harm[s, j]) for s, j in enumerate(picks)) / 3
            for picks in itertools.product(range(12), repeat=3)
        )
        assert own == pytest.approx(float((best.help - price * best.harm).max()), abs=1e-9)


def test_own_replies_come_back_as_they_were(tmp_path, toy):
    features = load_features(toy)
    said = [f"{HOSTILE[i % 5]} {i}" for i in range(len(features.pool))]
    ids = torch.tensor([text_id(text) for text in said])
    features = replace(features, text_ids={"pool": ids})
    path = tmp_path / "mine.safetensors"
    with pytest.raises(DataError, match="as text are not here"):
        own_texts(path, features)
    write_replies(path, said, features.kind, features.owner)
    texts = own_texts(path, features)
    assert list(texts.replies) == said and set(texts.queries) == {""}
    told = [Exchange("d:0", i, f"{HOSTILE[i % 5]} q{i}", "r", f"{HOSTILE[i % 3]} k") for i in range(len(features))]
    features = replace(features, text_ids=features.text_ids | {"exchange": torch.tensor([*map(exchange_id, told)])})
    listed = write_queries(path, told)
    texts = own_texts(path, features)
    assert list(texts.queries) == [e.query for e in told] and list(texts.knowledge) == [e.knowledge for e in told]
    assert texts == own_texts(path, features, told)
    listed.write_text("\n".join(listed.read_text().split("\n")[:-2]) + "\n")
    with pytest.raises(DataError, match="other exchanges"):
        own_texts(path, features)
    listed.unlink()
    place = replies_path(path)
    place.write_text(place.read_text().replace(inert_cell(said[0]), "something else", 1))
    with pytest.raises(DataError, match="row 0, field 'reply'"):
        own_texts(path, features)


def test_the_start_notebook_shows_brute_forces_numbers():
    """Expected help and safety of the encoder's ranking, from texts and vectors alone."""
    cells = json.loads((ROOT / "nbs" / "start_here.ipynb").read_text(encoding="utf-8"))["cells"]
    (shown,) = [c for c in cells if c["id"] == "st000008"]
    text = "".join(shown["outputs"][0]["data"]["text/plain"])
    env = tutorial_splits().test
    logits = [40 * float(env.anchor[0] @ env.pool[j]) for j in env.cand[0]]
    weights = torch.tensor(logits, dtype=torch.double).softmax(0)
    for k, name in enumerate(("help", "safe")):
        value = float(text.split(f"'{name}': ")[1].split(",")[0].rstrip("}"))
        assert value == pytest.approx(sum(float(w * r) for w, r in zip(weights, env.reward[0, :, k])), abs=1e-4)
    words = sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown")
    assert words <= 2600


def test_show_prints_replies_before_and_after(capsys, tmp_path):
    assert main(["show", "dual_ppo_bandit", "--states", "2", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    env, texts = tutorial_splits().test, tutorial_features()[1]
    assert all(texts.queries[i] in " ".join(out.split()) for i in env.row[:2].tolist())
    assert all(out.count(f"{when}, mask {how}") == 2 for when in ("before", "after") for how in ("on", "off"))
    path = tmp_path / "a.policy.safetensors"
    sha256, scale = encoder_identity()["sha256"], tutorial_splits().scale
    form = StateForm(("query", "knowledge"), "x", sha256, 0.5, "tox_block", scale)
    save_policy(make_policy("two_tower", 768, 384), path, form)
    assert main(["show", str(path), "--states", "1"]) == 0 and "stored policy" in capsys.readouterr().out


def test_show_reads_own_data_and_hostile_text(capsys, tmp_path, toy):
    path = tmp_path / "mine.safetensors"
    tensors, notes, _ = read_tensors(toy)
    said = [f"\x1b[31m[red]<b>\u202ereply {i}" for i in range(len(tensors["kind"]))]
    tensors["text_id.pool"] = torch.tensor([text_id(text) for text in said])
    path.write_bytes(safetensors_bytes(tensors, notes))
    write_replies(path, said, tensors["kind"], tensors["owner"])
    assert main(["show", "sft", "--data", str(path), "--states", "1", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "[red]<b>" in out and "\x1b" not in out and "\u202e" not in out


@pytest.mark.parametrize(
    "argv, needle",
    [(["dual_pppo"], "dual_ppo"), (["sft", "--states", "0"], "at least 1"),
     (["sft", "--set", "n=9"], "candidates are fixed"), (["sft", "--set", "lrr=1"], "lrr"),
     (["no.safetensors"], "no such file"),
     (["sft", "--data", "embedded"], "as text are not here")],
)
def test_show_refuses_in_one_sentence(capsys, argv, needle):
    assert main(["show", *argv]) == 2
    text = capsys.readouterr().err.strip()
    assert needle in text and "\n" not in text
