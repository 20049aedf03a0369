"""Processor seconds and memory of the open setting: every reply of the shipped features is a candidate.

A pass of each arm over some training states, a look at some of dev, the grading of some of test, on one thread; each
arm in a process of its own. `python benchmarks/open_setting.py` writes results/open_setting.json.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace

import torch
from machine import peak_mb, save

from dualppo.bench.env import EnvConfig, Seen
from dualppo.bench.features import load_features
from dualppo.bench.open import OPEN, make_open
from dualppo.methods.open import OpenProgress, open_learner
from dualppo.methods.rows import method
from dualppo.papers.studies import OPEN_ARMS
from dualppo.runs.open_bench import masses, values_of

STATES, FEW = 512, 128  # of a pass (the largest mini-batch); of a look and a grading: times are linear in them


def cpu(work) -> tuple[object, float]:
    """The result of a call, and the processor time it took."""
    clock = time.process_time()
    return work(), time.process_time() - clock


def measure(arm: str) -> dict:
    """Figures of one arm."""
    torch.set_num_threads(1)
    name, changes = OPEN_ARMS[arm]
    splits, make_s = cpu(lambda: make_open(load_features(), OPEN, 0, EnvConfig()))
    some, few, seen = torch.arange(STATES), torch.arange(FEW), splits.seen()
    config = replace(method(name).config, **changes)
    # dev is short where an arm trains another one first; its time is not the arm's own pass
    part = Seen(seen.train.take(some), seen.dev_weights, seen.dev_stop.take(few[:64]))
    learner = open_learner(config)(part, replace(config, epochs=1), 0)
    once = getattr(learner, "reweigh", None)  # what an epoch costs whatever the number of states
    _, pass_s = cpu((lambda: learner.improve(learner.sample())) if once else learner.step)
    _, once_s = cpu(once) if once else (None, 0.0)
    out = {"make_s": make_s, "pass_s": pass_s, "once_s": once_s, "pass_mb": peak_mb()}
    _, look_s = cpu(lambda: OpenProgress(learner, seen.dev_stop.take(few)))
    test = splits.test.take(few)
    _, grade_s = cpu(lambda: values_of(learner.policy, test))
    _, cheap_s = cpu(lambda: (values_of(learner.policy, test.unjudged()), masses(learner.policy, test.unjudged())))
    sizes = {fold: len(getattr(splits, fold)) for fold in ("train", "dev_weights", "dev_stop", "test")}
    out |= {"look_s": look_s, "grade_s": grade_s, "unjudged_s": cheap_s, "peak_mb": peak_mb()}
    return out | {
        "states": STATES,
        "few": FEW,
        "sizes": sizes,
        "replies": len(test.pool),
        "parameters": learner.parameters,
    }


def main() -> None:
    """All arms, one after the other."""
    rows = {}
    for arm in OPEN_ARMS:
        done = subprocess.run([sys.executable, __file__, arm], check=True, capture_output=True, text=True)
        rows[arm] = json.loads(done.stdout.splitlines()[-1])
        print(arm, rows[arm], flush=True)
    save("open_setting", {"rows": rows})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
