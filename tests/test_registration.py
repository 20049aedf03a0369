"""The registration is complete, names what exists, and binds every analysis."""

import pytest

from dualppo.core.errors import DataError
from dualppo.exact.metrics import METRICS
from dualppo.methods.rows import rows_of
from dualppo.papers.ambiguities import load_ambiguities
from dualppo.papers.registration import Analysis, read_registration, registration
from dualppo.runs.spec import HEADLINE, PROFILES, SEED_000, grid


def test_every_arm_of_the_profile_is_registered_with_its_number_of_seeds():
    plan = registration()
    assert {run.method: len(run.seeds) for run in grid(plan.profile)} == plan.arms
    assert {name for name, seeds in plan.arms.items() if seeds == PROFILES["paper"].headline} == set(HEADLINE)
    assert set(plan.arms) == set(SEED_000)


def test_metrics_margins_and_comparisons_name_what_exists():
    plan = registration()
    assert set(plan.primary) | set(plan.secondary) <= set(METRICS) and not set(plan.primary) & set(plan.secondary)
    assert set(plan.margins) == set(plan.primary) and all(margin > 0 for margin in plan.margins.values())
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
        "version = 1\n[arms]\nheadline = []",
        "version = " + "9" * 5000,
        "version = " + "[" * 100_000,
        "version = " + "{a = " * 5000,
        "seeds = 3",
        'arms = {headline = "a", others = 1}\nseeds = [1]',
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
