"""What a gradient per objective costs: seconds of MOLMA and of its baselines in one run.

Writes results/molma.json (half a minute, alone).
"""

from dataclasses import replace

import torch
from machine import save, seconds

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import make_envs
from dualppo.bench.features import load_features
from dualppo.methods.modrl import MODRL, MODRLConfig, rivals
from dualppo.bench.reward_models import reward_models

ITERATIONS, ROUNDS = 20, 3


def training(splits, config, models) -> float:
    """Seconds of some iterations: rollouts and updates, no evaluation."""
    m = MODRL([splits], config, [0], [models])
    m.improve(m.roll_out())
    return seconds(lambda: [m.improve(m.roll_out()) for _ in range(ITERATIONS)])


def main() -> None:
    torch.set_num_threads(1)
    splits = make_envs(load_features(), STRESS, seed=0)
    models, config = reward_models(splits.train, 0), MODRLConfig()
    arms = (
        {"molma": config}
        | rivals(config)
        | {"cagrad": replace(config, align="cagrad"), "nash_mtl": replace(config, align="nash_mtl")}
    )
    rounds = [
        {name: training(splits, one, models) for name, one in arms.items()} for _ in range(ROUNDS)
    ]  # in turn, so that no arm has the quiet minute
    best = {name: min(r[name] for r in rounds) for name in arms}
    save(
        "molma",
        {
            "iterations": ITERATIONS,
            "seconds": best,
            "ratio_to_so_help": {name: s / best["so_help"] for name, s in best.items()},
            "all_seconds": {name: [r[name] for r in rounds] for name in arms},
            "printed": 64204.30 / 34128.23,
        },
    )


if __name__ == "__main__":
    main()
