"""The pages around the library: cards, llms.txt, citation, the site and what opens notebooks elsewhere."""

import json
import re
import sys
import tomllib
from importlib.util import find_spec

import pytest
import yaml
from conftest import ROOT
from test_project import versioned_files

sys.path.insert(0, str(ROOT / "tools"))

import cards
import llms

CARDS = ROOT / "docs" / "cards"
ASSETS = ROOT / "dualppo" / "assets"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Source"]


# ---- cards


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    return cards.cards()


def test_the_cards_are_those_of_today(fresh):
    assert {p.name for p in CARDS.glob("*.md")} == set(fresh), "run make readme"
    for name, text in fresh.items():
        assert (CARDS / name).read_text(encoding="utf-8") == text, f"{name}: run make readme"


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


# ---- llms.txt, citation


def test_llms_txt_is_that_of_today_and_its_links_exist():
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert text == llms.llms_txt(), "run make readme"
    links = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", text, flags=re.M)
    assert len(links) == len(set(links)) and not [link for link in links if not (ROOT / link).is_file()]
    for part in llms.parts():
        assert f"\n## {part['title']}\n\n{part['about']}\n" in text
        assert {f"nbs/{name}" for name in part["notebooks"]} <= set(links)


def test_the_citation_is_one():
    """By its schema where cffconvert is installed; its keys in any case."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    said = yaml.safe_load(text)
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= said.keys() and said["authors"]
    assert said["cff-version"] == "1.2.0" and said["type"] == "software"
    assert said["repository-code"] == ADDRESS and said["license"] == "Apache-2.0"
    for one in said["references"]:
        assert {"type", "title", "authors"} <= one.keys()
    if find_spec("cffconvert"):
        from cffconvert import Citation

        Citation(text).validate()


def test_the_address_of_the_repository_is_typed_nowhere_else():
    """nbdev writes it into the index, and the report shows the citation; everything else asks pyproject.toml."""
    known = {
        "pyproject.toml",
        "CITATION.cff",
        "dualppo/_modidx.py",
        "dualppo/show/report.py",
        "nbs/show/3b_report.ipynb",
        "outputs/published/report.html",
    }
    texts = [p for p in versioned_files() if p.suffix not in {".safetensors", ".png", ".lock"}]
    unknown = [p for p in texts if p.relative_to(ROOT).as_posix() not in known]
    here = ADDRESS.removeprefix("https://")
    assert not [p for p in unknown if here in p.read_text(encoding="utf-8")]
