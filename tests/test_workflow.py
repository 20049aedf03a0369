"""The workflow: the same records as the built-in engine's, after whatever happens to the processes that make them."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runs import edited, package_copy

from dualppo.runs import jobs, key, workflow
from dualppo.cli import main
from dualppo.core.errors import DataError
from dualppo.core.files import SCRATCH
from dualppo.runs.execution import execute, run_once
from dualppo.runs.key import canonical
from dualppo.runs.records import job_path, missing, notebook_path, read_record
from dualppo.runs.workflow import (
    Config,
    check_engine,
    plan_of,
    read_config,
    run_workflow,
    seed_record,
    snakemake_command,
    write_config,
)

pytest.importorskip("snakemake")
from snakemake.common.configfile import load_configfile  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
GRID = Config("smoke", "out", "toy.safetensors", methods=("random", "similarity"), seeds=3, notebooks=False)


@pytest.fixture
def here(tmp_path, monkeypatch, toy) -> Path:
    """An empty current folder with a features file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.safetensors").symlink_to(toy)
    return tmp_path


def plan(config: Config) -> workflow.Plan:
    return plan_of(asdict(config))


def rules_of_dry_run(config: Config, engine: str = "snakemake", *more: str) -> dict[str, int]:
    """Rule → number of jobs that Snakemake would run."""
    file = write_config(config, Path("workflow.json"))
    command = snakemake_command(file, engine, None, "runs", "--dry-run", *more)
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).partition("Job stats:")[2].partition("total")[0].splitlines()
    return {name: int(count) for name, count in (line.split() for line in lines[3:] if line.strip())}


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL for a process and everything below it."""
    below = psutil.Process(process.pid).children(recursive=True)
    for one in [process, *below]:
        one.kill()
    process.wait()
    assert not psutil.wait_procs(below, timeout=30)[1]


@pytest.mark.slow
def test_a_grid_of_six_jobs_survives_kill_9(here):
    grid = replace(GRID, outputs="a folder's name", settings=("clean",))
    planned = plan(grid)
    assert len(planned.by_part) == 6
    command = [sys.executable, "-c", f"from dualppo.runs.workflow import *; run_workflow({grid!r}, workers=2)"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(kept := [path for name in planned.by_part if read_record(path := seed_record(planned, name))]) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    kill_tree(process)
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    assert missing(planned.runs, planned.outputs, notebooks=False)

    assert {o.status for o in run_workflow(grid, workers=2)} <= {"done", "cached"}
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps, "a finished seed was made again"
    for run in planned.runs:
        assert canonical(read_record(job_path(planned.outputs, run))) == canonical(execute(run)), run
    assert rules_of_dry_run(replace(grid, seeds=4)) == {"seed": 2, "record": 2, "runs": 1}


@settings(deadline=None, max_examples=200)
@given(outputs=st.text(min_size=1), data=st.text(min_size=1), texts=st.text())
def test_paths_reach_the_workflow_as_they_are(tmp_path_factory, outputs, data, texts):
    config = Config("smoke", outputs, data, texts=texts, methods=("random",), notebooks=False)
    file = write_config(config, tmp_path_factory.mktemp("config") / "workflow.json")
    assert read_config(load_configfile(file)) == config


@pytest.mark.slow
@pytest.mark.parametrize("name", ['é "x" ü', "it's 100 % $HOME `id`; & #1", "-dash"])
def test_a_workflow_writes_into_the_folder_it_was_given(here, name):
    (here / "work").mkdir()
    grid = replace(GRID, outputs=f"work/{name}", methods=("random",), settings=("clean",), seeds=1)
    outcomes = run_workflow(grid)
    assert [one.status for one in outcomes] == ["done"], outcomes
    assert [path.name for path in (here / "work").iterdir()] == [name]
    assert read_record(job_path(plan(grid).outputs, plan(grid).runs[0]))


def test_a_path_that_snakemake_cannot_take_is_a_sentence(here):
    for name in ("two\nlines", "{brace}", "\udcff"):
        with pytest.raises(DataError, match="Snakemake"):
            plan(replace(GRID, outputs=name))


@pytest.mark.slow
def test_a_failed_job_keeps_its_notebook_and_stops_no_other(here, capsys):
    config = Config(
        "smoke", "out", str((here / "toy.safetensors").resolve()), methods=("random", "similarity"), settings=("clean",)
    )
    planned = plan(config)
    (name,) = [name for name in planned.by_part if name.startswith("random")]
    record = seed_record(planned, name)
    (planned.outputs / "seeds" / name / ".dualppo.lock").mkdir(parents=True)  # its process cannot make this file
    argv = [
        "reproduce",
        "--engine",
        "snakemake",
        "--profile",
        "smoke",
        "--outputs",
        str(here / "out"),
        "--data",
        "toy.safetensors",
        "--methods",
        "random",
        "similarity",
        "--settings",
        "clean",
        "--workers",
        "2",
    ]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert (
        "2 runs: 0 were there already, 1 done, 1 failed." in out
        and "cannot be written" in out
        and f"out/seeds/{name}" in out
        and "Table 2" in out
    )
    failed = notebook_path(planned.outputs / "seeds" / name, planned.by_part[name])
    assert "DataError" in failed.read_text() and not record.exists()
    good = next(run for run in planned.runs if run.method == "similarity")
    cells = json.loads(notebook_path(planned.outputs, good).read_text())["cells"]
    assert any("Table 1" in "".join(cell["source"]) for cell in cells) and not list(
        Path("out/notebooks").rglob("*.failed.ipynb")
    )
    assert canonical(read_record(job_path(planned.outputs, good))) == canonical(execute(good))


@pytest.mark.slow
def test_the_engines_accept_each_others_records(here):
    planned = plan(GRID)
    for run in planned.runs[:3]:
        run_once(run, planned.outputs)
    assert rules_of_dry_run(GRID, "slurm", "--executor", "dryrun") == {"seed": 3, "record": 1, "runs": 1}
    run_once(planned.runs[3], planned.outputs)
    assert {o.status for o in run_workflow(GRID)} == {"cached"} and not (planned.outputs / "seeds").exists()


def test_an_edited_module_plans_exactly_its_jobs_again(here, tmp_path, monkeypatch):
    config = replace(GRID, methods=("random", "sft", "dual_ppo"), settings=("clean",))
    before = set(plan(config).by_part)
    folder = package_copy(tmp_path)
    monkeypatch.setattr(key, "package_folder", lambda: folder)
    assert set(plan(config).by_part) == before
    for module, old, new, methods in (
        ("terminal", "SIDE_BY_SIDE = 130", "SIDE_BY_SIDE = 131", set()),
        ("ppo", "inner_epochs: Count = 4", "inner_epochs: Count = 5", {"dual_ppo"}),
        ("metrics", "GOOD_COSINE = 0.5", "GOOD_COSINE = 0.6", {"random", "sft", "dual_ppo"}),
    ):
        edited(folder, module, old, new)
        now = plan(config).by_part
        changed = {now[name].method for name in set(now) - before}
        assert methods <= changed and (module != "terminal" or not changed), (module, changed)
        assert {name for name in now if now[name].method not in changed} <= before
        before = set(now)


def test_a_further_seed_adds_only_its_jobs(here):
    three, four = plan(GRID).by_part, plan(replace(GRID, seeds=4)).by_part
    assert set(three) < set(four) and {four[name].seeds for name in set(four) - set(three)} == {(3,)}


def test_paths_that_snakemake_would_misread(here):
    with pytest.raises(DataError, match="braces"):
        run_workflow(replace(GRID, outputs="a {place}"))


def test_parts_of_other_code_are_not_merged(here, capsys):
    planned = plan(replace(GRID, methods=("random",), settings=("clean",), seeds=2))
    (run,), (place,) = planned.runs, planned.by_place
    text = workflow.shlex.split(workflow.record_command(planned, place))[-1]
    for name, part in planned.by_part.items():
        run_once(part, planned.outputs / "seeds" / name)
    path = seed_record(planned, name)
    record = read_record(path)
    path.write_text(json.dumps(record | {"key": "0" * 64}))
    assert (
        workflow.store(text) == 2
        and "other code" in capsys.readouterr().err
        and not job_path(planned.outputs, run).exists()
    )
    path.write_text("{ truncated")
    assert workflow.store(text) == 2 and "not a record" in capsys.readouterr().err
    path.write_text(json.dumps(record))
    assert workflow.store(text) == 0 and canonical(read_record(job_path(planned.outputs, run))) == canonical(
        execute(run)
    )


def test_one_workflow_at_a_time(here):
    planned = plan(GRID)
    with jobs.lock(planned.outputs / f"{SCRATCH}workflow"), pytest.raises(DataError, match="another workflow"):
        run_workflow(GRID)


@pytest.mark.parametrize(
    "name, engine, needle",
    [
        ("snakemake", "snakemake", 'pip install "dualppo[workflow]"'),
        ("snakemake_executor_plugin_slurm", "slurm", "pip install snakemake-executor-plugin-slurm"),
    ],
)
def test_an_engine_that_is_not_installed(here, monkeypatch, capsys, name, engine, needle):
    real = workflow.find_spec
    monkeypatch.setattr(workflow, "find_spec", lambda module: None if module == name else real(module))
    assert main(["reproduce", "--engine", engine, "--profile", "smoke"]) == 2
    text = capsys.readouterr().err.strip()
    assert needle in text and "\n" not in text and not Path("out").exists()
    with pytest.raises(DataError):
        check_engine(engine)


@pytest.mark.parametrize(
    "values, needle",
    [
        ({"profil": "smoke"}, "profile"),
        ({"seeds": "two"}, "int"),
        ({"methods": "sft"}, "a list"),
        ({"notebooks": "no"}, "bool"),
        ({"seeds": -1}, "int"),
    ],
)
def test_bad_config_gets_one_sentence(values, needle):
    with pytest.raises(DataError, match=needle):
        read_config(values)
