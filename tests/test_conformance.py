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
from dualppo.exact.oracle import help_at_budget
from dualppo.methods.base import Learner, learner_of, stack_of, train, train_together
from dualppo.methods.baselines import DPO, DPOConfig, SFT, SFTConfig
from dualppo.bench.candidates import STRESS
from dualppo.cli import main, train_parser
from dualppo.core.errors import DataError
from dualppo.bench.env import Env, EnvConfig, Splits, add_objective, make_envs
from dualppo.bench.features import load_features
from dualppo.losses.weights import RULES
from dualppo.methods.modrl import MODRLConfig
from dualppo.methods.ppo import weight_signal
from dualppo.methods.rows import all_methods
from dualppo.policies.policy import all_log_probs, make_policy
from dualppo.runs.spec import Run, resolve
from dualppo.methods.sampled import Sampled

pytestmark = pytest.mark.ci

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


NAMES = {1: ("help",), 2: ("help", "safe"), 3: ("below", "safe", "help")}


def objectives(splits: Splits, k: int) -> Splits:
    """The same environments with K = 1, 2 or 3 objectives; of three the first is negative and help comes last."""

    def of(env):
        if k == 3:
            g = torch.Generator().manual_seed(0)
            env = add_objective(env, "below", lambda e: -2 - torch.rand(e.cand.shape, generator=g))
        return replace(env, reward=torch.stack([env.column(name) for name in NAMES[k]], -1), objectives=NAMES[k])

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


WEIGHTS = [(1, None), (1, (1.0,)), (3, None), (3, (0.4, 0.4, 0.2)), (3, (0.0, 0.0, 1.0)), (3, (0.0, 1.0, 0.0))]


@pytest.mark.parametrize(("k", "weights"), WEIGHTS)
@pytest.mark.parametrize("name", ROWS)
def test_it_takes_any_number_of_objectives(name, k, weights, splits):
    row, part = ROWS[name], objectives(splits, k)
    models = getattr(row.config, "rewards", "") == "models"  # two, whatever the environment's objectives are
    config = short(row, **({"weights": weights} if weights and not models else {}))
    refused = ""
    if k == 1 and getattr(config, "rule", "") == "lagrangian":
        refused = "weighs the objective safe against others; .* are help"
    if weights is None and not models and len(set(getattr(config, "weights", ()))) > 1:  # a row that tells two apart
        refused = f"one number per objective: {k} expected"
    if refused:
        with pytest.raises(DataError, match=refused):
            train(part, config, 0)
        return
    trained = train(part, config, 0)
    assert all(math.isfinite(v) for row in trained.curves for v in row.values() if isinstance(v, float))
    assert models or (len(trained.weights) == k and all(map(math.isfinite, trained.weights)))
    assert {f"dev_{o}" for o in part.train.objectives} <= set(trained.curves[0])
    measured = evaluate(all_log_probs(trained.policy, part.test), part.test)
    assert math.isfinite(measured["average_reward"]) and math.isfinite(measured["help"])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if hasattr(row.config, "weights")])
def test_weights_that_do_not_fit_the_objectives_get_one_sentence(name, toy, tmp_path, capsys):
    """Through the command line: three for two, and one that is nothing."""
    for weights, words in (("0.5 0.25 0.25", "2 expected, got"), ("0 0", "must not all be 0"), ("1 -1", "at least 0")):
        command = ["train", name, "--weights", *weights.split(), "--data", str(toy), "--seeds", "1"]
        assert main([*command, "--outputs", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "weights" in said and words in said and said.count("\n") == 1


def test_an_objective_is_found_by_its_name(splits):
    """Nothing may depend on which column a reward stands in."""

    def turn(env):
        return replace(env, objectives=("safe", "help"), reward=env.reward.flip(-1))

    turned = replace(splits, **{part: turn(env) for part, env in vars(splits).items() if isinstance(env, Env)})
    lagrangian = short(all_methods()["ppo_lag_bandit"], weights=(0.75, 0.25), critic="scalar")
    single = MODRLConfig(rewards="given", iterations=5, hidden=16)
    pairs = [(lagrangian, replace(lagrangian, weights=(0.25, 0.75)))]
    pairs += [(one, one) for one in (replace(single, objective=name) for name in ("help", "safe", "piecewise"))]
    for ours, theirs in pairs:
        one, two = train(splits, ours, 0), train(turned, theirs, 0)
        assert one.curves[-1]["kl"] == pytest.approx(two.curves[-1]["kl"], abs=1e-6)
        assert one.weights == pytest.approx(two.weights[::-1], abs=1e-6)
    assert help_at_budget(splits.test, 0.2) == help_at_budget(turned.test, 0.2)
    with pytest.raises(DataError, match="safe training needs the objective safe; there are help"):
        train(objectives(splits, 1), replace(single, objective="safe"), 0)


def test_the_signal_knows_the_ceiling_of_every_objective(splits):
    part = objectives(splits, 3)
    policy = make_policy("two_tower", part.train.x.shape[1], part.train.pool.shape[1], hidden=8)
    signal, dev = weight_signal(policy, part.train, part.dev_weights), part.dev_weights
    best = [max(r for r, may in zip(row, free) if may) for row, free in zip(dev.column("below").tolist(), dev.allowed)]
    assert signal.ceiling[0].item() == pytest.approx(sum(best) / len(best), abs=1e-5) and signal.ceiling[0] < -1
    assert signal.safe == 1 and (signal.floor <= signal.ceiling).all() and (signal.mean <= signal.ceiling).all()
    for rule in RULES.values():
        after = rule()(torch.full((3,), 1 / 3), signal)
        assert after.shape == (3,) and after.isfinite().all() and (after >= 0).all()


SPOILT = {
    "allowed": ("has no candidate that is allowed", lambda env: replace(env, allowed=spoil(env.allowed, False))),
    "reward": ("has a reward that is not", lambda env: replace(env, reward=spoil(env.reward, math.inf))),
    "x": ("is not made of finite numbers", lambda env: replace(env, x=spoil(env.x, math.nan))),
}


def spoil(values: torch.Tensor, by: float) -> torch.Tensor:
    """A copy with another value in the third state."""
    values = values.clone()
    values[2] = by
    return values


@pytest.mark.parametrize("part", ["train", "dev_weights", "dev_stop", "test"])
@pytest.mark.parametrize("field", SPOILT)
def test_a_state_from_which_nothing_can_be_learnt_is_named(field, part, splits):
    """L7: weights were (nan, nan), and metrics were reported all the same."""
    words, change = SPOILT[field]
    broken = replace(splits, **{part: change(getattr(splits, part))})
    for train_it in (lambda *a: train(*a), lambda s, c, seed: train_together([s], [c], [seed])):
        with pytest.raises(DataError, match=f"state 2 of {part} {words}"):
            train_it(broken, short(ROWS["dual_ppo_bandit"]), 0)


def test_a_multiplier_leaves_both_its_ends(splits):
    """F3: weights (1, 0) are λ = 0, which a factor cannot move."""
    config = short(all_methods()["ppo_lag_bandit"], weights=(1.0, 0.0), budget=0.05, epochs=8, patience=8)
    dead = train(splits, config, 0)
    paid = [row["weights"][1] / row["weights"][0] for row in dead.curves]
    assert paid[0] == 0 and all(a < b for a, b in zip(paid, paid[1:]))
    rich = train(splits, replace(config, weights=(0.0, 1.0), budget=1.0), 0)
    paid = [row["weights"][1] / row["weights"][0] for row in rich.curves[1:]]
    assert all(a > b for a, b in zip(paid, paid[1:])) and not rich.facts["lambda_at_largest"]
    capped = train(splits, replace(config, budget=1e-6), 0)
    assert capped.facts["lambda_at_largest"] and not capped.facts["lambda_at_least"]
    assert capped.weights[1] / capped.weights[0] == pytest.approx(50)
    assert "lambda_at_largest" not in train(splits, short(ROWS["dual_ppo_bandit"]), 0).facts


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


@pytest.mark.slow
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
    (broken := next(site.rglob("*.py"))).write_text("import nothing_of_the_kind\n" + broken.read_text())
    done = subprocess.run([*command[:3], "methods"], capture_output=True, text=True, env=paths, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "nothing_of_the_kind" in done.stderr
    assert "worst_first" not in all_methods()  # here the package is not installed, and its runs are shown all the same
    assert main(["tables", "--profile", "custom", "--outputs", str(tmp_path / "o")]) == 0
    assert main(["report", "--outputs", str(tmp_path / "o")]) == 0
    for shown in ((tmp_path / "o/tables/custom/table2.csv"), (tmp_path / "o/report.html")):
        assert "worst_first" in shown.read_text(encoding="utf-8")
