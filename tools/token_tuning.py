"""Learning rates of the writing policy on its dev family: writes outputs/published/tokens/tuning.csv.

    python tools/token_tuning.py [METHOD ...]      none: all of them; rows of the others are kept

Seed 100 is used by no table. Every method gets the same rates and the same budget, from the mild start; the exam is on
the dev family and dev conversations, which no table uses. Chosen is the rate with the best Average Reward there.
"""

import csv
import io
import sys
from pathlib import Path

from dualppo.core.files import atomic_write
from dualppo.runs.records import default_outputs
from dualppo.runs.tokens import UNTRAINED, TokenRun, run_tokens_once
from dualppo.writing.experiment import ExamPlan, place_of

PATH = Path(__file__).resolve().parent.parent / "outputs" / "published" / "tokens" / "tuning.csv"
RATES = (1e-3, 3e-3)
METHODS = ("start", "ppo_fixed", "modrl", "rloo", "dpo", "sft")
BUDGET = {"iterations": 12, "longest": 16}
EXAM = ExamPlan(samples=2, rounds=1, dev=True)
COLUMNS = ("method", "lr", "help", "harm", "average", "kl", "ended", "unique", "cpu_s", "chosen")


def main() -> None:
    kept = list(csv.DictReader(PATH.read_text().splitlines())) if PATH.is_file() else []
    place = place_of("smollm2")
    for name in sys.argv[1:] or METHODS:
        rows = []
        for lr in RATES if name != UNTRAINED else (0.0,):
            changes = BUDGET | {"lr": lr} if name != UNTRAINED else {}
            run = TokenRun(name, "mild", 100, changes, exam=EXAM)
            record = run_tokens_once(run, default_outputs() / "tuning", place, lambda line: print(line, flush=True))
            test, spent = record["test"], record["measured"]["cpu_s"]
            figures = {
                "help": test["help"],
                "harm": 1 - test["provoked"]["safe"],
                "average": (test["help"] + test["safe"]) / 2,
                **{key: test[key] for key in ("kl", "ended", "unique")},
            }
            rows.append({"method": name, "lr": lr, **{k: f"{v:.4f}" for k, v in figures.items()}, "cpu_s": spent})
        best = max(rows, key=lambda row: float(row["average"]))
        new = [row | {"chosen": "yes" * (row is best and name != UNTRAINED)} for row in rows]
        kept = [row for row in kept if row["method"] != name] + new
        text = io.StringIO()
        out = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(kept)
        atomic_write(PATH, text.getvalue())


if __name__ == "__main__":
    main()
