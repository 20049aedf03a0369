"""The features file: round trips, refusals, and a slice rebuilt from the texts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import encode, exchanges, write_toy

from dualppo.core.errors import DataError
from dualppo.bench.features import KINDS, SCHEMA, embedded_path, load_features, quantise, verify


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
    tensors, meta = load_file(toy), {"schema": SCHEMA, "card": "{}"}
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
    with pytest.raises(DataError, match="not a readable features file"):
        verify(tmp_path / "x.safetensors")


def test_the_shipped_file_is_small_complete_and_without_text():
    features = load_features()
    assert embedded_path().stat().st_size <= 20_000_000
    assert (
        len(features) == 7305
        and set(features.p_harm) == {"tox_block", "tcc", "head"}
        and set(KINDS) == {KINDS[k] for k in features.kind.unique()}
    )
    assert json.loads(embedded_path().with_suffix(".json").read_text()) == features.card
    assert sum(r["exchanges"] for r in features.card["removed"]) == 499


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
