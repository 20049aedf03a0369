"""The pages around the library: cards, llms.txt, citation, the site and what opens notebooks elsewhere."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
import yaml
from conftest import ROOT
from test_project import versioned_files

sys.path.insert(0, str(ROOT / "tools"))

import cards
import docs
import links
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


# ---- what opens the notebooks elsewhere


def test_every_notebook_is_offered_where_it_lies():
    assert ADDRESS == docs.SOURCE and re.fullmatch(r"[\w.-]+/[\w.-]+", docs.SLUG) and docs.BRANCH == "main"
    for name in docs.pages():
        if name.endswith(".ipynb"):
            offered = docs.places(name)
            assert offered["Source"] == f"{ADDRESS}/blob/main/{name}"
            assert offered["Binder"].endswith(f"?labpath={name}") and docs.SLUG in offered["Binder"]
            assert offered["Colab"].endswith(f"/github/{docs.SLUG}/blob/main/{name}")
            assert (ROOT / name).is_file()


def test_binder_installs_the_locks_and_the_checkout():
    folder = ROOT / "binder"
    named = re.findall(r"^-r (\S+)$", (folder / "requirements.txt").read_text(), flags=re.M)
    assert named == ["../requirements.lock", "../requirements-cuda.lock"]
    assert all((folder / name).is_file() for name in named)
    assert re.fullmatch(r"python-3\.1[12]\n", (folder / "runtime.txt").read_text())
    after = folder / "postBuild"
    assert os.access(after, os.X_OK) and "--no-deps --no-build-isolation --editable ." in after.read_text()
    assert subprocess.run(["bash", "-n", after]).returncode == 0


def test_the_workflow_builds_with_the_one_command_and_may_write_only_pages():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text())
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in jobs["build"]
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert jobs["publish"]["needs"] == "build" and "refs/heads/main" in jobs["publish"]["if"]
    steps = jobs["build"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make docs"]
    assert steps[-1]["with"]["path"] == "_docs"
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", one) for one in used), used


# ---- the site


def test_the_site_is_pinned_apart_from_the_library():
    from test_project import entries, locked

    pins = entries("docs/site/requirements.txt")
    names = {pin.name for pin in pins}
    assert {"sphinx", "myst-nb", "furo", "sphinx-mathjax-offline"} <= names and not names & set(locked())
    for pin, hashes in pins.items():
        assert [one.operator for one in pin.specifier] == ["=="] and hashes
    assert "install --require-hashes --no-deps -r docs/site/requirements.txt" in (ROOT / "Makefile").read_text()
    assert not list((ROOT / "docs").rglob("requirements*.lock"))


def test_links_between_pages_hold_before_anything_is_built():
    known = docs.pages()
    assert "nbs/index.ipynb" in known and known["README.md"] == "index.md"
    for name in known:
        if name.endswith(".md"):
            text = (ROOT / name).read_text(encoding="utf-8")
            docs.linked(text, name, known)  # raises for a link that leads nowhere
            assert all((ROOT / one).is_file() for one in docs.pictures(text, name))
        else:
            docs.notebook(name, known)


def test_a_link_leads_to_a_page_a_whole_file_or_the_repository():
    known = docs.pages()

    def turned(target: str, here: str) -> str:
        return docs.linked(f"see [it]({target}).", here, known)

    assert turned("../../README.md#two", "docs/cards/README.md") == "see [it](../../index.md#two)."
    assert turned("outputs/published/report.html", "README.md") == (
        'see <a href="outputs/published/report.html">it</a>.'
    )
    assert turned("workflow", "GUIDE.md") == f"see [it]({ADDRESS}/tree/main/workflow)."
    assert turned("tools/docs.py", "GUIDE.md") == f"see [it]({ADDRESS}/blob/main/tools/docs.py)."
    assert turned("https://example.org", "GUIDE.md") == "see [it](https://example.org)."
    assert docs.linked("```\n[it](gone.md)\n```", "GUIDE.md", known) == "```\n[it](gone.md)\n```"
    assert docs.linked("in `nbs/start_here.ipynb`", "README.md", known) == (
        "in [`nbs/start_here.ipynb`](nbs/start_here.ipynb)"
    )
    with pytest.raises(SystemExit, match="gone"):
        turned("gone.md", "GUIDE.md")


def test_a_notebook_loses_directives_and_hidden_cells_and_keeps_folded_solutions():
    known = docs.pages()
    before = json.loads((ROOT / "nbs/show/01_glossary.ipynb").read_text())["cells"]
    after = json.loads(docs.notebook("nbs/show/01_glossary.ipynb", known))["cells"]
    folded = [cell["metadata"] for cell in after if "solution" in cell["metadata"].get("tags", [])]
    assert len(folded) == len([c for c in before if "solution" in c["metadata"].get("tags", [])]) > 0
    assert all("hide-input" in one["tags"] and "solution" in one["mystnb"]["code_prompt_show"] for one in folded)
    for name in known:
        if name.endswith(".ipynb"):
            cells = json.loads(docs.notebook(name, known))["cells"]
            assert not [c for c in cells if c["cell_type"] == "code" and re.search(r"^#\s*\|", c["source"], re.M)], name


@pytest.mark.parametrize(
    "planted",
    [
        '<a href="gone.html">x</a>',
        '<a href="other.html#gone">x</a>',
        '<a href="#gone">x</a>',
        '<img src="gone.png">',
        '<img src="https://example.org/x.png">',
        '<script src="//example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        "<style>@import 'https://example.org/x.css';</style>",
        '<p style="background: url(https://example.org/x.png)">x</p>',
        '<iframe srcdoc="&lt;img src=&quot;https://example.org/x.png&quot;&gt;"></iframe>',
        '<a href="../outside.html">x</a>',
    ],
)
def test_the_link_check_finds_a_planted_fault(tmp_path, planted):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.html").write_text("outside")
    (site / "other.html").write_text('<h1 id="there">x</h1>')
    sound = '<a href="other.html#there">x</a><a href="https://example.org">x</a><a href="mailto:a@b.c">x</a>'
    (site / "index.html").write_text(f'{sound}<img src="data:image/png;base64,AA=="><a href="#">x</a>')
    assert not links.faults(site)
    (site / "index.html").write_text(sound + planted)
    assert len(links.faults(site)) == 1


SITE_NEEDS = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")


@pytest.mark.skipif(
    not all(map(find_spec, SITE_NEEDS)), reason="the site's requirements are not installed: `make docs` installs them"
)
@pytest.mark.slow
def test_the_site_is_built_whole_and_asks_for_nothing_outside(tmp_path):
    docs.build(tmp_path / "work", tmp_path / "site")  # minutes; warnings are errors, and every link is followed
    site = tmp_path / "site"
    for page in docs.pages().values():
        assert (site / page).with_suffix(".html").is_file()
    glossary = (site / "nbs/show/01_glossary.html").read_text()
    told = json.loads((ROOT / "nbs/show/01_glossary.ipynb").read_text())["cells"]
    solutions = [cell for cell in told if "solution" in cell["metadata"].get("tags", [])]
    assert glossary.count("Show the solution") == len(solutions) > 0
    assert "Lagrangian" in (site / "api/dualppo.losses.weights.html").read_text()
    assert "lagrangian" in (site / "searchindex.js").read_text()
    assert (site / "outputs/published/explorer.html").is_file() and (site / "llms.txt").is_file()
    assert (site / "_static/tex-svg-full.js").is_file()
