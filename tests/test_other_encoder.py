"""Features of somebody's own encoder: what our models cannot read is left out or refused, never made up (L8)."""

import json

import pytest
import torch
import toys
from test_cli import refused
from torch.nn.functional import normalize

from dualppo.bench.candidates import CLEAN
from dualppo.bench.env import EnvConfig, make_envs
from dualppo.bench.features import build_features, load_features, write_features
from dualppo.bench.reward_models import reward_models
from dualppo.cli import main
from dualppo.core.errors import DataError
from dualppo.text.encoders import hashed_tokens

FEW = ["--epochs", "1", "--inner-epochs", "1", "--dialogues-per-epoch", "20"]


@pytest.fixture(scope="module", params=[64, 384])
def own(request, tmp_path_factory):
    """A features file whose vectors have 64 dimensions, and one that has MiniLM's 384 but is not MiniLM's."""
    rows, path = toys.exchanges(200, 2), tmp_path_factory.mktemp("own") / "own.safetensors"
    harm = {"tox_block": toys.rude, "tcc": toys.rude}

    def encode(texts):
        return normalize(toys.encode(texts)[:, : request.param], dim=1)

    unsafe = [f"go away you thing{i}" for i in range(40)]
    tensors = build_features(rows, [0] * len(rows), unsafe, toys.TAILS, encode, harm, hashed_tokens)
    write_features(path, tensors, {"encoder": {"name": "mine", "sha256": "1"}, "attribution": "made in a test"})
    return path


def test_what_cannot_be_judged_is_not_judged(own, tmp_path, capsys):
    """Through the command line: a run, a table and a page, with a dash where the judge's column would be."""
    more = ["--set", "near=7", "--data", str(own), "--seeds", "2", "--outputs", str(tmp_path)]
    assert main(["train", "dual_ppo_bandit", *FEW, "--setting", "clean", *more]) == 0
    (path,) = tmp_path.rglob("dual_ppo_bandit-*.json")
    for result in json.loads(path.read_text())["results"]:
        assert result["test"]["good"] is None and 0 <= result["test"]["help"] <= 1
        assert result["test"]["average_reward"] > 0 and result["curves"][0]["dev_good"] is None
    capsys.readouterr()
    assert main(["tables", "--profile", "custom", "--outputs", str(tmp_path), "--wide"]) == 0
    shown = capsys.readouterr().out
    assert "not judged here, since it was fitted on another encoder's embeddings" in " ".join(shown.split())
    row = next(line for line in shown.splitlines() if "Dual-objective PPO" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][3] == "–" and row.rstrip("│ ").endswith("2"), row
    assert main(["report", "--profile", "custom", "--outputs", str(tmp_path)]) == 0


def test_reward_models_of_another_encoder_are_refused(own, tmp_path, capsys):
    said = refused(
        capsys, "train", "molma", "--setting", "clean", "--set", "near=7", "--data", own, "--outputs", tmp_path
    )
    assert "all-MiniLM-L6-v2" in said and "rewards=given" in said
    given = ["--rewards", "given", "--iterations", "3", "--set", "near=7", "--data", str(own), "--seeds", "1"]
    assert main(["train", "molma", "--setting", "clean", *given, "--outputs", str(tmp_path)]) == 0


@pytest.mark.parametrize("representation", ["bag_of_words", "one_hot"])
def test_nor_do_they_read_what_is_no_embedding(representation, toy):
    env = make_envs(load_features(toy), CLEAN, 0, EnvConfig(representation=representation)).train
    assert env.good.isfinite().all(), "the judge reads the sentence encoder's vectors whatever the policy sees"
    with pytest.raises(DataError, match=f"embedded otherwise \\({representation}"):
        reward_models(env, 0)


def test_ours_are_judged(toy):
    assert torch.isfinite(make_envs(load_features(toy), CLEAN, 0).test.good).all()
