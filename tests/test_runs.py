"""A run is a pure function, a grid does only what is missing, and bad input gets one sentence."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from papermill import PapermillExecutionError, execute_notebook

from dualppo.runs import key, parallel, records
from dualppo.core.errors import DataError
from dualppo.methods.base import learner_of
from dualppo.methods.rows import all_methods, method
from dualppo.runs.execution import execute, run_once
from dualppo.runs.key import canonical
from dualppo.runs.parallel import Outcome, run_grid
from dualppo.runs.records import finished, job_path, missing, notebook_path, read_record
from dualppo.runs.spec import Run, run_from

ROOT = Path(__file__).resolve().parent.parent
TINY = {"epochs": 1, "inner_epochs": 1, "hidden": 8, "dialogues_per_epoch": 20}


def tiny(toy, name="dual_ppo_bandit", setting="stress", seeds=(0,), **more) -> Run:
    """A run of a second."""
    overrides = TINY if hasattr(method(name).config, "epochs") else {}
    return Run(name, setting, seeds, "smoke", str(toy), overrides={**overrides, **more})


def test_a_run_is_a_pure_function(toy):
    first, second = execute(tiny(toy, seeds=(0, 1))), execute(tiny(toy, seeds=(0, 1)))
    assert canonical(first) == canonical(second) and first["key"] == second["key"]
    assert first["results"][0]["test"] != first["results"][1]["test"]
    assert set(first) - set(json.loads(canonical(first))) == {"measured"}
    assert set(first["measured"]) == {"wall_clock_s", "cpu_s", "peak_memory_mb", "device", "versions", "started"}


def test_a_seed_does_not_depend_on_the_seeds_beside_it(toy):
    assert execute(tiny(toy, seeds=(1,)))["results"][0] == execute(tiny(toy, seeds=(0, 1)))["results"][1]


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(toy, tmp_path):
    runs = [tiny(toy, name) for name in ("similarity", "dual_ppo_bandit")]
    for workers in (1, 2):
        outcomes = run_grid(runs, tmp_path / str(workers), workers, notebooks=False)
        assert [o.status for o in outcomes] == ["done"] * 2, outcomes
    for run in runs:
        one, two = (read_record(job_path(tmp_path / str(w), run)) for w in (1, 2))
        assert canonical(one) == canonical(two)


def test_only_what_is_missing_is_done_again(toy, tmp_path):
    runs = [tiny(toy, name) for name in ("random", "similarity", "oracle")]
    for run in runs:
        run_once(run, tmp_path)
    assert missing(runs, tmp_path, notebooks=False) == []
    job_path(tmp_path, runs[1]).unlink()
    job_path(tmp_path, runs[2]).write_text(job_path(tmp_path, runs[2]).read_text()[:200])  # truncated
    assert {r.method for r in missing(runs, tmp_path, notebooks=False)} == {"similarity", "oracle"}
    before = job_path(tmp_path, runs[0]).stat().st_mtime_ns
    outcomes = run_grid(runs, tmp_path, 2, notebooks=False)
    assert {o.run.method: o.status for o in outcomes} == {"random": "cached", "similarity": "done", "oracle": "done"}
    assert job_path(tmp_path, runs[0]).stat().st_mtime_ns == before


def test_other_data_is_another_run(toy, tmp_path):
    run = tiny(toy, "random")
    record = run_once(run, tmp_path)
    assert finished(tmp_path, run, record["data_sha256"]) == record
    assert finished(tmp_path, run, "0" * 64) is None


def package_copy(tmp_path) -> Path:
    """A copy of the package's sources and assets that may be edited."""
    folder = tmp_path / "dualppo"
    (folder / "assets").mkdir(parents=True)
    for path in key.package_folder().rglob("*.py"):
        (folder / path.relative_to(key.package_folder())).parent.mkdir(exist_ok=True)
        shutil.copy(path, folder / path.relative_to(key.package_folder()))
    for name in ("judge.safetensors",):
        shutil.copy(key.package_folder() / "assets" / name, folder / "assets")
    return folder


def edited(folder: Path, name: str, old: str, new: str) -> None:
    """Replace a piece of a module."""
    (path,) = folder.rglob(f"{name}.py")
    assert old in path.read_text(), f"{name} has no {old!r} any more"
    path.write_text(path.read_text().replace(old, new, 1))
    os.utime(path, ns=(0, 0))


IGNORED = [
    ("ppo", "def weight_signal", "# a comment\ndef weight_signal"),
    ("ppo", '"Steps (a) to (f)."', '"Another docstring."'),
    ("terminal", "SIDE_BY_SIDE = 130", "SIDE_BY_SIDE = 131"),
    ("gym", "self.ahead = list(", "self.ahead = 1 * list("),  # nothing of the house steps through it
    ("tables", "def ", "def _more():\n    return 1\n\n\ndef "),
    ("methods/grpo", "sum_first", "first_sum"),
    ("baselines", "beta: Positive = 0.1", "beta: Positive = 0.2"),
    ("weights", "largest: float = 50.0", "largest: float = 40.0"),  # of a rule that it does not use
    ("download", "def download_official", "def _unused():\n    return 2\n\n\ndef download_official"),
]
SEEN = [
    ("ppo", "inner_epochs: Count = 4", "inner_epochs: Count = 5"),
    ("metrics", "GOOD_COSINE = 0.5", "GOOD_COSINE = 0.6"),
    ("masking", "MINUS_INFINITY = -1e9", "MINUS_INFINITY = -1e8"),
    ("weights", "smallest: float = 0.05", "smallest: float = 0.04"),
    ("candidates", "twin: Cosine = 0.95", "twin: Cosine = 0.9"),
    ("base", "self.epoch += 1", "self.epoch += 2"),
    ("stacked", "common = min(", "common = max("),
    ("surrogate", "return (log_probs.exp()", "return -(log_probs.exp()"),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "seen"), [(*edit, False) for edit in IGNORED] + [(*edit, True) for edit in SEEN]
)
def test_code_hash_sees_what_the_run_executes_and_nothing_else(tmp_path, name, old, new, seen):
    folder = package_copy(tmp_path)
    before = key.code_sha256(method("dual_ppo"), folder)
    edited(folder, name, old, new)
    assert (key.code_sha256(method("dual_ppo"), folder) != before) == seen


def test_code_hash_belongs_to_the_trainer(tmp_path):
    folder = package_copy(tmp_path)
    before = {name: key.code_sha256(method(name), folder) for name in ("sft", "dual_ppo")}
    edited(folder, "baselines", "return F.nll_loss(", "return 2 * F.nll_loss(")
    assert (
        key.code_sha256(method("sft"), folder) != before["sft"]
        and key.code_sha256(method("dual_ppo"), folder) == before["dual_ppo"]
    )


def test_a_trained_policy_is_loaded_by_name(toy, tmp_path):
    from dualppo.bench.candidates import STRESS
    from dualppo.bench.env import make_envs
    from dualppo.bench.features import load_features
    from dualppo.exact.metrics import evaluate
    from dualppo.policies.policy import all_log_probs

    changes = {"epochs": 2, "inner_epochs": 1, "policy_lr": 1e-3}
    record = run_once(Run("dual_ppo_bandit", "stress", (1,), "smoke", str(toy), "cpu", changes), tmp_path)
    policy = records.stored_policy("dual_ppo_bandit", "stress", 1, tmp_path, "smoke", changes, str(toy))
    test = make_envs(load_features(toy), STRESS, seed=1).test
    assert evaluate(all_log_probs(policy, test), test) == record["results"][0]["test"]
    assert records.stored_policy("similarity").name == "similarity"
    with pytest.raises(DataError, match="train the method first"):
        records.stored_policy("sft", "clean", 0, tmp_path, "smoke")


def test_what_a_method_trains_on_its_way_is_in_its_key():
    assert "dualppo.methods.baselines.SFT" in key.reached_by(
        method("dpo")
    ) and "dualppo.methods.baselines.DPO" not in key.reached_by(method("sft"))


@pytest.mark.parametrize("name", all_methods())
def test_the_code_of_a_run_is_its_trainer_and_no_report(name):
    reached = key.reached_by(method(name))
    kind = learner_of(method(name).config)
    assert f"{kind.__module__}.{kind.__qualname__}" in reached and "dualppo.exact.metrics.per_state" in reached
    assert not [
        one
        for one in reached
        if "download" in one or one.split(".")[-2] in ("report", "tables", "cli", "ledger", "jobs")
    ]


def test_two_data_sets_of_one_name_share_no_folder(tmp_path, toy):
    from toys import write_toy

    for name, dialogues in (("a", 30), ("b", 31)):
        (tmp_path / name).mkdir()
        write_toy(tmp_path / name / "toy.safetensors", dialogues=dialogues, turns=2)
    runs = [Run("random", "clean", (0,), "smoke", str(tmp_path / name / "toy.safetensors")) for name in "ab"]
    assert len({job_path(tmp_path, run) for run in runs}) == 2
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert job_path(tmp_path, replace(runs[0], data=str(tmp_path / "c" / "toy.safetensors"))) == job_path(
        tmp_path, runs[0]
    )


def test_every_digit_of_a_configuration_and_the_machine_are_in_the_key(monkeypatch):
    keys = {key.describe(Run("sft", overrides={"lr": lr}, device="cpu"), "0")["key"] for lr in (1.25e-7, 1.2e-7)}
    monkeypatch.setattr(key.metadata, "version", lambda name: "another")
    assert len(keys | {key.describe(Run("sft", overrides={"lr": 1.2e-7}, device="cpu"), "0")["key"]}) == 3


def test_code_hash_sees_the_judges_weights(tmp_path):
    folder = package_copy(tmp_path)
    before = key.code_sha256(method("random"), folder)
    (folder / "assets" / "judge.safetensors").write_bytes(b"other")
    assert key.code_sha256(method("random"), folder) != before


def test_a_method_in_a_folder_is_in_its_own_key(tmp_path):
    folder = package_copy(tmp_path)
    before = key.code_sha256(method("grpo"), folder)
    for name, old, new in (
        ("methods/grpo", "reward @ weights, 1", "-reward @ weights, 1"),
        ("advantages", "spread + 1e-8", "spread + 1e-7"),
        ("base", "self.epoch += 1", "self.epoch += 2"),
    ):
        edited(folder, name, old, new)
        after = key.code_sha256(method("grpo"), folder)
        assert after != before, f"{name} is not in the key of grpo"
        before = after


def test_a_failed_run_does_not_stop_the_grid(toy, tmp_path, monkeypatch):
    real = parallel.child_command

    def wrong(run, *rest):
        return [sys.executable, "-c", "raise SystemExit('it broke')"] if run.method == "random" else real(run, *rest)

    monkeypatch.setattr(parallel, "child_command", wrong)
    seen = []
    outcomes = run_grid([tiny(toy, "random"), tiny(toy, "similarity")], tmp_path, 1, notebooks=False, ended=seen.append)
    assert {o.run.method: o.status for o in outcomes} == {"random": "failed", "similarity": "done"} and seen == outcomes
    assert "it broke" in next(o for o in outcomes if o.status == "failed").why
    assert not job_path(tmp_path, tiny(toy, "random")).exists()


def test_interrupt_ends_the_children_and_keeps_what_is_done(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(
        parallel, "child_command", lambda run, *rest: [sys.executable, "-c", "import time; time.sleep(60)"]
    )

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_grid([tiny(toy, "random")], tmp_path, 1, notebooks=False)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_notebook_that_fails_is_kept_under_another_name(toy, tmp_path, monkeypatch):
    def broken(run, outputs, notebook, texts=""):
        return [sys.executable, "-c", f"open({str(notebook)!r}, 'w').write('{{}}'); raise SystemExit(1)"]

    monkeypatch.setattr(parallel, "child_command", broken)
    run = tiny(toy, "random")
    (outcome,) = run_grid([run], tmp_path, 1)
    assert outcome.status == "failed" and not notebook_path(tmp_path, run).exists()
    assert [p.name for p in tmp_path.rglob("*.ipynb")] == [
        notebook_path(tmp_path, run).with_suffix(".failed.ipynb").name
    ]


def test_papermill_executes_the_template_by_itself(toy, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "nbs" / "runs" / "method.ipynb"),
        str(out),
        "-k",
        "python3",
        "-p",
        "method",
        "dual_ppo",
        "-p",
        "setting",
        "stress",
        "-p",
        "seeds",
        "2",
        "-p",
        "data",
        str(toy),
        "-p",
        "overrides",
        json.dumps(TINY),
        "-p",
        "outputs",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=parallel.child_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "o").rglob("*.json")
    assert read_record(path)["seeds"] == [0, 1]
    text = out.read_text()
    assert "Table 1" in text and "mask lifted" in text


def test_papermill_refuses_an_unknown_parameter(tmp_path):
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'methd'"):
        execute_notebook(
            ROOT / "nbs" / "runs" / "method.ipynb",
            tmp_path / "out.ipynb",
            {"methd": "sft", "outputs": str(tmp_path / "o")},
            kernel_name="python3",
            progress_bar=False,
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "parameters, needle",
    [
        ({"method": "dual_pppo"}, "dual_ppo"),
        ({"setting": "stres"}, "stress"),
        ({"profile": "quik"}, "quick"),
        ({"methd": "sft"}, "method"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "different"),
        ({"seeds": "three"}, "seeds"),
        ({"overrides": {"gama": 1}}, "gamma"),
        ({"overrides": "{"}, "not JSON"),
        ({"overrides": {"tau_mask": 1.5}}, "[0, 1]"),
        ({"overrides": {"n": 1}}, "at least 2"),
        ({"overrides": {"epochs": 1.5}}, "whole number"),
        ({"overrides": {"candidates.epochs": 1}}, "candidates"),
        ({"overrides": {"env.tau_mask": 1.5}}, "[0, 1]"),
        ({"overrides": {"mask": "of"}}, "off"),
        ({"overrides": {"kappa": float("nan")}}, "kappa"),
        ({"overrides": {"epochs": True}}, "epochs"),
        ({"overrides": {"name": "x"}}, "no parameter 'name'"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, needle):
    with pytest.raises(DataError, match=".") as caught:
        run_from(parameters)
    assert needle in str(caught.value) and "\n" not in str(caught.value)


def test_a_device_that_does_not_exist(toy):
    with pytest.raises(DataError, match="does not exist"):
        execute(replace(tiny(toy, "random"), device="cuda:99"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_full_disk_or_read_only_folder(toy, tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError) as caught:
        run_once(tiny(toy, "random"), tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        run_grid([tiny(toy, "random")], tmp_path, 1, notebooks=False)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_manifest_names_what_is_there(toy, tmp_path):
    record = run_once(tiny(toy, "random"), tmp_path)
    (row,) = records.manifest(tmp_path)["runs"]
    assert (
        row["method"] == "random" and row["code_sha256"] == record["code_sha256"] and (tmp_path / row["path"]).is_file()
    )


def test_the_longest_run_comes_first(toy, tmp_path):
    names = [
        r.method
        for r in missing([Run("random", data=str(toy)), Run("dpo", data=str(toy)), Run("sft", data=str(toy))], tmp_path)
    ]
    assert names == ["dpo", "sft", "random"] and Outcome(Run(), "done").why == ""
