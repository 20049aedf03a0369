"""Every cell beside the printed one, settings never mixed, text escaped, files in every form."""

import csv
import math

import pandas as pd
import pytest
from scipy import stats

from dualppo.papers import tables
from dualppo.core.errors import DataError
from dualppo.methods.rows import all_methods, method
from dualppo.exact.metrics import METRICS
from dualppo.runs.execution import run_once
from dualppo.runs.key import RECORD_SCHEMA, to_json
from dualppo.runs.spec import PROFILES, Run

NAMES = ("random", "similarity", "similarity_mask", "oracle", "sft", "dual_ppo", "wo_mask_bandit")


def record(name, setting, base=0.5, seeds=3, data="a" * 64, label="embedded") -> dict:
    """A record with made-up metrics."""
    results = [
        {"seed": i, "test": {m: base + i / 100 + (0.1 if setting == "stress" else 0) for m in METRICS}}
        for i in range(seeds)
    ]
    return {
        "schema": RECORD_SCHEMA,
        "method": name,
        "title": method(name).title,
        "setting": setting,
        "profile": "quick",
        "seeds": list(range(seeds)),
        "key": "k",
        "code_sha256": "c",
        "data_sha256": data,
        "data": {"name": label, "sha256": data, "exchanges": 10, "dialogues": 2},
        "results": results,
    }


def store(outputs, records, folder="quick") -> None:
    """Write records where a grid would."""
    for r in records:
        path = outputs / "runs" / folder / r["setting"] / f"{r['method']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(r))


@pytest.fixture
def outputs(tmp_path):
    store(tmp_path, [record(n, s) for n in NAMES for s in ("clean", "stress")])
    return tmp_path


def test_a_cell_is_the_mean_with_its_t_interval():
    values = [0.1, 0.4, 0.35, 0.2]
    cell = tables.Cell.of(values)
    low, high = stats.t.interval(0.95, 3, loc=cell.mean, scale=stats.sem(values))
    assert math.isclose(cell.mean - cell.half, low) and math.isclose(cell.mean + cell.half, high)
    assert (
        tables.Cell.of([0.5]).text(True) == "50.0"
        and tables.Cell.of([math.nan, 0.5]).n == 1
        and tables.Cell.of([]).text(False) == "–"
    )


def test_all_forms_are_written(outputs):
    written = tables.write_tables(outputs)
    for name in ("table2", "table3", "graph1"):
        for suffix in ("csv", "md", "tex", "html"):
            assert (outputs / "tables" / f"{name}.{suffix}").read_text()
        assert (outputs / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert all(path.is_file() for path in written) and (outputs / "manifest.json").is_file()
    first = (outputs / "figures" / "graph1.png").read_bytes()
    tables.write_tables(outputs)
    assert (outputs / "figures" / "graph1.png").read_bytes() == first


def test_both_settings_stand_side_by_side_and_controls_in_every_table(outputs):
    for name in ("table2", "table3"):
        table = tables.build_table(name, tables.read_runs(outputs))
        assert [g for g, _ in table.groups][:3] == ["paper", "clean", "stress"]
        titles = [row[0] for row in table.rows]
        assert all(method(c).title in titles for c in tables.CONTROLS)
        row = next(r for r in table.rows if r[0] == method("dual_ppo").title)
        assert row[1].startswith("78.4") and row[4].startswith("51.0 ±") and row[7].startswith("61.0 ±")
        assert "embedded" in table.caption and "quick" in table.caption and "0–2" in table.caption


def test_the_papers_numbers_are_the_papers():
    assert {name: row[0] for name, row in tables.PAPER["table2"].items()} == {
        "SFT": "42.3 ± 4.2",
        "DPO": "56.7 ± 5.1",
        "Safe RLHF-V": "61.2 ± 4.8",
        "Single-Obj. PPO": "67.1 ± 5.3",
        "Proposed": "78.4 ± 3.9",
    }
    assert {m.paper for m in all_methods().values() if m.paper and "molma" not in m.tables} == set(
        tables.PAPER["table2"]
    ) | set(tables.PAPER["table3"])


def test_wide_csv_has_every_metric(outputs):
    tables.write_tables(outputs)
    frame = pd.read_csv(outputs / "tables" / "table2_wide.csv")
    assert {
        "good",
        "harm",
        "average_reward",
        "help_cosine",
        "harm_labelled",
        "recall_at_1",
        "mrr",
        "similarity",
        "good_ci95",
        "n",
    } <= set(frame.columns)


def test_a_cell_outside_the_published_interval_is_flagged(outputs):
    published = tables.read_runs(outputs)
    same = tables.compare(published, published, "table2")
    assert same.outside.notna().all() and not same.outside.any()
    yours = [record(n, s, base=0.5 + 0.2 * (n == "sft")) for n in NAMES for s in ("clean", "stress")]
    frame = tables.compare(published, yours, "table2")
    assert set(frame[frame.outside.astype(bool)].method) == {"SFT"}
    shown = tables.compare_table(frame, "table2", "", "stress")
    assert sum("⚑" in cell for row in shown.rows for cell in row) == 3
    row = next(r for r in shown.rows if r[0] == "SFT")
    assert (
        row[1] == "42.3 ± 4.2"
        and row[2].startswith("61.0")
        and row[3].startswith("81.0")
        and "6 outside" in tables.summary_line(frame)
    )


def test_nothing_published_is_said(outputs):
    frame = tables.compare(None, tables.read_runs(outputs), "table3")
    assert set(frame.published) == {"–"} and frame.outside.isna().all() and "No published" in tables.summary_line(frame)


def test_text_is_escaped_in_every_format(outputs):
    nasty = [record(n, "clean", label="<script>alert(1)</script> 5% & $x_1$ |") for n in NAMES]
    table = tables.build_table("table2", nasty)
    assert "<script>" not in tables.to_html(table) and "&lt;script&gt;alert" in tables.to_html(table)
    assert "<script>" not in tables.to_markdown(table) and r"5\% \& \$x\_1\$" in tables.to_tex(table)
    evil = tables.Table("t", "<b>t", "<i>c", (("<g>", ("<l>",)),), (("<m>", "<v> | x"),))
    page = tables.to_html(evil)
    assert not any(bad in page for bad in ("<b>t", "<i>c", "<g>", "<l>", "<m>", "<v>"))
    assert r"\| x" in tables.to_markdown(evil)


def test_csv_can_be_read_back(outputs):
    table = tables.build_table("table2", tables.read_runs(outputs))
    rows = list(csv.reader(tables.to_csv(table).splitlines()[1:]))
    assert len(rows) == len(table.rows) + 1 and all(len(r) == len(rows[0]) for r in rows)


def test_runs_on_other_data_are_never_mixed(outputs):
    store(outputs, [record("dpo", "clean", data="b" * 64)])
    assert {r["data_sha256"] for r in tables.read_runs(outputs)} == {"a" * 64}


def test_broken_and_foreign_files_are_left_out(outputs):
    (outputs / "runs" / "quick" / "clean" / "dpo.json").write_text("{")
    (outputs / "runs" / "quick" / "clean" / "gold.json").write_text('{"schema": "other"}')
    assert len(tables.read_runs(outputs)) == 2 * len(NAMES)


def test_no_runs_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no finished run") as caught:
        tables.write_tables(tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_readme_sections_come_from_the_runs_alone(outputs, tmp_path):
    assert tables.table_sections(tmp_path / "nowhere") == {"tables": tables.NOT_YET, "findings": tables.NOT_YET}
    sections = tables.table_sections(outputs)
    assert set(sections) == {"tables", "findings"} and sections == tables.table_sections(outputs)
    assert (
        "Table 2" in sections["tables"] and "78.4 ± 3.9" in sections["tables"] and sections["findings"].startswith("- ")
    )


def test_the_registered_profile_is_shown_once_it_is_whole(outputs):
    whole = [record(n, s) for n in PROFILES["paper"].methods for s in ("clean", "stress")]
    store(outputs, whole[:-1], "paper")
    assert tables.shown_folder(outputs) == "quick"
    store(outputs, whole[-1:], "paper")
    assert tables.shown_folder(outputs) == "paper"


def test_one_seed_has_no_interval():
    table = tables.build_table("table2", [record("random", "clean", seeds=1)])
    assert "±" not in table.rows[0][4] and table.rows[0][-1] == "1"


def test_every_cell_carries_an_interval_and_every_row_its_seeds():
    runs = [record(n, s, seeds=3 if s == "clean" else 5) for n in NAMES for s in ("clean", "stress")] + [
        record("dpo", "stress", seeds=4)
    ]
    rows = {row[0]: row for row in tables.build_table("table2", runs).rows}
    assert rows[method("sft").title][-1] == "3 / 5" and rows[method("dpo").title][-1] == "4"
    assert all("±" in cell or cell == "–" for row in rows.values() for cell in row[4:-1])
    chart = tables.graph1_table(runs)
    assert [labels[-1] for _, labels in chart.groups][-1] == "n" and {row[0]: row[-1] for row in chart.rows} == {
        row[0]: row[-1] for row in rows.values()
    }
    compared = tables.compare_table(
        tables.compare(runs, [record(n, "clean", seeds=2) for n in NAMES], "table2"), "table2", "", "clean"
    )
    assert compared.groups[-1] == ("n", ("published", "yours")) and {row[-2:] for row in compared.rows} == {("3", "2")}
    assert all(
        "±" in row[i]
        for row in compared.rows
        for i, (_, label) in enumerate(compared.columns, 1)
        if label != "printed" and i < len(row) - 2
    )


def test_configurations_are_not_pooled_as_seeds(tmp_path, toy):
    """Two trainings that differ in their epochs are two rows, and seeds of one arm are one (L2 of the review)."""
    for seeds, epochs in (((0,), 1), ((1, 2), 1), ((0, 1), 2)):
        changes = {"epochs": epochs, "inner_epochs": 1, "dialogues_per_epoch": 20}
        run_once(Run("grpo", "clean", seeds, "smoke", str(toy), "cpu", changes), tmp_path)
    records = tables.read_runs(tmp_path, "custom")
    summary = tables.summarise(records)
    counts = {name: cell.n for (_, name, metric), cell in summary.items() if metric == "good"}
    assert counts == {"grpo@epochs 1": 3, "grpo@epochs 2": 2}
    table = tables.build_table("table2", records)
    assert [row[0] for row in table.rows] == ["GRPO [epochs 1]", "GRPO [epochs 2]"]


def test_runs_of_two_versions_of_the_bench_are_not_compared():
    from dualppo.papers.stats import paired

    arm = {"method": "a", "data_sha256": "1", "bench_sha256": "1", "torch": "2", "results": []}
    assert len(paired(arm, arm, "good")[0]) == 0
    for name in ("bench_sha256", "torch", "data_sha256"):
        with pytest.raises(DataError, match=f"differ in {name}"):
            paired(arm, arm | {name: "other"}, "good")
