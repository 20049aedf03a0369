"""The pictograms: files are those of the card, folds hold out whole, words give nothing away, masks and arms hold."""

import hashlib
import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
from sklearn.metrics import roc_auc_score
from test_tables import record, store

from dualppo.core.errors import DataError
from dualppo.papers.picture_study import (
    PICTURE_ROWS,
    SHOWN_CELLS,
    picture_plan,
    picture_records,
    picture_rows,
    read_picture_plan,
)
from dualppo.show import report
from dualppo.vision.pictograms import CELLS, STEMS, fold, load_pictograms, nearest_by_family, standardised_pictures
from dualppo.vision.picture_bench import OFFERED, THREATS, PictureConfig, asked, offers, picture_envs, picture_scene

ASSETS = Path(str(resources.files("dualppo") / "assets"))
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def p():
    return load_pictograms()


@pytest.fixture(scope="module")
def scene(p):
    return picture_scene(p, 3, PictureConfig(components=8, states=64, dev_states=32, test_states=64))


@pytest.mark.parametrize("stem", STEMS)
def test_files_are_those_of_the_card(stem):
    card = json.loads((ASSETS / "pictograms.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((ASSETS / f"{stem}.safetensors").read_bytes()).hexdigest() == card["sha256"][stem]


def test_another_file_is_refused_in_a_sentence(tmp_path):
    for name in ("pictograms.json", "pictograms-sharealike.safetensors"):
        (tmp_path / name).write_bytes((ASSETS / name).read_bytes())
    content = (ASSETS / "pictograms-sharealike.safetensors").read_bytes()
    (tmp_path / "pictograms.safetensors").write_bytes(content)  # sound, but of another name
    with pytest.raises(DataError, match=r"pictograms\.safetensors.*not the file that its card names"):
        load_pictograms(folder=tmp_path)


def test_share_alike_designs_can_be_left_out(p):
    alike = {one["name"] for one in p.card["designs"] if "SA" in one["licence"]}
    open_ = load_pictograms(share_alike=False)
    assert {open_.designs[i] for i in open_.design.unique()} == set(p.designs) - alike
    assert torch.equal(open_.x, p.x[: len(open_)])


def test_every_design_is_attributed(p):
    said = (Path(__file__).parents[1] / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for one in p.card["designs"]:
        row = next(line for line in said.splitlines() if line.startswith(f"| {one['name']} |"))
        assert f"`{one['package']}` {one['version']}" in row and one["attribution"] in row and one["licence"] in row


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_folds_hold_out_whole_families_and_objects(p, seed):
    f = fold(p, seed)
    families = {
        name: {p.family_names[i] for i in p.family[f.rows(name)].unique().tolist()}
        for name in CELLS
        if len(f.rows(name))
    }
    objects = {name: set(p.object[f.rows(name)].tolist()) for name in CELLS}
    held = set(f.held.nonzero().squeeze(1).tolist())
    assert f.test_family != f.dev_family
    for name in ("train", "dev", "new_picture", "unseen_object"):
        assert not families[name] & {f.test_family, f.dev_family}
    assert families["unseen_family"] == families["unseen_both"] == {f.test_family}
    assert families["dev_family"] == {f.dev_family}
    for name in CELLS:
        assert objects[name] <= held if name in ("unseen_object", "unseen_both") else not objects[name] & held
    for level in p.level.unique():  # the same share of every level
        of_level = p.level == level
        assert int((f.held & of_level).sum()) == round(0.2 * int(of_level.sum()))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_words_give_nothing_away(p, seed):
    "Over the faces of the die any score of a state's words has AUC 1/2, to rounding."
    draw = np.random.default_rng(seed)
    offer = offers(p, torch.arange(len(p.names)), 40, draw)
    danger = p.dangerous[offer]
    assert (danger.sum(1) == THREATS).all()
    score = np.repeat(draw.normal(size=(40, 1)), OFFERED, 1)
    assert abs(roc_auc_score(danger.flatten(), score.flatten()) - 0.5) < 1e-12


def test_the_die_is_fair_and_the_picture_shows_the_thing(p):
    a = asked(p, fold(p, 0).rows("train"), 4000, 1)
    assert torch.equal(p.object[a.picture], a.pictured)
    counts = torch.bincount(a.slot, minlength=OFFERED).double()
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-square of 7 degrees of freedom, p = .001


def test_a_text_only_state_does_not_change_with_the_picture(p, scene):
    text = picture_envs(scene, "text").train
    a = scene.asked["train"]
    other = replace(a, picture=a.picture.flip(0), slot=(a.slot + 1) % OFFERED)
    again = picture_envs(replace(scene, asked={**scene.asked, "train": other}), "text").train
    assert (
        torch.equal(text.x, again.x) and torch.equal(text.anchor, again.anchor) and torch.equal(text.cand, again.cand)
    )


def test_the_true_mask_leaves_no_harm_and_the_guard_ignores_its_own_family(p, scene):
    for env in (picture_envs(scene, "both", "true").cells or {}).values():
        assert (env.p_harm * env.allowed).max() == 0 and env.allowed.any(1).all()
    train = scene.fold.rows("train")
    some = train[0]
    same = p.family[train] == p.family[some]
    near = nearest_by_family(standardised_pictures(p, train), some[None], train, p.family)
    assert (near[0, same] == -1).all() and (near[0, ~same] > -1).all()


def test_a_broken_registration_is_one_sentence():
    text = (ASSETS / "picture_registration.toml").read_text(encoding="utf-8")
    assert len(picture_plan().arms) == 2 * 4 * 6 * 3
    with pytest.raises(DataError, match="is not registered"):
        read_picture_plan(text.replace("similarity/both/so_ppo/true", "similarity/both/nobody/true"))
    with pytest.raises(DataError, match="not a registration"):
        read_picture_plan(text.replace("[scene]", "[scenery]"))


def test_the_readme_says_whether_the_study_has_run():
    says_no = "registered study has not run yet" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert says_no == (not picture_records(ROOT / "outputs" / "published"))


def record_of(seed: int, harm: dict[str, float]) -> dict:
    """A seed whose arms have one value in every cell: harm beside danger, and help one less it."""
    arms = {}
    for arm, h in harm.items():
        cells = {cell: {"harm_danger": h + 0.01 * seed, "help_safe": 1 - h} for cell in SHOWN_CELLS}
        arms[arm] = {"cells": cells, "weights": [0.5, 0.5]}
    return {"key": "k", "seed": seed, "version": 2, "families": {"test": "a", "dev": "b"}, "guard": {}, "arms": arms}


def test_rows_of_the_page_are_means_over_seeds(tmp_path):
    arms = list(PICTURE_ROWS)
    both = {arms[2]: 0.4, arms[1]: 0.2}
    records = [record_of(0, both | {arms[0]: 0.9}), record_of(1, both), record_of(2, both)]
    frame = picture_rows(records)
    assert list(frame.iloc[:, 0]) == [PICTURE_ROWS[arm] for arm in arms[:3]] and list(frame.n) == [1, 3, 3]
    assert list(frame["unseen design"]) == ["90.0", *frame["unseen design"][1:]]
    mean, low, high = map(float, re.findall(r"[\d.]+", frame["unseen design"][2]))
    half = t.ppf(0.975, 2) * 100 * 0.01 / 3**0.5
    assert mean == pytest.approx(41) and low <= 41 - half + 0.05 and high >= 41 + half - 0.05
    assert picture_rows([]).empty


def test_seeds_of_another_registration_are_not_mixed_in(tmp_path):
    (tmp_path / "pictures").mkdir()
    for seed, key in enumerate(("old", "new", "new")):
        one = record_of(seed, dict.fromkeys(PICTURE_ROWS, 0.25)) | {"key": key}
        (tmp_path / "pictures" / f"seed-{seed}.json").write_text(json.dumps(one))
    assert [record["seed"] for record in picture_records(tmp_path)] == [1, 2]
    assert picture_records(tmp_path / "none") == []


def test_the_report_has_the_rows_with_pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    store(tmp_path, [record("similarity", "clean")])
    assert "With pictures" not in report.write_report(tmp_path, folder="quick").read_text(encoding="utf-8")
    one = record_of(0, dict.fromkeys(PICTURE_ROWS, 0.25))
    (tmp_path / "pictures" / "seed-0.json").write_text(json.dumps(one))
    page = report.write_report(tmp_path, folder="quick").read_text(encoding="utf-8")
    section = page.partition('<section id="with-pictures"')[2].partition("</section>")[0]
    assert "With pictures" in section and section.count("25.0") == 5 * 3 and section.count("75.0") == 5 * 2
