"""The pages of docs/howto are run as a reader would: every block, in order, in a fresh folder, by the command itself.

A block whose first line is `# file: NAME` is written to that file; other blocks tagged `bash` and `python` are run. A
page that "Starts in the folder of" another goes on in a copy of what that one left. What a page "Leaves" must be there.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci

ROOT = Path(__file__).resolve().parent.parent
HOWTOS = ROOT / "docs" / "howto"
PAGES = sorted(HOWTOS.glob("[0-9]*.md"))
PIP = """#!/bin/sh
shift  # install
exec '{python}' -m pip install -q --no-deps --no-build-isolation --no-index --upgrade --target '{site}' "$@"
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def begins_with(page: Path) -> Path | None:
    """The page in whose folder this one starts."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r"^Starts in the folder of \[.*?\]\((.*?)\)", text, flags=re.MULTILINE)
    return HOWTOS / found[1] if found else None


def left(page: Path) -> list[str]:
    """Names, or patterns, of the files that the page says it leaves."""
    (paragraph,) = re.findall(r"^Leaves (.*?)\n\n", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`(.*?)`", paragraph)


def surroundings(folder: Path) -> dict[str, str]:
    """A shell in which `dualppo` and `python` are those of this test, and `pip install` goes into a folder beside."""
    site, programs = folder.parent / "site", folder.parent / "bin"
    programs.mkdir()
    (programs / "pip").write_text(PIP.format(python=sys.executable, site=site))
    (programs / "pip").chmod(0o755)
    paths = {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "DUALPPO_CACHE": str(folder.parent / "cache"),
    }
    return os.environ | paths


def follow(page: Path, folder: Path) -> None:
    """Do what the page says."""
    if earlier := begins_with(page):
        assert begins_with(earlier) is None, "a page that goes on from two others is no short how-to"
        shutil.copytree(followed(earlier, folder.parent.parent / earlier.stem), folder)
    folder.mkdir(parents=True, exist_ok=True)
    env = surroundings(folder)
    for number, (language, text) in enumerate(blocks(page)):
        named = re.match(r"# file: (\S+)\n", text)
        if named:
            (folder / named[1]).parent.mkdir(exist_ok=True)
            (folder / named[1]).write_text(text)
            continue
        assert language in ("bash", "python"), f"{page.name}: nothing can be done with a block of {language!r}"
        script = folder.parent / f"block{number}"
        script.write_text(text)
        program = ["bash", "-eu", "-o", "pipefail"] if language == "bash" else [sys.executable]
        done = subprocess.run([*program, script], cwd=folder, env=env, capture_output=True, text=True)
        said = f"{page.name}, block {number}:\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0 and "Traceback" not in done.stderr, said


def followed(page: Path, place: Path) -> Path:
    """The folder of a page that was followed, once."""
    folder = place / "folder"
    if not place.exists():
        follow(page, folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("howtos")


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[] if p is PAGES[0] else [pytest.mark.slow]) for p in PAGES]
)
def test_a_page_does_what_it_says(page, place):
    if not find_spec("sentence_transformers"):
        pytest.skip("needs the extra build")
    folder = followed(page, place / page.stem)
    for name in left(page):
        assert list(folder.glob(name)), f"{page.name} says it leaves {name}, and left {sorted(folder.rglob('*'))}"


@pytest.mark.parametrize("command", ["false", "dualppo-that-was | cat", "cat nothing.txt; true"])
def test_a_page_that_does_not_work_any_more_fails(command, tmp_path):
    (page := tmp_path / "page.md").write_text(f"```bash\n{command}\n```\n")
    with pytest.raises(AssertionError, match="page.md, block 0"):
        follow(page, tmp_path / "page" / "folder")


def test_the_list_names_every_page_and_the_pages_are_short():
    listed = re.findall(r"\]\((\d\d-[\w-]+\.md)\)", (HOWTOS / "README.md").read_text(encoding="utf-8"))
    assert listed == [page.name for page in PAGES] and len(PAGES) == 11
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert 15 <= len(text.splitlines()) <= 50 and "\nRead on: " in text, f"{page.name} is no short how-to"


@pytest.mark.parametrize("page", [*PAGES, HOWTOS / "README.md"], ids=lambda page: page.stem)
def test_links_resolve_and_no_result_is_typed_by_hand(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert not re.findall(r"\d+(?:\.\d+)?\s?%|(?<![\w./])\d*\.\d+", prose), page.name
