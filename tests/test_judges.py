"""The attribution judge: features, fitting, folds without leaks, the shipped weights and their published agreement."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dualppo.core.errors import DataError
from dualppo.bench.judges import (
    BEGIN_FILES,
    AttributionJudge,
    Begin,
    JudgeWeights,
    agreement,
    choose_strength,
    fit_judge,
    held_out,
    judge_features,
    read_begin,
)

PUBLISHED = Path(__file__).parents[1] / "outputs" / "published" / "judge.json"


def unit(n: int, seed: int, d: int = 384) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_features_are_the_five_relations():
    q, k, r = unit(6, 0, 4), unit(6, 1, 4), unit(6, 2, 4)
    x = judge_features(q, k, r)
    assert x.shape == (6, 14)
    torch.testing.assert_close(x[:, :4].sum(1), x[:, 12])
    torch.testing.assert_close(x[:, 8:12].sum(1), x[:, 13])
    torch.testing.assert_close(x[:, 4:8], judge_features(q, r, k)[:, 4:8])
    with pytest.raises(DataError, match="shape"):
        judge_features(q, k, r[:3])


def test_judge_is_a_probability_row_by_row():
    judge, (q, k, r) = AttributionJudge(), (unit(7, s) for s in range(3))
    p = judge(q, k, r)
    assert p.shape == (7,) and 0 < p.min() and p.max() < 1
    torch.testing.assert_close(judge(q[2:3], k[2:3], r[2:3]), p[2:3])
    assert (judge.good(q, k, r) == (p > 0.5)).all()
    assert (judge(q, k, k) > p).all(), "a copy of the knowledge is more attributable than a random reply"
    with pytest.raises(DataError, match="384"):
        judge(q[:, :5], k[:, :5], r[:, :5])


def test_fit_folds_the_scaling_in_and_survives_constant_columns():
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=(500, 3)) * [1, 100, 0.01] + 5, np.ones(500)]
    y = (x[:, 0] > 5).astype(int)
    w = fit_judge(x, y, 0.1)
    assert torch.isfinite(w.weight).all() and w.weight[3] == 0
    assert np.mean(((x @ w.weight.numpy() + w.bias) > 0) == y) > 0.95
    moved = fit_judge(x * 10, y, 0.1)
    torch.testing.assert_close(moved.weight * 10, w.weight, rtol=1e-2, atol=1e-3)


def test_held_out_never_trains_on_the_knowledge_it_grades():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(60), 4)
    x = np.eye(60)[group]  # the features say only which knowledge it is
    y = rng.integers(0, 2, 60)[group]  # and the label is a property of the knowledge
    from sklearn.model_selection import GroupKFold

    p = held_out(x, y, group, list(GroupKFold(5).split(x, y, group)))
    assert agreement(y, p)["accuracy"] < 0.65 and np.isfinite(p).all()
    assert choose_strength(x, y, group) > 0


def test_groups_ignore_case_and_spacing():
    begin = Begin(
        ["q"] * 3,
        ["A  fact.", "a fact. ", "another"],
        ["r"] * 3,
        np.array(["Fully attributable", "Generic", "Not fully attributable"]),
        np.array(["m"] * 3),
    )
    assert begin.group[0] == begin.group[1] != begin.group[2] and begin.good.tolist() == [1, 0, 0]


def test_bad_begin_files_name_file_row_and_field(tmp_path):
    with pytest.raises(DataError, match="begin_dev_wow.tsv"):
        read_begin(tmp_path)
    header = "model_name\tdata_source\tknowledge\tmessage\tresponse\tbegin_label\n"
    for name in BEGIN_FILES:
        (tmp_path / name).write_text(header + "m\twow\tk\tq\tr\tGeneric\n")
    assert len(read_begin(tmp_path).reply) == 2
    (tmp_path / BEGIN_FILES[1]).write_text(header + "m\twow\tk\tq\tr\tGeneric\nm\twow\tk\tq\t\tGeneric\n")
    with pytest.raises(DataError, match=r"first1803\.tsv, row 1, field 'response'"):
        read_begin(tmp_path)


def test_agreement_knows_chance():
    y = np.array([0, 1] * 50)
    assert agreement(y, y * 0.8 + 0.1)["kappa"] == 1 and agreement(y, np.full(100, 0.4))["kappa"] == 0


def test_shipped_judge_matches_its_published_figures():
    card, report = AttributionJudge().card, json.loads(PUBLISHED.read_text("utf8"))
    for field in ("sha256", "encoder", "C", "sources", "attribution", "licence", "labels"):
        assert card[field], field
    assert card["licence"] == "CC-BY-4.0" and card["measured"]["grouped"] == report["grouped"]
    assert report["grouped"]["kappa"] > 0.45 and report["labels"]["Generic"] == 2
    assert sum(b["rows"] for b in report["calibration"]) == report["rows"] == 2233


@pytest.mark.slow
def test_begin_counts_and_refit_on_real_labels(shared_data):
    begin = read_begin(Path(shared_data) / "begin")
    assert len(begin.reply) == 2233 and begin.good.sum() == 902 and begin.group.max() + 1 == 806
    encoders = pytest.importorskip("dualppo.text.encoders")
    try:
        encode = encoders.MiniLM().encode
    except DataError as error:
        pytest.skip(str(error))
    rows = np.arange(0, 2233, 12)

    def pick(texts):
        return encode([texts[i] for i in rows])

    p = AttributionJudge()(pick(begin.query), pick(begin.knowledge), pick(begin.reply)).numpy()
    assert (
        agreement(begin.good[rows], p)["auc"] > 0.85
    )  # rows it was fitted on: only that weights and features belong together


def test_wrong_weights_are_refused():
    with pytest.raises(DataError):
        AttributionJudge(JudgeWeights(torch.zeros(3), 0.0))(unit(1, 0), unit(1, 1), unit(1, 2))
