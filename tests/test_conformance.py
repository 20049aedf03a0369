"""What every registered method owes, asked of each: a new row is covered without a new test."""

import math
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from typing import get_type_hints

import pytest
import torch
import tyro
from conftest import ROOT

from dualppo.exact.metrics import evaluate
from dualppo.methods.base import Learner, learner_of, stack_of, train, train_together
from dualppo.methods.baselines import DPO, DPOConfig, SFT, SFTConfig
from dualppo.bench.candidates import STRESS
from dualppo.cli import main, train_parser
from dualppo.core.errors import DataError
from dualppo.bench.env import EnvConfig, Splits, add_objective, make_envs
from dualppo.bench.features import load_features
from dualppo.methods.rows import all_methods
from dualppo.policies.policy import all_log_probs
from dualppo.runs.spec import Run, resolve
from dualppo.methods.sampled import Sampled

SHORT = {
    "epochs": 3,
    "iterations": 10,
    "inner_epochs": 1,
    "dialogues_per_epoch": 24,
    "rivals": False,
    "hidden": 16,
    "patience": 3,
}
BY_TRAINER = {}  # one row of every trainer and loss; the others differ in a value
for _row in all_methods().values():
    BY_TRAINER.setdefault(
        (
            type(_row.config).__name__,
            *(getattr(_row.config, f, None) for f in ("loss", "align", "rule", "advantage", "scale", "objective")),
        ),
        _row,
    )
ROWS = {row.name: row for row in BY_TRAINER.values()}
TRAINED = {name: row for name, row in ROWS.items() if row.trained}


def short(row, **changes):
    """A row's configuration with a few steps of training."""
    known = {f.name for f in fields(row.config)}
    return replace(row.config, **{k: v for k, v in (SHORT | changes).items() if k in known})


@pytest.fixture(scope="module")
def splits(toy) -> Splits:
    return make_envs(load_features(toy), STRESS, seed=0)


def objectives(splits: Splits, k: int) -> Splits:
    """The same environments with K = 1, 2 or 3 objectives."""

    def of(env):
        if k == 1:
            return replace(env, reward=env.reward[..., :1], objectives=env.objectives[:1])
        return (
            env
            if k == 2
            else add_objective(
                env, "brevity", lambda e: torch.rand(e.cand.shape, generator=torch.Generator().manual_seed(0))
            )
        )

    return replace(splits, **{name: of(getattr(splits, name)) for name in ("train", "dev_weights", "dev_stop", "test")})


@pytest.mark.parametrize("name", ROWS)
def test_it_is_a_pure_function_of_its_seed(name, splits):
    one, two = (train(splits, short(ROWS[name]), 3) for _ in range(2))
    assert one.curves == two.curves and one.facts == two.facts
    assert {"kept_start", "at_cap"} <= set(one.facts) and one.facts["kept_start"] == (
        one.facts.get("base_epoch", one.best_epoch) == 0
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", TRAINED)
def test_it_goes_on_from_a_checkpoint(name, splits, tmp_path):
    config, place = short(TRAINED[name]), tmp_path / "checkpoint.safetensors"

    def kill(row: dict) -> None:
        raise Killed

    learner = learner_of(config)(splits, config, 1)
    if learner.length == 0:  # nothing of its own to train: the base goes on from its own checkpoint, or is soon done
        assert len(train(splits, config, 1).curves) == 1
        return
    with pytest.raises(Killed):
        train(splits, config, 1, kill, place)
    rows: list[dict] = []
    resumed, whole = train(splits, config, 1, rows.append, place), train(splits, config, 1)
    assert rows[0]["epoch"] == 2 * type(learner).every and resumed.curves == whole.curves
    assert torch.equal(all_log_probs(resumed.policy, splits.test), all_log_probs(whole.policy, splits.test))


@pytest.mark.parametrize("name", TRAINED)
def test_bad_values_get_one_sentence(name):
    "Every field of every configuration, of the environment and of the candidates."
    for owner in (TRAINED[name].config, EnvConfig(), STRESS):
        hints = get_type_hints(type(owner))
        for field in fields(owner):
            if hints[field.name] in (str, str | None):  # any text; what it names is asked later
                continue
            for value in (math.nan, math.inf, -1e9, "litteral", 2**70, ((),), object()):
                with pytest.raises(ValueError) as refused:
                    replace(owner, **{field.name: value})
                assert field.name in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("name", ROWS)
def test_help_explains_every_parameter(name):
    """A comment that a formatter moves is no explanation any more."""
    parser = tyro.extras.get_parser(train_parser(name))
    bare = [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings and not str(action.help or "").partition("(default")[0].strip()
    ]
    assert not bare


def test_an_override_has_an_address():
    def run(**changes):
        return resolve(Run("dual_ppo", overrides=changes))

    assert run(**{"config.epochs": 7})[0].config.epochs == run(epochs=7)[0].config.epochs == 7
    assert run(**{"env.tau_mask": 0.4})[0].env.tau_mask == 0.4 and run(**{"candidates.n": 30})[1].n == 30
    for wrong, words in (
        ({"env.epochs": 1}, "config.epochs"),
        ({"confg.epochs": 1}, "config"),
        ({"config.epoch": 1}, "epochs"),
    ):
        with pytest.raises(DataError, match=words):
            run(**wrong)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ROWS)
def test_it_takes_any_number_of_objectives(name, k, splits):
    row, part = ROWS[name], objectives(splits, k)
    weights = {1: (1.0,), 3: (0.4, 0.4, 0.2)}[k]
    config = short(row, **({"weights": weights} if getattr(row.config, "rule", "") != "lagrangian" else {}))
    if getattr(config, "rewards", "") == "models":
        config = short(row)  # two reward models, whatever the environment's objectives are
    if k == 1 and (
        getattr(config, "rule", "") == "lagrangian"
        or getattr(config, "rewards", "") == "given"
        or type(config).__name__ == "AlignedPPOConfig"
    ):
        pytest.skip("two things are weighed against each other")
    trained = train(part, config, 0)
    assert all(math.isfinite(v) for row in trained.curves for v in row.values() if isinstance(v, float))
    assert {f"dev_{o}" for o in part.train.objectives} <= set(trained.curves[0])
    measured = evaluate(all_log_probs(trained.policy, part.test), part.test)
    assert math.isfinite(measured["average_reward"]) and math.isfinite(measured["help"])


@pytest.mark.parametrize("name", TRAINED)
def test_a_grader_is_not_seen(name, splits):
    "Whatever the grader, the judge and people say of train and dev, training is the same."

    def blind(env):
        return replace(env, p_grade=1 - env.p_grade, unsafe=~env.unsafe, good=1 - env.good, similarity=-env.similarity)

    other = replace(splits, **{part: blind(getattr(splits, part)) for part in ("train", "dev_weights", "dev_stop")})
    one, two = train(splits, short(TRAINED[name]), 0), train(other, short(TRAINED[name]), 0)
    assert torch.equal(all_log_probs(one.policy, splits.test), all_log_probs(two.policy, splits.test))
    assert one.best_epoch == two.best_epoch and one.curves[0]["dev_good"] != two.curves[0]["dev_good"]


@pytest.mark.parametrize("name", [name for name, row in TRAINED.items() if hasattr(row.config, "mask")])
def test_nothing_outside_the_mask_is_played(name, splits):
    trained = train(splits, short(TRAINED[name], mask="on"), 0)
    assert (all_log_probs(trained.policy, splits.test).exp()[~splits.test.allowed] == 0).all()


@pytest.mark.parametrize("name", [name for name, row in TRAINED.items() if issubclass(learner_of(row.config), Sampled)])
def test_constant_rewards_move_nothing(name, splits):
    part = replace(splits, train=replace(splits.train, reward=torch.full_like(splits.train.reward, 0.3)))
    trained = train(part, short(TRAINED[name]), 0)
    assert trained.curves[-1]["kl"] == 0 and trained.facts["kept_start"]


@pytest.mark.parametrize(("config", "kind"), [(SFTConfig(mask="on"), SFT), (DPOConfig(mask="on", epochs=1), DPO)])
def test_no_target_lies_outside_the_mask(config, kind, splits):
    "F2: a forbidden target's log-probability is the mask's sentinel, and its loss a million."
    env = splits.train
    forbidden = env.allowed.clone()
    forbidden[torch.arange(40), env.gold[:40].clamp(min=0)] = False
    masked = replace(splits, train=replace(env, allowed=forbidden))
    learner = kind(masked, config, 0)
    assert 0 <= learner.step()["loss"] < 20
    assert learner.facts()["dropped"] > 0 or kind is DPO


@pytest.mark.parametrize("name", [name for name, row in TRAINED.items() if stack_of(row.config)])
def test_a_stack_is_its_single_runs(name, splits):
    config = short(TRAINED[name])
    together = train_together([splits, splits], [config, config], [0, 1])
    for seed, one in enumerate(together):
        alone = train(splits, config, seed)
        assert [row["epoch"] for row in one.curves] == [row["epoch"] for row in alone.curves]
        for key in ("dev_average_reward", "kl"):
            assert one.curves[-1][key] == pytest.approx(alone.curves[-1][key], abs=1e-4)


def test_a_configuration_nobody_learns_is_named():
    with pytest.raises(TypeError, match="nothing learns a int"):
        learner_of(3)


def test_every_method_is_a_learner():
    assert all(issubclass(learner_of(row.config), Learner) for row in all_methods().values())


def test_an_installed_package_of_a_stranger_adds_a_method(tmp_path, toy):
    "The example of CONTRIBUTING.md, from an empty folder: built and installed by pip, then trained."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```(?:toml|python)\n# ([\w./]+)\n(.*?)```", text, flags=re.DOTALL))
    assert len(files) == 3 and sum(len(files[name].split("\n")) for name in files if "/" in name) <= 24
    project, site = tmp_path / "project", tmp_path / "site"
    for name, content in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), "."]
    subprocess.run([sys.executable, *pip], cwd=project, check=True)
    few = ["--epochs", "1", "--inner-epochs", "1", "--data", str(toy), "--outputs", str(tmp_path / "o")]
    code = "import sys; from dualppo.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "worst_first", *few]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, env=paths, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Worst first" in done.stdout and list((tmp_path / "o").rglob("worst_first-*.policy.safetensors"))
    assert "worst_first" not in all_methods()  # here the package is not installed, and its runs are shown all the same
    assert main(["tables", "--profile", "custom", "--outputs", str(tmp_path / "o")]) == 0
    assert main(["report", "--outputs", str(tmp_path / "o")]) == 0
    for shown in ((tmp_path / "o/tables/custom/table2.csv"), (tmp_path / "o/report.html")):
        assert "worst_first" in shown.read_text(encoding="utf-8")
