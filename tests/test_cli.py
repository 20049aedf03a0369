"""The command line: what it prints, how it ends, and that bad input gets one sentence and exit status 2."""

import errno
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest
from test_tables import NAMES, graded, own, record, store

from dualppo import cli
from dualppo.runs import parallel
from dualppo.cli import main
from dualppo.runs.records import read_record

TINY = ["--epochs", "1", "--inner-epochs", "1", "--hidden", "8"]


def refused(capsys, *argv) -> str:
    """The one sentence a command ends with."""
    assert main([str(a) for a in argv]) == 2
    text = capsys.readouterr().err.strip()
    assert text and "\n" not in text and "Traceback" not in text
    return text


@pytest.mark.parametrize(
    "argv, needle",
    [
        (("train", "dual_pppo"), "dual_ppo"),
        (("train", "dual_ppo", "--gama", "1"), "--gamma"),
        (("train", "dual_ppo", "--gamma", "x"), "--gamma"),
        (("train", "sft", "--tau-mask", "1.5"), "[0, 1]"),
        (("train", "sft", "--set", "n=1"), "at least 2"),
        (("train", "sft", "--set", "famlies=1"), "families"),
        (("train", "sft", "--set", "n"), "name=value"),
        (("train", "sft", "--setting", "stres"), "stress"),
        (("train", "sft", "--device", "cuda:77"), "does not exist"),
        (("train", "sft", "--device", "gpu"), "unknown device"),
        (("train", "sft", "--seeds", "0"), "at least 1"),
        (("train", "sft", "--seeds", "1,1"), "different whole numbers"),
        (("train", "sft", "--seeds", "1;2"), "as in 0,3,7"),
        (("train", "sft", "--seeds", "-1"), "--seeds"),
        (("reproduce", "--seeds", "two"), "as in 0,3,7"),
        (("reproduce", "--seeds", "3", "--engine", "slurm"), "local engine"),
        (("train", "sft", "--data", "nowhere"), "no such file"),
        (("reproduce", "--methods", "sfd"), "sft"),
        (("reproduce", "--settings", "cleen"), "clean"),
        (("reproduce", "--profile", "quik"), "quick"),
        (("reproduce", "--workers", "0"), "workers"),
        (("reproduce", "--profle", "quick"), "--profile"),
        (("data", "verify", "nowhere.safetensors"), "no such file"),
        (("repro",), "reproduce"),
        (("methods", "--csv", "--json"), "exclude each other"),
        (("methods", "--wid"), "--wide"),
        (("train", "sft", "--jso"), "--json"),
        ((), "reproduce"),
    ],
)
def test_bad_input_gets_one_sentence(capsys, tmp_path, monkeypatch, argv, needle):
    monkeypatch.chdir(tmp_path)
    assert needle in refused(capsys, *argv)
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_features_of_another_schema(capsys, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a features file")
    assert "features file" in refused(
        capsys, "train", "sft", "--data", tmp_path / "x.safetensors", "--outputs", tmp_path / "o"
    )
    assert not list((tmp_path / "o").glob("*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_outputs_that_cannot_be_written(capsys, tmp_path, monkeypatch, code, toy):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    for argv in (("train", "random"), ("reproduce", "--profile", "smoke")):
        refused(capsys, *argv, "--data", toy, "--outputs", tmp_path / "o")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_disk_that_is_really_full(capsys, tmp_path, toy):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        (disk / "fill").write_bytes(b"\0" * 12288)
        refused(capsys, "train", "random", "--data", toy, "--outputs", disk / "o")
        assert not [p for p in disk.rglob("*") if p.is_file() and p.name != "fill"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_train_stores_and_prints(capsys, tmp_path, toy):
    assert (
        main(["train", "dual_ppo_bandit", *TINY, "--data", str(toy), "--outputs", str(tmp_path), "--set", "n=18"]) == 0
    )
    out = capsys.readouterr().out
    (path,) = tmp_path.rglob("*.json")
    record = read_record(path)
    assert (
        record["config"]["method"]["hidden"] == 8
        and record["config"]["candidates"]["n"] == 18
        and "average_reward" in out
        and path.name in out
    )


def test_a_flag_beats_the_profile_even_at_its_default():
    args, more = cli.parse(["train", "dual_ppo", "--epochs", "50", "--no-warm-start"])
    assert more == {"epochs": 50, "warm_start": False} and args.method == "dual_ppo"
    assert cli.parse(["train", "dual_ppo"])[1] == {}


@pytest.mark.parametrize(
    "argv, needle",
    [
        (["--help"], "reproduce"),
        (["reproduce", "--help"], "smoke"),
        (["train", "dual_ppo", "--help"], "Table 1: PPO clipping ratio"),
        (["data", "build", "--help"], "jigsaw"),
    ],
)
def test_help_teaches(capsys, argv, needle):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert not stop.value.code and needle in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("dual_ppo_exact", "similarity_mask", "wo_mask_bandit"))


def test_data_verify(capsys, toy):
    assert main(["data", "verify", str(toy)]) == 0
    assert "in order" in capsys.readouterr().out


def test_reproduce_is_resumable_and_quick_the_second_time(capsys, tmp_path, toy, without_processes):
    argv = [
        "reproduce",
        "--profile",
        "smoke",
        "--data",
        str(toy),
        "--outputs",
        str(tmp_path),
        "--methods",
        "random",
        "oracle",
        "--settings",
        "clean",
        "--workers",
        "2",
        "--no-notebooks",
    ]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "2 done" in first and "Table 2" in first and "smoke-toy-" in first
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.json")}
    assert len(stamps) == 2
    assert main(argv) == 0
    assert (
        "2 were there already" in capsys.readouterr().out
        and {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.json")} == stamps
    )
    next(iter(stamps)).unlink()
    assert main(argv) == 0
    assert "1 were there already, 1 done" in capsys.readouterr().out
    assert json.loads((tmp_path / "manifest.json").read_text())["runs"]


@pytest.mark.slow
def test_reproduce_reports_failures_and_exits_1(capsys, tmp_path, toy, monkeypatch):
    real = parallel.child_command
    monkeypatch.setattr(
        parallel,
        "child_command",
        lambda run, *rest: (
            [sys.executable, "-c", "raise SystemExit('it broke')"] if run.method == "random" else real(run, *rest)
        ),
    )
    argv = [
        "reproduce",
        "--profile",
        "smoke",
        "--data",
        str(toy),
        "--outputs",
        str(tmp_path),
        "--methods",
        "random",
        "oracle",
        "--settings",
        "clean",
        "--no-notebooks",
    ]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "1 of 2 runs failed" in out and "it broke" in out and "Table 2" in out


def test_interrupt_is_answered(capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupt)
    assert main(["methods"]) == 130 and "goes on from here" in capsys.readouterr().err


def test_a_report_of_a_folder_without_runs_is_one_sentence(tmp_path, capsys):
    assert main(["report", "--outputs", str(tmp_path), "--profile", "nosuch"]) == 2
    assert "no finished run there" in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---- seeds, and a baseline


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", (0,)), ("2", (0, 1)), ("0,3,7", (0, 3, 7)), ("7,", (7,)), ("9,4", (9, 4))]
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert cli.chosen_seeds(text) == seeds


def test_train_takes_seeds_by_name_and_says_where_they_are(capsys, tmp_path, toy):
    argv = ["train", "sft", "--epochs", "1", "--data", str(toy), "--outputs", str(tmp_path)]
    for text, seeds in (("2", [0, 1]), ("0,3,7", [0, 3, 7])):
        assert main([*argv, "--seeds", text]) == 0
        said = capsys.readouterr().out
        (path,) = [p for p in tmp_path.rglob("sft-*.json") if (read_record(p) or {}).get("seeds") == seeds]
        assert "Its folder of runs is custom" in said and path.parent.parent.name == "custom"
    command = re.search(r"dualppo (tables --profile custom --outputs .*)", said)[1]
    assert main([*command.split(), "--wide"]) == 0  # what it says can be done
    shown = capsys.readouterr().out
    assert re.search(r"SFT .* 4│", shown), shown  # seeds 0, 1, 3, 7: one row, and seed 0 counts once


def test_reproduce_takes_seeds_and_tables_a_baseline(capsys, tmp_path, toy, without_processes):
    argv = ["--data", str(toy), "--outputs", str(tmp_path), "--settings", "stress", "--no-notebooks"]
    assert main(["reproduce", "--profile", "smoke", "--methods", "similarity", "sft", "--seeds", "1,4,6", *argv]) == 0
    assert {tuple(read_record(p)["seeds"]) for p in (tmp_path / "runs" / "custom").rglob("*.json")} == {(1, 4, 6)}
    capsys.readouterr()
    argv = ["tables", "--profile", "custom", "--against", "similarity", "--outputs", str(tmp_path), "--wide"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "stress, minus Similarity (untrained start)" in said and "Differences: paired with" in said
    (row,) = [line for line in said.split("minus Similarity")[1].splitlines() if line.startswith("│SFT")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert len(cells) == 7
    assert all(re.fullmatch(r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", cell) for cell in cells[1:6])
    assert cells[-1] == "3"
    with open(tmp_path / "tables" / "custom" / "table2.csv") as file:
        assert cells[1] in file.read()
    assert "did you mean similarity" in refused(
        capsys, "tables", "--profile", "custom", "--against", "similarty", "--outputs", tmp_path
    )


@pytest.mark.parametrize(
    ("command", "words"), [("tables", "--against"), ("train", "--seeds"), ("reproduce", "--seeds")]
)
def test_the_help_names_them(capsys, command, words):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert words in capsys.readouterr().out


# ---- own data alone


def test_a_report_of_own_data_alone(capsys, tmp_path):
    folder = "quick-chat-dddddddd"
    store(tmp_path, [own(n, s) for n in NAMES for s in ("clean", "stress")], folder)
    store(tmp_path, [own("grpo", "clean")], "custom")
    for argv in ([], ["--profile", folder], ["--profile", "custom"]):
        assert main(["report", "--outputs", str(tmp_path), *argv]) == 0
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "Runs on own data: chat" in page and "our tickets, given by the user: internal" in page
        assert ("GRPO" in page) == (argv[-1:] == ["custom"]) and not (tmp_path / "claims.json").exists()
    capsys.readouterr()
    published = tmp_path / "published"
    store(published, [record(n, s, base=0.9) for n in NAMES for s in ("clean", "stress")])
    assert main(["tables", "--profile", folder, "--outputs", str(tmp_path), "--published", str(published)]) == 0
    said = capsys.readouterr().out
    assert "outside" not in said and "printed" not in said and "78.4" not in said and "51.0 ± 2.5" in said


# ---- any terminal


def in_a_terminal(columns: int, *argv, **environment) -> tuple[str, int]:
    """What a command writes into a terminal so many columns wide, and how it ends."""
    code = "import sys; from dualppo.cli import main; sys.exit(main(sys.argv[1:]))"
    child, terminal = pty.fork()
    if child == 0:
        # a whole environment: readline, which pytest imports, sets COLUMNS where os.environ does not see it
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        os.execve(sys.executable, [sys.executable, "-c", code, *argv], kept | environment)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    said = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not part:
            break
        said += part
    return said.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb", **ASCII},
        {"TERM": "xterm"},
        {"TERM": "xterm", **ASCII},
    ],
)
def test_no_figure_is_lost_in_a_narrow_or_plain_terminal(tmp_path, environment):
    runs = [graded(n, range(3), 0.03 * i, draw=i) for i, n in enumerate(NAMES)]
    store(tmp_path, runs)
    said, status = in_a_terminal(
        40, "tables", "--outputs", str(tmp_path), "--published", str(tmp_path), "--against", "similarity", **environment
    )
    assert status == 0 and "Traceback" not in said
    plain_ = re.sub(r"\x1b\[[0-9;]*m", "", said)
    sign = "+-" if "LC_ALL" in environment else "±"
    from dualppo.papers import tables

    table = tables.build_table("table2", tables.read_runs(tmp_path), "similarity")
    figures = {
        word.replace("±", sign) for row in table.rows for cell in row[1:] for word in cell.split() if word != "–"
    }
    assert len(figures) > 60 and not [word for word in figures if word not in plain_]
    assert "\\x" not in plain_ and "\\u" not in plain_ and "\ufffd" not in plain_
    for argv, words in (
        (["methods"], ["similarity_mask", "wo_vectorization_id_bandit"]),
        (["--help"], ["reproduce", "train"]),
    ):
        said, status = in_a_terminal(40, *argv, **environment)
        assert status == 0 and "Traceback" not in said and all(word in said for word in words)


def test_a_path_of_5000_letters_is_one_sentence(capsys, tmp_path, toy):
    long = "a" * 5000
    for argv in (
        ("train", "sft", "--data", long),
        ("train", "sft", "--data", toy, "--outputs", tmp_path / long),
        ("reproduce", "--data", long),
        ("tables", "--outputs", long),
        ("tables", "--profile", long),
        ("report", "--outputs", long),
        ("study", "weights", "--data", long),
        ("data", "build", long),
        ("data", "verify", long),
    ):
        assert len(refused(capsys, *argv)) < 2000


@pytest.mark.parametrize("words", ["--help", "methods --wide", "methods --csv"])
def test_who_reads_only_the_first_line_gets_no_traceback(words):
    code = "import sys; from dualppo.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["bash", "-c", f"{sys.executable} -c '{code}' {words} | head -n 1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_tables_show_the_folder_that_has_runs(tmp_path, capsys):
    store(tmp_path, [record("random", "clean")])
    (tmp_path / "runs" / "quick").rename(tmp_path / "runs" / "custom")
    assert main(["tables", "--outputs", str(tmp_path), "--published", str(tmp_path)]) == 0
    assert "Random" in capsys.readouterr().out
    assert main(["tables", "--outputs", str(tmp_path), "--profile", "quick"]) == 2
    assert "name a folder that has some: custom" in capsys.readouterr().err
