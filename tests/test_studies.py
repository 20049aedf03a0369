"""Studies run like every other grid, and what is missing is not shown."""

import pytest
from toys import write_toy

from dualppo.cli import main
from dualppo.core.errors import DataError
from dualppo.papers.registration import Analysis, registration
from dualppo.runs.parallel import run_grid
from dualppo.runs.spec import resolve
from dualppo.papers.studies import STUDIES, Study, records_of, study, summary

TINY = Study(
    "tiny", "Does it run?", {"none": ("random", {}), "ten": ("similarity", {"n": 30})}, seeds=(0,), profile="smoke"
)


def test_every_variant_can_be_run_and_calls_itself_exploratory():
    plan = registration()
    for one in STUDIES.values():
        for run in one.runs().values():
            resolve(run)
            assert run.seeds != plan.arms.get(run.method) and (run.overrides or run.profile != plan.profile), (
                "a study never fills a registered cell"
            )
        assert Analysis(one.name, tuple(one.variants), plan.primary, exploratory=True).check(plan)


def test_a_study_is_run_and_read_back(tmp_path):
    toy = str(write_toy(tmp_path / "toy.safetensors", dialogues=440, turns=2))
    runs = TINY.runs(toy, "cpu")
    assert summary(TINY, tmp_path).empty
    assert {o.status for o in run_grid([runs["ten"]], tmp_path, notebooks=False)} == {"done"}
    found = records_of(TINY, tmp_path, toy)
    assert (
        set(found) == {"ten"} and found["ten"]["config"]["candidates"]["n"] == 30 and len(found["ten"]["results"]) == 1
    )


def test_a_study_takes_other_data(capsys, tmp_path, monkeypatch, toy, without_processes):
    monkeypatch.setitem(STUDIES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.safetensors").symlink_to(toy)
    argv = ["study", "tiny", "--data", "few.safetensors", "--outputs", "out"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert (
        "2 runs: 0 were there already, 2 done" in shown
        and shown.partition("(stress)")[2].count("ten")
        and list(summary(TINY, tmp_path / "out", data=str(toy)).index) == ["none", "ten"]
    )
    assert main(argv) == 0 and "2 were there already" in capsys.readouterr().out
    assert summary(TINY, tmp_path / "out").empty, "the shipped features have no such run"
    assert main(["study", "tiny", "--data", "nowhere.safetensors"]) == 2 and "no such file" in capsys.readouterr().err


def test_an_unknown_study_is_named(capsys):
    with pytest.raises(DataError, match="weights"):
        study("weihgts")
    assert main(["study", "weihgts"]) == 2 and "weights" in capsys.readouterr().err
