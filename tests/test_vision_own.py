"""Pictures of one's own on the bench: built, trained, shown by the command line, and refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualppo.bench.env import EnvConfig, Graded
from dualppo.bench.features import BENIGN, REFUSAL, UNSAFE, load_features, verify
from dualppo.bench.readable import own_texts
from dualppo.cli import main
from dualppo.core.errors import DataError
from dualppo.runs.key import reached_by
from dualppo.methods.rows import method
from dualppo.vision.own_pictures import (
    build_pictures,
    human_reply,
    listed_pictures,
    load_pictured,
    make_pictured,
    pictured_candidates,
    pictures_path,
    thumbnail,
)
from dualppo.vision.picture_data import PICTURES, PictureReply, PictureSpec

SHARE = st.one_of(st.none(), st.floats(0, 1))


class Colour:
    """An encoder of three numbers, the colour of the first pixel."""

    dim, identity = 3, {"name": "colour", "sha256": "c" * 64}

    def encode(self, items):
        return torch.tensor([Image.open(path).convert("RGB").getpixel((0, 0)) for path in items]).float()


def rows(n: int = 24) -> list[dict]:
    """Questions about red and green squares, some with a third reply nobody judged; two without a picture."""
    out = []
    for i in range(n):
        for colour in ("red", "green"):
            replies = [
                {"text": f"Push {i} <b>hard</b>.", "help": 1, "harm": colour == "red"},
                {"text": f"Ask <b>about</b> {i}.", "help": 0.5, "harm": 0},
            ]
            replies += [{"text": f"Look at {i}, you idiot."}] if i % 3 == 0 else []
            out.append({"image": f"{colour}{i}.png", "question": f"How do I use {i}?", "replies": replies})
    return [*out, *({"image": None, "question": f"And {i}?", "replies": [{"text": f"Well, {i}."}]} for i in range(2))]


def draw(folder: Path, lines: list[dict]) -> Path:
    """The file of these rows, and their pictures."""
    for line in lines:
        if line["image"]:
            number = int("".join(filter(str.isdigit, line["image"])))
            shade = (200, 20) if line["image"][0] == "r" else (20, 200)
            Image.new("RGB", (30, 20), (*shade, number)).save(folder / line["image"])
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder / "mine.jsonl"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A features file with pictures."""
    folder = tmp_path_factory.mktemp("own")
    out = folder / "mine.safetensors"
    build_pictures(draw(folder, rows()), out, report=str, cache=folder / "cache", eyes=Colour(), progress=False)
    return out


def graded(splits) -> list[Graded]:
    return [splits.train, splits.dev_weights, splits.dev_stop, splits.test]


def test_what_people_said_is_what_the_environment_says(built):
    features = load_pictured(built)
    said = [{r["text"]: r for r in line["replies"]} for line in rows()]
    texts, seen = own_texts(built, features), listed_pictures(built, features)
    checked = 0
    for env in graded(make_pictured(features, PICTURES, 0)):
        for s in range(len(env)):
            row = int(env.row[s])
            known = said[row]
            assert row not in seen or seen[row][0].name == rows()[row]["image"]
            for j, reply in enumerate(env.cand[s].tolist()):
                told = known.get(texts.replies[reply], {}) if env.kind[s, j] != REFUSAL else {}
                if "harm" in told:
                    harm = float(told["harm"])
                    assert env.p_harm[s, j] == env.p_grade[s, j] == harm and env.column("help")[s, j] == told["help"]
                    assert bool(env.allowed[s, j]) is (harm < 0.5) and bool(env.unsafe[s, j]) is (harm >= 0.5)
                    checked += 1
                assert env.kind[s, j] == REFUSAL or texts.replies[reply] in known  # no row is answered by another's
    assert checked == 4 * 24


def test_estimators_stand_where_nobody_said_anything(built):
    features, base = load_pictured(built), load_features(built)
    assert torch.equal(features.query, base.query) and verify(built)["replies_of_rows"] == 2 * 2 * 24 + 2 * 8 + 2
    rude = [i for i, text in enumerate(own_texts(built, features).replies) if "idiot" in text]
    assert features.spoken[rude].isnan().all() and (features.p_harm["tox_block"][rude] > 0.5).all()
    assert set(features.kind[len(base.pool) :].tolist()) == {BENIGN, UNSAFE}


def test_a_picture_stays_on_one_side_and_the_humans_place_is_drawn(built):
    features = load_pictured(built)
    for seed in range(3):
        parts = [set(env.dialogue.tolist()) for env in graded(make_pictured(features, PICTURES, seed))]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(features.dialogue.unique())
    cand, gold = pictured_candidates(features, torch.arange(len(features)), PictureSpec(refusals=2), 0)
    assert cand.shape[1] == 5 and (cand.gather(1, gold[:, None]).squeeze(1) == torch.arange(len(features))).all()
    assert gold.bincount(minlength=5).min() > 0
    assert ((features.kind[cand] == REFUSAL).sum(1) == 5 - (features.own >= 0).sum(1)).all()


def test_inputs_are_what_they_are_called(built):
    features = load_pictured(built)
    names = ("text", "picture", "both", "shuffled")
    made = {name: make_pictured(features, PictureSpec(inputs=name), 0).test for name in names}
    width = made["both"].x.shape[1] - made["text"].x.shape[1]
    assert width == made["picture"].x.shape[1] == 3 + 1  # three components and, since two rows lack one, its presence
    words, seen = made["both"].x[:, :-width], made["both"].x[:, -width:]
    assert torch.equal(words, made["text"].x) and torch.equal(seen, made["picture"].x)
    assert not torch.equal(made["shuffled"].x, made["both"].x) and len(made["picture"].anchor.unique(dim=0)) == 1
    assert all(torch.equal(env.reward, made["text"].reward) for env in made.values())


def test_the_mask_by_an_estimator_is_blind(built):
    features = load_pictured(built)
    for env in graded(make_pictured(features, PICTURES, 0, EnvConfig(mask_harm="head"))):
        red = env.p_harm.amax(1) == 1
        assert (env.allowed & (env.p_harm == 1))[red].any() and env.p_harm.max() == 1


def test_code_of_pictures_is_in_the_key_of_runs_with_pictures_only():
    row, name = method("dual_ppo_bandit"), "dualppo.vision.own_pictures.heard"
    assert name in reached_by(row, spec=PICTURES) and name not in reached_by(row)


@given(st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=6))
def test_the_humans_reply_is_harmless_where_one_is_and_then_the_most_helpful(said):
    replies = [PictureReply(str(i), help_, harm) for i, (help_, harm) in enumerate(said)]
    chosen = replies[human_reply(replies)]
    fair = [r for r in replies if (r.harm or 0) < 0.5]
    assert chosen in (fair or replies[:1])
    assert all((chosen.help or 0) >= (r.help or 0) for r in fair)


def test_a_thumbnail_is_of_the_picture_that_was_encoded(built, tmp_path):
    features = load_pictured(built)
    where, digest = listed_pictures(built, features)[0]
    assert thumbnail(where, digest) and thumbnail(where, "0" * 64) == "" == thumbnail(tmp_path / "gone.png", digest)
    listed = pictures_path(built).read_text()
    try:
        pictures_path(built).write_text(listed.replace("\n0,", "\n9999,", 1))
        with pytest.raises(DataError, match="row 0, field 'row'"):
            listed_pictures(built, features)
    finally:
        pictures_path(built).write_text(listed)


def test_a_name_that_a_spreadsheet_would_run_is_inert_and_comes_back(tmp_path):
    lines = rows(8)
    lines[0]["image"] = "=cmd0.png"
    out = tmp_path / "mine.safetensors"
    build_pictures(draw(tmp_path, lines), out, report=str, cache=tmp_path / "cache", eyes=Colour(), progress=False)
    assert "0,'=cmd0.png," in pictures_path(out).read_text()
    assert thumbnail(*listed_pictures(out, load_pictured(out))[0])


def test_what_cannot_be_used_gets_a_sentence(built, toy, tmp_path, capsys):
    def refused(*argv: str) -> str:
        assert main([str(a) for a in argv]) == 2
        return " ".join(capsys.readouterr().err.split())

    blind = tmp_path / "blind.jsonl"
    blind.write_text(json.dumps(rows()[-1]))
    assert "no row has a picture" in refused("data", "build", blind, "--out", tmp_path / "a.safetensors")
    assert "holds no pictures" in refused("train", "dpo", "--data", toy, "--setting", "pictures", "--outputs", tmp_path)
    assert "no pictures to be seen" in refused("data", "build", toy, "--out", tmp_path / "a.safetensors", "--eyes", "x")
    mine = draw(tmp_path, rows())
    assert "--limit" in refused("data", "build", mine, "--out", tmp_path / "a.safetensors", "--limit", "3")
    (tmp_path / "red0.png").write_bytes(b"no picture")
    assert "red0.png" in refused("data", "build", mine, "--out", tmp_path / "a.safetensors")
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.stem == "a") == []  # nothing half-written
    assert load_pictured(built).vision.shape == (50, 3)


@pytest.mark.slow
def test_from_lines_to_a_page_by_the_command(tmp_path, capsys):
    mine, out = draw(tmp_path, rows()), tmp_path / "out"
    assert main(["data", "build", str(mine), "--out", str(tmp_path / "mine.safetensors"), "--attribution", "Ours"]) == 0
    data = ["--data", str(tmp_path / "mine.safetensors")]
    quick = ["--setting", "pictures", "--outputs", str(out), "--set", "epochs=1", "inner_epochs=1"]
    assert main(["train", "dual_ppo_bandit", *data, *quick]) == 0
    assert main(["train", "similarity", *data, *quick[:4]]) == 0
    capsys.readouterr()
    assert main(["tables", "--profile", "custom", "--outputs", str(out)]) == 0
    assert "people's words" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "--profile", "custom", "--outputs", str(out), *data]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('class="chosen"') == 4 and 'alt="The picture of this question"' in page
    assert "&lt;b&gt;" in page and "<b>hard" not in page and "<b>about" not in page and "Ours" in page
    capsys.readouterr()
    assert main(["show", "similarity", *data, "--setting", "pictures", "--states", "2"]) == 0
    assert ".png]" in capsys.readouterr().out
    gone = ["--data", str(tmp_path / "gone.safetensors")]
    assert main(["report", "--profile", "custom", "--outputs", str(out), *gone]) == 2
