"""Seconds per outer epoch and per run, share of the roofline, and the same work by MaskablePPO.

One process, one thread; the contestants take turns, so that a slow moment of the machine meets all of them.
`python benchmarks/speed.py [--rounds 3] [--epochs 15]` writes results/roofline.json and results/speed.json;
with `--only roofline` the first alone, which measures an update in closed form and its parts.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from machine import save, seconds
from maskable_ppo import maskable_ppo
from roofline import backward, forward, roofline, shape_of

from dualppo.methods.base import dev_row, train
from dualppo.methods.baselines import ExactConfig
from dualppo.bench.candidates import STRESS
from dualppo.bench.env import Env, Splits, make_envs
from dualppo.bench.features import load_features
from dualppo.methods.rows import configure, method
from dualppo.policies.policy import all_log_probs
from dualppo.methods.ppo import PPO, PPOConfig
from dualppo.runs.execution import run_seed
from dualppo.runs.spec import Run, resolve

BANDIT = PPOConfig(advantage="bandit", rule="fixed")  # γ = 0 and fixed weights: what MaskablePPO can do, too


def flops(env: Env, config: PPOConfig) -> float:
    """Multiplications and additions of the matrix products of one outer epoch, rollout and K inner epochs."""
    shape = shape_of(env, config, len(env))
    once, back = (sum(step.flops for step in steps(shape, 0)) for steps in (forward, backward))
    return once + config.inner_epochs * (once + back)


def epoch_of(splits: Splits, config: PPOConfig) -> Callable[[], object]:
    """A function that does steps (a) to (h) once."""
    learner = PPO(splits, config, 0)
    return lambda: learner.improve(learner.sample())


def maskable_epoch(env: Env, config: PPOConfig) -> tuple[Callable[[], object], object]:
    """The same by MaskablePPO, and its model."""
    model = maskable_ppo(env, config, 0)
    return lambda: model.learn(len(env), reset_num_timesteps=False), model


def race(splits: Splits, rounds: int) -> dict:
    """Best seconds per outer epoch of each contestant, and all of them."""
    contestants = {
        "closed form": epoch_of(splits, BANDIT),
        "autograd": epoch_of(splits, replace(BANDIT, gradient="autograd")),
        "MaskablePPO": maskable_epoch(splits.train, BANDIT)[0],
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            times[name].append(seconds(work))
    best = {name: min(values) for name, values in times.items()}
    return {
        "states": len(splits.train),
        "updates": BANDIT.inner_epochs * -(-len(splits.train) // BANDIT.minibatch),
        "gflop": flops(splits.train, BANDIT) / 1e9,
        "seconds_per_epoch": best,
        "all_seconds": times,
        "ratio_to_maskable": {name: best["MaskablePPO"] / value for name, value in best.items()},
    }


def first_at(goal: float, curve: list[tuple[float, float]]) -> float | None:
    """Seconds until a curve of (seconds, dev reward) reaches the goal."""
    return next((at for at, reward in curve if reward >= goal), None)


def to_reward(splits: Splits, epochs: int) -> dict:
    """Seconds of training, evaluation not counted, against dev reward."""

    def dev(policy):
        return dev_row(all_log_probs(policy, splits.dev_stop), splits.dev_stop)["dev_average_reward"]

    work, model = maskable_epoch(splits.train, BANDIT)

    def actor(env, states, mask=None):
        return torch.where(env.allowed[states], model.policy.actor(env, states), -1e9).log_softmax(1)

    curves: dict[str, list[tuple[float, float]]] = {"MaskablePPO": [(0.0, dev(actor))]}
    for _ in range(epochs):
        curves["MaskablePPO"].append((curves["MaskablePPO"][-1][0] + seconds(work), dev(actor)))
    goal = max(reward for _, reward in curves["MaskablePPO"])
    for name, config in {"PPO, bandit": BANDIT, "PPO, exact advantage": replace(BANDIT, advantage="exact")}.items():
        learner, curve = PPO(splits, config, 0), [(0.0, curves["MaskablePPO"][0][1])]
        while len(curve) <= epochs and curve[-1][1] < goal:
            curve.append(
                (curve[-1][0] + seconds(lambda learner=learner: learner.improve(learner.sample())), dev(learner.policy))
            )
        curves[name] = curve
    curves["exact gradient"] = exact_curve(splits, goal)
    reached = {name: first_at(goal, curve) for name, curve in curves.items()}
    return {
        "goal": goal,
        "curves": curves,
        "seconds_to_goal": reached,
        "speed_up": {name: reached["MaskablePPO"] / at if at else None for name, at in reached.items()},
    }


def exact_curve(splits: Splits, goal: float) -> list[tuple[float, float]]:
    """The exact gradient, looked at every 340 dialogues; its own evaluations are not counted."""
    clock, curve, resting = time.perf_counter(), [(0.0, 0.0)], 0.0

    class Reached(Exception):
        pass

    def look(row: dict) -> None:
        curve.append((time.perf_counter() - clock - resting * row["epoch"], row["dev_average_reward"]))
        if curve[-1][1] >= goal:
            raise Reached

    learner = PPO(splits, BANDIT, 0)
    resting = min(
        seconds(lambda: dev_row(all_log_probs(learner.policy, splits.dev_stop), splits.dev_stop)) for _ in range(3)
    )
    clock = time.perf_counter()
    try:
        train(splits, ExactConfig(epochs=40, patience=40, inner_epochs=1, dialogues_per_epoch=340), 0, look)
    except Reached:
        pass
    return curve


def whole_run(features) -> dict:
    """One seed of the quick profile from features to metrics, and where its time goes."""
    row, spec = resolve(Run("dual_ppo_bandit"))
    environment = seconds(lambda: make_envs(features, spec, 0, row.env))
    whole = seconds(lambda: run_seed(features, row, spec, 0, torch.device("cpu"), None))
    return {"seconds": whole, "seconds_environment": environment}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--only", choices=["roofline"], help="measure this alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    features = load_features()
    splits = make_envs(features, STRESS, 0, configure(method("dual_ppo_bandit"), {}).env)
    all_log_probs(PPO(splits, BANDIT, 0).policy, splits.dev_stop)
    save("roofline", roofline(splits, BANDIT, options.rounds))
    if options.only is None:
        save(
            "speed",
            {
                "race": race(splits, options.rounds),
                "to_reward": to_reward(splits, options.epochs),
                "quick_run": whole_run(features),
            },
        )


if __name__ == "__main__":
    main()
