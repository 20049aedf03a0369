"""The notebooks as a book: each stands in one part, and those that teach have exercises with solutions that run."""

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
PARTS = tomllib.loads((NBS / "book.toml").read_text(encoding="utf-8"))["part"]
# What the workshop, core included, explains is machinery: it has tests, not exercises.
TAUGHT = [name for part in PARTS if part["title"] != "Workshop" for name in part["notebooks"]]
FOLD = {"tags": ["hide-input", "solution"], "jupyter": {"source_hidden": True}}


def cells(name):
    return json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def faults(name):
    "What keeps a notebook from having two exercises with folded solutions, before what was learned."
    found = cells(name)
    heads = [i for i, c in enumerate(found) if c["cell_type"] == "markdown" and "## Exercises" in source(c)]
    solved = [i for i, c in enumerate(found) if c["cell_type"] == "code" and source(c).startswith("# Solution ")]
    learned = [i for i, c in enumerate(found) if c["cell_type"] == "markdown" and "## What we learned" in source(c)]
    if len(heads) != 1 or not learned:
        return ["needs one cell '## Exercises' and one '## What we learned'"]
    said, order = source(found[heads[0]]), [*heads, *solved, learned[-1]]
    return [
        text
        for text, wrong in (
            ("two numbered questions", "\n1. " not in said or "\n2. " not in said),
            ("solutions 1 and 2", [source(found[i]).splitlines()[0][11:] for i in solved] != ["1", "2"]),
            ("the order exercises, solutions, what we learned", order != sorted(order)),
            ("folded solutions", any(found[i]["metadata"] != FOLD for i in solved)),
            ("an assert in each solution", any("assert " not in source(found[i]) for i in solved)),
        )
        if wrong
    ]


def test_every_notebook_is_in_exactly_one_part():
    listed = [name for part in PARTS for name in part["notebooks"]]
    there = {p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert Counter(listed) == Counter(there - {"index.ipynb"}), "nbs/book.toml: a notebook is missing, gone or twice"


def test_nbdev_keeps_the_fold_of_a_solution():
    kept = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["nbdev"]
    assert set(FOLD) <= set(kept["allowed_cell_metadata_keys"])


@pytest.mark.parametrize("name", TAUGHT)
def test_a_notebook_has_two_exercises_with_folded_solutions(name):
    assert not (wrong := faults(name)), f"nbs/{name} lacks {', '.join(wrong)}"
