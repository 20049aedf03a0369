"""Every table cell and registered answer again, from the records' JSON, with no code of the library's statistics."""

import json
import math
import tomllib
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from scipy.stats import t

from dualppo.papers.ledger import answers_table, gather_evidence
from dualppo.papers.tables import SHOWN, build_table, read_runs

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "outputs" / "published"
PLAN = tomllib.loads((ROOT / "dualppo" / "assets" / "registration.toml").read_text(encoding="utf-8"))


@cache
def kept(method: str, setting: str, start: str) -> dict | None:
    """A record of the profile, read as JSON from its path; of a control the only one there is."""
    for place in (f"{setting}-letter", setting) if start == "letter" else (setting,):
        path = PUBLISHED / "runs" / PLAN["profile"] / place / f"{method}.json"
        if path.is_file() and (place != setting or start != "letter" or method not in PLAN["arms"]["both"]):
            return json.loads(path.read_text())
    return None


def values(record: dict, metric: str, view: str) -> dict[int, float]:
    return {r["seed"]: r[view][metric] for r in record["results"] if (r.get(view) or {}).get(metric) is not None}


def sign_p(d: list[float]) -> float:
    """The share of all signs with a mean as far from zero, by counting; sums apart by less than rounding are one."""
    if not any(d):
        return 1.0
    sums = {0.0: 1}
    for one in d:
        new: dict[float, int] = {}
        for total, count in sums.items():
            for side in (total + one, total - one):
                new[round(side, 12)] = new.get(round(side, 12), 0) + count
        sums = new
    far = abs(math.fsum(d)) - 1e-10
    return sum(count for total, count in sums.items() if abs(total) >= far) / 2 ** len(d)


@pytest.fixture(scope="module")
def answers():
    frame = answers_table(gather_evidence(PUBLISHED))
    return frame[frame.profile == PLAN["profile"]]


def test_every_registered_answer_is_there_and_is_what_the_records_say(answers):
    found = {(r["id"], r["start"], r["setting"], r["metric"]): r for r in answers.to_dict("records")}
    metrics, rho, expected = PLAN["metrics"]["primary"] + PLAN["metrics"]["readings"], PLAN["tests"]["overlap"], set()
    for c, setting, start, metric in product(PLAN["comparisons"], PLAN["settings"], ("similarity", "letter"), metrics):
        runs = [kept(c[side], setting, start) for side in ("arm", "base")]
        if not all(runs):
            continue
        x, y = (values(run, metric, c.get("view", "test")) for run in runs)
        d = [x[seed] - y[seed] for seed in sorted(x.keys() & y.keys())]
        if (n := len(d)) < 2:
            continue
        expected.add(key := (c["id"], start, setting, metric))
        line, mean = found[key], math.fsum(d) / n
        s = math.sqrt(math.fsum((v - mean) ** 2 for v in d) / (n - 1))
        error = s * math.sqrt(1 / n + rho)
        assert line["n"] == n and line["difference"] == pytest.approx(mean, abs=2e-8)
        assert line["high"] - line["low"] == pytest.approx(2 * t.ppf(0.975, n - 1) * error, abs=4e-8)
        if c["kind"] == "difference" and n <= 12:
            assert line["p_signs"] == pytest.approx(sign_p(d), abs=1e-8)
        if error:
            assert line["p_resplits"] == pytest.approx(2 * t.sf(abs(mean) / error, n - 1), abs=1e-7)
            inside = (PLAN["margins"][metric] - abs(mean)) / error
            assert line["p_margin"] == pytest.approx(t.sf(inside, n - 1), abs=1e-7)
        assert (line["found"] == "identical") == (not any(d))
        if line["found"] in ("larger", "smaller"):
            assert (mean > 0) == (line["found"] == "larger") and max(line["p_resplits"], line["p_raised"]) < 0.05
    assert set(found) == expected and expected


def test_every_cell_of_tables_2_and_3_is_what_the_records_say():
    records = read_runs(PUBLISHED, PLAN["profile"])
    checked = 0
    for name in ("table2", "table3"):
        table = build_table(name, records)
        titles = {}
        for r in records:
            mark = " [letter]" if r["method"].endswith("@letter") else ""
            titles.setdefault(f"{r['title']}{mark}", {})[r["setting"]] = r
        for row in table.rows:
            for setting, record in titles.get(row[0], {}).items():
                for metric, (label, percent) in SHOWN.items():
                    own = [r["test"][metric] for r in record["results"] if r["test"].get(metric) is not None]
                    mean, n = math.fsum(own) / len(own), len(own)
                    half = t.ppf(0.975, n - 1) * math.sqrt(math.fsum((v - mean) ** 2 for v in own) / (n - 1) / n)
                    cell = row[table.columns.index((setting, label)) + 1]
                    value, said = (float(part) for part in cell.split(" ± "))
                    scale, last = (100, 0.0501) if percent else (1, 0.000501)
                    assert abs(value - scale * mean) < last and abs(said - scale * half) < last, (
                        row[0],
                        setting,
                        label,
                    )
                    checked += 1
    assert checked > 100
