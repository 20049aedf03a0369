"""Every cell beside the printed one, settings never mixed, text escaped, files in every form."""

import csv
import io
import math
import re
import time
from dataclasses import replace
from itertools import cycle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import whole

from dualppo.bench.candidates import SETTINGS
from dualppo.bench.env import add_objective, make_envs
from dualppo.bench.features import load_features
from dualppo.papers import tables
from dualppo.core.errors import DataError
from dualppo.papers.stats import paired_interval
from dualppo.methods.rows import all_methods, method
from dualppo.exact.metrics import METRICS, dialogue_sums, evaluate
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
    """Write records where a grid would, with all that one holds."""
    for r in records:
        path = outputs / "runs" / folder / r["setting"] / f"{r['method']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(whole(r)))


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
        assert row[1].startswith("78.4") and row[4].startswith("51.0 ±") and row[11].startswith("61.0 ±")
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
    assert sum("⚑" in cell for row in shown.rows for cell in row) == len(tables.SHOWN)
    row = next(r for r in shown.rows if r[0] == "SFT")
    assert (
        row[1] == "42.3 ± 4.2"
        and row[2].startswith("61.0")
        and row[3].startswith("81.0")
        and f"{2 * len(tables.SHOWN)} outside" in tables.summary_line(frame)
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


def test_runs_on_other_data_are_said_to_be_left_out(outputs):
    assert "Left out" not in tables.build_table("table2", tables.read_runs(outputs)).caption
    others = [record("dpo", "clean", data="b" * 64, label="chat"), record("gold", "clean", data="c" * 64, label="chat")]
    store(outputs, [*others, record("dpo", "stress", data="b" * 64, label="chat")])
    said = (
        f"Left out: 3 runs of this folder on other data, 2 on chat (sha256 {'b' * 12}); 1 on chat (sha256 {'c' * 12})."
    )
    tables.write_tables(outputs)
    for name in ("table2", "table3", "graph1"):
        for form in ("csv", "md", "tex", "html"):
            assert said in (outputs / "tables" / f"{name}.{form}").read_text(encoding="utf-8")
    assert said in tables.comparison_note(tables.read_runs(outputs), None, "quick")


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
    whole = [record(n, s) for n in PROFILES["paper"].methods for s in ("clean", "stress") if n != "human"]
    last = [r for r in whole if r["method"] == "wo_dual"]
    store(outputs, [r for r in whole if r not in last], "paper")
    assert tables.shown_folder(outputs) == "quick"
    store(outputs, last, "paper")
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


def configured(name: str, seeds, config: dict, **more) -> dict:
    """A run of some seeds in a configuration; its metrics are a function of both."""
    made = record(name, "stress", seeds=0) | {"seeds": list(seeds), "config": {"method": config}} | more
    shift = sum(map(ord, str(sorted(config.items())))) % 97 / 1000
    made["results"] = [{"seed": s, "test": dict.fromkeys(METRICS, shift + s / 100)} for s in seeds]
    return made


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(0, 5), min_size=1),
            st.fixed_dictionaries(
                {
                    "lr": st.sampled_from([1.25e-7, 1.2500000001e-7, 1e-3]),
                    "weights": st.sampled_from([[0.5, 0.5], [1.0]]),
                },
                optional={"note": st.sampled_from(["a" * 60 + "b", "a" * 60 + "c", None])},
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_is_one_configuration_over_each_of_its_seeds_once(runs):
    """Against a count by hand: as many rows as configurations, and each seed counts once however often it was run."""
    arms: dict[str, set[int]] = {}
    for seeds, config in runs:
        arms.setdefault(repr({k: v for k, v in sorted(config.items()) if v is not None}), set()).update(seeds)
    apart = tables.apart([configured("sft", sorted(seeds), config) for seeds, config in runs])
    assert len({r["method"] for r in apart}) == len(apart) == len(arms)
    assert sorted(r["seeds"] for r in apart) == sorted(sorted(seeds) for seeds in arms.values())
    table = tables.build_table("table2", apart)
    assert sorted(row[-1] for row in table.rows) == sorted(str(len(seeds)) for seeds in arms.values())
    assert all(len(row[0]) < 250 for row in table.rows)


def test_the_same_seed_in_two_runs_counts_once(tmp_path):
    """`--seeds 2` and then `--seeds 3` leave two records; the table has three seeds, not five."""
    pair = [configured("sft", (0, 1), {"lr": 1}), configured("sft", (0, 1, 2), {"lr": 1})]
    (found,) = tables.apart(pair)
    assert found["seeds"] == [0, 1, 2] and tables.summarise([found])["stress", "sft", "good"].n == 3


# ---- methods of somebody's own package


@pytest.mark.parametrize("name", ["worst_first", "<b>bold</b> | $x$", "a@b", "x" * 5000, "Größe", "sft ", "@"])
def test_a_method_that_is_not_installed_here_is_shown_by_its_name(outputs, name):
    made = record("sft", "stress") | {"method": name, "title": "a title"}
    path = outputs / "runs" / "quick" / "stress" / "stranger.json"
    path.write_text(to_json(whole(made)))
    records = tables.read_runs(outputs)
    table = tables.build_table("table2", records, against="similarity")
    shown = [row for row in table.rows if row[0] not in {m.title for m in all_methods().values()}]
    assert (
        len(shown) == 1
        and len(shown[0][0]) <= 80
        and shown[0][0][:20].startswith(tables.plain(name)[:5].split("@")[0].strip())
    )
    assert shown[0][table.columns.index(("stress", "Attributable %")) + 1].startswith("61.0")
    for path in tables.write_tables(outputs, against="similarity"):
        assert path.is_file()
    frame = tables.compare(records, records, "table2")
    tables.compare_table(frame, "table2", "", "stress")
    assert "table2" in tables.shown_tables(records)


def test_a_method_of_no_table_stands_in_table_2_beside_others(outputs):
    runs = [record("wo_mask_bandit", "stress"), record("grpo", "stress")]
    assert tables.shown_tables(runs) == ["table2", "table3"]
    assert method("grpo").title in [row[0] for row in tables.build_table("table2", runs).rows]


# ---- against a baseline


def graded(name, seeds, gain=0.0, dialogues=12, draw=0, **more) -> dict:
    """A run with sums per dialogue; `gain` over what the same seed draws for every method."""
    g = np.random.default_rng(draw)
    made = record(name, "stress", seeds=0) | {"seeds": list(seeds), "results": []} | more
    for seed in seeds:
        states = np.random.default_rng(seed).integers(1, 5, dialogues)
        means = np.random.default_rng(100 + seed).uniform(0.2, 0.6, dialogues)
        sums = {m: (states * (means + gain + g.normal(0, 0.01, dialogues))).tolist() for m in tables.SHOWN}
        test = {m: sum(sums[m]) / int(states.sum()) for m in tables.SHOWN}
        kept = {"states": states.tolist()} | sums
        made["results"].append({"seed": seed, "test": dict.fromkeys(METRICS, 0.5) | test, "dialogues": kept})
    return made


def test_the_paired_difference_to_a_baseline_stands_in_every_row(tmp_path):
    runs = [
        graded("similarity", range(4)),
        graded("sft", range(4), 0.1, draw=1),
        graded("dpo", (1, 2), -0.05, draw=2),
    ]
    table = tables.build_table("table2", runs, "similarity")
    group = tables.minus("stress", "similarity")
    at = {label: table.columns.index((group, label)) + 1 for label, _ in tables.SHOWN.values()}
    rows = {row[0]: row for row in table.rows}
    found = paired_interval(runs[1], runs[0], "good")
    by_hand = np.mean([a["test"]["good"] - b["test"]["good"] for a, b in zip(runs[1]["results"], runs[0]["results"])])
    assert found.value == pytest.approx(by_hand) and found.low < 0.1 < found.high
    told = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    assert rows["SFT"][at["Attributable %"]] == told
    # the marginal intervals overlap, and the paired one does not hold zero: why the column is there
    one, two = (tables.summarise(runs)["stress", name, "good"] for name in ("sft", "similarity"))
    assert one.mean - one.half < two.mean + two.half and found.low > 0
    fewer = paired_interval(runs[2], runs[0], "average_reward")
    assert rows["DPO"][at["Avg. reward"]] == f"{fewer.value:+.3f} [{fewer.low:+.3f}, {fewer.high:+.3f}]"
    assert {rows[method("similarity").title][i] for i in at.values()} == {"–"}
    assert "Differences: paired with Similarity (untrained start)" in table.caption
    store(tmp_path, runs)
    tables.write_tables(tmp_path, against="similarity")
    assert told in (tmp_path / "tables" / "table2.csv").read_text()
    assert (
        told.replace("[", "{[}").replace("]", "{]}").replace("%", r"\%")
        in (tmp_path / "tables" / "table2.tex").read_text()
    )
    assert told in (tmp_path / "tables" / "table2.html").read_text()


def test_what_cannot_be_paired_is_left_open():
    base = graded("similarity", range(3))
    other = graded("dpo", range(3), 0.1, torch="another")
    elsewhere = graded("gold", range(3), 0.1, dialogues=13)
    no_sums = record("oracle", "stress")
    no_seed_shared = graded("random", (7, 8), 0.1)
    one_shared = graded("sft", (2, 9), 0.1)
    runs = [base, other, elsewhere, no_sums, no_seed_shared, one_shared]
    table = tables.build_table("table2", runs, "similarity")
    at = table.columns.index((tables.minus("stress", "similarity"), "Attributable %")) + 1
    rows = {row[0]: row[at] for row in table.rows}
    assert rows.pop("SFT").endswith(" (n = 1)") and set(rows.values()) == {"–"}
    with pytest.raises(DataError, match="'simlarity' to compare with; did you mean similarity"):
        tables.build_table("table2", runs, "simlarity")
    clean = record("sft", "clean")
    assert tables.build_table("table2", [*runs, clean], "similarity").rows  # the baseline has not run there


# ---- data of one's own


def own(name: str, setting: str, **more) -> dict:
    made = record(name, setting, label="chat", data="d" * 64)
    return made | {"data": made["data"] | {"source": "our tickets, given by the user: internal"}} | more


def test_own_data_have_no_printed_and_no_published_value_beside_them(tmp_path, outputs):
    mine = tmp_path / "mine"
    store(mine, [own(n, s) for n in NAMES for s in ("clean", "stress")], "quick-chat-dddddddd")
    written = tables.write_tables(mine, "quick-chat-dddddddd", outputs)
    records = tables.read_runs(mine, "quick-chat-dddddddd")
    published = tables.published_runs(outputs, "quick-chat-dddddddd")
    texts = [path.read_text(encoding="utf-8") for path in written if path.suffix in (".csv", ".md", ".tex", ".html")]
    values = [v for rows in tables.PAPER.values() for row in rows.values() for v in row]
    assert published and "78.4 ± 3.9" in values and len(texts) > 10
    for text in texts:
        for value in values:  # what the paper prints with its ± can stand nowhere by chance
            assert "±" not in value or value not in text
        assert "Wizard of Wikipedia" not in text and "⚑" not in text and "the paper does not say" not in text
    table = tables.build_table("table2", records)
    assert [group for group, _ in table.groups] == ["clean", "stress", ""]
    assert "Source: our tickets, given by the user: internal." in table.caption
    assert not [path for path in written if "compared" in path.name]
    frame = tables.compare(published, records, "table2")
    assert set(frame.printed) == set(frame.published) == {"–"} and frame.outside.isna().all()
    assert tables.summary_line(frame) == "No published cell to compare with."
    assert (
        tables.comparison_note(records, outputs, "quick") == tables.caption(records) and tables.findings(records) == []
    )
    assert tables.shown_folder(mine) == "quick-chat-dddddddd"


@pytest.mark.parametrize(
    ("name", "source", "papers"),
    [
        ("embedded", None, True),
        ("embedded", "Derived numbers only, no text. Wizard of Wikipedia (Dinan et al. 2019), CC-BY-4.0.", True),
        ("wow-1234", "Derived numbers only, no text. Wizard of Wikipedia (Dinan et al. 2019), CC-BY-4.0.", True),
        ("embedded", "mine.json, given by the user: no licence stated", False),
        ("mine", None, False),
        ("mine", "", False),
        ("both", "Wizard of Wikipedia (Dinan et al. 2019), CC-BY-4.0; more.json, given by the user: CC0", False),
    ],
)
def test_whose_data_they_are_is_read_from_their_attribution(name, source, papers):
    made = record("sft", "clean", label=name)
    made["data"] |= {} if source is None else {"source": source}
    assert tables.papers_data([made]) is papers


# ---- any number of objectives


@pytest.fixture(scope="module")
def three(toy):
    """The test states of the toy features with a third objective, and with one alone."""
    env = make_envs(load_features(toy), SETTINGS["clean"], 0).test
    more = add_objective(env, "polite & kind", lambda e: torch.linspace(0, 1, e.cand.numel()).reshape(e.cand.shape))
    return {1: replace(env, reward=env.reward[..., 1:], objectives=("safe",)), 2: env, 3: more}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_objective_has_a_column_by_its_name(k, three, tmp_path):
    env = three[k]
    log_probs = torch.full(env.cand.shape, 1 / env.cand.shape[1]).log()
    dialogues = dialogue_sums(log_probs, env)
    expected = {name: env.reward[..., i].mean(1).mean().item() for i, name in enumerate(env.objectives)}
    metrics = {m: None if v != v else v for m, v in evaluate(log_probs, env).items()}
    made = [record(n, "clean", seeds=2, label="mine") for n in ("random", "sft")]
    for r in made:
        r["results"] = [{"seed": i, "test": metrics, "dialogues": dialogues} for i in range(2)]
    store(tmp_path, made)
    records = tables.read_runs(tmp_path)
    table = tables.build_table("table2", records, "random")
    names = {1: ["safe"], 2: [], 3: ["help", "polite & kind", "safe"]}[k]
    assert [label for group, label in table.columns if group == "clean"] == [
        *(v[0] for v in tables.SHOWN.values()),
        *names,
        *tables.ENDING,
    ]
    for name in names:
        cell = table.rows[0][table.columns.index(("clean", name)) + 1]
        assert float(cell.split(" ±")[0]) == pytest.approx(expected[name], abs=1e-3)
    tables.write_tables(tmp_path)
    read = {
        form: (tmp_path / "tables" / f"table2.{form}").read_text(encoding="utf-8") for form in ("csv", "tex", "html")
    }
    escaped = {"csv": str, "tex": tables.tex_safe, "html": lambda text: text.replace("&", "&amp;")}
    assert all(f"{escaped[form](name)}" in read[form] for form in read for name in names)
    frame = pd.read_csv(io.StringIO(read["csv"]), comment="#")
    assert all(f"clean {name}" in frame for name in names)
    wide = pd.read_csv(tmp_path / "tables" / "table2_wide.csv")
    assert all(wide[f"objective {name}"][0] == pytest.approx(expected[name], abs=1e-4) for name in names)
    assert ("every objective under its name (" + ", ".join(names) in table.caption) == bool(names)
    assert ("the mean of the objectives" in table.caption) == (k == 1)


# ---- long names


def test_a_long_name_of_data_is_cut_and_one_of_200_kilobytes_refused(tmp_path, capsys):
    endless = record("sft", "clean", label="x <b>" * 40_000)
    store(tmp_path / "endless", [endless])
    with pytest.raises(DataError, match="no finished run"):
        tables.read_runs(tmp_path / "endless")
    assert "at most 20000 letters" in capsys.readouterr().err
    long = record("sft", "clean", label="x <b>" * 4_000)
    long["data"]["source"] = "y " * 10_000
    store(tmp_path, [long | {"profile": "z" * 20_000}])
    clock = time.perf_counter()
    written = tables.write_tables(tmp_path)
    assert time.perf_counter() - clock < 10  # it took 20 seconds
    assert all(path.stat().st_size < 300_000 for path in written if path.suffix != ".png")
    assert "…" in tables.caption(tables.read_runs(tmp_path)) and len(tables.caption(tables.read_runs(tmp_path))) < 1600


# ---- two starts, masks, how training ended


def begun(name: str, start: str | None, base: float, kept: int = 0, capped: int = 0) -> dict:
    """A record that says how its heads began, with both views and the facts of its training."""
    made = record(name, "stress", base) | {"start": start}
    for i, one in enumerate(made["results"]):
        one["masked"], one["unmasked"] = ({m: v + d for m, v in one["test"].items()} for d in (0.05, -0.05))
        one["last"] = {m: v - 0.1 for m, v in one["test"].items()}
        one["curves"] = [{"epoch": 0}, {"epoch": 1}]
        one["facts"] = {"kept_start": i < kept, "at_cap": i < capped}
    return made


def test_both_starts_are_rows_of_their_own_and_the_papers_numbers_stand_at_the_letter(tmp_path):
    for r in (begun("sft", "letter", 0.3, 1, 2), begun("sft", "similarity", 0.5), begun("random", None, 0.1)):
        place = "stress-letter" if r["start"] == "letter" else "stress"
        path = tmp_path / "runs" / "quick" / place / f"{r['method']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(whole(r)))
    table = tables.build_table("table2", tables.read_runs(tmp_path))
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == [method("random").title, "SFT", "SFT [letter]"]
    assert rows["SFT [letter]"][1].startswith("42.3") and rows["SFT"][1] == "–"
    at = {label: table.columns.index(("stress", label)) + 1 for label in tables.ENDING}
    assert rows["SFT [letter]"][at["kept start · at cap"]] == "1 · 2"
    assert rows["SFT"][at["last epoch"]].startswith("0.510") and "[letter]: random heads" in table.caption
    alone = tables.build_table("table2", [r for r in tables.read_runs(tmp_path) if "@" not in r["method"]])
    assert next(row for row in alone.rows if row[0] == "SFT")[1].startswith("42.3")


def test_the_same_mask_for_everybody():
    table = tables.masks_table([begun("sft", "similarity", 0.5), begun("dpo", "similarity", 0.4)])
    assert table is not None and [row[0] for row in table.rows] == ["SFT", "DPO"]
    at = {view: table.columns.index((f"stress, mask {view}", "R@1 %")) + 1 for view in ("on", "off")}
    assert table.rows[0][at["on"]].startswith("66.0") and table.rows[0][at["off"]].startswith("56.0")
    assert tables.masks_table([record("sft", "stress")]) is None


def test_mask_and_training_add_up_in_either_order():
    bases = {"similarity": 0.5, "similarity_mask": 0.3, "wo_mask_bandit": 0.45, "dual_ppo_bandit": 0.28}
    table = tables.two_by_two([begun(name, "similarity", base) for name, base in bases.items()])
    assert table is not None
    harm = {
        row[0]: float(row[table.columns.index(("stress", "Harmfulness %")) + 1].split(" ±")[0]) for row in table.rows
    }
    first, last = harm["the mask, before training"], harm["the mask, after training"]
    assert first == pytest.approx(-20) and last == pytest.approx(-17)
    assert first + harm["training, behind the mask"] == pytest.approx(harm["training, without the mask"] + last)
    assert tables.two_by_two([begun("similarity", None, 0.5)]) is None


# ---- no stranger's file is written over


def test_no_table_report_or_ledger_is_written_over_a_strangers_file(outputs, monkeypatch):
    """Whatever the three commands write: in its place a file of the user's stays, and one sentence names it."""
    from dualppo.papers import ledger
    from dualppo.show import report

    monkeypatch.setattr(tables, "to_png", lambda table: b"\x89PNG of a table")
    monkeypatch.setattr(tables, "graph1", lambda records: b"\x89PNG of a graph")
    doors = (
        lambda: report.write_report(outputs, folder="quick"),
        lambda: ledger.write_ledger(outputs),
        lambda: tables.write_tables(outputs, published=outputs),  # the last, for the page would show its pictures
    )
    for door in doors:
        before = {path for path in outputs.rglob("*") if path.is_file()}
        door()
        door()  # what it wrote itself it writes again
        written = sorted({path for path in outputs.rglob("*") if path.is_file()} - before)
        assert written, "it wrote nothing"
        for path, foreign in zip(written, cycle([b"of the user", b""])):
            mine = path.read_bytes()
            path.write_bytes(foreign)
            with pytest.raises(DataError, match=re.escape(path.name)):
                door()
            assert path.read_bytes() == foreign
            path.write_bytes(mine)
