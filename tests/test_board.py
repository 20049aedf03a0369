"""The board through the door a user takes: run, killed rows made up, tables, what follows from them."""

import csv

import pytest

from dualppo.cli import main
from dualppo.methods.rows import all_methods
from dualppo.papers.board import BOARD_COLUMNS, BOARD_VIEWS, advice, contenders, lines_of
from dualppo.papers.tables import read_runs
from dualppo.runs.execution import run_once
from dualppo.runs.records import profile_folder
from dualppo.runs.spec import BOARD, Run, grid
from dualppo.writing.course import WRITERS


METHODS = ("similarity", "sft", "kto", "a_lol")


@pytest.mark.slow
def test_the_board_is_printed_and_made_up_again(toy, tmp_path, capsys):
    runs = [Run(name, "stress", (0, 1, 2), "board", str(toy), overrides={}) for name in METHODS]
    for run in runs:
        run_once(run, tmp_path)
    command = [
        "reproduce",
        "--board",
        "--data",
        str(toy),
        "--outputs",
        str(tmp_path),
        "--no-notebooks",
        "--workers",
        "1",
    ]
    few = ["--methods", *METHODS, "--settings", "stress", "--start", "similarity", "--seeds", "3"]
    assert main([*command, *few]) == 0
    said = capsys.readouterr().out
    assert "4 cached" in said or "4 were there" in said or "found" in said
    assert "KTO" in said and "A-LoL" in said and "stress, start similarity, for reward:" in said
    folder = profile_folder(runs[0])
    records = read_runs(tmp_path, folder)
    assert {r["method"] for r in records} == set(METHODS) and all(r["measured"]["cpu_s"] > 0 for r in records)
    for view in BOARD_VIEWS:
        ending = "" if view == "test" else f"_{view}"
        lines = (tmp_path / f"tables/{folder}/board_stress{ending}.csv").read_text(encoding="utf-8").splitlines()
        rows = list(csv.reader(line for line in lines if not line.startswith("#")))
        assert len(rows) == 5 and len(rows[0]) == len(BOARD_COLUMNS) + 5
    assert (tmp_path / f"figures/{folder}/board_stress.png").stat().st_size > 10_000
    assert (
        (tmp_path / f"tables/{folder}/advice.md").read_text(encoding="utf-8").count("\n") == len(advice(records)) == 3
    )
    for metric in ("average_reward", "harm"):
        frame = contenders(records, "stress", metric)
        better = frame["mean"].max() if metric == "average_reward" else frame["mean"].min()
        assert len(frame) == 4 and frame.iloc[0]["mean"] == better and not frame.iloc[0]["told apart"]


def test_the_board_is_no_other_profile(tmp_path, capsys):
    assert main(["reproduce", "--board", "--profile", "quick", "--outputs", str(tmp_path)]) == 2
    assert "a profile of its own" in capsys.readouterr().err


def test_the_grid_of_the_board_is_every_system_once_from_every_start():
    runs = grid("board")
    assert {run.method for run in runs} == set(BOARD) and len(set(BOARD)) == len(BOARD)
    for name in BOARD:
        own = [run for run in runs if run.method == name]
        assert len(own) == 2 * max(1, len(all_methods()[name].starts)) and all(len(run.seeds) == 10 for run in own)


def test_every_row_of_the_board_says_where_it_comes_from():
    lacking = [n for n in BOARD if all_methods()[n].trained and not all_methods()[n].source]
    assert lacking == ["exact_gradient"]  # ours
    assert all(set(all_methods()[n].documents) <= {"000", "001", "002", "003"} for n in BOARD)


def test_lines_are_code():
    assert 20 < lines_of("grpo") < 60 < lines_of("ppo_max") < 250


def test_every_method_on_tokens_says_where_it_comes_from(capsys):
    assert all(row.said[0] != "ours" and set(row.said[1]) <= {"000", "001", "002", "003"} for row in WRITERS.values())
    assert main(["methods", "--wide"]) == 0
    said = capsys.readouterr().out
    assert "arXiv:2306.04488" in said and "arXiv:2312.00849" in said
