"""The registration is complete, names what exists, and binds every analysis."""

import csv
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from dualppo.core.errors import DataError
from dualppo.exact.metrics import METRICS, READINGS
from dualppo.methods.rows import STARTS, method, rows_of
from dualppo.papers.ambiguities import load_ambiguities
from dualppo.papers.ledger import Verdict
from dualppo.papers.registration import Analysis, read_registration, registration
from dualppo.papers.studies import STUDIES
from dualppo.runs.spec import EXPLORED, PROFILES, SEED_000, grid

ROOT = Path(__file__).resolve().parent.parent


def test_every_arm_of_the_profile_is_registered_with_its_number_of_seeds():
    plan = registration()
    own = {run.method + ("@letter" if run.start == "letter" else ""): len(run.seeds) for run in grid(plan.profile)}
    assert own == plan.arms
    plain = {name: seeds for name, seeds in plan.arms.items() if "@" not in name}
    assert {name for name, n in plain.items() if n == PROFILES["paper"].explored} == set(EXPLORED)
    assert set(plain) == set(SEED_000) and all(n == plain[name.partition("@")[0]] for name, n in plan.arms.items())


def test_every_study_is_registered_with_its_seeds_and_its_kind():
    for one in registration().studies:
        study = STUDIES[one.name]
        assert len(study.seeds) == one.seeds and (one.kind == "exploratory" or one.seeds >= 12), one
        assert study.profile == "paper" and "letter" in study.starts


def test_the_rule_gives_every_case_one_word():
    """Every finding, sign and gap has a line, every line is the first for some case, and every word is a verdict."""
    plan, used = registration(), set()
    for finding in ("beyond", "within", "identical", "open", "too few"):
        for sign in ("as claimed", "against", "none"):
            for gap in ("inside", "outside") if finding == "beyond" else ("larger", "smaller"):
                fits = [r for r in plan.verdicts if r.finding == finding and {r.sign, r.gap} <= {"*", sign, gap}]
                used.add(fits[0])
    assert used == set(plan.verdicts) and {r.verdict for r in used} <= set(get_args(Verdict))


def test_comparisons_are_asked_from_both_starts():
    plan = registration()
    ids = {c.id: c for c in plan.comparisons}
    for c in plan.comparisons:
        if c.start == "similarity":
            twin = ids[f"{c.id}@letter"]
            assert twin.arm == f"{c.arm}@letter" and twin.base in (c.base, f"{c.base}@letter") and twin.kind == c.kind
            assert (twin.base == c.base) == (len(method(c.base).starts) < 2) and twin.view == c.view


def test_a_word_asks_more_of_seeds_than_a_sign_test_can_say_at_least():
    plan = registration()
    least = 2 / 2 ** min(plan.arms[a] for c in plan.comparisons if c.kind == "difference" for a in (c.arm, c.base))
    for metric in (*plan.primary, *plan.readings):
        assert least * plan.planned(metric, "letter") < plan.level


def test_metrics_margins_and_comparisons_name_what_exists():
    plan = registration()
    groups = (plan.primary, plan.readings, plan.secondary)
    named = [metric for group in groups for metric in group]
    assert set(named) <= set(METRICS) and len(set(named)) == len(named)
    assert set(plan.margins) == {*plan.primary, *plan.readings, "win_rate"} and min(plan.margins.values()) > 0
    assert set(READINGS) <= {*plan.primary, *plan.readings} and READINGS[0] in plan.primary
    assert len({c.id for c in plan.comparisons}) == len(plan.comparisons)
    for c in plan.comparisons:
        Analysis(c.id, (c.arm, c.base), plan.primary).check(plan)
        assert c.kind in ("difference", "equivalence") and c.arm != c.base


@pytest.mark.parametrize("analysis", [Analysis("x", ("nobody",), ("harm",)), Analysis("x", ("sft",), ("p_charm",))])
def test_what_is_not_registered_has_to_say_so(analysis):
    with pytest.raises(ValueError, match="not registered"):
        analysis.check(registration())
    assert Analysis(analysis.name, analysis.arms, analysis.metrics, exploratory=True).check(registration())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = ",
        "version = 1\n[arms]\nregistered = []",
        "version = " + "9" * 5000,
        "version = " + "[" * 100_000,
        "version = " + "{a = " * 5000,
        "seeds = 3",
        'arms = {registered = "a", explored = 1}\nseeds = [1]',
    ],
    ids=lambda text: f"{text[:12]}... {len(text)}",
)
def test_a_broken_registration_is_one_sentence(text):
    with pytest.raises(DataError, match="not a registration") as caught:
        read_registration(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "row = " + "9" * 5000,
        "row = " + "[" * 100_000,
        "row = 3",
        'row = ["a"]',
        '[[row]]\nname = ["a"]\ntitle = "t"\nabout = "a"\nconfig = "grpo"',
        '[[row]]\nname = "a"\ntitle = 3\nabout = "a"\nconfig = "grpo"',
        '[[row]]\nname = "a"\ntitle = "t"\nabout = "a"\nconfig = "nosuch"',
        '[[row]]\nname = "a"\ntitle = "t"\nabout = "a"\nconfig = "grpo"\nchange = "x"',
        '[[row]]\nname = "a"\ntitle = "t"\nabout = "a"\nconfig = "grpo"\ntables = [3]',
    ],
    ids=lambda text: f"{text[:12]}... {len(text)}",
)
def test_a_broken_row_file_is_one_sentence_that_names_it(tmp_path, text):
    from types import ModuleType

    module = ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(DataError, match="mine.toml: is no row file") as caught:
        rows_of(module)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_broken_log_of_ambiguities_is_one_sentence(tmp_path):
    for text in ("a = " + "9" * 5000, "a = " + "[" * 100_000, "ambiguity = 3"):
        (tmp_path / "log.toml").write_text(text)
        with pytest.raises(DataError, match="log.toml"):
            load_ambiguities(tmp_path / "log.toml")


def test_the_analyses_of_the_library_ask_the_registration(tmp_path):
    from dataclasses import replace

    from dualppo.papers.ledger import gather_evidence
    from dualppo.papers.stats import answers

    plan = registration()
    narrow = replace(plan, arms={name: n for name, n in plan.arms.items() if name != "wo_mask_bandit"})
    with pytest.raises(ValueError, match="wo_mask_bandit"):
        answers([], narrow, "stress")
    with pytest.raises(ValueError, match="entropy"):
        gather_evidence(tmp_path).estimates(["dual_ppo"], "stress", "entropy")


def test_rates_are_those_that_were_chosen():
    """rates.toml is what tools/tuning.py chose, and the rows use it; an edge is no choice."""
    rows = csv.DictReader((ROOT / "outputs/published/tuning.csv").read_text().splitlines())
    chosen = {(row["method"], row["start"]): float(row["learning_rate"]) for row in rows if row["chosen"] == "yes"}
    kept = tomllib.loads((ROOT / "dualppo/assets/rates.toml").read_text())
    assert {(name, start): rate for name, own in kept.items() for start, rate in own.items()} == {
        key: rate for key, rate in chosen.items() if "molma" not in method(key[0]).tables
    }
    for name, own in kept.items():
        for start, rate in own.items():
            config = method(name).begun(start).config
            assert getattr(config, "lr", None) == rate or getattr(config, "policy_lr", None) == rate, (name, start)
    for start in STARTS:  # an ablation has the rate of what it is an ablation of
        same = {
            method(n).begun(start).config.policy_lr for n in ("dual_ppo_bandit", "wo_mask_bandit", "wo_dual_bandit")
        }
        assert len(same) == 1 and method("dual_ppo").begun(start).config.policy_lr == 3e-5
