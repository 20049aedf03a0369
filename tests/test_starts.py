"""Where training starts is part of what a run is; and everybody is graded with the mask on and off."""

from typing import get_args

import pytest
import torch

from dualppo.bench.candidates import SETTINGS
from dualppo.bench.env import make_envs
from dualppo.bench.features import load_features
from dualppo.cli import main
from dualppo.core.errors import DataError
from dualppo.exact.metrics import dialogue_sums, evaluate
from dualppo.methods.baselines import Control, ControlName
from dualppo.methods.rows import STARTS, all_methods, method, train_method
from dualppo.papers.tables import read_runs
from dualppo.policies.policy import all_log_probs
from dualppo.runs.execution import run_once
from dualppo.runs.grade import graded
from dualppo.runs.key import describe
from dualppo.runs.records import job_path, stored_policy
from dualppo.runs.spec import CONTROLS, Run, grid, resolve

SHORT = {"epochs": 1, "inner_epochs": 1, "dialogues_per_epoch": 20}


@pytest.fixture(scope="module")
def splits(toy):
    return make_envs(load_features(toy), SETTINGS["stress"], 0)


@pytest.mark.parametrize("name", all_methods())
def test_every_method_says_from_where_it_can_start(name):
    row = method(name)
    assert row.start in (None, *STARTS) and set(row.starts) <= set(STARTS)
    for start in STARTS:
        if start in row.starts:
            begun = row.begun(start)
            assert begun.start == start and begun.begun(start) is begun
            own = getattr(begun.config, "base", begun.config)
            assert own.warm_start == (start == "similarity") or own.policy != "two_tower"
    if "letter" not in row.starts:
        with pytest.raises(DataError, match="cannot start from 'letter'"):
            row.begun("letter")


def test_a_grid_runs_from_both_starts_and_controls_once():
    runs = grid("paper")
    assert len({(r.method, r.setting, r.start) for r in runs}) == len(runs)
    for run in runs:
        both = sum((r.method, r.setting) == (run.method, run.setting) for r in runs)
        assert both == max(1, len(method(run.method).starts)) and (run.method not in CONTROLS or both == 1)
    assert {r.start for r in grid("paper", starts=("letter",), methods=("sft", "random"))} == {"letter", "similarity"}
    assert {r.start for r in grid("paper", starts=("letter",), methods=("sft",))} == {"letter"}


def test_runs_from_two_starts_are_two_runs(toy, tmp_path):
    runs = {s: Run("dual_ppo_bandit", "stress", (1,), "smoke", str(toy), "cpu", SHORT, s) for s in STARTS}
    records = {start: run_once(run, tmp_path) for start, run in runs.items()}
    assert {start: r["start"] for start, r in records.items()} == dict(zip(STARTS, STARTS))
    assert len({job_path(tmp_path, run) for run in runs.values()}) == len({r["key"] for r in records.values()}) == 2
    assert job_path(tmp_path, runs["letter"]).parent.name == "stress-letter"
    assert records["letter"]["results"][0]["test"] != records["similarity"]["results"][0]["test"]
    assert {r["method"] for r in read_runs(tmp_path, "custom")} == {"dual_ppo_bandit", "dual_ppo_bandit@letter"}
    policy = stored_policy("dual_ppo_bandit", "stress", 1, tmp_path, "smoke", SHORT, str(toy), "letter")
    assert policy.scorer.warm_start is False
    assert describe(Run("random", data=str(toy), device="cpu"), "0")["start"] is None


def test_the_command_line_knows_the_start(toy, tmp_path, capsys):
    argv = ["train", "sft", "--profile", "smoke", "--data", str(toy), "--outputs", str(tmp_path), "--device", "cpu"]
    assert main([*argv, "--start", "letter"]) == 0 and "stress-letter" in capsys.readouterr().out
    assert main([*argv, "--start", "leter"]) == 2 and "did you mean letter" in capsys.readouterr().err
    assert main(["train", "random", "--start", "letter"]) == 2 and "nothing of it" in capsys.readouterr().err


@pytest.mark.parametrize("name", get_args(ControlName))
def test_the_mask_can_be_put_on_and_lifted_for_every_control(splits, name):
    env, control = splits.test, Control(name)
    masked, lifted = (all_log_probs(control, env, mode).exp() for mode in ("on", "off"))
    assert (masked[~env.allowed] == 0).all() and torch.allclose(masked.sum(1), torch.ones(len(env)))
    own = all_log_probs(control, env).exp()
    assert torch.equal(own, masked if name == "similarity_mask" else lifted)


def test_the_humans_reply_is_graded_also_where_it_is_withheld(splits):
    human, gold = (graded(train_method(method(name), splits, 0), splits, 0) for name in ("human", "gold"))
    own = splits.human
    assert own is not None and own.cand.shape == (len(splits.test), 1) and torch.equal(own.row, splits.test.row)
    assert human["test"]["recall_at_1"] == 1 and human["test"]["similarity"] == pytest.approx(1, abs=1e-3)
    assert human["test"]["good"] == pytest.approx(own.good.mean().item(), abs=1e-6)
    there = splits.test.gold >= 0
    assert not there.all() and gold["test"]["similarity"] < human["test"]["similarity"]
    slot = splits.test.gold[there, None]
    assert torch.allclose(splits.test.p_good[there].gather(1, slot), own.p_good[there], atol=1e-5)


def test_a_grade_holds_both_views_the_last_epoch_and_the_front(splits):
    for name in ("random", "similarity", "similarity_mask", "oracle"):
        row = graded(train_method(method(name), splits, 0), splits, 0)
        assert row["masked"]["harm_reward"] <= row["unmasked"]["harm_reward"] + 1e-9
        assert row["front"]["help"] - row["test"]["help"] >= -1e-6 and row["front"] == row["front_last"]
        assert row["front"]["p_harm"] <= row["test"]["p_harm"] + 1e-6
    run = resolve(Run("similarity_mask"))[0]
    twice = graded(train_method(run, splits, 0), splits, 0)
    assert twice["masked"] == twice["test"] != twice["unmasked"]


def test_sums_of_a_reading_count_the_states_it_applies_to(splits):
    log_probs = all_log_probs(Control("similarity"), splits.test)
    sums, exact = dialogue_sums(log_probs, splits.test), evaluate(log_probs, splits.test)
    assert sum(sums["states recall_at_1"]) == int((splits.test.gold >= 0).sum()) < sum(sums["states"])
    assert sum(sums["recall_at_1"]) / sum(sums["states recall_at_1"]) == pytest.approx(exact["recall_at_1"], abs=1e-3)
    assert sum(sums["harm_people"]) / sum(sums["states"]) == pytest.approx(exact["harm_people"], abs=1e-3)
