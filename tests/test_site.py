"""The pages around the library: cards, llms.txt, citation, the site and what opens notebooks elsewhere."""

import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import cards

CARDS = ROOT / "docs" / "cards"
ASSETS = ROOT / "dualppo" / "assets"


# ---- cards


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    return cards.cards()


def test_the_cards_are_those_of_today(fresh):
    assert {p.name for p in CARDS.glob("*.md")} == set(fresh), "run python tools/cards.py"
    for name, text in fresh.items():
        assert (CARDS / name).read_text(encoding="utf-8") == text, f"{name}: run python tools/cards.py"


def test_every_stored_policy_model_and_data_set_has_a_card(fresh):
    from dualppo.writing.stored import BASES

    stored = {p.stem for p in (ASSETS / "writers").glob("*.safetensors")}
    assert {f"policy-{name}.md" for name in {*BASES, *stored}} <= set(fresh)
    named = [file for one in (*cards.DATA.values(), *cards.MODELS.values()) for file in one.files]
    assert len(named) == len(set(named))
    unnamed = {p.name for p in [*ASSETS.glob("*.safetensors"), *ASSETS.glob("*.json")]} - set(named)
    assert not unnamed, f"say in tools/cards.py what {unnamed} is for, and where it ends"


def test_the_numbers_of_cards_are_those_of_files(fresh):
    card = json.loads((ASSETS / "wow.card.json").read_text())
    for key in ("exchanges", "dialogues", "replies"):
        assert f"| `{key}` | {card[key]:,} |" in fresh["data-wow.md"]
    judge = json.loads((ASSETS / "judge.json").read_text())["measured"]["grouped"]
    assert f"| `measured.grouped` | {judge['rows']:,} | {judge['good']} |" in fresh["model-judge.md"]
    words = [text for one in (*cards.DATA.values(), *cards.MODELS.values()) for text in (one.use, one.limits)]
    for text in (*words, cards.POLICY_USE, cards.POLICY_LIMITS):
        assert not re.search(r"\d[.,]\d|\d %", text), f"a number typed by hand: {text}"


def test_what_was_measured_of_a_policy_comes_from_records(monkeypatch):
    record = {"arm": "start", "start": "mild", "model": "smollm2", "seed": 0, "weights": []}
    part = dict.fromkeys(("safe", "grader_head", "grader_tcc", "help"), 0.25)
    sat = dict.fromkeys(("help", "safe", "kl", "ended", "length", "overlap", "distinct2", "unique"), 0.125)
    record["test"] = sat | {"provoked": part, "chat": part}
    monkeypatch.setattr(cards, "token_records", lambda folder: [record])
    assert "| harm, provocations | 0.750 |" in cards.stored_card("mild")
    monkeypatch.setattr(cards, "token_records", lambda folder: [])
    assert "No run of it is published yet" in cards.stored_card("mild")
