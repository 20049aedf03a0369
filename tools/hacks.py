"""The exam of the judges: writes outputs/published/judge_hacks.csv.

Two parts, named in the first column: the test states of the embedded features (seed 0), and the tutorial dialogues,
whose texts need the encoder and the two harm estimators (the packages of requirements-carriers.lock).
"""

from pathlib import Path

import pandas as pd
import torch

from dualppo.core.files import atomic_write
from dualppo.text.exchanges import tutorial
from dualppo.text.encoders import MiniLM
from dualppo.bench.features import load_features
from dualppo.papers.hacks import embedded_exam, examine, tutorial_exam
from dualppo.text.harm import estimator


def main() -> None:
    torch.set_num_threads(1)
    live = tutorial_exam(tutorial(), MiniLM().encode, {name: estimator(name) for name in ("tox_block", "tcc")})
    exams = {"embedded": embedded_exam(load_features()), "tutorial": live}
    table = pd.concat([examine(exam).assign(data=name, honest=exam.honest) for name, exam in exams.items()])
    first = ["data", "judge", "reply", "states", "dialogues", "honest"]
    text = table[first + [c for c in table if c not in first]].to_csv(
        index=False, float_format="%.4f", lineterminator="\n"
    )
    atomic_write(Path(__file__).resolve().parent.parent / "outputs" / "published" / "judge_hacks.csv", text)


if __name__ == "__main__":
    main()
