"""Ready-made test 20: the paper's derived numbers, recomputed from its own tables."""

import json

from conftest import ROOT
from dualppo.papers.claims import arithmetic, near_hits, texts, verdict


def by(words: str):
    return next(c for c in arithmetic() if words in c.claim)


def test_20_headline_numbers_are_flagged():
    assert (
        verdict(by("read as percentage points")) == "reproduced"
        and round(by("read as percentage points").recomputed, 2) == 36.1
    )
    assert (
        verdict(by("'relative' (§6)")).startswith("contradicted") and round(by("'relative' (§6)").recomputed, 1) == 85.3
    )
    assert (
        verdict(by("48.55 % against SFT")).startswith("contradicted")
        and round(by("48.55 % against SFT").recomputed, 1) == -81.1
    )


def test_20_differences_of_table_3_are_right_and_48_55_is_nowhere_against_sft():
    assert all(verdict(c) == "reproduced" for c in arithmetic() if c.claim.startswith("Table 3"))
    assert [texts(c) for c in arithmetic() if "w/o Trajectory Padding" in c.claim] == [
        ("-4.1 pp", "-4.10 pp"),
        ("1.7 pp", "1.70 pp"),
    ]
    hits = near_hits(48.55)
    assert len(hits) >= 2 and not any("SFT" in h for h in hits)


def test_the_plus_minus_is_no_sampling_error_of_the_test_replies():
    check = by("± 3.9")
    assert (
        verdict(check) == "not reproducible as specified"
        and abs(check.recomputed - 100 * (0.784 * 0.216 / 2770) ** 0.5) < 1e-9
        and check.printed > 4 * check.recomputed
    )


def test_every_displayed_equation_stands_in_a_notebook_with_a_row_of_the_notation_table():
    from dualppo.show.notation import SYMBOLS

    known = {s.notebook for s in SYMBOLS}
    for path in sorted((ROOT / "nbs").glob("*/[0-3]*.ipynb")):
        text = "".join(
            "".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown"
        )
        if "$$" in text:
            assert f"{path.parent.name}/{path.stem}" in known, (
                f"{path.name} displays an equation, but no row of the notation table names it"
            )


def test_every_row_of_the_notation_table_resolves():
    from importlib import import_module
    from dualppo.show.notation import SYMBOLS

    for s in SYMBOLS:
        module, _, name = s.code.rpartition(".")
        assert hasattr(import_module(f"dualppo.{module}"), name), s.code
        file, test = s.test.split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), s.test
        assert (ROOT / "nbs" / f"{s.notebook}.ipynb").exists(), s.notebook
