"""Learning rates on dev, the same budget for every method of a kind: writes outputs/published/tuning.csv.

Seed 100 is used by no table. Each method gets three learning rates, those of the main paper with Table 1's among them,
MOLMA's around its own; MOLMA has its 100 iterations, the others stop early on their own validation gain. `gain` is what
MODRL chooses by: its regularised objective on dev.
"""

import csv
import io
from dataclasses import fields
from pathlib import Path

import torch

from dualppo.bench.candidates import STRESS
from dualppo.core.files import atomic_write
from dualppo.bench.env import make_envs
from dualppo.bench.features import load_features
from dualppo.methods.rows import configure, method, train_method

RATES = (3e-5, 1e-4, 3e-4)
FIELDS = {
    **dict.fromkeys(("sft", "dpo", "exact_gradient"), ("lr", RATES)),
    **dict.fromkeys(("so_ppo_bandit", "ppo_lag_bandit", "dual_ppo_bandit"), ("policy_lr", RATES)),
    "molma": ("lr", (1e-6, 3e-6, 1e-5)),
    **dict.fromkeys(("molma_strong", "molma_given", "modrl_ppo"), ("lr", (1e-5, 3e-5, 1e-4))),
}
BUDGET = {"epochs": 8, "patience": 3, "rivals": False}  # of the methods that have such a field
SHOWN = ("dev_help", "dev_p_harm", "dev_average_reward", "gain")


def main() -> None:
    torch.set_num_threads(1)
    splits = make_envs(load_features(), STRESS, seed=100)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["method", "learning_rate", "best_epoch", "epochs", *SHOWN])
    for name, (field, rates) in FIELDS.items():
        own = {f.name for f in fields(method(name).config)}
        for rate in rates:
            trained = train_method(
                configure(method(name), {k: v for k, v in BUDGET.items() if k in own} | {field: rate}), splits, seed=100
            )
            best = next(row for row in trained.curves if row["epoch"] == trained.best_epoch)
            shown = [f"{best[k]:.4f}" if k in best else "" for k in SHOWN]
            out.writerow([name, rate, trained.best_epoch, trained.curves[-1]["epoch"], *shown])
            print(text.getvalue().splitlines()[-1], flush=True)
    atomic_write(Path(__file__).resolve().parent.parent / "outputs" / "published" / "tuning.csv", text.getvalue())


if __name__ == "__main__":
    main()
