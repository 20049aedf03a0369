"""What a laboratory does with its own rule, objective, policy and algorithm, through the doors it would take."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from dualppo.bench.candidates import CLEAN
from dualppo.bench.env import EnvConfig, make_envs, objective
from dualppo.bench.features import load_features
from dualppo.core.errors import DataError
from dualppo.losses.weights import balances
from dualppo.methods.ppo import PPOConfig
from dualppo.writing.cached_head import toy_policy
from dualppo.writing.stored import load_speaker, save_writer
from dualppo.policies.stored import StateForm, load_policy, load_ranker, save_policy
from dualppo.text.encoders import encoder_identity
from dualppo.policies.policy import make_policy
from dualppo.runs.execution import run_once
from dualppo.runs.records import job_path, policy_path
from dualppo.runs.spec import run_from
from toys import encode

ROOT = Path(__file__).resolve().parent.parent
MINILM = tuple(encoder_identity().values())
SMALL = {"epochs": 1, "inner_epochs": 1, "dialogues_per_epoch": 20}

PACKAGE = re.search(  # the example of CONTRIBUTING.md
    r"```python\n(import torch\n.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL
)[1]


def installed(folder: Path, share: str) -> dict[str, str]:
    """The environment of a process that finds a stranger's package as pip leaves it."""
    (folder / "mine-1.0.dist-info").mkdir(parents=True, exist_ok=True)
    (folder / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "mine-1.0.dist-info" / "entry_points.txt").write_text("[dualppo.methods]\nmine = mine\n")
    (folder / "mine.py").write_text(PACKAGE.replace("1 / len(weights)", share))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}


def dualppo(arguments: list[str], env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    """The command, as a user's shell would run it."""
    code = "import sys; from dualppo.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=cwd)


@pytest.mark.slow
def test_a_strangers_rule_and_objective_train_by_the_command_line(tmp_path, toy):
    few = [f"{name}={value}" for name, value in SMALL.items()]
    names = 'env.objectives=["help", "safe", "brevity"]'
    command = ["train", "dual_ppo_bandit", "--rule", "equal", "--data", str(toy), "--outputs", str(tmp_path / "o")]
    command += ["--set", *few, names]
    records = []
    for share in ("0.25", "0.5"):
        done = dualppo(command, installed(tmp_path / "site", share), tmp_path)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / "o").rglob("dual_ppo_bandit-*.json")
        records.append(json.loads(path.read_text()))
    first, second = records
    assert first["results"][0]["weights"] == [0.25] * 3 and second["results"][0]["weights"] == [0.5] * 3
    assert first["key"] != second["key"], "the stranger's code is part of the key"
    assert "dev_brevity" in first["results"][0]["curves"][0]


def test_an_unknown_rule_or_objective_is_a_sentence(toy):
    with pytest.raises(ValueError, match="rule cannot be 'minmx'; did you mean minmax"):
        PPOConfig(rule="minmx")
    with pytest.raises(DataError, match="unknown objective 'saef'; did you mean safe"):
        make_envs(load_features(toy), CLEAN, 0, EnvConfig(objectives=("help", "saef")))
    with pytest.raises(ValueError, match="different names"):
        EnvConfig(objectives=("help", "help"))
    with pytest.raises(ValueError, match="already is an objective 'help'"):
        objective("help")
    with pytest.raises(ValueError, match="already is a weight rule 'fixed'"):
        balances("fixed")(lambda: None)


def test_objectives_are_columns_by_name(toy):
    features = load_features(toy)
    both = make_envs(features, CLEAN, 0).train
    env = make_envs(features, CLEAN, 0, EnvConfig(objectives=("tcc", "help"))).train
    assert env.objectives == ("tcc", "help")
    assert torch.equal(env.reward[..., 1], both.reward[..., 0])
    assert torch.equal(env.reward[..., 0], features.p_harm["tcc"][env.cand])


def test_mask_reward_and_grade_may_be_three_estimators(toy):
    features = load_features(toy)
    g = torch.Generator().manual_seed(0)
    features = replace(
        features, p_harm={name: torch.rand(len(features.kind), generator=g) for name in ("mine", "other", "third")}
    )
    config = EnvConfig(mask_harm="mine", reward_harm="other", grade_harm="third", label_floor=0.0)
    env = make_envs(features, CLEAN, 0, config).train
    forbidden = features.p_harm["mine"][env.cand] >= config.tau_mask
    some = (~forbidden).any(1)
    refusal = env.kind == 5
    assert torch.equal(env.allowed[some], (~forbidden | refusal)[some])
    assert torch.equal(env.p_harm, features.p_harm["other"][env.cand])
    assert torch.equal(env.p_grade, features.p_harm["third"][env.cand])
    with pytest.raises(ValueError, match="cannot both mask and grade"):
        EnvConfig(mask_harm="tcc")


def test_a_trained_policy_ranks_texts_as_it_ranks_its_own_states(tmp_path, toy):
    "From a run's file alone: the states of the toy dialogues are encoded anew, their probabilities are the table's."
    values = {"method": "dual_ppo_bandit", "seeds": [0], "setting": "clean", "data": str(toy), "overrides": SMALL}
    run = run_from(values)
    run_once(run, tmp_path)
    features, splits = load_features(toy), make_envs(load_features(toy), CLEAN, 0)
    ranker = load_ranker(policy_path(job_path(tmp_path, run), 0), encode, features.card["encoder"]["sha256"])
    from toys import exchanges

    texts, test = exchanges(dialogues=440, turns=2), splits.test
    own = [i for i in range(test.cand.shape[1]) if test.kind[0, i] == 0]
    replies = [texts[int(features.owner[test.cand[0, i]])].reference for i in own]
    row = texts[int(test.row[0])]
    said = ranker.rank(row.query, row.knowledge, replies).set_index("reply").probability[replies].to_numpy()
    scores = ranker.policy(test, torch.tensor([0]), "off")[0, own].softmax(0).detach().numpy()
    assert abs(said - scores).max() < 0.02, "embeddings are stored in eight bits"


def test_rank_refuses_what_it_cannot_rank(tmp_path):
    policy = make_policy("two_tower", 8, 4, hidden=8, warm_start=False)
    save_policy(policy, bare := tmp_path / "bare.safetensors")
    with pytest.raises(DataError, match="does not say what its states were made of"):
        load_ranker(bare, encode, "0")
    form = StateForm(("query", "knowledge"), "toy", "0", 0.5, "rude")
    save_policy(policy, full := tmp_path / "full.safetensors", form)
    with pytest.raises(DataError, match="not of the encoder given"):
        load_ranker(full, encode, "1")
    with pytest.raises(DataError, match="two replies or more"):
        load_ranker(full, encode, "0").rank("a", "b", ["only one"])


def test_a_stored_policy_is_as_large_as_its_tensors(tmp_path):
    """What a file says of its policy is not believed: no 24 GB for a few bytes, no numbers that are none."""
    for change in ("width", "number"):
        policy = make_policy("two_tower", 8, 4, hidden=3)
        if change == "width":
            policy.made["state_dim"] = 2 * 10**9
        else:
            next(policy.parameters()).data[0] = float("nan")
        save_policy(policy, path := tmp_path / f"{change}.safetensors")
        with pytest.raises(DataError, match="holds no policy .*(size mismatch|not finite)"):
            load_policy(path)


def test_a_flipped_bit_makes_no_other_policy(tmp_path):
    """Of both kinds of stored policies: the numbers lie at the end of the file, the notes at its beginning."""
    chooser, writer = make_policy("two_tower", 8, 4, hidden=3), toy_policy()
    kinds = (
        (lambda path: save_policy(chooser, path), load_policy),
        (lambda path: save_writer(writer, path, "toy", "mine"), load_speaker),
    )
    for save, load in kinds:
        save(path := tmp_path / "x.safetensors")
        whole = path.read_bytes()
        load(path)
        for place in (-1, -2, -7, -100, whole.index(b"seal") + 9):
            changed = bytearray(whole)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DataError, match="not the file that was written"):
                load(path)
        path.unlink()


def test_no_policy_is_written_over_a_strangers_file(tmp_path):
    """Stored policies of both kinds, and through `train`, whose record would lie there, too."""
    chooser, writer = make_policy("two_tower", 8, 4, hidden=3), toy_policy()
    for save in (lambda path: save_policy(chooser, path), lambda path: save_writer(writer, path, "toy")):
        path = tmp_path / "x.safetensors"
        path.write_text("of the user")
        with pytest.raises(DataError, match="was not written by this command"):
            save(path)
        assert path.read_text() == "of the user"
        path.unlink()
        save(path)
        save(path)
        path.unlink()
    run = run_from({"method": "random", "seeds": [0], "overrides": {}})
    record = job_path(tmp_path, run)
    record.parent.mkdir(parents=True)
    record.write_text('["of the user"]')
    run_once(run, tmp_path)
    assert '["of the user"]' in [path.read_text() for path in record.parent.iterdir() if path != record]


@pytest.mark.slow
def test_rank_on_the_command_line(tmp_path):
    run = run_from({"method": "dual_ppo_bandit", "seeds": [0], "overrides": SMALL})
    run_once(run, tmp_path)
    (tmp_path / "replies.txt").write_text("I like dogs, too.\nThe moon is far away.\nYou are an idiot.\n")
    command = ["rank", str(policy_path(job_path(tmp_path, run), 0)), "--query", "Do you like dogs?", "--knowledge"]
    env = dict(os.environ)
    done = dualppo([*command, "Dogs are pets.", "--replies", str(tmp_path / "replies.txt"), "--wide"], env, ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    first, last = rows[0], rows[-1]
    assert "dogs" in first and "idiot" in last and "False" in last and "0.0000" in last
    policy = load_policy(Path(command[1]))
    save_policy(policy, other := tmp_path / "other.safetensors", StateForm(("query",), *MINILM, 0.5, "mine"))
    done = dualppo(["rank", str(other), *command[2:], "", "--replies", str(tmp_path / "replies.txt")], env, ROOT)
    assert done.returncode == 2 and "mask was made by the estimator 'mine'" in done.stderr


def test_gymnasium_and_stable_baselines_accept_the_environment(stress):
    gym = stress.test.to_gym(weights=(0.9, 0.1))
    check_env(gym, skip_render_check=True)
    sb3_check_env(stress.test.to_gym())
    seen, info = gym.reset(seed=3, options={"dialogue": 2})
    state = info["state"]
    slot = int(seen["action_mask"].argmin())
    _, reward, _, _, told = gym.step(slot)
    expected = float(stress.test.reward[state, slot] @ torch.tensor([0.9, 0.1]))
    assert reward == pytest.approx(expected) and set(told["rewards"]) == {"help", "safe"}
    with pytest.raises(DataError, match="one number per objective"):
        stress.test.to_gym(weights=(1, 0, 0))


def test_results_are_a_data_frame_in_ten_lines(tmp_path):
    from dualppo.papers.tables import per_seed

    frame = per_seed([run_once(run_from({"method": "random", "seeds": 2}), tmp_path)])
    assert isinstance(frame, pd.DataFrame) and len(frame) == 2
