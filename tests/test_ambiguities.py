"""The discrepancy log: complete, about things that exist; its effects are the paired differences they claim."""

import json
import math
import re
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT
from scipy import stats

from dualppo.losses.alignment import alignment
from dualppo.papers.ambiguities import (
    NOT_MEASURED,
    NOTHING,
    PAPERS,
    TEXTS,
    Ambiguity,
    Contrast,
    analysis,
    effect_of,
    effect_table,
    load_ambiguities,
    log_markdown,
    log_table,
)
from dualppo.core.errors import DataError
from dualppo.methods.rows import all_methods
from dualppo.papers.registration import registration
from dualppo.runs.grade import finite
from dualppo.runs.spec import Run, resolve
from dualppo.papers.tables import records_at

LOG = load_ambiguities()


def record(method, values, seeds=None, setting="stress", profile="quick", data="d", **overrides):
    """A run with the configuration it would have; harm is a tenth of the reward."""
    row, spec = resolve(Run(method, setting, profile=profile, overrides=overrides))
    config = finite({"method": asdict(row.config), "env": asdict(row.env), "candidates": asdict(spec)})
    results = [
        {"seed": s, "test": {"average_reward": v, "harm": None if v is None else v / 10}}
        for s, v in zip(seeds or range(len(values)), values)
    ]
    return {
        "method": method,
        "setting": setting,
        "profile": profile,
        "data_sha256": data,
        "config": config,
        "results": results,
    }


def entry(*effects) -> Ambiguity:
    return Ambiguity(**dict.fromkeys(TEXTS, "A1") | {"effects": effects})


# ---- the log


def test_a1_to_a54_and_m1_to_m18_stand_there_once_each_in_order():
    assert [one.id for one in LOG] == [f"A{i}" for i in range(1, 55)] + [f"M{i}" for i in range(1, 19)]
    assert [one.paper for one in LOG] == [PAPERS["A"]] * 54 + [PAPERS["M"]] * 18
    assert {one.topic for one in LOG if one.id[0] == "A"}.isdisjoint(one.topic for one in LOG if one.id[0] == "M"), (
        "a topic holds entries of both papers"
    )
    for letter in PAPERS:
        titles = [one.title for one in LOG if one.id.startswith(letter)]
        assert len(set(titles)) == len(titles)
    topics = [one.topic for one in LOG]
    assert [t for i, t in enumerate(topics) if i == 0 or topics[i - 1] != t] == list(dict.fromkeys(topics)), (
        "a topic is torn apart"
    )


def test_every_entry_says_where_in_the_paper_it_stands():
    for one in LOG:
        assert re.search(r"§\d|Table \d|Algorithm 1|Definition \d|References|[Ee]q\. \d", one.statement), one.id
        assert len(one.statement) > 80 and 10 < len(one.why) < 220, one.id
        assert all("$" not in text and "\n" not in text for text in (one.statement, one.choice, one.why)), one.id


def test_every_notebook_named_exists():
    assert {one.notebook for one in LOG} <= {f"{p.parent.name}/{p.stem}" for p in (ROOT / "nbs").glob("*/*.ipynb")}


def test_notebooks_that_resolve_an_ambiguity_name_it():
    for one in LOG:
        cells = json.loads((ROOT / "nbs" / f"{one.notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
        if (
            one.id in ("A3", "A7", "A14", "A17", "A26", "A33", "A34", "A37", "A43")
            or one.id[0] == "M"
            and one.id not in ("M5", "M11", "M14", "M16")
        ):
            assert re.search(rf"\b{one.id}\b", source), f"{one.notebook} does not mention {one.id}"


def test_every_arm_named_exists():
    arms = [arm for one in LOG for contrast in one.effects for arm in contrast.arms()]
    assert arms and {name for name, _ in arms} <= set(all_methods())
    for one in LOG:
        for contrast in one.effects:
            base, other = (resolve(Run(name, overrides=overrides)) for name, overrides in contrast.arms())
            assert (base[0].config, base[0].env, base[1]) != (other[0].config, other[0].env, other[1]), (
                f"{one.id}: both arms are the same run"
            )


def test_methods_whose_description_cites_an_ambiguity_are_its_arms():
    arms = {one.id: {name for contrast in one.effects for name, _ in contrast.arms()} for one in LOG}
    for name, row in all_methods().items():
        for cited in set(re.findall(r"\b[AM]\d+\b", row.about)):
            if name.endswith("_bandit") or name.startswith(("wo_padding", "molma")):
                assert name in arms[cited], f"{name} cites {cited}, whose effects do not use it"


@pytest.mark.parametrize(("id_", "same"), [("M8", "scale"), ("M17", "objective")])
def test_arms_of_molma_that_must_show_no_difference_differ_in_nothing_else(id_, same):
    one = next(one for one in LOG if one.id == id_)
    contrast = one.effects[0] if id_ == "M8" else one.effects[-1]
    base, other = (
        asdict(resolve(Run(name, profile="molma", overrides=overrides))[0].config)
        for name, overrides in contrast.arms()
    )
    assert {k for k in base if base[k] != other[k]} - {"rivals", "align"} == {same}


def test_the_median_of_two_eigenvalues_is_the_smallest():
    gradients = torch.randn(20, 2, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alignment(gradients, "median"), alignment(gradients, "min")) and not torch.allclose(
        alignment(gradients, "rmse"), alignment(gradients, "min")
    )


def test_every_contrast_of_molma_changes_what_its_entry_is_about():
    about = {
        "M1": {"reference", "loss"},
        "M2": {"apa_lambda"},
        "M3": {"kl_coef"},
        "M4": {"rewards"},
        "M5": {"lr"},
        "M8": {"scale"},
        "M15": {"delta"},
        "M16": {"iterations"},
        "M17": {"align", "objective"},
        "M18": {"align"},
    }
    assert {one.id for one in LOG if one.id[0] == "M" and one.effects} == set(about)
    for one in LOG:
        for contrast in one.effects if one.id in about else ():
            base, other = (
                asdict(resolve(Run(name, profile="molma", overrides=overrides))[0].config)
                for name, overrides in contrast.arms()
            )
            assert any(base[k] != other[k] for k in about[one.id] & set(base)), f"{one.id}: {contrast}"


def test_a_study_whose_runs_are_missing_is_not_measured_and_one_with_a_tuple_is_found():
    assert {e.n for one in LOG for e in effect_of(one, [], "stress")} == {0}
    contrast = next(one for one in LOG if one.id == "A23").effects[0]
    (base, shared), (other, own) = contrast.arms()
    (effect,) = effect_of(
        entry(contrast), [record(base, [0.1, 0.2], **shared), record(other, [0.2, 0.4], **own)], "stress"
    )
    assert own["blocks"] and effect.n == 2


def test_the_analysis_is_declared_as_exploratory():
    assert analysis(LOG).check(registration()).exploratory


# ---- effects


def test_effect_is_the_mean_paired_difference_with_a_t_interval():
    base, other = (
        record("dual_ppo_bandit", [0.1, 0.5, 0.9, 0.3]),
        record("zero_mask_bandit", [1.2, 0.7, 0.2, 0.4], seeds=(2, 1, 0, 7)),
    )
    (effect,) = effect_of(entry(Contrast("dual_ppo_bandit", "zero_mask_bandit")), [other, base], "stress")
    differences = [0.1, 0.2, 0.3]
    low, high = stats.t.interval(0.95, 2, loc=0.2, scale=stats.sem(differences))
    assert effect.n == 3 and effect.profile == "quick"
    assert effect.average_reward.mean == pytest.approx(0.2) and effect.average_reward.half == pytest.approx(
        (high - low) / 2
    )
    assert effect.harm.mean == pytest.approx(0.02) and effect.harm.half == pytest.approx((high - low) / 20)


def test_one_seed_has_no_interval_and_a_missing_number_is_left_out():
    (effect,) = effect_of(
        entry(Contrast("dual_ppo", "dual_ppo_exact")),
        [record("dual_ppo", [0.1, None, 0.3]), record("dual_ppo_exact", [0.2, 0.5])],
        "stress",
    )
    assert effect.n == 1 and effect.average_reward.mean == pytest.approx(0.1) and math.isnan(effect.average_reward.half)


@pytest.mark.parametrize(
    "other",
    [
        [],
        [record("dual_ppo_exact", [0.2], setting="clean")],
        [record("dual_ppo_exact", [0.2], profile="paper")],
        [record("dual_ppo_exact", [0.2], data="e")],
        [record("dual_ppo_exact", [0.2], seeds=(5,))],
        [record("dual_ppo_exact", [0.2], gamma=0.5)],
        [record("dual_ppo_exact", [0.2]) | {"profile": "mine"}],
    ],
)
def test_runs_that_are_missing_or_not_comparable_are_not_measured(other):
    one = entry(Contrast("dual_ppo", "dual_ppo_exact"))
    records = [record("dual_ppo", [0.1]), *other]
    assert effect_of(one, records, "stress")[0].n == 0
    assert (
        log_table([one], records).iloc[0, -1] == f"dual_ppo_exact − dual_ppo: {NOT_MEASURED}"
        and effect_table([one], records).empty
    )


def test_overrides_and_studies_pick_the_run_that_was_made_with_them():
    plain, changed = record("dual_ppo", [0.1, 0.2]), record("dual_ppo", [0.4, 0.5], lam=0.0)
    (effect,) = effect_of(entry(Contrast("dual_ppo", "dual_ppo", {"lam": 0.0})), [plain, changed], "stress")
    assert effect.average_reward.mean == pytest.approx(0.3)
    contrast = Contrast("hypergradient", "minmax", study="weights")
    (base, shared), (other, own) = contrast.arms()
    assert {k for k in own if own[k] != shared.get(k)} == {"rule"}
    (effect,) = effect_of(
        entry(contrast), [plain, record(base, [0.1, 0.2], **shared), record(other, [0.2, 0.4], **own)], "stress"
    )
    assert effect.n == 2 and effect.average_reward.mean == pytest.approx(0.15)


def test_the_pair_with_most_seeds_counts():
    records = [
        record(name, values * n, profile=profile)
        for profile, n in (("quick", 2), ("paper", 4))
        for name, values in (("dual_ppo", [0.1]), ("dual_ppo_exact", [0.2 if n == 2 else 0.4]))
    ]
    (effect,) = effect_of(entry(Contrast("dual_ppo", "dual_ppo_exact")), records, "stress")
    assert effect.n == 4 and effect.profile == "paper" and effect.average_reward.mean == pytest.approx(0.3)


def test_a_record_older_than_a_field_still_counts_but_not_for_an_override_of_it():
    old = record("dual_ppo", [0.1])
    del old["config"]["method"]["lam"]
    assert (
        effect_of(entry(Contrast("dual_ppo", "dual_ppo_exact")), [old, record("dual_ppo_exact", [0.3])], "stress")[0].n
        == 1
    )
    assert (
        effect_of(
            entry(Contrast("dual_ppo_exact", "dual_ppo", {"lam": 0.0})),
            [old, record("dual_ppo_exact", [0.3])],
            "stress",
        )[0].n
        == 0
    )


def test_padding_left_out_changes_nothing_in_the_published_runs():
    records = records_at(ROOT / "outputs" / "published", "quick")
    a33 = next(one for one in LOG if one.id == "A33")
    ragged = next(e for e in effect_of(a33, records, "stress") if e.contrast.other == "wo_padding_ragged")
    if not ragged.n:
        pytest.skip("not published")
    assert abs(ragged.average_reward.mean) < 2e-3


# ---- the table


def test_the_table_has_one_row_each_and_needs_no_runs():
    table = log_table()
    assert len(table) == 72 and list(table.columns[:2]) == ["id", "ambiguity"]
    for one, told in zip(LOG, table.iloc[:, -1]):
        assert told == ("; ".join(f"{contrast}: {NOT_MEASURED}" for contrast in one.effects) or NOTHING)
    text = log_markdown(table)
    assert len(re.findall(r"^\| \*\*[AM]\d+\*\*", text, re.M)) == 72 and text.count("### ") == len(
        {one.topic for one in LOG}
    )
    assert all(row.replace("\\|", "").count("|") == 5 for row in text.splitlines() if row.startswith("|"))


def test_the_table_escapes_what_is_in_the_log():
    one = Ambiguity(
        "A1",
        "a | b",
        "*x*",
        "<script>alert(1)</script> a | b",
        "[x](http://evil.example) $x$",
        "`w`\n# w",
        "papers/33_claims",
        (),
    )
    text = log_markdown(log_table([one]))
    assert "<script" not in text and "](http" not in text and "\n#" not in text.split("###", 1)[1] and "$" not in text
    assert "[papers/33&#95;claims](../papers/33_claims.ipynb)" in text


def test_effects_are_told_with_sign_interval_and_n():
    one = entry(Contrast("dual_ppo", "dual_ppo_exact"), Contrast("dual_ppo", "dual_ppo_bandit"))
    text = log_table([one], [record("dual_ppo", [0.5, 0.5]), record("dual_ppo_exact", [0.4, 0.4])]).iloc[0, -1]
    assert text == (
        "dual_ppo_exact − dual_ppo: reward -0.100 ± 0.000, harm -1.0 ± 0.0 points (n = 2); "
        "dual_ppo_bandit − dual_ppo: not measured"
    )


# ---- bad files

ONE = "[[ambiguity]]\n" + "".join(f'{name} = "A1"\n' for name in TEXTS).replace(
    'notebook = "A1"', 'notebook = "papers/33_claims"'
)


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("id = ", "broken TOML"),
        ("", "no entry"),
        ("ambiguity = 3", "no entry"),
        ("ambiguity = [3]", "entry 1: is 3"),
        (ONE + ONE, "A1 stands there twice"),
        (ONE.replace('why = "A1"', ""), "'why' needs a text"),
        (ONE.replace('why = "A1"', "why = 3"), "'why' needs a text"),
        (ONE.replace('why = "A1"', 'why = " "'), "'why' needs a text"),
        (ONE.replace('id = "A1"', 'id = "14"'), "'id' cannot be '14'"),
        (ONE.replace('id = "A1"', 'id = "B1"'), "like A14 or M3"),
        (ONE.replace("papers/33_claims", "../secret"), "'notebook'"),
        (ONE + 'colour = "red"', "unknown field 'colour'"),
        (ONE + "effects = 3", "list of tables"),
        (ONE + "effects = [3]", "names two arms"),
        (ONE + 'effects = [{ base = "dual_ppo" }]', "names two arms"),
        (ONE + 'effects = [{ base = "dual_ppo", other = "dual_ppo", overrides = 3 }]', "names two arms"),
        (ONE + 'effects = [{ base = "dual_ppo", other = "dual_pppo" }]', "did you mean dual_ppo"),
        (
            ONE + 'effects = [{ base = "dual_ppo", other = "dual_ppo", overrides = { gama = 1.0 } }]',
            "did you mean gamma",
        ),
        (ONE + 'effects = [{ base = "dual_ppo", other = "dual_ppo", overrides = { gamma = "x" } }]', "cannot be 'x'"),
        (ONE + 'effects = [{ study = "weigths", base = "a", other = "b" }]', "did you mean weights"),
        (ONE + 'effects = [{ study = "weights", base = "a", other = "b" }]', "no variant 'a'"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, needle):
    path = tmp_path / "log.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(needle)) as error:
        load_ambiguities(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(DataError):
        load_ambiguities(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        load_ambiguities(tmp_path / "bytes.toml")
