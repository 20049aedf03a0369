"""Kill grids at random moments and count what is lost: `python tests/fuzz/kills.py --kills 60`.

Three grids work on one folder at once; two of them get SIGKILL or SIGTERM at a random moment, and three new ones go on.
Prints the figures; ends with 1 if a finished run was lost or changed, something is left over, or a process outlived its
grid. Full and read-only disks are in tests/test_survival.py.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import test_survival as survival  # noqa: E402
from toys import write_toy  # noqa: E402

from dualppo.runs.key import canonical  # noqa: E402
from dualppo.runs.records import job_path, missing, read_record  # noqa: E402
from dualppo.runs.spec import grid  # noqa: E402


def lost(before: dict[Path, bytes], now: dict[Path, bytes]) -> int:
    """Finished records that are gone or changed."""
    return sum(now.get(path) != content for path, content in before.items())


def round_of(runs: list, outputs: Path, undisturbed: Path, pids: Path, dice: random.Random, most: int) -> Counter:
    """Three grids on one folder until all is done or `most` kills came; the figures."""
    figures, before = Counter(), {}
    while figures["kills"] < most:
        grids = [survival.begun(survival.stub_grid, runs, outputs, undisturbed, pids, None, 0.02) for _ in range(3)]
        time.sleep(dice.uniform(0.0, 0.8))
        for process in dice.sample(grids, 2):
            if process.is_alive():
                os.kill(process.pid, dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
                figures["kills"] += 1
        for process in grids:
            process.join()
        figures["in the middle"] += bool(survival.unfinished_files(outputs))
        now = survival.records(outputs) if (outputs / "runs").exists() else {}
        figures["finished runs lost"] += lost(before, now)
        figures["finished runs seen"] += len(now)
        before = now
        if not missing(runs, outputs):
            break
    survival.until(lambda: not any(survival.alive(int(p.name)) for p in pids.iterdir()))
    figures["orphans"] = sum(survival.alive(int(p.name)) for p in pids.iterdir())
    last = survival.PROCESSES.Process(target=survival.stub_grid, args=(runs, outputs, undisturbed, pids))
    last.start()
    last.join()
    for run in runs:
        theirs, ours = (read_record(job_path(place, run)) for place in (undisturbed, outputs))
        figures["records that differ"] += ours is None or canonical(ours) != canonical(theirs)
    figures["left over"] += len(survival.unfinished_files(outputs))
    return figures


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--kills", type=int, default=60)
    ask.add_argument("--seed", type=int, default=0)
    args = ask.parse_args()
    dice, figures, folder = random.Random(args.seed), Counter(), Path(tempfile.mkdtemp(prefix="kills-"))
    toy = write_toy(folder / "toy.safetensors", dialogues=440, turns=2)
    runs = [*grid("smoke", str(toy), methods=survival.METHODS, settings=("stress",)), survival.long_run(toy)]
    survival.work(runs, folder / "undisturbed")
    pids = folder / "pids"
    pids.mkdir()
    while figures["kills"] < args.kills:
        figures["rounds"] += 1
        outputs = folder / f"o{figures['rounds']}"
        figures += round_of(runs, outputs, folder / "undisturbed", pids, dice, args.kills - figures["kills"])
        shutil.rmtree(outputs, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("rounds", "kills", "in the middle", "finished runs seen", "finished runs lost", "records that differ"):
        print(f"{name}: {figures[name]}")
    print(f"orphans: {figures['orphans']}\nleft over: {figures['left over']}")
    return int(any(figures[name] for name in ("finished runs lost", "records that differ", "orphans", "left over")))


if __name__ == "__main__":
    sys.exit(main())
