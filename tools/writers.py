"""The writing policies that come with the package: the mild start, and what was trained from it.

    python tools/writers.py mild              train the mild start anew into dualppo/assets/writers/mild.safetensors
    python tools/writers.py gate              outputs/published/tokens/gate.csv, from which the gate τ_rel was read
    python tools/writers.py publish OUTPUTS   copy records, write tables, store the headline arms' policies of seed 0
"""

import shutil
import sys
import time
from pathlib import Path

import torch

from dualppo.core.files import atomic_write
from dualppo.papers.token_plan import token_plan
from dualppo.papers.token_tables import write_token_tables
from dualppo.runs.tokens import read_token_record
from dualppo.text.encoders import MiniLM
from dualppo.writing.starts import gate_table, smollm2_place, start_adapter, taught_start
from dualppo.writing.stored import save_writer, writer_asset

PUBLISHED = Path(__file__).resolve().parent.parent / "outputs" / "published"
GATE = PUBLISHED / "tokens" / "gate.csv"
GRID = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def mild() -> None:
    def say(row: dict) -> None:
        print(row["iteration"], f"{row['loss']:.3f}", f"{time.process_time():.0f} s", flush=True)

    policy = taught_start(smollm2_place(0.0), "mild", say)
    save_writer(policy, writer_asset("mild"), "smollm2", "chit-chat in short replies that end: where training begins")


def gate() -> None:
    place = smollm2_place(0.0)
    policy = place.policy(start_adapter(place, "mild"), shared=False)
    lines = ["prompts,tau,own,other"]
    for name, kind in (("chat", False), ("provocations", True)):
        for row in gate_table(policy, [p for p in place.task.dev if p.provokes == kind], MiniLM().encode, GRID):
            lines.append(f"{name},{row['tau']},{row['own']:.4f},{row['other']:.4f}")
    atomic_write(GATE, "\n".join(lines) + "\n")


def publish(outputs: Path) -> None:
    """What runs left: records and tables, and the policies of seed 0 of the headline arms from the mild start."""
    for path in sorted(outputs.glob("tokens/*/*.json")):
        if read_token_record(path):
            target = PUBLISHED / path.relative_to(outputs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    write_token_tables(PUBLISHED, PUBLISHED)
    for arm in token_plan().arms:
        policy = outputs / "tokens" / "mild" / f"{arm.name}.seed0.policy.safetensors"
        if arm.seeds.get("mild", 0) >= 5 and policy.is_file():
            shutil.copy(policy, writer_asset(arm.name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"mild": mild, "gate": gate, "publish": lambda: publish(Path(sys.argv[2]))}[sys.argv[1]]()
