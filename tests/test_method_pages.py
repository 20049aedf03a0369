"""A page of a method is what its notebook, its configuration and its row say, and nothing is left out."""

from conftest import ROOT

from dualppo.methods.rows import all_methods
from dualppo.papers.tables import read_runs
from dualppo.show.method_pages import comments_of, default_rows, notebook_of, write_pages

PUBLISHED = ROOT / "outputs" / "published"


def test_the_published_pages_are_those_of_today(tmp_path):
    runs = read_runs(PUBLISHED, "board") if (PUBLISHED / "runs" / "board").is_dir() else []
    (tmp_path / "gone.md").write_text("a method that was")
    for path in write_pages(tmp_path, ROOT, runs):
        kept = PUBLISHED / "methods" / path.name
        assert kept.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run python tools/method_pages.py"
    assert not (tmp_path / "gone.md").exists()


def test_every_trained_method_has_a_notebook_and_every_field_a_word():
    for name, row in all_methods().items():
        if row.trained:
            assert notebook_of(row, ROOT) is not None, name
            bare = [f for f, _, why in default_rows(row) if not why]
            assert not bare, (name, bare)
        assert set(comments_of(type(row.config))) >= {f for f, _, _ in default_rows(row) if "." not in f} - {"base"}


def test_a_page_of_the_family_says_what_the_method_is_not():
    family = [n for n, row in all_methods().items() if "board" in row.tables]
    pages = {n: (PUBLISHED / "methods" / f"{n}.md").read_text(encoding="utf-8") for n in family}
    assert family and all("## What this is not" in page and "$" in page for page in pages.values())
