"""Minutes left: a simulated clock over the seconds that published runs really took."""

import heapq
import json
import statistics
from pathlib import Path

import pytest
from test_cli import in_a_terminal
from test_terminal import bare

from dualppo.runs.forecast import START_UP, TimeLeft, about, seconds_before, seconds_expected, weighted_median
from dualppo.runs.spec import Run, cost

PUBLISHED = Path(__file__).resolve().parent.parent / "outputs" / "published"


def really(profile: str) -> list[tuple[Run, list[float]]]:
    """The published runs of a profile, with the seconds of each of their seeds."""
    jobs = []
    for path in sorted((PUBLISHED / "runs" / profile).glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        setting, _, start = path.parent.name.partition("-")
        run = Run(record["method"], setting, tuple(record["seeds"]), profile, start=start or "similarity")
        jobs.append((run, record["measured"]["wall_clock_s"]))
    return jobs


def played(jobs, before, workers: int, part: float, slowness: float, starting: float) -> float:
    """What a grid's forecast says after a part of its time, divided by what is then really left."""
    forecast = TimeLeft.of([run for run, _ in jobs], before, workers)
    events, free = [], [0.0] * workers
    for run, seeds in sorted(jobs, key=lambda job: cost(job[0]), reverse=True):
        begin, took = heapq.heappop(free), [slowness * seconds for seconds in seeds]
        heapq.heappush(free, begin + starting + sum(took))
        events += [(begin, 1, run, []), (begin + starting + sum(took), 0, run, took)]
    total = max(free)
    for at, begins, run, took in sorted(events, key=lambda event: event[:2]):
        if at > total * part:
            break
        forecast.begin(run, at) if begins else forecast.end(run, sum(took) + starting, took)
    return forecast.seconds_left(total * part) / (total * (1 - part))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("slowness", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_after_a_third_the_forecast_is_right_within_a_third(profile, slowness, workers):
    """The records of half of the seeds, and as reality the other half on a machine of another speed."""
    jobs, before = [], {}
    for run, seconds in really(profile):
        before[run.method, run.start, profile, run.setting] = statistics.median(seconds[::2])
        jobs.append((run, [statistics.median(seconds[1::2] or seconds)] * len(seconds)))
    assert 2 / 3 < played(jobs, before, workers, 1 / 3, slowness, starting=7.0) < 4 / 3


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_the_committed_records_are_what_it_reads(profile, workers):
    """As reality every second of the records, those of a machine that slept for an hour included."""
    jobs = really(profile)
    before = seconds_before(PUBLISHED, [run for run, _ in jobs])
    assert len(before) == len(jobs), "a run is looked for in its own profile and setting first"
    assert 2 / 3 < played(jobs, before, workers, 1 / 3, 1.7, starting=7.0) < 4 / 3


def test_what_was_never_run_is_guessed_from_what_has_ended():
    jobs = really("quick")
    known = {key: s for key, s in seconds_before(PUBLISHED, [run for run, _ in jobs]).items() if "bandit" not in key[0]}
    assert any(seconds_expected(run, known) is None for run, _ in jobs)
    assert 2 / 3 < played(jobs, known, 2, 1 / 3, 1.7, starting=7.0) < 4 / 3
    assert TimeLeft.of([run for run, _ in jobs], {}, 2).seconds_left(0.0) is None and about(None) == ""
    assert 1 / 2 < played(jobs, {}, 2, 1 / 3, 1.7, starting=7.0) < 2, "records there are none"


def test_another_profile_stands_in_by_its_number_of_epochs():
    runs = [run for run, _ in really("quick")]
    before = seconds_before(PUBLISHED, [Run("sft", "stress", (0,), "smoke"), Run("dpo", "stress", (0, 1, 2), "quick")])
    assert {key[0] for key in before} == {"sft", "dpo"} and {key[2] for key in before if key[0] == "dpo"} == {"quick"}
    assert seconds_expected(Run("sft", "stress", (0,), "smoke"), before) < seconds_expected(
        next(run for run in runs if run.method == "sft" and run.setting == "stress"), before
    )
    assert seconds_before(PUBLISHED / "nowhere", runs) == {}


def test_a_run_of_any_parameters_can_be_forecast():
    """Runs hold dictionaries and cannot be keys."""
    run = Run("sft", "stress", (0, 1), overrides={"epochs": 3})
    forecast = TimeLeft.of([run, Run("random", "clean", (0,))], {("sft", "similarity", "quick", "stress"): 8.0}, 2)
    forecast.begin(run, 0.0)
    forecast.drop(Run("random", "clean", (0,)))
    expected = seconds_expected(run, {("sft", "similarity", "quick", "stress"): 8.0})
    assert expected < 16.0 and forecast.seconds_left(1.0) == pytest.approx(START_UP + expected - 1)
    forecast.end(run, 9.0)
    assert not forecast.unfinished and forecast.seconds_left(9.0) in (None, 0.0)


def test_overdue_runs_get_another_tenth():
    forecast = TimeLeft.of([Run("sft", "stress", (0,))], {("sft", "similarity", "quick", "stress"): 2.0}, 1)
    forecast.begin(Run("sft", "stress", (0,)), 0.0)
    assert forecast.seconds_left(100.0) == 10.0


def test_fewer_workers_than_asked_for_are_seen():
    runs = [Run(name, "stress", (0,)) for name in ("sft", "dpo", "random")]
    before = {(run.method, "similarity", "quick", "stress"): 10.0 for run in runs}
    forecast = TimeLeft.of(runs, before, 3)
    assert forecast.seconds_left(0.0) == START_UP + 10
    forecast.begin(forecast.waiting[0].run, 0.0)
    assert forecast.seconds_left(0.0) == 3 * (START_UP + 10)


def test_the_weighted_median():
    assert weighted_median([(1.0, 1.0), (100.0, 1.0), (2.0, 5.0)]) == 2.0
    with pytest.raises(ValueError):
        weighted_median([])


@pytest.mark.slow
def test_the_command_says_how_long_it_will_take(toy, tmp_path):
    argv = ["reproduce", "--profile", "smoke", "--methods", "random", "similarity", "--settings", "clean"]
    argv += ["--data", str(toy), "--outputs", str(tmp_path), "--no-notebooks", "--workers", "1"]
    said, status = in_a_terminal(100, *argv, TERM="xterm")
    assert status == 0 and "about " in said and " left" in said and "0/2 runs" in said
    assert "s; about" in " ".join(bare(said)), "a line for those who read it in a file, too"
