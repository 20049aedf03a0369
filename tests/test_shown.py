"""What a committed notebook about records shows is what it shows today: numbers, counts, the registration's version.

Each is executed as a reader would, and every text among its outputs is compared; numbers may differ by what two kinds
of processor differ. The other notebooks are executed by tools/notebooks.py, which compares nothing.
"""

import html
import os
import re
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "nbs" / "papers"
NUMBER = re.compile(r"[-+−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


def texts(notebook: nbformat.NotebookNode) -> dict[int, list[str]]:
    """Cell → the texts of its outputs, pictures and warnings left out."""
    shown = {
        number: [
            visible(out)
            for out in cell.get("outputs", [])
            if out.get("name") != "stderr" and "image/png" not in out.get("data", {})
        ]
        for number, cell in enumerate(notebook.cells)
    }
    return {number: outputs for number, outputs in shown.items() if outputs}


def visible(output: nbformat.NotebookNode) -> str:
    """One output as words and numbers, as a reader sees them, without markup and addresses."""
    data = output.get("data", {})
    page = re.sub(r"<style.*?</style>|<[^>]*>", " ", data.get("text/html", ""), flags=re.S)
    plain = output.get("text", "") or data.get("text/markdown", "") or data.get("text/plain", "")
    return " ".join(re.sub(r"0x[0-9a-f]+|<[\w. ]+>", "", html.unescape(page) or plain).split())


def same(was: str, now: str) -> bool:
    """Whether two texts have the same words, and numbers as near as two processors bring them."""
    if NUMBER.sub("#", was) != NUMBER.sub("#", now):
        return False
    pairs = zip(NUMBER.findall(was), NUMBER.findall(now), strict=True)
    return all(a == b or value(a) == pytest.approx(value(b), rel=0.02, abs=2e-3) for a, b in pairs)


def value(text: str) -> float:
    """A number as it is printed."""
    return float(text.replace("−", "-").replace(",", ""))


def test_the_comparison_sees_a_stale_number():
    assert same("n = 12, +.031 [0.029, 0.033]", "n = 12, +.031 [0.0291, 0.033]")
    assert not same("Version 1", "Version 3") and not same("12 seeds", "20 seeds")
    assert not same("gains 0.10", "gains −0.10") and same("", "")


# They train or score for more than ten seconds before they show anything.
LONG = ("3g_fronts", "3h_open", "3k_red_team", "3l1_harm_trust", "3l2_perturbed", "3l_trust")


@pytest.mark.ci
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in sorted(FOLDER.glob("*.ipynb"))
    ],
)
def test_what_is_shown_is_what_comes_out(path):
    was, now = nbformat.read(path, 4), nbformat.read(path, 4)
    client = NotebookClient(now, timeout=600, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=os.environ | {"MPLBACKEND": "agg"})
    before, after = texts(was), texts(now)
    pairs = [(n, one) for n, shown in before.items() for one in zip_longest(shown, after.get(n, []), fillvalue="")]
    stale = [(n, *one) for n, one in pairs if not same(*one)]
    assert not stale, f"{path.name}: run it again and commit it; stale: {stale}"
