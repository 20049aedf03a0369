"""Preference pairs that a user brings: strict reading, groups, embedding, what is scored by what, and the command."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_encoders import own_encoder  # noqa: F401
from test_hostile import refusal
from toys import encode

from dualppo import cli
from dualppo.bench import own_pairs
from dualppo.bench.own_pairs import (
    cosine_scorer,
    embedded_text_pairs,
    known_scorers,
    pair_report,
    read_text_pairs,
    score_pairs,
)
from dualppo.bench.reward_models import accuracy_of, cross_fitted, margins
from dualppo.text.encoders import encoder_identity
from dualppo.text.exchanges import normalise_text


class ToyEncoder:
    """Stands for a sentence encoder; its vectors pass for nobody else's."""

    name, dim, identity = "toy", 384, {"name": "toy", "sha256": "0" * 64}

    def encode(self, texts):
        return encode(texts)


def rows(count: int = 40) -> list[dict]:
    return [
        {"prompt": f"what about thing{i}", "chosen": f"thing{i} is colour{i % 7}", "rejected": f"other{i} talk"}
        for i in range(count)
    ]


def as_csv(table: list[dict], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


FORMS = {
    "p.csv": as_csv,
    "semicolons.csv": lambda t: as_csv(t, ";"),
    "p.tsv": lambda t: as_csv(t, "\t"),
    "P.JSONL": lambda t: "\n\n".join(map(json.dumps, t)) + "\n",
    "p.ndjson": lambda t: "\r\n".join(map(json.dumps, t)),
    "bom.csv": lambda t: "\ufeff" + as_csv(t),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_pairs_in_every_form(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name](rows()), newline="")
    found = read_text_pairs(tmp_path / name)
    assert [found.prompt, found.chosen, found.rejected] == [
        tuple(r[k] for r in rows()) for k in ("prompt", "chosen", "rejected")
    ]
    assert found.group == found.prompt, "without groups, the prompt is one"


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(normalise_text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), min_size=1, max_size=5))
def test_any_text_survives_every_form(tmp_path, table):
    made = [dict(zip(("prompt", "chosen", "rejected", "group"), row)) for row in table]
    same = any(normalise_text(r["chosen"]) == normalise_text(r["rejected"]) for r in made)
    for name in ("p.csv", "p.tsv", "p.jsonl"):
        form = FORMS.get(name, FORMS["p.ndjson"])
        (tmp_path / name).write_text(form(made), newline="", encoding="utf-8")
        if same:
            assert "the same text" in refusal(lambda name=name: read_text_pairs(tmp_path / name))
            continue
        found = read_text_pairs(tmp_path / name)
        assert list(zip(found.prompt, found.chosen, found.rejected, found.group)) == table


GOOD = json.dumps(rows(1)[0])


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.jsonl", GOOD + "\n" + GOOD[:-1] + ', "chosen": "c"}', "row 1, field 'chosen': stands twice"),
        ("a.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n", "field 'chosen': stands twice"),
        ("a.jsonl", json.dumps(rows(1)[0] | {"chosen": " \t "}), "row 0, field 'chosen': empty text"),
        ("a.csv", "prompt,chosen,rejected\na,b,c\na,b,\n", "row 1, field 'rejected': empty text"),
        ("a.csv", "prompt,chosen,rejected\na,b c,b  c\n", "row 0, field 'rejected': the same text"),
        ("a.jsonl", '{"prompt": "a", "chosen": "b"}', "row 0, field 'rejected': missing"),
        ("a.csv", "prompt,better,rejected\na,b,c\n", "field 'chosen': missing"),
        ("a.jsonl", '{"prompt": ["a"], "chosen": "b", "rejected": "c"}', "field 'prompt': expected a text, found list"),
        ("a.jsonl", '{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "field 'chosen': half a surrogate"),
        ("a.jsonl", GOOD + "\n[1]", "row 1: expected an object"),
        ("a.jsonl", GOOD + "\n{", "row 1: broken JSON"),
        ("a.jsonl", "[" * 100_000, "row 0: broken JSON"),
        ("a.jsonl", GOOD[:-1] + ', "group": true}', "field 'group'"),
        ("a.jsonl", GOOD[:-1] + ', "group": 3}\n' + GOOD, "row 1, field 'group': missing, where other rows"),
        ("a.csv", "prompt,chosen,rejected\na,b\n", "row 0: has more or fewer cells"),
        ("a.csv", 'prompt,chosen,rejected\na,"b,c\n', "cannot be read as a table"),
        ("a.csv", "prompt,chosen,rejected\n", "no pairs"),
        ("a.jsonl", "\n\n", "no pairs"),
        ("a.parquet", "PAR1", "no kind of file"),
        ("a.csv", "prompt,chosen,rejected\na,b\x00,c\x00\n", "a.csv"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, name, text, words, capsys):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if words != "a.csv":  # a null character is a character like another
        said = refusal(lambda: read_text_pairs(tmp_path / name))
        assert words in said and str(tmp_path / name) in said, said
        assert cli.main(["data", "pairs", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"dualppo: {said}\n"


def test_bytes_that_are_no_text_and_what_is_no_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\n\xff,b,c\n")
    assert "UTF-8" in refusal(lambda: read_text_pairs(tmp_path / "a.csv"))
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").mkdir()
    for name, words in (("b.jsonl", "a pipe"), ("c.jsonl", "a folder"), ("d.jsonl", "no such file")):
        assert words in refusal(lambda name=name: read_text_pairs(tmp_path / name))


def test_groups_are_kept_and_whole_numbers_are_names(tmp_path):
    table = [row | {"group": i // 4} for i, row in enumerate(rows())]
    (tmp_path / "p.jsonl").write_text(FORMS["p.ndjson"](table))
    texts = read_text_pairs(tmp_path / "p.jsonl")
    pairs = embedded_text_pairs(texts, encode)
    assert len(set(texts.group)) == 10 == len(pairs.group.unique())
    same = pairs.group[:, None] == pairs.group
    assert torch.equal(same, torch.arange(40)[:, None] // 4 == torch.arange(40) // 4)


def test_every_text_is_encoded_once_and_in_its_place(tmp_path):
    asked = []

    def counting(texts):
        asked.extend(texts)
        return encode(texts)

    table = rows(6) + [row | {"rejected": "nothing at all"} for row in rows(6)]
    (tmp_path / "p.csv").write_text(as_csv(table))
    pairs = embedded_text_pairs(read_text_pairs(tmp_path / "p.csv"), counting)
    assert len(asked) == len(set(asked)) == 6 * 3 + 1
    for name in ("prompt", "chosen", "rejected"):
        torch.testing.assert_close(getattr(pairs, name), encode([row[name] for row in table]))


def test_scores_are_those_of_notebook_10(tmp_path):
    (tmp_path / "p.csv").write_text(as_csv(rows()))
    pairs = embedded_text_pairs(read_text_pairs(tmp_path / "p.csv"), encode)
    found = score_pairs(pairs, {"cosine": cosine_scorer, "nothing": lambda x, y: torch.zeros(len(x))})
    assert found["cosine"] == accuracy_of(margins(cosine_scorer, pairs)) | {"ties": 0}
    assert found["cosine"]["accuracy"] > 0.9, "chosen replies share a word with their prompts"
    assert found["nothing"]["accuracy"] == 0 and found["nothing"]["ties"] == 40
    assert found["fitted here"] == accuracy_of(cross_fitted(pairs, 1.0)) | {"ties": 0}
    few = score_pairs(pairs.take(torch.arange(4)), {"cosine": cosine_scorer})
    assert set(few) == {"cosine"}, "four groups are no five folds"


def test_models_score_the_encoder_that_they_read():
    assert set(known_scorers("0" * 64)) == {"cosine"}
    ours = known_scorers(encoder_identity()["sha256"])
    assert set(ours) == {"cosine", "RM_help", "RM_safe", "harm head"}
    x, y = (torch.nn.functional.normalize(torch.randn(3, 384), dim=1) for _ in range(2))
    assert all(scorer(x, y).shape == (3,) and scorer(x, y).isfinite().all() for scorer in ours.values())


def test_the_command_prints_what_the_function_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(own_pairs, "text_encoder", lambda name="": ToyEncoder())
    monkeypatch.setenv("DUALPPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.csv").write_text(as_csv(rows()))
    report = pair_report(tmp_path / "p.csv")
    assert (report["pairs"], report["groups"], set(report["models"])) == (40, 40, {"cosine", "fitted here"})
    assert cli.main(["data", "pairs", str(tmp_path / "p.csv")]) == 0
    said = capsys.readouterr().out
    one = report["models"]["cosine"]
    assert "40 pairs in 40 groups, embedded by toy" in said
    assert f"{one['accuracy']:.3f}" in said and f"{one['low']:.3f} to {one['high']:.3f}" in said
    assert (tmp_path / "p.csv").read_text() == as_csv(rows()), "nothing is written over"


@pytest.fixture(scope="module")
def writes_encoders():
    """The part of sentence-transformers that writes a folder; it is loaded when asked for."""
    return pytest.importorskip("sentence_transformers.models")


def test_an_encoder_of_ones_own(writes_encoders, own_encoder, tmp_path: Path):  # noqa: F811
    (tmp_path / "p.csv").write_text(as_csv(rows(12)))
    report = pair_report(tmp_path / "p.csv", str(own_encoder), tmp_path / "cache")
    assert report["encoder"]["name"] == str(own_encoder) and set(report["models"]) == {"cosine", "fitted here"}
    assert report["models"]["cosine"]["n"] == 12
