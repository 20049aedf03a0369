"""Time and memory of every step from candidates to evaluation, 1,000 to 74,000 states with 100 candidates each.

Each size runs in a process of its own on synthetic features; `python benchmarks/scale.py` writes results/scale.json.
"""

import argparse
import json
import subprocess
import sys

import numpy as np
import torch
from machine import peak_mb, save, seconds
from torch.nn.functional import normalize

from dualppo.bench.candidates import CandidateSpec
from dualppo.bench.env import EnvConfig, make_envs
from dualppo.bench.features import REFERENCE, REFUSAL, UNSAFE, Features, Ragged
from dualppo.exact.front import front
from dualppo.exact.metrics import evaluate
from dualppo.exact.oracle import oracle_log_probs
from dualppo.policies.policy import all_log_probs
from dualppo.methods.ppo import PPO, PPOConfig

SIZES = (1000, 4000, 16000, 37000, 74000)  # training states
SPEC = CandidateSpec("synthetic", n=100, hard=20, unsafe=8, near=24)
RISKY, REFUSALS = 6000, 8


def synthetic_features(states: int, seed: int = 0) -> Features:
    """Features whose training split has about `states` states.

    Topics, dialogues of four exchanges, replies near their topic.
    """
    g, m = torch.Generator().manual_seed(seed), -(-states * 10 // 7 // 4) * 4
    dialogue = torch.arange(m) // 4
    topics = torch.randn(m // 20 + 1, 384, generator=g)

    def near(rows, spread):
        return normalize(topics[rows] + spread * torch.randn(len(rows), 384, generator=g), dim=1)

    topic = dialogue % len(topics)
    pool = torch.cat(
        [
            near(topic, 1.0),
            near(torch.randint(len(topics), (RISKY,), generator=g), 1.5),
            near(torch.zeros(REFUSALS).long(), 3.0),
        ]
    )
    kind = torch.cat([torch.full((m,), REFERENCE), torch.full((RISKY,), UNSAFE), torch.full((REFUSALS,), REFUSAL)])
    harm = torch.where(kind == UNSAFE, 0.5, 0.02) * torch.rand(len(pool), generator=g) * 2
    empty = Ragged(np.zeros(0, np.uint16), np.zeros(len(pool) + 1, np.int64))
    return Features(
        query=near(topic, 0.8),
        knowledge=near(topic, 0.8),
        dialogue=dialogue,
        turn=torch.arange(m) % 4,
        source=torch.zeros(m).long(),
        pool=pool,
        kind=kind,
        owner=torch.cat([torch.arange(m), torch.full((RISKY + REFUSALS,), -1)]),
        p_harm={"tox_block": harm, "tcc": harm.sqrt().clamp(max=1)},
        unsafe_label=kind == UNSAFE,
        tokens={"pool": empty},
        card={},
        sha256="synthetic",
    )


def measure(states: int) -> dict:
    """Seconds of each step at one size, and the peak memory when it was done."""
    torch.set_num_threads(1)
    kept, steps = {}, {}
    features = synthetic_features(states)

    def step(name: str, work) -> None:
        steps[name] = {"seconds": seconds(lambda: kept.__setitem__(name, work())), "peak_mb": peak_mb()}

    step("candidates and rewards", lambda: make_envs(features, SPEC, 0, EnvConfig(tau_rel=0.0)))
    train = kept["candidates and rewards"].train
    learner = PPO(kept["candidates and rewards"], PPOConfig(advantage="bandit", rule="fixed", inner_epochs=1), 0)
    step("training epoch (K = 1)", lambda: learner.improve(learner.sample()))
    step("oracle and exact front", lambda: (oracle_log_probs(train), front(train.p_harm, train.reward[..., 0])))
    step("evaluation", lambda: evaluate(all_log_probs(learner.policy, train), train))
    return {"states": len(train), "candidates": SPEC.n, "pool": len(features.pool), "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", type=int, help="measure one size in this process and print it")
    options = parser.parse_args()
    if options.one:
        return print(json.dumps(measure(options.one)))
    rows = []
    for size in options.sizes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(size)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    save("scale", {"rows": rows})


if __name__ == "__main__":
    main()
