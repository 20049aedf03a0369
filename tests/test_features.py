"""The features file: round trips, refusals, and a slice rebuilt from the texts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import encode, exchanges, write_toy

from dualppo.core.errors import DataError
from dualppo.bench.features import (
    GIVEN,
    KINDS,
    SCHEMA,
    WIZARD,
    card_path,
    embedded_path,
    load_features,
    quantise,
    verify,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.safetensors")


def test_what_was_embedded_is_read_back(toy):
    features = load_features(toy)
    rows = exchanges()
    assert (features.query - encode([e.query for e in rows])).abs().max() < 0.01
    assert torch.equal(features.owner[features.bank(0)], torch.arange(len(rows)))


def test_int8_keeps_the_cosine():
    x = torch.nn.functional.normalize(torch.randn(500, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    q, scale = quantise(x)
    back = torch.nn.functional.normalize(q.float() * scale.float()[:, None], dim=1)
    assert (1 - (x * back).sum(1)).max() < 2e-4


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda t, m: t.pop("turn"), "'turn' is missing"),
        (
            lambda t, m: t.update({"query.scale": t["query.scale"].index_fill(0, torch.tensor([7]), float("nan"))}),
            "'query.scale', row 7",
        ),
        (lambda t, m: t.update({"kind": t["kind"][:-1]}), "has shape"),
        (lambda t, m: t.update({"p_harm.tcc": t["p_harm.tcc"] + 1}), "probability in [0, 1]"),
        (
            lambda t, m: t.update({"owner": t["owner"].index_fill(0, torch.tensor([0]), 10**6)}),
            "'owner' must name an exchange",
        ),
        (lambda t, m: m.update({"schema": "dualppo-features/0"}), "this version reads"),
        (lambda t, m: m.pop("card"), "the card is missing"),
    ],
)
def test_a_broken_file_is_refused_with_one_sentence(toy, tmp_path, break_it, words):
    tensors, meta = load_file(toy), {"schema": SCHEMA, "card": '{"encoder": {"name": "toy", "sha256": "0"}}'}
    break_it(tensors, meta)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "x.safetensors", metadata=meta)
    with pytest.raises(DataError) as error:
        load_features(tmp_path / "x.safetensors")
    assert words in str(error.value) and "x.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_another_encoder_is_refused(toy):
    with pytest.raises(DataError, match="another encoder"):
        load_features(toy, encoder_sha256="1" * 64)


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"{}", (2**62).to_bytes(8, "little") + b"{}"])
def test_what_is_no_features_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="not a readable file of tensors"):
        verify(tmp_path / "x.safetensors")


def test_the_shipped_file_is_small_complete_and_without_text():
    features = load_features()
    assert embedded_path().stat().st_size <= 20_000_000
    assert (
        len(features) == 7305
        and set(features.p_harm) == {"tox_block", "tcc", "head"}
        and set(KINDS) == {KINDS[k] for k in features.kind.unique()}
    )
    assert json.loads(card_path(embedded_path()).read_text()) == features.card
    assert sum(r["exchanges"] for r in features.card["removed"]) == 499


@pytest.mark.slow
def test_a_slice_rebuilt_from_the_texts_is_the_shipped_one(shared_data, tmp_path):
    from dualppo.bench.build import build

    card = build(
        shared_data, tmp_path / "slice.safetensors", limit=24, report=lambda text: None, cache=tmp_path / "cache"
    )
    part, whole = load_features(tmp_path / "slice.safetensors"), load_features()
    assert card["sources"] == whole.card["sources"] and card["removed"] == whole.card["removed"]
    for name in ("query", "knowledge"):
        assert (getattr(part, name)[:24] * getattr(whole, name)[:24]).sum(1).min() > 0.999
    for kind in (0, 5):  # references and refusals; the tail an exchange gets depends on how many there are
        mine, theirs = part.bank(kind), whole.bank(kind)[: len(part.bank(kind))]
        assert (part.pool[mine] * whole.pool[theirs]).sum(1).min() > 0.999
        for harm in whole.p_harm:
            assert (part.p_harm[harm][mine] - whole.p_harm[harm][theirs]).abs().max() < 0.01
    assert torch.equal(part.turn, whole.turn[:24])


def test_a_card_claims_only_sources_that_are_in_the_data():
    from dualppo.bench.build import CREDITS, credit

    shipped = load_features().card["sources"]
    every = credit(shipped)
    assert all(CREDITS[name][0] in every["attribution"] for name in ("wow", "diasafety", "jigsaw", "bad"))
    assert GIVEN not in every["attribution"] and every["licence"] == "CC-BY-4.0"
    mine = credit({"mine.json": "0" * 64})
    assert not any(words in mine["attribution"] for words, _ in CREDITS.values()) and WIZARD not in mine["attribution"]
    assert f"mine.json, {GIVEN}: no licence stated" in mine["attribution"] and mine["licence"] == "not stated"
    told = credit({"mine.json": "0" * 64}, "our help desk", "CC0-1.0")
    assert f"mine.json, {GIVEN}: our help desk, CC0-1.0" in told["attribution"] and told["licence"] == "CC0-1.0"
    renamed = credit({"dialogues.json": shipped["wow/test.json"]})  # the file decides, not its name
    assert WIZARD in renamed["attribution"] and WIZARD not in credit({"wow/test.json": "0" * 64})["attribution"]
    both = credit({"mine.json": "0" * 64, "diasafety/train.json": shipped["diasafety/train.json"]})
    assert (
        CREDITS["diasafety"][0] in both["attribution"]
        and GIVEN in both["attribution"]
        and WIZARD not in both["attribution"]
    )
    talk = credit({"chitchat_dataset": "1" * 64})
    assert CREDITS["chitchat_dataset"][0] in talk["attribution"] and GIVEN not in talk["attribution"]
    many = credit({f"{i}.json": str(i) * 64 for i in range(200)})
    assert "and 195 more" in many["attribution"] and len(many["attribution"]) < 300


def test_one_file_is_a_source_by_its_name(tmp_path):
    from dualppo.bench.build import sources_of

    path = tmp_path / "mine.json"
    path.write_text("[]")
    assert list(sources_of(path, path)) == ["mine.json"] == list(sources_of(tmp_path, tmp_path))
    (tmp_path / "jigsaw").mkdir()
    (tmp_path / "jigsaw" / "a.csv").write_text("text,toxic\n")
    assert list(sources_of(tmp_path, path)) == ["mine.json", "jigsaw/a.csv"] and list(sources_of(path, path)) == [
        "mine.json"
    ]


def test_a_card_of_a_build_names_the_file_and_what_its_user_says(tmp_path, monkeypatch):
    """`data build` of one file of one's own, without the encoder and the classifiers, which are tested elsewhere."""
    from toys import encode, rude

    from dualppo.bench import build

    class Encoder:
        identity = {"name": "toy", "sha256": "0"}

    monkeypatch.setattr(build, "text_encoder", lambda name, precision: Encoder())
    monkeypatch.setattr(build, "embed_cached", lambda encoder, texts, *args, **more: encode(texts))
    for name in ("ToxBlock", "ToxicCommentClassifier"):
        monkeypatch.setattr(build, name, lambda: rude)
    rows = [
        {"dialogue": [[f"what about thing{i}", f"thing{i} is blue"]], "meta": [[f"fact{i} of thing{i}"]]}
        for i in range(12)
    ]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    (tmp_path / "jigsaw").mkdir()  # read, but of no use without safe tails: then nothing of it is in the data
    (tmp_path / "jigsaw" / "a.csv").write_text("text,toxic\nyou fool,1\n")
    for source, names in ((tmp_path / "mine.json", ["mine.json"]), (tmp_path, ["mine.json"])):
        out = tmp_path / "out" / f"{source.name}.safetensors"
        card = build.build(source, out, report=lambda text: None, attribution="our help desk", licence="CC0-1.0")
        assert list(card["sources"]) == names and card["licence"] == "CC0-1.0"
        assert (
            f"mine.json, {GIVEN}: our help desk, CC0-1.0" in card["attribution"] and "Jigsaw" not in card["attribution"]
        )
        assert json.loads(card_path(out).read_text())["attribution"] == card["attribution"]
