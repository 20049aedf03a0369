"""The command line: what it prints, how it ends, and that bad input gets one sentence and exit status 2."""

import errno
import json
import os
import subprocess
import sys

import pytest

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
        (("train", "sft", "--data", "nowhere"), "no such file"),
        (("reproduce", "--methods", "sfd"), "sft"),
        (("reproduce", "--settings", "cleen"), "clean"),
        (("reproduce", "--profile", "quik"), "quick"),
        (("reproduce", "--workers", "0"), "workers"),
        (("reproduce", "--profle", "quick"), "--profile"),
        (("data", "verify", "nowhere.safetensors"), "no such file"),
        (("repro",), "reproduce"),
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
