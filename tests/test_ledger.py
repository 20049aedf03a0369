"""The ledger's verdicts follow from the evidence, and the evidence from registered comparisons."""

import re
from typing import get_args

import numpy as np
import pytest

from dualppo.papers.claims import arithmetic
from dualppo.exact.metrics import READINGS
from dualppo.papers.ledger import (
    Claim,
    Evidence,
    Verdict,
    claimed,
    compared,
    first_screen,
    gather_evidence,
    ledger,
    ledger_markdown,
    of_start,
    printed_numbers,
    size_entries,
    verdict_on,
)
from dualppo.methods.rows import STARTS, all_methods
from dualppo.papers.registration import Analysis, registration
from dualppo.papers.stats import Answer, Estimate, Finding, answers, detectable
from dualppo.papers.tables import base_name


def record(method: str, values: np.ndarray, setting: str = "stress") -> dict:
    """A run whose metrics are all the same numbers, twenty dialogues a seed."""
    names = ("average_reward", "harm", "recall_at_1", "help_cosine", "good")
    return {
        "method": method,
        "setting": setting,
        "results": [
            {
                "seed": i,
                "test": dict.fromkeys(names, float(v)),
                "dialogues": {"states": [2] * 20} | dict.fromkeys(names, [2 * float(v)] * 20),
            }
            for i, v in enumerate(values)
        ],
    }


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 0.02, 12)


def evidence(*records: dict, profile: str = "paper") -> Evidence:
    """The evidence that some records give."""
    plan = registration()
    answered = {(a.id, a.setting, a.metric): (profile, a) for s in plan.settings for a in answers(records, plan, s)}
    return Evidence(plan, {profile: {(r["setting"], r["method"]): r for r in records}}, answered)


def test_every_claim_names_a_registered_comparison():
    plan = registration()
    questions = {c.id: c for c in plan.comparisons}
    for claim in claimed():
        for start in STARTS:
            c = questions[of_start(claim.question, start)]
            assert (
                Analysis(c.id, (c.arm, c.base), (claim.metric,)).check(plan)
                and claim.sign in ((0,) if claim.question == "learned_same" else (1, -1))
                and {base_name(c.arm), base_name(c.base)} <= set(all_methods())
            )


def test_helpfulness_is_claimed_in_every_reading():
    metrics = [c.metric for c in claimed() if c.id == "C2" and "more helpful than SFT" in c.words]
    assert tuple(metrics) == READINGS


@pytest.mark.parametrize(
    "shift, verdicts",
    [
        (0.05, {"C5": {"direction only", "contradicted"}}),
        (-0.05, {"C5": {"contradicted", "direction only"}}),
        (0.0, {"C5": {"smaller than the margin"}}),
    ],
)
def test_learned_against_fixed(base, shift, verdicts):
    noise = np.random.default_rng(1).normal(0, 0.001, 12)
    found = ledger(evidence(record("dual_ppo_bandit", base + shift + noise), record("fixed_weights_bandit", base)))
    ours = [e for e in found if e.id == "C5" and e.setting == "stress" and e.start == "similarity"]
    lines = {e.claim: e.verdict for e in ours if "beat" in e.claim}
    assert set(lines.values()) == verdicts["C5"]
    same = [e for e in ours if "equivalent" in e.claim]
    assert (
        {e.verdict for e in same} == {"not shown to be equivalent" if shift else "equivalent"}
        and "margin ± 0.005" in same[0].why
        and "margin ± 1 pp" in same[1].why
    )
    if shift:
        assert (lines["learned weights beat fixed ones: reward"] == "direction only") == (shift > 0)


def test_padding_that_is_the_same_by_construction_contradicts_nothing(base):
    found = evidence(record("dual_ppo", base), record("wo_padding_ragged", base))
    padding = [e for e in ledger(found) if "padding" in e.claim and e.setting == "stress"]
    assert {e.start: (e.verdict, e.n) for e in padding} == {
        "letter": ("not yet measured", ""),
        "similarity": ("not reproducible as specified", "12"),
    }


def test_what_was_not_run_is_not_claimed(base):
    found = ledger(evidence(record("dual_ppo", base)))
    assert {e.verdict for e in found if e.id in ("C2", "C3", "C5")} == {"not yet measured"} and all(
        not e.ours for e in found if e.verdict == "not yet measured"
    )


def test_a_printed_number_is_reproduced_only_if_it_lies_in_the_interval():
    runs = evidence(record("dual_ppo@letter", np.full(10, 0.71) + np.linspace(-0.01, 0.01, 10)))
    near = {e.claim.split(": ")[1]: e.verdict for e in printed_numbers(runs, "stress", "letter")}
    assert near.pop("Avg. reward") == "reproduced" and len(near) == 4
    assert set(near.values()) == {"not reproducible as specified"}
    assert not printed_numbers(runs, "stress", "similarity")


def test_runs_that_were_not_registered_are_marked(base):
    noise = np.random.default_rng(1).normal(0, 0.001, 12)
    runs = (record("dual_ppo_bandit", base - 0.1 + noise), record("wo_mask_bandit", base))
    claim = Claim("C7", "x", "y", "mask", -1, "harm", "06_masking")
    found = compared(claim, "stress", "similarity", evidence(*runs, profile="quick"))
    assert found.exploratory and "†" in ledger_markdown([found]) and found.verdict == "direction only"


def test_a_verdict_is_one_of_the_words(base):
    words, plan = set(get_args(Verdict)), registration()
    assert {"reproduced", "direction only", "not reproducible as specified", "contradicted by its own table"} <= words
    told = get_args(Finding)
    assert {
        verdict_on(
            sign, Answer("x", "stress", "harm", Estimate(v, v - 0.1, v + 0.1, 20), 0.2, 0.2, 0.9, word), plan, gap
        )
        for word in told
        for sign in (1, -1, 0)
        for v in (0.5, -0.5)
        for gap in (None, 0.001, 0.45)
    } <= words
    assert {e.verdict for e in ledger(evidence(record("dual_ppo", base), record("sft", base - 0.1)))} <= words


def test_all_eight_claims_and_every_derived_number_stand_in_the_ledger(tmp_path):
    found = ledger(gather_evidence(tmp_path))
    assert {e.id for e in found} == {"C2", "C3", "C4", "C5", "C6", "C7", "C8", "ours", "M"}  # C1 needs runs
    assert [e.claim for e in found if e.id == "C4"] == [c.claim for c in arithmetic()]
    assert all(
        any(number in e.printed for e in found if e.id == "C4")
        for number in ("36.08", "48.55", "± 3.9", "17.2", "-5.2", "-7.2", "8.9", "1.7")
    )


def test_the_size_of_the_data_is_counted_where_it_can_be():
    together, kept, removed = size_entries({"exchanges": 90, "removed": [{"exchanges": 4}, {"exchanges": 6}]})
    assert together.verdict == "reproduced" and together.printed == together.ours == kept.printed == "18,430"
    assert (
        removed.printed == "412"
        and removed.ours == "10 of 100"
        and kept.verdict == removed.verdict == "not reproducible as specified"
    )


def test_no_runs_at_all(tmp_path):
    nothing = gather_evidence(tmp_path)
    assert all("not yet measured" in line for line in first_screen(nothing)) and "|" in ledger_markdown(ledger(nothing))


@pytest.mark.parametrize(
    "shift, answer", [(0.05, "**Yes.**"), (-0.05, "**No, they are worse.**"), (0.0, "**No, they are equivalent.**")]
)
def test_the_first_screen_answers_in_a_word(base, shift, answer):
    noise = np.random.default_rng(1).normal(0, 0.001, 12)
    lines = first_screen(
        evidence(record("dual_ppo_bandit", base + shift + noise), record("fixed_weights_bandit", base))
    )
    assert f"From the encoder's ranking: {answer} Average" in lines[1] and "From random heads" in lines[1]
    assert [line.count(": **") for line in lines] == [0, 1, 0, 0, 0]


def test_a_verdict_needs_a_test():
    answer = Answer("x", "stress", "harm", Estimate(0.5, 0.4, 0.6, 20), 0.2, 0.2, 0.9, "no difference found")
    assert verdict_on(1, answer, registration()) == verdict_on(-1, answer, registration()) == "not found"


def test_not_found_says_what_would_have_been(base):
    noise = np.random.default_rng(1).normal(0, 0.02, 12)
    found = ledger(evidence(record("dual_ppo_bandit", base + noise), record("fixed_weights_bandit", base)))
    line = next(e for e in found if e.claim == "learned weights beat fixed ones: harm" and e.ours)
    size, plan = float(re.search(r"an effect of (\S+) pp would have been found", line.why)[1]) / 100, registration()
    expected = detectable(noise.std(ddof=1), 12, plan.planned("harm", "similarity"), overlap=plan.overlap)
    assert line.verdict == "not found" and line.setting == "stress" and size == pytest.approx(expected, abs=1e-4)
    assert not any("would have been" in e.why for e in found if e.verdict != "not found")


def test_a_report_of_nothing_is_one_sentence(tmp_path, capsys):
    from dualppo.cli import main

    assert (
        main(["report", "--outputs", str(tmp_path)]) == 2
        and "no finished run" in capsys.readouterr().err
        and not list(tmp_path.iterdir())
    )
