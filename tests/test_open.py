"""The open setting: the whole library as candidates must give what an ordinary environment gives, only in windows."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import write_toy

from dualppo.bench import env as env_module
from dualppo.bench import open as library
from dualppo.bench.candidates import CLEAN, SETTINGS
from dualppo.bench.env import EnvConfig, Graded, Splits, make_envs, split_rows
from dualppo.bench.features import REFERENCE, REFUSAL, load_features
from dualppo.bench.folds import NEAR, groups, linked
from dualppo.bench.masking import MINUS_INFINITY
from dualppo.bench.open import OPEN, OpenEnv, OpenSpec, judged_library, library_of, make_open
from dualppo.bench.judges import AttributionJudge
from dualppo.cli import main
from dualppo.core.errors import DataError
from dualppo.exact.metrics import evaluate
from dualppo.methods.base import train
from dualppo.methods.baselines import Control, DPOConfig, ExactConfig, SFTConfig
from dualppo.methods.open import OPENS, open_learner, train_open
from dualppo.methods.ppo import PPOConfig
from dualppo.methods.rows import all_methods, method
from dualppo.papers.open_room import learning_curves, rows_of_records
from dualppo.papers.studies import OPEN_ARMS, OPEN_SHARES, ROOM, TOPICS
from dualppo.policies import policy as policy_module
from dualppo.policies.policy import all_log_probs, make_policy
from dualppo.runs import key
from dualppo.runs.open_bench import graded_open, means, values_of
from dualppo.runs.spec import Run, grid, resolve

FOLDS = ("train", "dev_weights", "dev_stop", "test")
TABLES = ("cand", "reward", "p_harm", "allowed", "kind", "p_grade", "unsafe", "good", "similarity")
SHORT = {"epochs": 2, "inner_epochs": 1, "hidden": 16}
CONFIGS = {
    "sft": SFTConfig(**SHORT, lr=1e-3),
    "sft_masked": SFTConfig(**SHORT, lr=1e-3, mask="on"),
    "exact": ExactConfig(**SHORT, lr=1e-3),
    "towers": ExactConfig(**SHORT, lr=1e-3, policy="towers"),
    "cold": ExactConfig(**SHORT, lr=1e-3, warm_start=False, weights=(0.8, 0.2)),
    "bandit": PPOConfig(**SHORT, advantage="bandit", policy_lr=1e-3, gradient="autograd"),
    "ppo_exact": PPOConfig(**SHORT, advantage="exact", policy_lr=1e-3, gradient="autograd", mask="off"),
    "literal": PPOConfig(**SHORT, policy_lr=1e-3, gradient="autograd", rule="fixed", critic="vector"),
}
OTHERS = {
    "dpo": DPOConfig(**SHORT, lr=1e-3),
    "control": Control("similarity_mask"),
    "reranker": ExactConfig(**SHORT, lr=1e-3, policy="cross"),
}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """80 exchanges, 368 replies."""
    return load_features(write_toy(tmp_path_factory.mktemp("open") / "toy.safetensors", dialogues=40, turns=2))


@pytest.fixture(scope="module")
def opened(features) -> Splits:
    return make_open(features, OPEN, 0)


def ordinary(features, spec: OpenSpec, config: EnvConfig = EnvConfig()) -> Splits:
    """The same world made by the ordinary code: all replies of the library are drawn for every state."""

    def draw(features, rows, _, seed):
        ids = library_of(features, rows, spec)
        own = features.bank(REFERENCE)[rows]
        return ids.expand(len(rows), -1).contiguous(), (ids[None] == own[:, None]).int().argmax(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env_module, "draw_candidates", draw)
        patch.setattr(env_module, "check_candidates", lambda *_: None)  # nothing is drawn
        return make_envs(
            features, replace(CLEAN, n=len(library_of(features, torch.arange(len(features)), spec))), 0, config
        )


@pytest.fixture(scope="module")
def closed(features) -> Splits:
    return ordinary(features, OPEN)


@pytest.mark.parametrize("config", [EnvConfig(), EnvConfig(objectives=("safe", "tcc", "help"), mask_harm="head")])
@pytest.mark.parametrize("spec", [OPEN, OpenSpec(library="split"), OpenSpec(kinds=("reference", "unsafe"))])
def test_its_tables_are_the_ordinary_ones(features, spec, config):
    one, other = make_open(features, spec, 0, config), ordinary(features, spec, config)
    assert one.tau_rel == other.tau_rel
    for fold in FOLDS:
        a, b = getattr(one, fold), getattr(other, fold)
        ids = library_of(features, a.row, spec)
        assert torch.equal(b.cand, ids[a.cand]) and a.objectives == b.objectives
        for name in ("x", "anchor", "gold", "dialogue", "turn", "row"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for name in TABLES[1:]:
            mine, theirs = getattr(a, name), getattr(b, name)
            assert mine.shape == theirs.shape and torch.allclose(mine.float(), theirs.float(), atol=1e-6), name
        some = torch.randint(len(ids), (len(a), 3), generator=torch.Generator().manual_seed(0))
        w = torch.tensor([0.3, 0.5, 0.2])[: len(a.objectives)]
        assert torch.allclose(a.earned(some), b.reward.gather(1, some[..., None].expand(-1, -1, len(w))), atol=1e-6)
        assert torch.allclose(a.value(w), b.reward @ w, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_is_the_ordinary_one(name, opened, closed):
    one, other = train_open(opened, CONFIGS[name], 1), train(closed, CONFIGS[name], 1)
    assert len(one.curves) == len(other.curves) == 3 and one.best_epoch == other.best_epoch
    for mine, theirs in zip(one.curves, other.curves):
        for metric in ("dev_average_reward", "dev_help", "dev_p_harm", "kl"):
            assert mine[metric] == pytest.approx(theirs[metric], abs=2e-5), metric
        assert mine["weights"] == pytest.approx(theirs["weights"], abs=1e-4)
    assert one.curves[-1]["kl"] > 1e-6  # something was learned at all
    a, b = all_log_probs(one.policy, opened.test), all_log_probs(other.policy, closed.test)
    assert torch.allclose(a.exp(), b.exp(), atol=2e-5)


def test_a_small_library_is_reranked_as_a_whole(features):
    spec = OpenSpec(kinds=("reference", "refusal"))  # 88 replies, fewer than the shortlist
    one, other = make_open(features, spec, 0), ordinary(features, spec)
    a, b = train_open(one, OTHERS["reranker"], 1), train(other, OTHERS["reranker"], 1)
    assert a.curves[-1]["dev_average_reward"] == pytest.approx(b.curves[-1]["dev_average_reward"], abs=1e-5)
    assert torch.allclose(all_log_probs(a.policy, one.test).exp(), all_log_probs(b.policy, other.test).exp(), atol=1e-5)


@pytest.mark.parametrize("mask", ["on", "off"])
def test_a_reranker_orders_the_nearest_allowed_replies(mask, opened, monkeypatch):
    monkeypatch.setattr(policy_module, "SHORTLIST", 17)
    torch.manual_seed(0)
    env, policy = opened.test, make_policy("cross", opened.test.x.shape[1], 384, mask=mask)
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.02)
    log_probs = all_log_probs(policy, env).detach()
    similarity = env.anchor @ env.pool.T
    if mask == "on":
        similarity = similarity.masked_fill(~env.allowed, -5)
    inside = torch.zeros_like(similarity).scatter(1, similarity.topk(17).indices, 1).bool()
    assert torch.equal(log_probs > MINUS_INFINITY / 2, inside)
    assert torch.allclose(log_probs.logsumexp(1), torch.zeros(len(env)), atol=1e-5)
    direct = policy.scorer(env.x, env.anchor, env.pool[similarity.topk(17).indices]).log_softmax(1)
    assert torch.allclose(log_probs.gather(1, similarity.topk(17).indices), direct, atol=1e-5)


def test_metrics_by_brute_force_in_double_precision(features, opened):
    """Loops over states and replies, written from the definitions; nothing of the package but the features."""
    env, tau = opened.test, opened.tau_rel
    policy = Control("similarity_mask", kappa=9.0)
    found = means(values_of(policy, env))
    pool = features.pool.double().numpy()
    query, knowledge = features.query.double().numpy(), features.knowledge.double().numpy()
    harm, grade = (features.p_harm[name].double().numpy() for name in ("tox_block", "tcc"))
    people, own = features.unsafe_label.numpy(), features.bank(REFERENCE).numpy()
    refusal = (features.kind == REFUSAL).numpy()
    floor = np.where(people, np.maximum(harm, 0.9), harm)
    rows: dict[str, list[float]] = {
        name: []
        for name in (
            "help",
            "average_reward",
            "harm",
            "p_harm",
            "recall_at_1",
            "recall_at_10",
            "mrr",
            "gold_mass",
            "similarity",
            "entropy",
        )
    }
    for row in env.row.tolist():
        context = query[row] + knowledge[row]
        context /= np.linalg.norm(context)
        logits = np.array([9.0 * float(context @ e) for e in pool])
        logits[~((harm < 0.5) | refusal)] = -np.inf
        pi = np.exp(logits - logits.max())
        pi /= pi.sum()
        agreement = np.array([float(pool[own[row]] @ e) for e in pool])
        help_ = np.where(np.array([float(context @ e) for e in pool]) >= tau, np.clip(agreement, 0, 1), 0)
        mine = pi[own[row]]
        place = 1 + (pi > mine).sum() + ((pi == mine).sum() - 1) / 2
        rows["help"].append(pi @ help_)
        rows["average_reward"].append(pi @ (help_ + 1 - floor) / 2)
        rows["harm"].append(pi @ (grade > 0.5))
        rows["p_harm"].append(pi @ floor)
        rows["recall_at_1"].append(float(place == 1))
        rows["recall_at_10"].append(float(place <= 10))
        rows["mrr"].append(1 / place)
        rows["gold_mass"].append(mine)
        rows["similarity"].append(pi @ agreement)
        rows["entropy"].append(-sum(p * math.log(p) for p in pi if p > 0))
    for name, values in rows.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-5 if name == "entropy" else 1e-6), name


def test_any_window_gives_the_same(opened, monkeypatch):
    policy = Control("similarity")
    whole = values_of(policy, opened.test)
    monkeypatch.setattr(library, "AT_ONCE", 3 * len(opened.test.pool))
    assert len(list(opened.test.windows())) == math.ceil(len(opened.test) / 3)
    parts = values_of(policy, opened.test)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6, equal_nan=True) for name in whole)
    at_once = evaluate(all_log_probs(policy, opened.test), opened.test)
    assert all(at_once[name] == pytest.approx(means(parts)[name], abs=1e-6) for name in at_once)


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_no_table_is_larger_than_a_window(name, opened, monkeypatch):
    """Training and grading with a limit of a mini-batch: what wants the whole table would be refused."""
    monkeypatch.setattr(library, "AT_ONCE", 8 * len(opened.test.pool))
    monkeypatch.setattr(OpenEnv, "limit", 32 * len(opened.test.pool))
    config = (CONFIGS | OTHERS)[name]
    config = replace(config, minibatch=32) if hasattr(config, "minibatch") else config
    trained = train_open(opened, config, 0)
    entry = graded_open(trained, opened, 0)
    for part in ("test", "unmasked"):
        assert all(math.isfinite(value) for value in entry[part].values()), part
    assert entry["train"]["good"] is None and math.isfinite(entry["train"]["average_reward"])
    assert 0 <= entry["test"]["recall_at_1"] <= entry["test"]["recall_at_10"] <= 1
    assert sum(entry["choices"]["mass_by_kind"].values()) == pytest.approx(1, abs=1e-5)
    assert sum(entry["dialogues"]["average_reward"]) / sum(entry["dialogues"]["states"]) == pytest.approx(
        entry["test"]["average_reward"], abs=1e-4
    )
    json.dumps(entry, allow_nan=False)
    with pytest.raises(ValueError, match="windows"):
        _ = opened.train.reward


def test_the_judge_is_the_ordinary_one(features):
    judge, rows = AttributionJudge(), torch.arange(9)
    one = judged_library(judge, features.query[rows], features.knowledge[rows], features.pool)
    other = judge.candidates(features.query[rows], features.knowledge[rows], features.pool.expand(9, -1, -1))
    assert torch.allclose(one, other, atol=1e-5)


def test_a_grader_is_not_seen(opened):
    seen = opened.seen()
    for fold in ("train", "dev_weights", "dev_stop"):
        env = getattr(seen, fold)
        assert isinstance(env, OpenEnv) and not isinstance(env, Graded)
        assert not any(
            hasattr(env, name) for name in ("p_grade", "unsafe", "good", "similarity", "graded_harm", "knowledge")
        )


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["sft", "bandit", "dpo"])
def test_it_goes_on_from_a_checkpoint(name, opened, tmp_path):
    config, place, rows = (CONFIGS | OTHERS)[name], tmp_path / "checkpoint.safetensors", []

    def kill(row: dict) -> None:
        raise Killed

    with pytest.raises(Killed):
        train_open(opened, config, 1, kill, place)
    resumed, whole = train_open(opened, config, 1, rows.append, place), train_open(opened, config, 1)
    assert [row["epoch"] for row in rows] == [2] and resumed.curves == whole.curves
    assert torch.equal(all_log_probs(resumed.policy, opened.test), all_log_probs(whole.policy, opened.test))


@pytest.mark.parametrize("name", all_methods())
def test_every_method_is_trained_or_refused(name):
    config = method(name).config
    able = type(config) in OPENS and not getattr(config, "kl_coef", 0)
    able = able and getattr(config, "padding", "") not in ("unmasked", "drop")
    if able:
        assert resolve(Run(name, "open"))[1] == OPEN
        return
    with pytest.raises(DataError) as refused:
        resolve(Run(name, "open"))
    assert name in str(refused.value) and "open" in str(refused.value) and "\n" not in str(refused.value)


def test_the_tables_arms_are_able():
    for name in (
        "similarity",
        "similarity_mask",
        "sft",
        "dpo",
        "exact_gradient",
        "so_ppo_bandit",
        "dual_ppo_bandit",
        "towers",
        "reranker",
        "oracle",
    ):
        open_learner(method(name).config)


def test_open_is_run_only_where_it_is_named():
    assert {run.setting for run in grid("smoke")} == set(SETTINGS) and "open" not in SETTINGS
    assert {run.setting for run in grid("smoke", settings=["open"])} == {"open"}
    with pytest.raises(DataError, match="grpo"):
        grid("smoke", methods=["grpo"], settings=["open"])


def test_keys_tell_the_settings_apart():
    row = method("sft")
    plain, opened = key.reached_by(row), key.reached_by(row, spec=OPEN)
    mine = {"dualppo.bench.open.OpenEnv", "dualppo.runs.open_bench.graded_open", "dualppo.methods.open.train_open"}
    assert mine <= set(opened) and not mine & set(plain)
    assert key.code_sha256(row) != key.code_sha256(row, spec=OPEN)
    assert key.bench_sha256() != key.bench_sha256(spec=OPEN)
    assert "dualppo.methods.open.OpenPPO" in key.reached_by(method("dual_ppo"), spec=OPEN)


def test_the_command_line_opens_it(tmp_path, capsys):
    data = write_toy(tmp_path / "toy.safetensors", dialogues=40, turns=2)
    more = ["--setting", "open", "--data", str(data), "--outputs", str(tmp_path / "o"), "--epochs", "1"]
    assert main(["train", "sft", *more, "--split-by", "knowledge", "--set", "library=split"]) == 0
    (path,) = (tmp_path / "o").rglob("sft-*.json")
    record = json.loads(path.read_text())
    assert record["setting"] == "open" and record["config"]["candidates"]["library"] == "split"
    assert record["config"]["env"]["split_by"] == "knowledge"
    assert {"recall_at_1", "recall_at_10", "mrr", "harm", "average_reward"} <= set(record["results"][0]["test"])
    assert main(["tables", "--profile", path.parent.parent.name, "--outputs", str(tmp_path / "o")]) == 0
    assert main(["train", "grpo", *more]) == 2
    assert "has no form" in capsys.readouterr().err


def test_objectives_that_need_tables_are_refused(features):
    with pytest.raises(DataError, match="columns? of scores"):
        make_open(features, OPEN, 0, EnvConfig(objectives=("help", "brevity_of_my_own")))


def test_a_library_without_the_human_reply(features):
    splits = make_open(features, OpenSpec(kinds=("unsafe", "refusal")), 0)
    assert (splits.test.gold == -1).all()
    found = means(values_of(Control("similarity"), splits.test))
    assert math.isnan(found["recall_at_1"]) and math.isfinite(found["average_reward"])


# ---- folds --------------------------------------------------------------------------------------------------------


def components(cosine: np.ndarray, dialogue: list[int], near: float) -> list[int]:
    """The definition: merge until nothing changes."""
    label = list(dialogue)
    while True:
        for i in range(len(label)):
            for j in range(len(label)):
                if label[i] != label[j] and cosine[i, j] > near:
                    old = label[j]
                    label = [label[i] if one == old else one for one in label]
                    break
            else:
                continue
            break
        else:
            return label


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 14), st.sampled_from([0.3, 0.7, 0.95]), st.sampled_from([1, 3, 100]))
def test_groups_are_connected_components(seed, n, near, chunk):
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    dialogue = torch.randint(6, (n,), generator=g) * 7
    found = linked(rows, dialogue, near, chunk)
    expected = components((rows @ rows.T).numpy(), dialogue.tolist(), near)
    same = torch.tensor(expected)[:, None] == torch.tensor(expected)[None]
    assert torch.equal(found[:, None] == found[None], same)


@pytest.mark.parametrize("by", ["knowledge", "topic"])
def test_nothing_near_is_torn_apart(by):
    features = load_features()
    rows, group = split_rows(features, 0, by), groups(features, by)
    for i, one in enumerate(FOLDS):
        for other in FOLDS[:i]:
            assert not set(features.dialogue[rows[one]].tolist()) & set(features.dialogue[rows[other]].tolist())
            assert not set(group[rows[one]].tolist()) & set(group[rows[other]].tolist())
            assert (features.knowledge[rows[one]] @ features.knowledge[rows[other]].T).max() <= NEAR[by] + 1e-6
    assert sum(map(len, rows.values())) == len(features)
    assert 0.6 < len(rows["train"]) / len(features) < 0.8 and len(rows["test"]) > 0.1 * len(features)


def test_the_ordinary_split_is_what_it_was():
    features = load_features()
    rows = split_rows(features, 0)
    near = (features.knowledge[rows["test"]] @ features.knowledge[rows["train"]].T).amax(1)
    assert len(rows["train"]) == 5115 and 0.37 < (near > 0.999).float().mean() < 0.38


def test_too_few_groups_are_one_sentence(features):
    same = replace(features, knowledge=features.knowledge[:1].expand(len(features), -1))
    with pytest.raises(DataError, match="groups of dialogues by knowledge are too few"):
        split_rows(same, 0, "knowledge")


# ---- what is asked and shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"library": "everything"}, {"kinds": ()}, {"kinds": ("reference", "funny")}])
def test_bad_values_of_the_setting_get_one_sentence(wrong):
    with pytest.raises(DataError) as refused:
        resolve(Run("sft", "open", overrides=wrong))
    assert next(iter(wrong)) in str(refused.value) and "\n" not in str(refused.value)


def test_studies_ask_what_can_be_run():
    for one in (ROOM, TOPICS):
        assert one.setting == "open" and all(resolve(run)[1] == OPEN for run in one.runs().values())
    assert {arm for arm in OPEN_ARMS} == {label.partition("; ")[0] for label in ROOM.variants if "; " in label}
    assert len([label for label in ROOM.variants if "; " in label]) == len(OPEN_ARMS) * len(OPEN_SHARES)


def test_rows_of_records_are_their_numbers():
    def record(reward):
        entry = {
            "test": {"average_reward": reward, "recall_at_1": 0.5},
            "train": {"average_reward": 1.0},
            "best_epoch": 3,
        }
        results = [entry | {"seed": seed} for seed in (4, 7)]
        return {"results": results, "seeds": [4, 7], "measured": {"wall_clock_s": [2.0, 4.0]}}

    frame = rows_of_records({"oracle": record(0.9), "sft, masked; 10%": record(0.1), "sft, masked; 50%": record(0.4)})
    assert len(frame) == 6 and set(frame.condition[frame.arm == "oracle"]) == {"100%"}
    assert frame.groupby(["arm", "condition"]).average_reward.mean()["sft, masked", "10%"] == pytest.approx(0.1)
    assert set(frame.seconds) == {3.0} and set(frame.seed) == {4, 7}
    figure = learning_curves(frame)
    (line,) = [one for one in figure.axes[0].lines if one.get_label() == "sft, masked"]
    assert list(line.get_xdata()) == [10, 50] and list(line.get_ydata()) == pytest.approx([0.1, 0.4])
