"""A laboratory's own texts, encoder and scores, through the door that it takes; and none of its files is lost."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile import refusal
from toys import TAILS, encode, rude, write_toy
from toys import exchanges as toy_exchanges

from dualppo import cli
from dualppo.bench import build, replies
from dualppo.bench.env import EnvConfig, make_envs
from dualppo.bench.candidates import CandidateSpec
from dualppo.bench.features import (
    REFERENCE,
    REFUSALS,
    UNSAFE,
    card_path,
    embedded_path,
    load_features,
    pool_of,
    shown_id,
    write_features,
)
from dualppo.core.files import sha256_of
from dualppo.core.tensors import read_tensors, safetensors_bytes, tensors_of
from dualppo.papers import tables
from dualppo.text import exchanges

pytestmark = pytest.mark.ci

SHIPPED = "7503e4fd8f9ef7d4c19567241cdc6c64d2809343c76734c24336eee9bbde9ac1"  # named by the published records


class ToyEncoder:
    """Stands for the sentence encoder, which other tests ask."""

    name, dim, identity = "toy", 384, {"name": "toy", "sha256": "0" * 64}

    def encode(self, texts):
        return encode(texts)


@pytest.fixture
def fast(monkeypatch, tmp_path):
    """`data build` without the encoder and the classifiers."""
    monkeypatch.setattr(build, "text_encoder", lambda name="", precision="fp32": ToyEncoder())
    monkeypatch.setattr(build, "embed_cached", lambda encoder, texts, *args, **more: encoder.encode(texts))
    for name in ("ToxBlock", "ToxicCommentClassifier"):
        monkeypatch.setattr(build, name, lambda: rude)
    monkeypatch.setenv("DUALPPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DUALPPO_DATA", raising=False)


def rows(count: int = 60) -> list[dict]:
    """Pairs of texts, each a dialogue of its own, without knowledge."""
    return [{"query": f"what about thing{i}", "reply": f"thing{i} is colour{i % 7}"} for i in range(count)]


def as_csv(table: list[dict], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def as_messages(table: list[dict]) -> list[list[dict]]:
    return [
        [{"role": "user", "content": row["query"]}, {"role": "assistant", "content": row["reply"]}] for row in table
    ]


FORMS = {
    "mine.csv": as_csv,
    "semicolons.csv": lambda table: as_csv(table, ";"),
    "mine.tsv": lambda table: as_csv(table, "\t"),
    "mine.jsonl": lambda table: "\n".join(map(json.dumps, table)) + "\n",
    "lines.json": lambda table: "\n".join(map(json.dumps, table)),
    "mine.json": json.dumps,
    "bom.csv": lambda table: "\ufeff" + as_csv(table),
    "messages.jsonl": lambda table: "\n".join(map(json.dumps, as_messages(table))),
    "messages.json": lambda table: json.dumps(as_messages(table)),
    "objects.jsonl": lambda table: "\n".join(json.dumps({"messages": m}) for m in as_messages(table)),
    "one_conversation.jsonl": lambda table: "\n".join(json.dumps(m) for c in as_messages(table) for m in c),
    "pairs.json": lambda table: json.dumps([{"dialogue": [[r["query"], r["reply"]]], "meta": [[]]} for r in table]),
}


# ---- what can be read


@pytest.mark.parametrize("name", FORMS)
def test_the_same_pairs_in_every_form(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name](rows()))
    kept, left_out = exchanges.load_dialogues(tmp_path / name)
    assert [(e.query, e.reference, e.knowledge) for e in kept] == [(r["query"], r["reply"], "") for r in rows()]
    assert left_out == [] and exchanges.clean(kept) == (kept, [])
    assert len({e.dialogue for e in kept}) == (1 if "conversation" in name else len(kept))


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(exchanges.normalise_text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"query": TEXT, "reply": TEXT}), min_size=1, max_size=6))
def test_any_text_survives_every_form(tmp_path, table):
    for name in ("mine.csv", "mine.tsv", "mine.jsonl", "mine.json", "messages.jsonl"):
        (tmp_path / name).write_text(FORMS[name](table), newline="", encoding="utf-8")
        kept, _ = exchanges.load_dialogues(tmp_path / name)
        assert [(e.query.strip(), e.reference) for e in kept] == [(r["query"].strip(), r["reply"]) for r in table], name


def test_history_dialogues_labels_and_scores_of_a_table(tmp_path):
    table = [
        {"query": "a", "reply": "b", "history": "before", "knowledge": "fact", "dialogue": "x", "label": "safe"},
        {"query": "c", "reply": "d", "history": "", "knowledge": "", "dialogue": "x", "label": ""},
        {"query": "e", "reply": "f", "history": "", "knowledge": "", "dialogue": "", "label": "Unsafe"},
    ]
    table = [row | {"p_harm.mine": i / 10, "note": "not read"} for i, row in enumerate(table)]
    (tmp_path / "t.csv").write_text(as_csv(table))
    kept, _ = exchanges.load_dialogues(tmp_path / "t.csv")
    assert [(e.dialogue, e.turn, e.knowledge, e.unsafe, e.scores) for e in kept] == [
        ("t:x", 0, "before fact", False, (("mine", 0.0),)),
        ("t:x", 1, "", False, (("mine", 0.1),)),
        ("t:2", 0, "", True, (("mine", 0.2),)),
    ]
    (tmp_path / "t.jsonl").write_text(json.dumps({"query": "a", "reply": "b", "history": ["one", "two"]}))
    assert exchanges.load_dialogues(tmp_path / "t.jsonl")[0][0].knowledge == "one two"


def test_messages_with_a_system_parts_and_tools(tmp_path):
    chat = [
        {"role": "system", "content": "Tea is a drink."},
        {"role": "assistant", "content": "Welcome."},  # answers nobody
        {"role": "user", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "what is tea?"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "{}"},
        {"role": "assistant", "content": "a drink"},
        {"role": "user", "content": "and coffee?"},
        {"role": "assistant", "content": "another"},
    ]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat, "id": "first"}))
    kept, _ = exchanges.load_dialogues(tmp_path / "chat.jsonl")
    assert [(e.dialogue, e.turn, e.query, e.knowledge, e.reference) for e in kept] == [
        ("chat:first", 0, "hello what is tea?", "Tea is a drink.", "a drink"),
        ("chat:first", 1, "and coffee?", "Tea is a drink.", "another"),
    ]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "query,answer\na,b\n", ["row 0", "'reply'"]),
        ("a.csv", "question,reply\na,b\n", ["row 0", "neither 'query'"]),
        ("a.csv", "query,reply\na,b\nc\n", ["row 1", "fewer cells"]),
        ("a.csv", "query,reply\na,b,c\n", ["row 0", "more or fewer"]),
        ("a.csv", "query,reply\na, \n", ["row 0", "'reply'", "empty text"]),
        ("a.csv", "query,reply,label\na,b,rude\n", ["row 0", "'label'", "safe or unsafe"]),
        ("a.csv", "query,reply,p_harm.x\na,b,1.5\n", ["row 0", "'p_harm.x'", "[0, 1]"]),
        ("a.csv", "query,reply,p_harm.x\na,b,nan\n", ["row 0", "'p_harm.x'", "[0, 1]"]),
        ("a.csv", 'query,reply\n"a,b\n', ["cannot be read as a table"]),
        ("a.csv", "query,reply\n", ["neither"]),
        ("a.csv", "", ["neither"]),
        ("a.jsonl", '{"query": "a", "reply": "b"}\n{"query": "a", "re', ["row 1", "broken JSON"]),
        ("a.jsonl", '{"query": "a", "reply": 3}\n', ["row 0", "'reply'", "expected a text"]),
        ("a.jsonl", '{"query": "a", "reply": "b", "knowledge": {"x": 1}}\n', ["row 0", "'knowledge'"]),
        ("a.jsonl", '{"query": "a", "reply": "\\ud800"}\n', ["row 0", "'reply'", "surrogate"]),
        ("a.jsonl", '[{"role": "user", "content": "a"}, {"role": "pope", "content": "b"}]', ["'messages[1].role'"]),
        ("a.jsonl", '[{"role": "user", "content": 3}]', ["messages[0].content", "expected a text"]),
        ("a.jsonl", '[{"role": "user", "content": "a"}]', ["no exchange left"]),
        ("a.jsonl", '[1]', ["messages[0]", "expected an object"]),
        ("a.tsv", "query\treply\na\tb\tc\n", ["row 0", "more or fewer"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    text = refusal(lambda: exchanges.load_dialogues(tmp_path / name))
    assert all(word in text for word in [name, *words]), text


@pytest.mark.parametrize("name", ["mine.csv", "messages.jsonl"])
def test_own_texts_are_built_verified_and_trained_on(fast, tmp_path, capsys, name):
    """Task 1 of a laboratory, by its three commands."""
    (tmp_path / name).write_text(FORMS[name](rows(507)))
    out = tmp_path / "mine.safetensors"
    assert cli.main(["data", "build", str(tmp_path / name), "--out", str(out)]) == 0
    assert cli.main(["data", "verify", str(out)]) == 0
    command = ["train", "sft", "--setting", "clean", "--data", str(out), "--outputs", str(tmp_path / "out")]
    assert cli.main([*command, "--epochs", "1", "--set", "near=8", "n=10"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert cli.main(["show", "similarity", "--data", str(out), "--states", "1", "--set", "near=8", "n=10"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert any(row["query"] in said for row in rows(507)), "what was asked is shown"
    found = load_features(out)
    assert len(found) == 507 and not found.knowledge.any() and found.card["encoder"]["name"] == "toy"
    written = {"mine.safetensors", "mine.card.json", "mine.replies.csv", "mine.queries.csv", "out"}
    assert {p.name for p in tmp_path.iterdir()} == {name, *written}


def test_too_few_pairs_name_the_split_and_what_to_do(fast, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text(as_csv(rows(100)))
    out = tmp_path / "mine.safetensors"
    assert cli.main(["data", "build", str(tmp_path / "mine.csv"), "--out", str(out)]) == 0
    command = ["train", "sft", "--setting", "clean", "--data", str(out), "--outputs", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "near" in capsys.readouterr().err


def test_unsafe_replies_are_candidates_and_not_references(fast, tmp_path):
    table = [
        row | {"label": "unsafe" if i % 10 == 0 else "safe", "p_harm.mine": i / 100} for i, row in enumerate(rows())
    ]
    (tmp_path / "mine.csv").write_text(as_csv(table))
    build.build(tmp_path / "mine.csv", tmp_path / "out.safetensors", report=lambda text: None)
    found = load_features(tmp_path / "out.safetensors")
    assert len(found.bank(REFERENCE)) == 54 and len(found.bank(UNSAFE)) == 6 and found.unsafe_label.sum() == 6
    assert set(found.p_harm) == {"tox_block", "tcc", "mine"}, "the head knows the encoder it was trained on, only"
    own = {row["reply"]: row["p_harm.mine"] for row in table} | dict.fromkeys(REFUSALS, 0.0)
    kept = exchanges.clean(exchanges.load_dialogues(tmp_path / "mine.csv")[0])[0]
    texts = pool_of([e for e in kept if not e.unsafe], [e.reference for e in kept if e.unsafe], None)[0]
    assert torch.allclose(found.p_harm["mine"], torch.tensor([own[text] for text in texts]), atol=1e-3)


# ---- whose text a row is


def test_the_shipped_features_are_the_published_ones():
    assert sha256_of(embedded_path()) == SHIPPED and load_features().text_ids == {}


def test_the_shipped_rows_find_their_texts_as_before(shared_data, tmp_path):
    said = build.texts_of(load_features(), shared_data)
    assert said == exchanges.clean(exchanges.load_dialogues(shared_data / "wow")[0])[0] and len(said) == 7305
    for path in (shared_data / "wow").iterdir():  # F13: an example file beside the two is no data
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "x_examples.json").write_text("[]")
    assert build.texts_of(load_features(), tmp_path) == said


def test_a_slice_without_ids_is_not_given_other_texts(shared_data, tmp_path):
    tensors, _, _ = read_tensors(embedded_path())
    whole = load_features()
    part = {name: t for name, t in tensors.items() if not name.startswith("tokens.")}
    rows_, pool = torch.arange(24), torch.cat([torch.arange(24), whole.bank(5)])
    for name in ("query", "knowledge"):
        part |= {f"{name}.{end}": part[f"{name}.{end}"][rows_] for end in ("q", "scale")}
    part |= {name: part[name][rows_] for name in ("dialogue", "turn", "source")}
    of_replies = ("pool.", "p_harm.", "kind", "owner", "unsafe")
    part |= {name: t[pool] for name, t in part.items() if name.startswith(of_replies)}
    card = {k: v for k, v in whole.card.items() if k not in ("exchanges", "replies")}
    write_features(tmp_path / "slice.safetensors", {k: v.clone() for k, v in part.items()}, card)
    old = load_features(tmp_path / "slice.safetensors")
    assert "build the features again" in refusal(lambda: build.texts_of(old, shared_data))


def test_texts_belong_to_rows_by_their_id(fast, tmp_path):
    """F13: the rows of a slice, in a folder with other files, with the files in another order."""
    place = tmp_path / "texts"
    place.mkdir()
    (place / "b.jsonl").write_text(FORMS["mine.jsonl"](rows(30)))
    others = [{"query": f"why is thing{i}", "reply": f"because colour{i}"} for i in range(9)]
    (place / "a.csv").write_text(as_csv(others))
    out = tmp_path / "part.safetensors"
    build.build(place, out, limit=12, report=lambda text: None)
    (place / "a.csv").rename(place / "z.csv")
    (place / "new.csv").write_text(as_csv([{"query": "what else", "reply": "nothing at all"}]))
    found = load_features(out)
    said = build.texts_of(found, place)
    assert len(said) == 12 and (encode([e.query for e in said]) * found.query).sum(1).min() > 0.99
    record = {"results": [{"choices": {"examples": [{"row": 11, "reply": 11, "kind": "reference"}]}}]}
    frame = tables.examples(record, found, place)
    assert list(frame["query"]) == ["what about thing2"] and list(frame["most likely reply"]) == ["thing2 is colour2"]
    (place / "z.csv").unlink()
    assert "9 of 12 rows" in refusal(lambda: build.texts_of(found, place))


# ---- scores by id


@pytest.fixture
def toy_features(tmp_path) -> Path:
    """Features with their list of replies."""
    path = write_toy(tmp_path / "toy.safetensors")
    unsafe = [f"go away you thing{i}" for i in range(40)]
    replies.write_replies(path, *pool_of(toy_exchanges(), unsafe, TAILS))
    return path


def listed(path: Path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(replies.replies_path(path).read_text())))


def test_every_reply_is_listed_once_with_its_rows(toy_features):
    found, table = load_features(toy_features), listed(toy_features)
    assert [row["id"] for row in table] == list(dict.fromkeys(map(shown_id, found.text_ids["pool"].tolist())))
    assert table[5]["exchanges"] == "5" and table[5]["kind"] == "reference" and table[5]["reply"].startswith("thing1")
    assert sum(row["kind"] == "refusal" for row in table) == len(REFUSALS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_cell_is_a_formula(text):
    out = io.StringIO(newline="")
    csv.writer(out).writerow([replies.inert_cell(text), replies.quoted_cell(text), "end"])
    cell, quoted, _ = next(csv.reader(io.StringIO(out.getvalue(), newline="")))
    assert not cell or cell[0] not in "=+-@\t\r"
    assert not quoted or quoted[0] not in "=+-@\t\r"
    assert cell.removeprefix("'") == text.removeprefix("'") and replies.unquoted_cell(quoted) == text


def test_scores_come_back_to_their_rows(toy_features, tmp_path, capsys):
    """Task 2 of a laboratory: one estimator masks, another rewards, a third grades."""
    table = listed(toy_features)
    value = {row["id"]: round(int(row["id"], 16) % 1000 / 999, 3) for row in table}
    scores = [{"p_harm.second": 1 - value[row["id"]], "id": row["id"], "mine": value[row["id"]]} for row in table]
    (tmp_path / "scores.tsv").write_text(as_csv(scores[::-1], "\t"))
    command = ["data", "scores", str(toy_features), str(tmp_path / "scores.tsv")]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert cli.main(command) == 0, "the same file is written again"
    found = load_features(tmp_path / "toy.scored.safetensors")
    assert set(found.p_harm) == {"tox_block", "tcc", "head", "mine", "second"}
    right = torch.tensor([value[shown_id(one)] for one in found.text_ids["pool"].tolist()])
    assert torch.allclose(found.p_harm["mine"], right, atol=1e-3)
    assert found.card["scores"]["mine"]["sha256"] == sha256_of(tmp_path / "scores.tsv")
    config = EnvConfig(mask_harm="mine", reward_harm="second", grade_harm="tcc")
    env = make_envs(found, CandidateSpec("clean", n=8, near=6), 0, config).test
    masked = found.p_harm["mine"][env.cand] >= config.tau_mask
    assert torch.equal(~env.allowed, masked & (env.kind != 5))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t: t[1:], "1 of"),
        (lambda t: [row | {"id": "0" * 16} if i else row for i, row in enumerate(t[:2])], "have no row"),
        (lambda t: [*t, t[0]], "comes twice"),
        (lambda t: [row | {"mine": ""} for row in t], "[0, 1]"),
        (lambda t: [row | {"mine": "1.01"} for row in t], "[0, 1]"),
        (lambda t: [row | {"mine": "nan"} for row in t], "[0, 1]"),
        (lambda t: [{"id": row["id"], "tcc": 0} for row in t], "already"),
        (lambda t: [{"id": row["id"], "a b": 0} for row in t], "no name"),
        (lambda t: [{"id": row["id"]} for row in t], "columns of scores"),
        (lambda t: [{"reply": "a", "mine": 0} for row in t], "'id'"),
        (lambda t: [{"id": row["id"], "mine": 0, "p_harm.mine": 0} for row in t], "name of its own"),
    ],
)
def test_scores_that_do_not_fit_are_refused(toy_features, tmp_path, spoil, words):
    table = spoil([{"id": row["id"], "mine": 0.5} for row in listed(toy_features)])
    (tmp_path / "s.csv").write_text(as_csv(table))
    before = set(tmp_path.iterdir())
    text = refusal(lambda: replies.add_scores(toy_features, tmp_path / "s.csv", tmp_path / "new.safetensors"))
    assert words in text and set(tmp_path.iterdir()) == before, text


def test_features_without_ids_take_no_scores(tmp_path):
    (tmp_path / "s.csv").write_text("id,mine\na,0\n")
    text = refusal(lambda: replies.add_scores(embedded_path(), tmp_path / "s.csv", tmp_path / "new.safetensors"))
    assert "build it again" in text


# ---- nothing of the user's is written over

OUTPUTS = ("mine.safetensors", "mine.card.json", "mine.replies.csv", "mine.queries.csv")
PLACES = (*OUTPUTS, "mine.json", "mine.csv", "features.json")


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize(
    "name", [*FORMS, "mine.card.jsonl", "features.json", "mine.replies.jsonl", "mine.queries.jsonl"]
)
def test_an_input_is_never_written_over(fast, tmp_path, name):
    """L1: the card of `--out mine.safetensors` was `mine.json`, the input."""
    text = FORMS.get(name, FORMS["mine.jsonl"])(rows())
    for out in ("mine.safetensors", "mine.json", name, Path(name).with_suffix(".safetensors").name):
        (tmp_path / name).write_text(text)
        status = cli.main(["data", "build", str(tmp_path / name), "--out", str(tmp_path / out)])
        assert (tmp_path / name).read_text() == text and status == (0 if out.endswith(".safetensors") else 2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["build", "scores"])
def test_a_foreign_file_at_an_output_stays(fast, tmp_path, capsys, command, place):
    """Whatever the command: it refuses, or writes elsewhere; all files that were there are as they were."""
    (tmp_path / "in.jsonl").write_text(FORMS["mine.jsonl"](rows()))
    if command == "build":
        words = ["build", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "mine.safetensors")]
    else:
        path = write_toy(tmp_path / "toy.safetensors")
        ids = dict.fromkeys(map(shown_id, load_features(path).text_ids["pool"].tolist()))
        (tmp_path / "s.csv").write_text(as_csv([{"id": one, "own": 0} for one in ids]))
        words = ["scores", str(path), str(tmp_path / "s.csv"), "--out", str(tmp_path / "mine.safetensors")]
    (tmp_path / place).write_text('["of the user"]')
    before = contents(tmp_path)
    status = cli.main(["data", *words])
    said = capsys.readouterr().err
    assert before.items() <= contents(tmp_path).items(), "a file was changed"
    if status:
        assert status == 2 and place in said and contents(tmp_path) == before, "refused, and yet something was written"
    outputs = OUTPUTS if command == "build" else OUTPUTS[:2]
    assert status == (2 if place in outputs else 0)


def test_what_was_written_here_before_is_written_again(fast, tmp_path):
    (tmp_path / "in.csv").write_text(as_csv(rows()))
    words = ["data", "build", str(tmp_path / "in.csv"), "--out", str(tmp_path / "mine.safetensors")]
    assert cli.main(words) == 0
    before = contents(tmp_path)
    assert cli.main(words) == 0 and contents(tmp_path) == before, "same content, same bytes"
    (tmp_path / "in.csv").write_text(as_csv(rows(70)))
    assert cli.main(words) == 0 and len(load_features(tmp_path / "mine.safetensors")) == 70
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "in.csv")
    assert cli.main([*words[:-1], str(tmp_path / "loop.safetensors")]) == 2
    assert cli.main(["data", "build", str(tmp_path), *words[3:]]) == 0, "lists and cards beside the data are no data"


# ---- same content, same bytes

AGAIN = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from toys import write_toy
from dualppo.core.tensors import safetensors_bytes
write_toy(Path(sys.argv[1]), dialogues=12, turns=2)
print(hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest())
print(hashlib.sha256(safetensors_bytes({{"w": torch.ones(2)}}, {{str(i): "x" for i in range(20)}})).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    """V3: the notes of a file lay in the order of a hash table."""
    code = AGAIN.format(tests=str(Path(__file__).parent))
    said = [
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{i}.safetensors")], capture_output=True, text=True)
        for i in range(3)
    ]
    assert len({one.stdout for one in said}) == 1 and said[0].stdout.count("\n") == 2, said[0].stderr


NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAME.filter(bool), st.integers(0, 5), min_size=1),
    st.dictionaries(NAME, st.text(max_size=8), max_size=8),
    st.randoms(),
)
def test_the_order_of_a_dictionary_is_not_in_the_bytes(sizes, notes, random):
    sizes.pop("__metadata__", None)
    notes = {name: text.encode("utf-8", "replace").decode() for name, text in notes.items()}
    kinds = (torch.float16, torch.uint8, torch.int64, torch.float32)
    tensors = {name: torch.full((size,), 1).to(kinds[size % 4]) for name, size in sizes.items()}

    def shuffled(values):
        items = list(values.items())
        random.shuffle(items)
        return dict(items)

    made = safetensors_bytes(tensors, notes)
    assert made == safetensors_bytes(shuffled(tensors), shuffled(notes))
    back, said = tensors_of(made, "made")
    assert said == notes and set(back) == set(tensors)
    assert all(torch.equal(back[k], tensors[k]) and back[k].dtype == tensors[k].dtype for k in tensors)


def test_card_and_list_lie_beside_the_features():
    assert card_path("a/b.c.safetensors") == Path("a/b.c.card.json")
    assert replies.replies_path("a/b.c.safetensors") == Path("a/b.c.replies.csv")


# ---- a user without a home, as in a container

HOMELESS = """
import os, pwd, sys
for name in ("HOME", "DUALPPO_CACHE", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
def nobody(*_):
    raise KeyError("uid not found")
pwd.getpwuid = nobody
from dualppo.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words, status",
    [
        (["train", "similarity", "--setting", "clean", "--seeds", "1", "--data", "auto"], 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["data", "verify"], 0),
                (["methods"], 0),
                (["train", "sft", "--data", "wow"], 2),
                (["train", "sft", "--data", "mine.csv"], 2),
            )
        ),
    ],
)
def test_without_a_home_it_works_or_names_the_variable(tmp_path, words, status):
    """V8: HOME unset, and a uid that nobody has a name for."""
    (tmp_path / "mine.csv").write_text(as_csv(rows()))
    done = subprocess.run([sys.executable, "-c", HOMELESS, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "~").exists()
    if status:
        assert "DUALPPO_CACHE" in done.stderr and done.stderr.count("\n") == 1


def test_a_refused_run_leaves_nothing_behind(tmp_path, capsys):
    path = write_toy(tmp_path / "toy.safetensors", dialogues=20, turns=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("of the user")
    for outputs in ("new", "out"):
        command = ["train", "sft", "--setting", "clean", "--data", str(path), "--outputs", str(tmp_path / outputs)]
        assert cli.main(command) == 2 and "asks for" in capsys.readouterr().err
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {
        "toy.safetensors",
        "toy.card.json",
        "out",
        "out/mine",
    }
