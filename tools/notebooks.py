"""Test notebooks: `python tools/notebooks.py [--workers N] [NOTEBOOK ...]`; without names all but those of nbs/papers.

nbdev's `test_nb`, each in a process of its own, as a reader has it: `nbdev-test` runs several in one, where a notebook
meets what another has registered and patched. Heavy libraries are imported once; every process is a copy of that one.
Those of nbs/papers show records; tests/test_shown.py executes them and compares what they show.
"""

import argparse
import multiprocessing
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401
from nbdev.config import get_config
from nbdev.test import test_nb

ROOT = Path(__file__).resolve().parent.parent
LONG = ("07a_open", "23_open", "2b_ppo_max", "41e_parallel", "56c_ppo_max", "5f_trl", "5g_constitution")  # a quarter
TEACHING = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if p.parent.name != "papers"]


def tested(notebooks: list[Path]) -> list[Path]:
    "Those that are run: not in a folder with a `.notest`, as the templates of papermill have it, and no checkpoints."
    return [p for p in notebooks if not (p.parent / ".notest").is_file() and ".ipynb_checkpoints" not in p.parts]


def test(notebook: Path, skipped: list[str]) -> None:
    "Ends the process, with 1 where a cell failed; what failed is printed."
    ran, _ = test_nb(notebook.resolve(), skip_flags=skipped, basepath=ROOT)
    sys.exit(not ran)


def run(notebooks: list[Path], workers: int, skipped: list[str]) -> dict[Path, tuple[bool, float]]:
    "Whether each ran, and its seconds. Not a pool: its workers may have no processes of their own, and grids do."
    fork, waiting, running, done = multiprocessing.get_context("fork"), notebooks[::-1], {}, {}
    while waiting or running:
        while waiting and len(running) < workers:
            path = waiting.pop()
            process = fork.Process(target=test, args=(path, skipped))
            process.start()
            running[process.sentinel] = path, process, time.monotonic()
        for ended in wait(list(running)):
            path, process, start = running.pop(ended)
            process.join()
            done[path] = process.exitcode == 0, time.monotonic() - start
    return done


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--workers", type=int, default=3)
    ask.add_argument("--which", choices=("quick", "long", "all"), default="all", help="of those without names")
    ask.add_argument("--timing", action="store_true", help="print the seconds of each, the slowest first")
    ask.add_argument("notebooks", nargs="*", type=Path)
    given = ask.parse_args()
    wanted = [p for p in TEACHING if given.which == "all" or (p.stem in LONG) is (given.which == "long")]
    notebooks = tested(given.notebooks or wanted)
    done = run(notebooks, given.workers, list(get_config(ROOT).tst_flags))
    if given.timing:
        for path, (_, seconds) in sorted(done.items(), key=lambda one: -one[1][1]):
            print(f"{seconds:6.1f} s  {path}")
    failed = [path for path, (ran, _) in done.items() if not ran]
    print(f"{len(notebooks) - len(failed)} notebooks ran." + "".join(f"\nFailed: {name}" for name in failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
