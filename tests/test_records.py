"""What is kept of runs, and what else lies in a folder of results: damaged, linked elsewhere, or held by somebody.

One value of a real record removed or replaced never ends a table, a report or a grid; nothing is written outside.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import fields
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import DOT, whole

from dualppo import cli
from dualppo.core.errors import DataError
from dualppo.core.files import LARGEST_JSON
from dualppo.core.places import inside, set_aside
from dualppo.methods.rows import all_methods
from dualppo.papers import hacking, molma, policy_class, tables, weight_rules
from dualppo.runs import jobs, parallel
from dualppo.runs.execution import execute
from dualppo.runs.key import to_json
from dualppo.runs.records import RunRecord, job_path, manifest, read_record
from dualppo.runs.spec import Run
from dualppo.show import report

pytestmark = pytest.mark.ci

PUBLISHED = Path(__file__).resolve().parent.parent / "outputs" / "published"
REAL = {"similarity": "quick", "dual_ppo": "quick", "molma": "molma", "sft": "quick"}  # method → folder of the record


def short_record(name: str) -> dict:
    """A published record cut to two seeds, three epochs and three dialogues."""
    record = json.loads((PUBLISHED / "runs" / REAL[name] / "stress" / f"{name}.json").read_text())
    record |= {"seeds": record["seeds"][:2], "results": record["results"][:2]}
    for one in record["results"]:
        one["curves"], one["scatter"] = one["curves"][:3], one.get("scatter", [[0.1, 0.2]])[:3]
        one["choices"]["examples"] = one["choices"]["examples"][:1]
        one["dialogues"] = {name: sums[:3] for name, sums in one["dialogues"].items()}
    return record


@pytest.fixture(scope="module")
def originals() -> dict[str, dict]:
    return {name: short_record(name) for name in REAL}


VALUES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**300, [], {}, [[]], [None], {"a": 1}, "\ud800", "x" * 30_000, 1e308, -0.0])
)  # fmt: skip


@st.composite
def damage(draw) -> Callable[[dict], dict]:
    """A change of one value, as deep as chance leads: it is removed, or another stands there."""
    depth = draw(st.sampled_from(range(1, 8)))
    turns = draw(st.lists(st.integers(0, 10**6), min_size=depth, max_size=depth))
    remove, value = draw(st.booleans()), draw(VALUES)

    def change(record: dict) -> dict:
        record = json.loads(json.dumps(record))
        place = record
        for depth, turn in enumerate(turns):
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = keys[turn % len(keys)]
            below = place[key]
            if depth == len(turns) - 1 or not isinstance(below, dict | list) or not below:
                break
            place = below
        if remove:
            del place[key]
        else:
            place[key] = value
        return record

    return change


def doors(outputs: Path) -> list[Path]:
    """Everything that reads records, as tables, report, notebooks and grid call it; what was written."""
    written = tables.write_tables(outputs, "quick") + molma.write_molma(outputs, "quick")
    written.append(report.write_report(outputs, folder="quick"))
    found = {record["method"]: record for record in tables.records_at(outputs, "quick")}
    weight_rules.trajectories_figure(found | {"literal": found["dual_ppo"]} if "dual_ppo" in found else found)
    hacking.hacking_figure(found, hacking.pd.DataFrame({"√KL": [0.0]} | {name: [0.5] for name in hacking.MEASURES}))
    policy_class.learning_figure({f"{name}, 30% of": one for name, one in found.items()}, found)
    for record in found.values():
        for show in (tables.configuration, tables.curves, tables.mask_effect):
            assert len(show(record))
        tables.examples(record, {})
    parallel.memory_need_mb("embedded", outputs)
    return written


@pytest.fixture
def quick_doors(monkeypatch):
    """No picture is drawn, no environment is made: both take seconds and read no record."""
    monkeypatch.setattr(tables, "figure_png", lambda *_: DOT)
    monkeypatch.setattr(tables, "to_png", lambda *_: DOT)
    monkeypatch.setattr(molma, "figure_png", lambda *_: DOT)
    monkeypatch.setattr(report, "study_figures", lambda outputs, records: report.Markup())
    monkeypatch.setattr(report, "graders_html", lambda outputs: report.Markup())


def laid(outputs: Path, found: dict[str, dict]) -> Path:
    """Records where a grid of the profile quick would put them."""
    folder = outputs / "runs" / "quick" / "stress"
    folder.mkdir(parents=True)
    for name, record in found.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("name", REAL)
def test_every_published_record_has_the_declared_form(name):
    for path in sorted((PUBLISHED / "runs").glob(f"*/*/{name}*.json")):
        assert RunRecord.model_validate(json.loads(path.read_text())) and read_record(path)


@pytest.mark.parametrize("name", [name for name, row in all_methods().items() if row.trained])
def test_what_a_run_stores_has_the_declared_form(toy, name):
    small = {"epochs": 1, "iterations": 2, "inner_epochs": 1, "hidden": 8, "dialogues_per_epoch": 10}
    known = {f.name for f in fields(all_methods()[name].config)}
    run = Run(name, "stress", (0,), "smoke", str(toy), overrides={k: v for k, v in small.items() if k in known})
    RunRecord.model_validate(json.loads(to_json(execute(run))))


BROKEN = {
    "no measured": lambda r: r.pop("measured"),
    "config {}": lambda r: r.update(config={}),
    "versions a list": lambda r: r["measured"].update(versions=[1]),
    "no curves": lambda r: r["results"][0].pop("curves"),
    "a metric a text": lambda r: r["results"][1]["test"].update(good="much"),
    "another schema": lambda r: r.update(schema="dualppo-run/9"),
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_record_with_a_piece_missing_is_named_and_set_aside(originals, tmp_path, quick_doors, capsys, why):
    folder = laid(tmp_path, {"similarity": originals["similarity"], "sft": originals["sft"]})
    spoilt = json.loads(json.dumps(originals["sft"]))
    BROKEN[why](spoilt)
    (folder / "sft.json").write_text(text := json.dumps(spoilt))
    doors(tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "sft.json" in line]
    assert len(said) == 1 and "is no record" in said[0] and "cell is left open" in said[0], said
    assert sorted(p.name for p in folder.iterdir()) == ["sft.json.damaged", "similarity.json"]
    assert (folder / "sft.json.damaged").read_text() == text
    assert "similarity" in (tmp_path / "manifest.json").read_text()


def readers(outputs: Path) -> None:
    """The same as `doors` without pages and pictures."""
    kept = tables.read_runs(outputs, "quick")
    for name in tables.TITLES:
        tables.to_markdown(tables.build_table(name, kept))
        tables.compare(kept, kept, name)
    tables.wide(tables.summarise(kept), [record["method"] for record in kept])
    tables.findings(kept), report.machine(kept), report.numbers_of(kept), molma.molma_findings(kept), manifest(outputs)
    for table in (molma.wins_table, molma.start_table):
        tables.to_csv(table(kept, "stress"))
    for record in kept:
        weight_rules.literal_share(record["results"][0]["curves"])
        shares = [weight_rules.alpha_share(one["curves"]) for one in record["results"]]
        shown = [tables.configuration(record), tables.curves(record), tables.mask_effect(record)]
        assert all(map(len, (*shares, *shown)))
        tables.examples(record, {})
    parallel.memory_need_mb("embedded", outputs)


def survives(outputs: Path, name: str, record: dict, read: Callable[[Path], object]) -> None:
    """A record is read, or refused in a sentence, or set aside; its file holds what it held."""
    folder = laid(outputs, {name: record})
    text = (folder / f"{name}.json").read_text()
    try:
        read(outputs)
    except DataError as error:
        assert "\n" not in str(error)
    aside = folder / f"{name}.json.damaged"
    assert (aside if aside.exists() else folder / f"{name}.json").read_text() == text, "it was changed"
    shutil.rmtree(outputs)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(REAL)), change=damage())
def test_no_value_of_a_record_ends_what_reads_it(originals, tmp_path_factory, name, change):
    survives(tmp_path_factory.mktemp("o"), name, change(originals[name]), readers)


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(REAL)), change=damage())
def test_no_value_of_a_record_ends_tables_or_report(originals, quick_doors, tmp_path_factory, name, change):
    survives(tmp_path_factory.mktemp("o"), name, change(originals[name]), doors)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(change=damage())
def test_no_value_of_a_record_ends_a_grid(toy, tmp_path_factory, without_processes, random_run, change):
    outputs, (run, record) = tmp_path_factory.mktemp("o"), random_run
    path = job_path(outputs, run)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(change(record)))
    (outcome,) = parallel.run_grid([run], outputs, notebooks=False)
    assert outcome.status in ("done", "cached") and read_record(path)
    assert outcome.status == "cached" or len(list(path.parent.glob("*.damaged"))) < 2
    shutil.rmtree(outputs)


@pytest.fixture(scope="module")
def random_run(toy) -> tuple[Run, dict]:
    """A run of a moment, and its record."""
    run = Run("random", "stress", (0,), "smoke", str(toy))
    return run, json.loads(to_json(execute(run)))


def test_a_reader_that_may_not_rename_says_so_once(tmp_path, monkeypatch, capsys):
    path = tmp_path / "sft.json"
    path.write_text("{")

    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    assert read_record(path) is None and read_record(path) is None and path.exists()
    (said,) = capsys.readouterr().err.splitlines()
    assert "could not be renamed (Read-only file system)" in said


def test_nothing_that_was_set_aside_is_replaced(tmp_path):
    for number in range(3):
        (tmp_path / "x").write_text(str(number))
        set_aside(tmp_path / "x", "is damaged", "another is made")
    assert sorted((p.name, p.read_text()) for p in tmp_path.iterdir()) == [
        ("x.damaged", "0"), ("x.damaged2", "1"), ("x.damaged3", "2"),
    ]  # fmt: skip


# ---- links that lead out


LEADING = ["runs", "runs/smoke-toy", "notebooks", "tables", "figures", "seeds", ".dualppo.lock"]


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", LEADING)
def test_a_link_does_not_lead_writing_out_of_the_folder(capsys, tmp_path, toy, without_processes, name, dangling):
    """Every command that writes: what it does without the link it may do; it never writes behind it."""
    outputs, other = tmp_path / "o", tmp_path / "elsewhere"
    laid(outputs, {})
    shutil.rmtree(outputs / "runs")
    if name == "runs/smoke-toy":
        place = job_path(outputs, Run("random", "clean", (0,), "smoke", str(toy)))
        name = str(place.parent.parent.relative_to(outputs))
    if name in ("tables", "figures"):
        laid(outputs, {})
        (outputs / "runs/quick/stress/random.json").write_text(json.dumps(whole(short_record("similarity"))))
    (outputs / name).parent.mkdir(parents=True, exist_ok=True)
    if not dangling:
        other.mkdir()
    (outputs / name).symlink_to(other)
    kept = tree(other) if other.exists() else None
    where = ["--outputs", str(outputs)]
    grid = ["--profile", "smoke", "--data", str(toy), "--methods", "random", "--settings", "clean"]
    for argv in (
        ["reproduce", *grid, "--no-notebooks", *where],
        ["reproduce", *grid, *where],
        ["train", "random", "--profile", "smoke", "--setting", "clean", "--data", str(toy), *where],
        ["tables", "--profile", "quick", *where],
    ):
        status, said = cli.main(argv), capsys.readouterr().err
        assert status in (0, 2) and "Traceback" not in said
        assert (tree(other) if other.exists() else None) == kept, argv
    argv = ["tables", "--profile", "quick", *where] if name in ("tables", "figures") else ["reproduce", *grid, *where]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "link" in said and len(said.splitlines()) == 1


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path, toy, without_processes):
    (tmp_path / "disk").mkdir()
    (tmp_path / "o").symlink_to(tmp_path / "disk")
    run = Run("random", "clean", (0,), "smoke", str(toy))
    assert [o.status for o in parallel.run_grid([run], tmp_path / "o", notebooks=False)] == ["done"]
    assert read_record(job_path(tmp_path / "disk", run))


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.sampled_from(["a", "..", "link", "up", "."]), max_size=6))
def test_inside_agrees_with_the_file_system(tmp_path_factory, parts):
    top = tmp_path_factory.mktemp("t")
    root = top / "root"
    (root / "a" / "a").mkdir(parents=True)
    (root / "a" / "link").symlink_to("..")
    (root / "link").symlink_to(top / "other")
    (root / "up").symlink_to(top)
    path = root.joinpath(*parts)
    really = Path(os.path.realpath(path)).is_relative_to(root)
    try:
        assert inside(path, root) == path and really
    except DataError:
        assert not really


# ---- scratch folders have an owner


def test_work_further_up_leaves_the_scratch_of_work_further_down(tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    with jobs.at_work(inner), jobs.scratch(inner) as mine:
        (mine / "log").write_text("live")
        with jobs.at_work(tmp_path / "outer"):  # alone there, and sweeps
            assert (mine / "log").read_text() == "live"
        assert (mine / "log").read_text() == "live"
    assert tree(tmp_path) == {"outer", "outer/inner"}


def test_scratch_of_a_killed_process_is_swept(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from dualppo.runs.jobs import scratch\n"
        "with scratch(Path(sys.argv[1])) as mine:\n"
        "    (mine / 'log').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert len(tree(tmp_path)) == 3  # the folder, its log, its owner's lock
    assert len(jobs.sweep(tmp_path)) == 1 and tree(tmp_path) == set()


def test_sweeping_and_scratching_at_once(tmp_path):
    """One thread sweeps without pause while others make scratch folders and use them."""
    stop, lost = threading.Event(), []

    def sweeping() -> None:
        while not stop.is_set():
            jobs.sweep(tmp_path)

    def working() -> None:
        for _ in range(60):
            with jobs.scratch(tmp_path) as mine:
                (mine / "log").write_text("x")
                if not (mine / "log").exists():
                    lost.append(mine)

    sweeper, workers = threading.Thread(target=sweeping), [threading.Thread(target=working) for _ in range(3)]
    for thread in (sweeper, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    sweeper.join()
    assert not lost and tree(tmp_path) == set()


# ---- cores


@pytest.mark.parametrize(
    "files, quota",
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/gone\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
          "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"proc/self/cgroup": "4:cpu:/j\n", "sys/fs/cgroup/cpu/j/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu/j/cpu.cfs_period_us": "0\n"}, math.inf),
        ({"proc/self/cgroup": "nonsense\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many few\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "\n"}, math.inf),
    ],
)  # fmt: skip
def test_a_containers_share_of_the_cores(tmp_path, monkeypatch, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert jobs.available_cpus(tmp_path) == min(16, quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5}, raising=False)
    assert jobs.available_cpus(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert jobs.available_cpus(tmp_path) == 1


def test_workers_auto_asks_the_container(monkeypatch):
    monkeypatch.setattr(cli, "available_cpus", lambda: 7)
    assert cli.worker_count("auto") == 7 and cli.worker_count("3") == 3


def test_a_record_that_is_too_large_is_not_parsed(tmp_path, capsys):
    path = tmp_path / "sft.json"
    with path.open("wb") as file:
        file.truncate(LARGEST_JSON + 1)
    assert read_record(path) is None and "sft.json.damaged" in capsys.readouterr().err
