"""Learning rates on dev, the same budget for every trained method: writes outputs/published/tuning.csv.

Seed 100 is used by no table. Each method gets the same grid of learning rates (Table 1's among them) and stops early on
its own validation gain; the tables use the best rate for the baselines and Table 1's for the paper's method.
"""

import csv
import io
from pathlib import Path

import torch

from dualppo.candidates import STRESS
from dualppo.data import atomic_write
from dualppo.env import make_envs
from dualppo.features import load_features
from dualppo.methods import configure, method, train

RATES = (3e-5, 1e-4, 3e-4)
FIELDS = {"sft": "lr", "dpo": "lr", "exact_gradient": "lr", "so_ppo_bandit": "policy_lr", "ppo_lag_bandit": "policy_lr", "dual_ppo_bandit": "policy_lr"}


def main() -> None:
    torch.set_num_threads(1)
    splits = make_envs(load_features(), STRESS, seed=100)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["method", "learning_rate", "best_epoch", "epochs", "dev_help", "dev_p_harm", "dev_average_reward"])
    for name, field in FIELDS.items():
        for rate in RATES:
            row = configure(method(name), {field: rate, "epochs": 8, "patience": 3})
            trained = train(row, splits, seed=100)
            best = trained.curves[trained.best_epoch]
            out.writerow([name, rate, trained.best_epoch, len(trained.curves) - 1] + [f"{best[k]:.4f}" for k in ("dev_help", "dev_p_harm", "dev_average_reward")])
            print(text.getvalue().splitlines()[-1], flush=True)
    atomic_write(Path(__file__).resolve().parent.parent / "outputs" / "published" / "tuning.csv", text.getvalue())


if __name__ == "__main__":
    main()
