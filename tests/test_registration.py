"""The registration is complete, names what exists, and binds every analysis."""

import pytest

from dualppo.core.errors import DataError
from dualppo.exact.metrics import METRICS
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


@pytest.mark.parametrize("text", ["", "version = ", "version = 1\n[arms]\nheadline = []"])
def test_a_broken_registration_is_one_sentence(text):
    with pytest.raises(DataError, match="not a registration"):
        read_registration(text)


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
