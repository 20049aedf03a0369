"""Learning rates on dev, the same budget for every method of a kind: writes tuning.csv and the package's rates.toml.

    python tools/tuning.py [METHOD ...]        none: all of them; rows of the others are kept

Seed 100 is used by no table. What of the board is not tuned here says in its row whose rate it takes.
Each method is given rates on its own scale, half a decade apart, from both starts where
it has a choice; while the best by its own validation gain is the smallest or the largest, the next one is tried, so
that the optimum lies inside, or the row says `edge` where `MOST` rates did not suffice. All rates of a method have the
same budget; MOLMA's methods have their iterations, the others stop early.
"""

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import torch

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import Splits, make_envs
from dualppo.bench.features import load_features
from dualppo.core.files import atomic_write
from dualppo.methods.base import Progress, Trained, learner_of, to_the_end
from dualppo.methods.rows import Method, configure, method

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "outputs" / "published" / "tuning.csv"
CHOSEN = ROOT / "dualppo" / "assets" / "rates.toml"
RATES = (3e-5, 1e-4, 3e-4)
FIELDS = {
    **dict.fromkeys(("sft", "sft_inside", "dpo", "dpo_inside", "exact_gradient"), ("lr", RATES)),
    **dict.fromkeys(("so_ppo_bandit", "ppo_lag_bandit", "dual_ppo_bandit"), ("policy_lr", RATES)),
    "molma": ("lr", (1e-6, 3e-6, 1e-5)),
    **dict.fromkeys(("molma_strong", "molma_given", "modrl_ppo"), ("lr", (1e-5, 3e-5, 1e-4))),
    **dict.fromkeys(("cdpo", "ipo_identity", "ipo_implicit", "kto", "modpo", "mm_dpo", "dpo_noisy"), ("lr", RATES)),
    **dict.fromkeys(("a_lol", "a_lol_ref_free", "a_lol_kl", "r_lol", "wbc", "r_gold"), ("lr", (3e-6, 1e-5, 3e-5))),
    **dict.fromkeys(("reinforce", "rloo", "grpo", "gdpo"), ("lr", RATES)),
    **dict.fromkeys(("reward_shaping", "crpo", "rloo_lagrangian"), ("lr", RATES)),
    **dict.fromkeys(("instruct_ppo", "ppo_max", "ppo_one_reward"), ("policy_lr", RATES)),
}
# of the methods that have such a field: as many updates as seven and a half passes over all dialogues, looked at often
BUDGET = {"epochs": 30, "patience": 8, "dialogues_per_epoch": 340, "rivals": False}
MOST = 8  # rates of a method from one start
SHOWN = ("dev_help", "dev_p_harm", "dev_average_reward")
COLUMNS = ("method", "start", "learning_rate", "best_epoch", "epochs", *SHOWN, "gain", "chosen")


def beside(rate: float, step: int) -> float:
    """The next rate of 1, 3, 10, 30 … above (step 1) or below (−1)."""
    at = round(2 * math.log10(rate)) + step
    return float(f"{10 ** (at / 2):.0e}") if at % 2 == 0 else float(f"3e{(at - 1) // 2}")


def widened(rates: tuple[float, ...], gain: Callable[[float], float], most: int = MOST) -> dict[float, float]:
    """Rate → gain of the given rates, and of further ones as long as the best is the smallest or the largest."""
    found = {rate: gain(rate) for rate in rates}
    while len(found) < most:
        best = max(found, key=found.__getitem__)
        if min(found) < best < max(found):
            break
        rate = beside(best, -1 if best == min(found) else 1)
        found[rate] = gain(rate)
    return found


def run(row: Method, splits: Splits) -> tuple[Trained, float]:
    """A row trained with seed 100, and what its own early stopping watches, of the epoch it chose."""
    progress = Progress(learner_of(row.config)(splits.seen(), row.config, 100), splits.dev_stop)
    trained = to_the_end(progress, None, None, "")
    return trained, progress.learner.gain(progress.best)


def tuned(name: str, start: str, splits: Splits, given: dict[str, object]) -> Iterator[dict[str, object]]:
    """The rows of a method from one start; the best rate is `chosen`, unless it lies at the edge.

    given: fields of its configuration that were chosen before.
    """
    field, rates = FIELDS[name]
    own, runs = {f.name for f in fields(method(name).config)}, dict[float, Trained]()
    base = configure(method(name).begun(start), {k: v for k, v in (BUDGET | given).items() if k in own})

    def gain(rate: float) -> float:
        row = configure(base, {field: rate})
        runs[rate], found = run(row, splits)
        print(name, start, rate, found, flush=True)
        return found

    gains = widened(rates, gain)
    best = max(gains, key=gains.__getitem__)
    for rate in sorted(gains):
        trained = runs[rate]
        shown = next(one for one in trained.curves if one["epoch"] == trained.best_epoch)
        said = "" if rate != best else "yes" if min(gains) < best < max(gains) else "edge"
        yield (
            dict(zip(COLUMNS, (name, start, rate, trained.best_epoch, trained.curves[-1]["epoch"])))
            | {key: f"{shown[key]:.4f}" for key in SHOWN}
            | {"gain": f"{gains[rate]:.4f}", "chosen": said}
        )


def reference(rows: dict[str, list[dict]], name: str, start: str) -> dict[str, object]:
    """The rate of the SFT that a method begins with, as it was chosen."""
    if "sft_lr" not in {f.name for f in fields(method(name).config)}:
        return {}
    begins = "sft_inside" if name == "dpo_inside" else "sft"
    sft = [row for row in rows.get(begins, []) if row.get("start") == start and row["chosen"]]
    return {"sft_lr": float(sft[0]["learning_rate"])} if sft else {}


def rates_text(rows: list[dict]) -> str:
    """rates.toml: the chosen rate of every method of seed 000 from each start; none where it lies at the edge."""
    out = ["# Written by tools/tuning.py: learning rates chosen on dev, seed 100, method by method and start by start."]
    out.append("# A method that is not here keeps the rate of its configuration.")
    chosen = [row for row in rows if row["chosen"] == "yes" and "molma" not in method(row["method"]).tables]
    for name in dict.fromkeys(row["method"] for row in chosen):
        own = sorted((row["start"], float(row["learning_rate"])) for row in chosen if row["method"] == name)
        out += ["", f"[{name}]", *(f"{start} = {rate!r}" for start, rate in own)]
    return "\n".join(out) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(FIELDS)
    kept = list(csv.DictReader(PATH.read_text().splitlines())) if PATH.is_file() else []
    rows = {name: [row for row in kept if row["method"] == name] for name in FIELDS}
    splits = make_envs(load_features(), STRESS, seed=100)
    for name in names:
        starts = method(name).starts if "molma" not in method(name).tables else ("similarity",)
        rows[name] = [row for start in starts for row in tuned(name, start, splits, reference(rows, name, start))]
        text = io.StringIO()
        out = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
        out.writeheader()
        out.writerows(row for group in rows.values() for row in group)
        atomic_write(PATH, text.getvalue())
        atomic_write(CHOSEN, rates_text([row for group in rows.values() for row in group]))


if __name__ == "__main__":
    main()
