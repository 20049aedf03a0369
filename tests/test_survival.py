"""What machines do to a grid: kills at any moment, full and read-only disks, wrong clocks, two grids at once, Ctrl-C.

Processes that are killed are forked from a server that has imported everything once, so that dozens of kills take
seconds.
"""

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualppo import cli
from dualppo.runs import execution, jobs, parallel
from dualppo.runs.codehash import definitions_sha256, reached
from dualppo.core import files
from dualppo.core.errors import DataError
from dualppo.core.files import SCRATCH, atomic_write, read_sealed
from dualppo.core.locks import lock
from dualppo.runs.jobs import affordable_workers, at_work, sweep
from dualppo.runs.execution import execute, run_once
from dualppo.runs.key import canonical
from dualppo.runs.parallel import run_grid
from dualppo.runs.records import Unfinished, finished, forget, job_path, missing, notebook_path, read_record
from dualppo.runs.spec import Run, grid
from dualppo.papers.tables import build_table, per_seed, read_runs, to_csv

pytestmark = pytest.mark.ci

METHODS = ("random", "similarity", "dual_ppo", "dual_ppo_bandit", "wo_mask_bandit")
SMALL = {"epochs": 5, "patience": 5, "inner_epochs": 1, "hidden": 8, "dialogues_per_epoch": 20}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["dualppo.cli", "pytest"])
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc to see which processes live")


@pytest.fixture(scope="module")
def runs(toy) -> list[Run]:
    """A small grid, and one run of three seeds with several epochs."""
    return [*grid("smoke", str(toy), methods=METHODS, settings=("stress",)), long_run(toy)]


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory) -> Path:
    """The outputs of the same runs when nothing happens."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    work(runs, outputs)
    return outputs


def long_run(toy: Path) -> Run:
    return Run("dual_ppo_bandit", "stress", (0, 1, 2), "smoke", str(toy), overrides=SMALL)


def work(runs: list[Run], outputs: Path) -> None:
    """What a process does that is killed: the runs, one after the other."""
    for run in runs:
        run_once(run, outputs)


def unfinished_files(outputs: Path) -> list[Path]:
    """Everything hidden below a folder: what a finished grid may not leave."""
    return [p for p in outputs.rglob("*") if any(part.startswith(".") for part in p.relative_to(outputs).parts)]


def same_results(outputs: Path, undisturbed: Path, runs: list[Run]) -> None:
    """Records and tables equal those of an undisturbed grid, and nothing else lies there."""
    for run in runs:
        assert canonical(read_record(job_path(outputs, run))) == canonical(read_record(job_path(undisturbed, run)))
    assert unfinished_files(outputs) == [] and final_tables(outputs) == final_tables(undisturbed)


def final_tables(outputs: Path) -> list[str]:
    """Table 2, Table 3 and every metric, as text."""
    (folder,) = (path.name for path in (outputs / "runs").glob("smoke-toy-*"))
    done = read_runs(outputs, folder)
    return [to_csv(build_table(name, done)) for name in ("table2", "table3")] + [per_seed(done).to_csv()]


def records(outputs: Path) -> dict[Path, bytes]:
    """Every record's bytes; each file that carries a result's name must be whole."""
    found = {path: path.read_bytes() for path in (outputs / "runs").rglob("*.json")}
    assert all(read_record(path) for path in found)
    for path in (outputs / "notebooks").rglob("*.ipynb"):
        if not path.parent.name.startswith(SCRATCH):
            assert json.loads(path.read_text())["cells"] == []
    return found


def without_policies(folder: Path) -> list[str]:
    """Names of what lies in a folder of runs beside the policies."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".policy.safetensors"))


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that has to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


# ---- kills


def begin(event, function: Callable, args: tuple) -> None:
    event.set()
    function(*args)


def begun(function: Callable, *args: object) -> multiprocessing.Process:
    """A process that has just begun to call a function.

    Imports are behind it, so a kill comes in the middle of work.
    """
    event = PROCESSES.Event()
    process = PROCESSES.Process(target=begin, args=(event, function, args))
    process.start()
    assert event.wait(120)
    return process


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(runs, undisturbed, tmp_path):
    dice, kills, surprised, folders, before = random.Random(0), 0, 0, 0, {}
    while kills < 32:
        outputs = tmp_path / str(folders)
        process = begun(work, runs, outputs)
        process.join(dice.uniform(0, 0.5))
        if process.exitcode == 0:  # everything was done before a kill: once more, in another folder
            same_results(outputs, undisturbed, runs)
            folders, before = folders + 1, {}
            continue
        os.kill(process.pid, (signal.SIGKILL, signal.SIGTERM)[kills % 2])
        process.join()
        kills, surprised = kills + (process.exitcode != 0), surprised + bool(unfinished_files(outputs))
        now = records(outputs)
        assert before.items() <= now.items(), "a finished run was lost or changed"
        before = now
    assert surprised > 2, "no kill came in the middle of anything"
    outputs = tmp_path / str(folders)
    work(runs, outputs)
    assert before.items() <= records(outputs).items()
    same_results(outputs, undisturbed, runs)


def stub(undisturbed: Path, pids: Path, nap: float = 0.1) -> Callable:
    """A child that takes a finished record (and writes a notebook in two steps) instead of training."""
    code = (
        "import os, sys, time; from pathlib import Path; source, target, notebook, pids = map(Path, sys.argv[1:])\n"
        "(pids / str(os.getpid())).touch()\n"
        "notebook.name and notebook.write_text('{\"cells\": ')\n"
        f"time.sleep({nap}); target.parent.mkdir(parents=True, exist_ok=True)\n"
        "part = target.with_name(f'.dualppo-{target.name}.{os.getpid()}'); "
        "part.write_text(source.read_text()); os.replace(part, target)\n"
        "notebook.name and notebook.write_text('{\"cells\": []}')"
    )
    return lambda run, outputs, notebook, texts="": [
        sys.executable,
        "-c",
        code,
        str(job_path(undisturbed, run)),
        str(job_path(outputs, run)),
        str(notebook or ""),
        str(pids),
    ]


def stub_grid(
    runs: list[Run], outputs: Path, undisturbed: Path, pids: Path, done: Path | None = None, nap: float = 0.1
) -> None:
    """A grid whose children only pretend; writes down which runs it did."""
    parallel.child_command = stub(undisturbed, pids, nap)
    outcomes = run_grid(runs, outputs, 2)
    assert all(o.status != "failed" for o in outcomes), outcomes
    if done:
        done.write_text(json.dumps([str(job_path(outputs, o.run)) for o in outcomes if o.status == "done"]))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_killed_grids_leave_no_half_notebook(runs, undisturbed, tmp_path):
    dice, kills, folders = random.Random(1), 0, 0
    pids = tmp_path / "pids"
    pids.mkdir()
    while kills < 10:
        outputs = tmp_path / str(folders)
        process = begun(stub_grid, runs, outputs, undisturbed, pids)
        process.join(dice.uniform(0.1, 0.7))
        if process.exitcode == 0:
            same_results(outputs, undisturbed, runs)
            folders += 1
            continue
        os.kill(process.pid, (signal.SIGKILL, signal.SIGTERM)[kills % 2])
        process.join()
        kills += 1
        records(outputs)
    outputs = tmp_path / str(folders)
    process = PROCESSES.Process(target=stub_grid, args=(runs, outputs, undisturbed, pids))
    process.start()
    process.join()
    assert process.exitcode == 0 and missing(runs, outputs) == []
    records(outputs)
    same_results(outputs, undisturbed, runs)


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_does_not_outlive_its_grid(runs, undisturbed, tmp_path, number):
    pids = tmp_path / "pids"
    pids.mkdir()
    process = PROCESSES.Process(target=stub_grid, args=(runs, tmp_path / "o", undisturbed, pids, None, 600))
    process.start()
    until(lambda: len(list(pids.iterdir())) == 2)
    os.kill(process.pid, number)
    process.join()
    until(lambda: not any(alive(int(p.name)) for p in pids.iterdir()))


def test_two_grids_share_a_folder(runs, undisturbed, tmp_path):
    outputs, pids = tmp_path / "o", tmp_path / "pids"
    pids.mkdir()
    together = [
        PROCESSES.Process(target=stub_grid, args=(runs, outputs, undisturbed, pids, tmp_path / f"done{i}"))
        for i in range(2)
    ]
    for process in together:
        process.start()
    for process in together:
        process.join()
    assert [p.exitcode for p in together] == [0, 0]
    one, two = (set(json.loads((tmp_path / f"done{i}").read_text())) for i in range(2))
    assert one and two and not one & two and len(one | two) == len(runs) == len(list(pids.iterdir()))
    same_results(outputs, undisturbed, runs)


def real_grid(runs: list[Run], outputs: Path, done: Path) -> None:
    outcomes = run_grid(runs, outputs, 1, notebooks=False)
    done.write_text(json.dumps([o.status for o in outcomes]))


@pytest.mark.slow
def test_two_grids_with_real_children_do_each_run_once(runs, undisturbed, tmp_path):
    few = runs[:2]
    together = [
        PROCESSES.Process(target=real_grid, args=(few, tmp_path / "o", tmp_path / f"done{i}")) for i in range(2)
    ]
    for process in together:
        process.start()
    for process in together:
        process.join()
    statuses = [status for i in range(2) for status in json.loads((tmp_path / f"done{i}").read_text())]
    assert sorted(statuses) == ["cached"] * 2 + ["done"] * 2
    for run in few:
        assert canonical(read_record(job_path(tmp_path / "o", run))) == canonical(
            read_record(job_path(undisturbed, run))
        )
    assert unfinished_files(tmp_path / "o") == []


def test_a_claimed_run_is_waited_for(runs, undisturbed, tmp_path):
    path = job_path(tmp_path, runs[0])
    slept = []

    def hand_over(seconds: float) -> None:  # the other grid ends while this one waits
        slept.append(seconds)
        path.write_bytes(job_path(undisturbed, runs[0]).read_bytes())
        claim.release()

    with pytest.MonkeyPatch.context() as patch:
        claim = lock(path.with_name(f"{SCRATCH}{path.stem}.job"))
        patch.setattr(parallel.time, "sleep", hand_over)
        (outcome,) = run_grid(runs[:1], tmp_path, notebooks=False)
    assert outcome.status == "cached" and len(slept) == 1


# ---- the real command and the real signals


def command(outputs: Path, toy: Path, *more: str) -> list[str]:
    return [
        "reproduce",
        "--profile",
        "smoke",
        "--data",
        str(toy),
        "--outputs",
        str(outputs),
        "--settings",
        "clean",
        "--workers",
        "1",
        *more,
    ]


def descendants(pid: int) -> set[int]:
    """The processes below one, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {pid}, set()
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found |= below
    return found


@contextmanager
def started(argv: list[str]) -> Iterator[subprocess.Popen]:
    """The real command in its own process, which hears Ctrl-C even where the tests run in the background and do not."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from dualppo.cli import main; sys.exit(main(sys.argv[1:]))", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=parallel.child_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@linux
@pytest.mark.parametrize(
    "number, status, words", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_a_signal_ends_the_command_in_order(toy, tmp_path, number, status, words):
    outputs = tmp_path / "o"
    with started(command(outputs, toy, "--methods", "similarity", "--no-notebooks")) as process:
        until(lambda: any(outputs.rglob(f"{SCRATCH}*/log")) and len(descendants(process.pid)) > 0)
        children = descendants(process.pid)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == status, error
    assert (
        words in error
        and "goes on from here" in error
        and "finished runs are kept" in error
        and "Traceback" not in error
    )
    assert children and not any(alive(child) for child in children) and unfinished_files(outputs) == []


@pytest.mark.slow
@linux
def test_kill_9_takes_the_notebooks_kernel_along_and_the_grid_goes_on(capsys, toy, tmp_path):
    outputs, names = tmp_path / "o", ["--methods", "random"]
    with started(command(outputs, toy, *names)) as process:
        until(lambda: len(descendants(process.pid)) > 1)  # papermill and its kernel
        children = descendants(process.pid)
        process.kill()
    until(lambda: not any(alive(child) for child in children))
    assert unfinished_files(outputs) and records(outputs) == {}, "an orphan went on with its work"
    assert cli.main(command(outputs, toy, *names, "--no-notebooks")) == 0
    assert "1 done" in capsys.readouterr().out and len(records(outputs)) == 1 and unfinished_files(outputs) == []


# ---- inside a long run


def stop_after(rows: int) -> Callable[[dict], None]:
    """A `report` that ends the process's work after so many epochs."""
    seen = []

    def report(row: dict) -> None:
        seen.append(row)
        if len(seen) == rows:
            raise KeyboardInterrupt

    return report


def test_a_long_run_goes_on_at_its_seed_and_epoch(toy, undisturbed, tmp_path):
    run, told = long_run(toy), []
    path = job_path(tmp_path, run)
    with pytest.raises(KeyboardInterrupt):
        run_once(run, tmp_path, stop_after(8))  # seed 1, epoch 3 of 5
    assert not path.exists() and [p for p in without_policies(path.parent) if "checkpoint" not in p] == [
        f".{path.stem}.partial"
    ]
    assert [p.name.split(".")[2] for p in path.parent.glob("*.checkpoint.safetensors")] == ["seed1"]
    record = run_once(run, tmp_path, lambda row: told.append((row["seed"], row["epoch"])))
    assert told == [(1, 4), (1, 5), *((2, epoch) for epoch in range(1, 6))]
    assert canonical(record) == canonical(read_record(job_path(undisturbed, run))) and without_policies(
        path.parent
    ) == [path.name]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda unfinished: unfinished.partial.write_text("{ truncated"),
        lambda unfinished: unfinished.partial.write_text("[]"),
        lambda unfinished: replace(unfinished, key="another key").keep(*unfinished.resume()),
        lambda unfinished: unfinished.partial.unlink(),
        lambda unfinished: unfinished.checkpoint(1).write_bytes(b"\x08" + b"\0" * 64),
    ],
)
def test_what_another_run_left_is_not_continued(toy, undisturbed, tmp_path, spoil):
    run = replace(long_run(toy), seeds=(0, 1), overrides=SMALL | {"epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        run_once(run, tmp_path, stop_after(3))
    path = job_path(tmp_path, run)
    key = json.loads(read_sealed(path.with_name(f".{path.stem}.partial")))["key"]
    spoil(Unfinished(path, key))
    assert canonical(run_once(run, tmp_path)) == canonical(execute(run)) and without_policies(path.parent) == [
        path.name
    ]


@pytest.fixture(scope="module")
def two_seeds(toy) -> tuple[Run, str]:
    """A run that takes a moment, and its record when nothing happens."""
    run = replace(long_run(toy), seeds=(0, 1), overrides=SMALL | {"epochs": 2, "dialogues_per_epoch": 5})
    return run, canonical(execute(run))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_checkpoint_reaches_a_result(two_seeds, tmp_path, which, place, bit):
    "The run starts anew, or from the seed that is whole, with the same record; the damaged file is put aside."
    short, whole = two_seeds
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_once(short, folder, stop_after(3))
    left = job_path(folder, short).parent
    path = [*left.glob(".*.partial"), *left.glob(".*.checkpoint.safetensors")][which]
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    told = []
    again = run_once(short, folder, lambda row: told.append(row["seed"]))
    assert canonical(again) == whole and told
    assert without_policies(job_path(folder, short).parent) == [job_path(folder, short).name]


def test_a_file_that_a_sweep_takes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    taken, real = [], files.fcntl.flock

    def late(file, how):
        if len(taken) < 2 and not isinstance(file, int):
            taken.extend(sweep(tmp_path))
        real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    atomic_write(tmp_path / "result", b"whole")
    assert (tmp_path / "result").read_bytes() == b"whole" and len(taken) == 2


def test_a_checkpoint_of_other_code_is_not_found_and_goes_in_the_end(tmp_path):
    ours, theirs = (Unfinished(tmp_path / "sft.json", f"cpu-{key * 64}") for key in "ab")
    theirs.keep([{"seed": 0}], [1])
    theirs.checkpoint(0).touch()
    (tmp_path / ".sft_more.seed0.cpu-b.checkpoint.safetensors").touch()
    assert not ours.checkpoint(0).exists() and ours.resume() == ([], []) and theirs.resume() == ([{"seed": 0}], [1])
    forget(ours.record)
    assert [p.name for p in tmp_path.iterdir()] == [".sft_more.seed0.cpu-b.checkpoint.safetensors"]


def test_a_notebook_of_an_earlier_run_does_not_stand_for_the_new_one(runs, undisturbed, tmp_path, monkeypatch):
    (tmp_path / "pids").mkdir()
    notebook = notebook_path(tmp_path, runs[0])
    notebook.parent.mkdir(parents=True)
    notebook.write_text("old")
    into, source = (str(job_path(outputs, runs[0])) for outputs in (tmp_path, undisturbed))
    writes = f"from pathlib import Path; Path({into!r}).write_text(Path({source!r}).read_text()); raise SystemExit(1)"
    monkeypatch.setattr(parallel, "child_command", lambda *args: [sys.executable, "-c", writes])
    job_path(tmp_path, runs[0]).parent.mkdir(parents=True)
    assert run_grid(runs[:1], tmp_path)[0].status == "failed" and not notebook.exists()
    assert missing(runs[:1], tmp_path) == runs[:1]


# ---- disks


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a certain size, where this may be mounted."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_what_is_finished(runs, undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", "64m") as disk:
        outputs = disk / "o"
        work(runs[:2], outputs)
        before, filler = records(outputs), disk / "fill"
        try:
            with filler.open("wb", buffering=0) as f:
                while True:
                    f.write(b"\0" * 4096)
        except OSError:
            pass
        for run in runs[2:]:
            with pytest.raises(DataError, match="disk is full") as caught:
                run_once(run, outputs)
            assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match="disk is full"):
            run_grid(runs, outputs, notebooks=False)
        assert records(outputs) == before and unfinished_files(outputs) == []
        filler.unlink()
        work(runs, outputs)
        assert before.items() <= records(outputs).items()
        same_results(outputs, undisturbed, runs)


def limited(runs: list[Run], outputs: Path, bytes_: int, said: Path) -> None:
    """Work where no file may grow beyond a size, as under a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
    try:
        work(runs, outputs)
    except DataError as error:
        os.write(os.open(said, os.O_WRONLY | os.O_CREAT), str(error).encode())


def test_a_file_that_may_not_grow(runs, undisturbed, tmp_path):
    process = PROCESSES.Process(target=limited, args=(runs[:1], tmp_path / "o", 3000, tmp_path / "said"))
    process.start()
    process.join()
    text = (tmp_path / "said").read_text()
    assert process.exitcode == 0 and "larger than is allowed" in text and "\n" not in text
    assert records(tmp_path / "o") == {}
    run_once(runs[0], tmp_path / "o")
    assert canonical(read_record(job_path(tmp_path / "o", runs[0]))) == canonical(
        read_record(job_path(undisturbed, runs[0]))
    )


def test_a_read_only_folder_can_be_read_but_not_worked_in(runs, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        first = run_once(runs[0], disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert run_once(runs[0], disk) == first
        for action in (lambda: run_once(runs[1], disk), lambda: run_grid(runs, disk, notebooks=False)):
            with pytest.raises(DataError, match="read-only") as caught:
                action()
            assert "\n" not in str(caught.value)


# ---- clocks


class Backwards(datetime):
    """A clock that shows an earlier year each time it is asked."""

    year_shown = 2020

    @classmethod
    def now(cls, zone=None):
        cls.year_shown -= 1
        return datetime(cls.year_shown, 1, 1, tzinfo=zone)


def test_no_clock_decides_anything(toy, undisturbed, tmp_path, monkeypatch):
    run = long_run(toy)
    ticks = iter(range(10**9, 0, -1))
    monkeypatch.setattr(execution, "datetime", Backwards)
    monkeypatch.setattr(execution.time, "perf_counter", lambda: next(ticks))
    with pytest.raises(KeyboardInterrupt):
        run_once(run, tmp_path, stop_after(8))
    for year, path in zip((1970, 2100), sorted(job_path(tmp_path, run).parent.glob(".*"))):
        os.utime(path, (seconds := datetime(year, 1, 2).timestamp(), seconds))
    told = []
    record = run_once(run, tmp_path, told.append)
    assert len(told) == 7 and canonical(record) == canonical(read_record(job_path(undisturbed, run)))
    for year in (1970, 2100):
        os.utime(job_path(tmp_path, run), (seconds := datetime(year, 1, 2).timestamp(), seconds))
        assert (
            finished(tmp_path, run, record["data_sha256"]) == record and missing([run], tmp_path, notebooks=False) == []
        )


def test_an_edit_is_noticed_whatever_the_time_of_the_file(tmp_path):
    def hashed():
        return definitions_sha256(reached(["p.a:run"], {"p": tmp_path}))

    (tmp_path / "a.py").write_text("def run(): return 1\n")
    before = hashed()
    (tmp_path / "a.py").write_text("def run(): return 2\n")
    for at in (0, 2**60):
        os.utime(tmp_path / "a.py", ns=(at, at))
        assert hashed() != before


# ---- leftovers and locks


def hold(path: Path, ready: Path) -> None:
    """Hold a lock and write a file until killed."""
    with at_work(path), lock(path / "claim"):
        (path / f"{SCRATCH}half.json").write_text("{")
        ready.touch()
        time.sleep(600)


def test_the_kernel_takes_the_locks_of_a_killed_process_back(tmp_path):
    folder, ready = tmp_path / "o", tmp_path / "ready"
    process = PROCESSES.Process(target=hold, args=(folder, ready))
    process.start()
    until(ready.exists)
    assert lock(folder / "claim", wait=False) is None
    with at_work(folder):
        assert (folder / f"{SCRATCH}half.json").exists(), "somebody else is at work: nothing may be removed"
    process.kill()
    process.join()
    with lock(folder / "claim", wait=False) as claim:
        assert claim
    with at_work(folder):
        assert not (folder / f"{SCRATCH}half.json").exists()
    assert list(folder.iterdir()) == []


def test_a_sweep_spares_results_and_what_is_being_written(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    folder = tmp_path / "o"
    (folder / f"{SCRATCH}dead").mkdir(parents=True)
    (folder / f"{SCRATCH}link").symlink_to(outside)
    (folder / "result.json").write_text("{}")
    (folder / ".result.partial").write_text("{}")
    swept, real = [], os.replace

    def sweep_first(source: Path, target: Path) -> None:
        swept.extend(sweep(folder))
        real(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    atomic_write(folder / "new.json", "[]")
    assert [p.name for p in swept] == [f"{SCRATCH}dead"] and (outside / "kept").exists()
    assert {p.name for p in folder.iterdir()} >= {"new.json", "result.json", ".result.partial"}


def test_without_locks_a_run_is_still_stored_whole(runs, undisturbed, tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(jobs.fcntl, "flock", no_locks)
    assert canonical(run_once(runs[0], tmp_path)) == canonical(read_record(job_path(undisturbed, runs[0])))
    assert unfinished_files(tmp_path) == []


# ---- memory


@pytest.mark.parametrize(
    "requested, need, left, fit",
    [
        (4, 1000, 2500, 2),
        (4, 1000, 4000, 4),
        (4, 1000, 10, 1),
        (4, 0, 10, 4),
        (1, 1000, math.inf, 1),
        (64, 1000, math.inf, 64),
    ],
)
def test_affordable_workers(requested, need, left, fit):
    assert affordable_workers(requested, need, left) == fit


def test_version_1_control_groups(tmp_path):
    own = tmp_path / "sys/fs/cgroup/memory/slurm/job"
    own.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 9000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/slurm/job\n")
    for name, value in (("memory.limit_in_bytes", 4e9), ("memory.usage_in_bytes", 3e9)):
        (own / name).write_text(f"{value:.0f}\n")
    (own.parent / "memory.limit_in_bytes").write_text("2000000000\n")
    (own.parent / "memory.usage_in_bytes").write_text("1500000000\n")
    (own.parent / "memory.stat").write_text("cache 7\ntotal_inactive_file 100000000\n")
    assert jobs.available_memory_mb(tmp_path) == 600  # the parent's limit binds
    assert jobs.available_memory_mb() > 0


def test_a_grid_lowers_its_workers_to_the_memory(runs, undisturbed, tmp_path, monkeypatch):
    (tmp_path / "pids").mkdir()
    said, running, most = [], set(), []
    monkeypatch.setattr(parallel, "child_command", stub(undisturbed, tmp_path / "pids"))
    need = parallel.memory_need_mb(runs[0].data, undisturbed)
    assert need == max(read_record(job_path(undisturbed, run))["measured"]["peak_memory_mb"] for run in runs)
    estimate = parallel.memory_need_mb(runs[0].data, tmp_path)
    monkeypatch.setattr(parallel, "available_memory_mb", lambda: 2.5 * estimate)

    def ended(outcome: parallel.Outcome) -> None:
        most.append(len(running))
        running.discard(outcome.run.method + outcome.run.profile)

    run_grid(
        runs[:5],
        tmp_path,
        4,
        notebooks=False,
        started=lambda run: running.add(run.method + run.profile),
        ended=ended,
        say=said.append,
    )
    assert max(most) == 2 and len(said) == 1 and "from 4 to 2" in said[0]


def test_a_child_that_is_killed_says_so(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        parallel, "child_command", lambda *args: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    )
    (outcome,) = run_grid(runs[:1], tmp_path, notebooks=False)
    assert outcome.status == "failed" and "memory" in outcome.why and "--workers" in outcome.why
