"""Tables in a terminal, in a file and for another program: they fit, and what is not shown is said."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from test_cli import TINY, in_a_terminal
from test_tables import NAMES, graded, store

from dualppo.core.errors import DataError
from dualppo.cli import main
from dualppo.methods.rows import STARTS
from dualppo.papers import tables
from dualppo.papers.ledger import BEGINS, read_ledger
from dualppo.show.summary import answers_screen, own_answers, published_answers, taken_apart
from dualppo.show.terminal import LeftOut, Printer, print_table

PUBLISHED = Path(__file__).resolve().parent.parent / "outputs" / "published"

COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of graded runs."""
    folder = tmp_path_factory.mktemp("runs")
    store(folder, [graded(n, range(3), 0.03 * i, draw=i) for i, n in enumerate(NAMES)])
    return folder


def commands(folder, toy) -> dict[str, list[str]]:
    """One command for every way to a table that needs no model."""
    train = ["train", "dual_ppo_bandit", *TINY, "--data", str(toy), "--outputs", str(folder / "out")]
    return {
        "methods": ["methods"],
        "tables": ["tables", "--outputs", str(folder), "--published", str(folder), "--against", "similarity"],
        "train": train,
        "study": ["study", "weights", "--data", str(toy), "--outputs", str(folder / "out"), "--workers", "1"],
        "show": ["show", "similarity", "--states", "1"],
        "reproduce": ["reproduce", "--profile", "smoke", "--methods", "random", "--settings", "clean"]
        + ["--data", str(toy), "--outputs", str(folder / "out"), "--no-notebooks"],
    }


@pytest.mark.parametrize("name", ["methods", "tables", "train", "show", "reproduce"])
def test_a_machine_reads_standard_output(name, runs, toy, tmp_path, capsys, without_processes):
    argv = commands(runs, toy)[name]
    assert main([*argv, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["tables"]
    assert found and all(one["title"] and one["rows"] for one in found)
    assert main([*argv, "--csv"]) == 0
    said = capsys.readouterr()
    frame = pd.read_csv(io.StringIO(said.out))
    assert list(dict.fromkeys(frame["table"])) == list(dict.fromkeys(one["title"] for one in found))
    assert len(frame) == sum(len(one["rows"]) for one in found)
    if name in ("tables", "train", "reproduce"):
        assert "Written to" in said.err or "Stored in" in said.err, "what is said beside the tables"


def test_the_numbers_for_machines_are_those_of_the_table(runs, capsys):
    assert main(["tables", "--outputs", str(runs), "--published", str(runs), "--against", "similarity", "--json"]) == 0
    found = {one["title"]: one["rows"] for one in json.loads(capsys.readouterr().out)["tables"]}
    records = tables.read_runs(runs)
    summary = tables.summarise(records)
    assert {"table2", "table3", "minus similarity"} == set(found)
    for row in found["table2"]:
        cell = summary[row["setting"], row["method"], "harm"]
        assert row["harm"] == pytest.approx(cell.mean, abs=1e-6) and row["n"] == cell.n
        assert row["published_harm"] == row["harm"] and row["published_n"] == row["n"]
    (one,) = [r for r in found["minus similarity"] if r["method"] == "dual_ppo" and r["metric"] == "harm"]
    arms = {r["method"]: r for r in records}
    expected = tables.paired_interval(arms["dual_ppo"], arms["similarity"], "harm")
    assert one["difference"] == pytest.approx(expected.value) and one["n"] == expected.n


def bare(said: str) -> list[str]:
    return [line.rstrip() for line in COLOURS.sub("", said).replace("\r", "").splitlines()]


@pytest.mark.parametrize("columns", [60, 80, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 140))])
def test_a_table_fits_the_terminal_and_no_cell_is_wrapped(columns, runs, toy):
    for argv in (["methods"], commands(runs, toy)["tables"]):
        said, status = in_a_terminal(columns, *argv, TERM="xterm")
        lines = bare(said)
        # a path stays whole, so that it can be copied
        fitted = [line for line in lines if not line.startswith("Written to ")]
        assert status == 0 and max(map(cell_len, fitted)) <= columns, said
        rows = [line for line in lines if line.startswith("│")]
        assert rows or columns < 80
        assert all(line.strip("│").split("│")[0].strip() for line in rows), "a row goes over two lines"
        assert not rows or "--wide shows everything." in lines[-1]


def test_what_was_left_out_is_counted_and_wide_shows_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["methods"]) == 0
    lines = bare(capsys.readouterr().out)
    end = " ".join(lines[-2:])
    assert "To fit 80 columns, 4 columns left out: source" in end and "words are cut" in end
    assert not any("arXiv:2305.18290 eq. 7" in line for line in lines)
    assert main(["methods", "--wide"]) == 0
    said = capsys.readouterr().out
    assert "arXiv:2305.18290 eq. 7" in said and "…" not in said and "To fit" not in said
    assert max(map(cell_len, said.splitlines())) > 160


def test_a_file_gets_the_same_as_a_terminal_of_80_columns(runs, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["tables", "--outputs", str(runs), "--published", str(runs)]) == 0
    lines = bare(capsys.readouterr().out)
    assert max(map(cell_len, (line for line in lines if line[:1] in "┏┡│└"))) <= 80 and "To fit 80 columns" in lines[-2]


NUMBER = st.builds("{:.1f} ± {:.1f}".format, st.floats(0, 100), st.floats(0, 9))
WORDS = st.text("abc é漢()-,;", min_size=1, max_size=60).map(str.strip).filter(bool)


@given(st.data(), st.integers(20, 160))
def test_a_figure_is_shown_whole_or_its_column_is_named(data, width):
    figures = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    heads = ["name", *(f"head{i} {'n' * data.draw(st.integers(1, 9))}" for i in range(len(figures)))]
    names = data.draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
    rows = [[name, *(data.draw(NUMBER if one else WORDS) for one in figures)] for name in names]
    console = Console(width=width, file=(said := io.StringIO()), color_system=None)
    left = print_table("title", heads, rows, console)
    text = said.getvalue()
    in_a_table = text.count("┏")
    assert not in_a_table or max(map(cell_len, text.splitlines())) <= width
    assert in_a_table or left == LeftOut()
    flat = "".join(text.split())
    for i, head in enumerate(heads):
        if head in left.columns:
            continue
        for row in rows:
            if i and figures[i - 1]:
                assert all(word in text for word in row[i].split())
            elif not left.cut:
                assert in_a_table or "".join(row[i].split()) in flat
    console = Console(width=width, file=(said := io.StringIO()), color_system=None)
    assert print_table("title", heads, rows, console, wide=True) == LeftOut()
    assert all(" ".join(cell.split(" ")) in said.getvalue() for row in rows for cell in row)


# ---- what came out


def questions() -> list[str]:
    """The five questions as the ledger writes them."""
    return [line.split("**")[1] for line in read_ledger(PUBLISHED)[0]]


def test_every_answer_of_the_ledger_is_taken_apart_without_a_loss():
    lines = read_ledger(PUBLISHED)[0]
    assert len(lines) == 5
    for line in lines:
        found = taken_apart(line)
        assert {one.start for one in found} == set(STARTS)
        for one in found:
            said = line.partition(f"{BEGINS[one.start]}: ")[2]
            assert one.measured != said.startswith("not yet measured")
            assert line.startswith(f"**{one.question}**") and one.word in said
            assert " ".join(filter(None, (one.what, one.figure))) in said and "**" not in one.figure
            assert not one.measured or re.search(r"n = \d+$", one.figure)


@pytest.mark.slow
def test_the_job_ends_with_the_answers_and_where_to_look(capsys, tmp_path, without_processes, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    argv = ["reproduce", "--profile", "smoke", "--methods", "similarity", "--settings", "stress", "--no-notebooks"]
    assert main([*argv, "--outputs", str(tmp_path)]) == 0
    lines = bare(capsys.readouterr().out)
    start = next(i for i, line in enumerate(lines) if "Five questions" in line)
    screen = lines[start:]
    assert len(screen) <= 40 and all(any(line.startswith(asked) for line in screen) for asked in questions())
    text = " ".join(" ".join(screen).split())
    for one in (one for line in read_ledger(PUBLISHED)[0] for one in taken_apart(line)):
        assert not one.measured or (one.figure in text and one.word in text)
    assert "published: " in text and "yours" not in text, "a smoke test answers nothing"
    command = re.search(r"dualppo (tables --profile smoke --against similarity --outputs \S+)", text)[1]
    assert main(command.split()) == 0, "what it says can be done"
    capsys.readouterr()
    assert main([*argv, "--outputs", str(tmp_path), "--json"]) == 0
    found = {one["title"]: one["rows"] for one in json.loads(capsys.readouterr().out)["tables"]}
    assert {row["question"] for row in found["answers"]} == set(questions())


def test_yours_stand_beside_the_published_ones(tmp_path):
    names = ("dual_ppo", "dual_ppo_bandit", "similarity", "similarity_mask", "fixed_weights_bandit", "wo_mask_bandit")
    store(tmp_path, [graded(n, range(3), 0.03 * i, draw=i) for i, n in enumerate(names)])
    printer = Printer(Console(width=80, file=(said := io.StringIO()), color_system=None))
    answers_screen(printer, tmp_path, "quick", PUBLISHED, named=True)
    text = " ".join(said.getvalue().split())
    own = [one for one in own_answers(tmp_path) if one.measured]
    assert own and all(f"yours: {one.word + '. ' if one.word else ''}{one.figure}" in text for one in own)
    assert "not yet measured" in text, "no run of what padding is compared with"
    (tmp_path / "claims.json").write_text("{")
    assert published_answers(tmp_path) == [] == published_answers(None), "a broken ledger is no reason to fail"


def test_runs_on_own_data_answer_no_question_of_the_papers(capsys, tmp_path, toy, without_processes):
    argv = ["reproduce", "--profile", "smoke", "--methods", "random", "--settings", "clean", "--no-notebooks"]
    assert main([*argv, "--data", str(toy), "--outputs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Five questions" not in said and "published:" not in said
    assert "Where to look" in said and "dualppo report --profile smoke-toy-" in said


def test_the_main_job_shows_a_writing_policy_before_and_after(monkeypatch):
    from dualppo.cli import writing_look
    from dualppo.writing import experiment

    def said(model: str) -> str:
        printer = Printer(Console(width=80, file=(out := io.StringIO()), color_system=None))
        writing_look(printer, model, ("how are you", "i like tea"))
        return " ".join(out.getvalue().split())

    shown = said("toy")
    assert re.search(r"before .*after .*how are you before: .*after: .*i like tea before: ", shown)

    def missing(model: str) -> None:
        raise DataError("needs a package; install it.")

    monkeypatch.setattr(experiment, "place_of", missing)
    assert "Left out: needs a package; install it." in said("toy")
