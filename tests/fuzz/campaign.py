"""Call readers and the command line with hostile input, and count: `python tests/fuzz/campaign.py --calls 5000`.

Half of the calls are readers of targets.py on mutated files, half whole commands with hostile arguments, up to where a
run would be trained. Counted are tracebacks, hangs (10 s of computing or two minutes of waiting), writes outside the
folder of the call, and calls that take the process above 4 GB. Prints the figures; ends with 1 if one is not 0.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import targets  # noqa: E402
from run import mutated  # noqa: E402
from toys import write_toy  # noqa: E402

from dualppo import cli  # noqa: E402
from dualppo.core.errors import DataError  # noqa: E402
from dualppo.writing import stored  # noqa: E402

COMPUTING, WAITING, BYTES = 10, 120, 4 << 30
COUNTED = ("tracebacks", "hangs", "writes outside", "calls above 4 GB")
LATE = (  # what a call imports when it needs it: minutes on a busy machine, which are no fault of the call
    "transformers", "sentence_transformers", "matplotlib.figure", "great_tables", "sklearn.linear_model",
    "sklearn.metrics", "sklearn.model_selection", "scipy.optimize", "scipy.stats", "h5py", "gymnasium", "torchjd",
    "rich.progress", "huggingface_hub", "pandas",
)  # fmt: skip
COMMANDS = (
    ("train", "METHOD", "--data", "FILE", "--outputs", "OUT", "--profile", "smoke", "--set", "SET"),
    ("train", "METHOD", "--setting", "WORD", "--seeds", "WORD", "--device", "WORD", "--data", "FILE"),
    ("tables", "--outputs", "OUT", "--profile", "WORD", "--against", "WORD"),
    ("report", "--outputs", "OUT", "--profile", "WORD"),
    ("rank", "FILE", "--query", "WORD", "--replies", "FILE", "--no-mask"),
    ("chat", "FILE", "--seed", "WORD", "--longest", "WORD"),
    ("show", "METHOD", "--data", "FILE", "--states", "WORD", "--epochs", "WORD", "--setting", "WORD"),
    ("show", "FILE", "--seed", "WORD"),
    ("data", "pairs", "FILE", "--encoder", "WORD"),
    ("data", "verify", "FILE"),
    ("data", "scores", "FILE", "FILE", "--out", "FILE"),
    ("data", "build", "FILE", "--out", "FILE", "--limit", "WORD"),
    ("study", "WORD", "--outputs", "OUT", "--data", "FILE", "--workers", "WORD"),
    ("reproduce", "--methods", "WORD", "--data", "FILE", "--outputs", "OUT", "--seeds", "WORD", "--workers", "WORD"),
    ("methods", "WORD"),
    ("WORD", "WORD", "WORD"),
)
WORDS = (
    "", "-", "--", "-1", "0", "1", "nan", "1e999", "9" * 400, "quick", "custom", "stress", "clean", "..", "../x", "/",
    "a/b", "é", "\udcff", "\n", "x\ty", "\x1b[31m", "<b>", "{x}", "$HOME", "`id`", "'; x", "--help=x", "similarity",
    "dual_ppo", "=", "n=18", "weights=[1,0]", "kappa=1e300", "env.x=1", "seeds=[", "cuda:9", "auto", "x" * 3000,
    "\u202e", "\ud800", "[" * 900,
)  # fmt: skip


class Hung(BaseException):
    "A call took longer than it may."


def ring(*_: object) -> None:
    raise Hung


def imported() -> None:
    """Import what is here of the optional libraries, before any call is timed."""
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def listing(folder: Path, but: Path) -> str:
    """A hash of every name, size and time below a folder, one part of it left out."""
    seen = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(place, name) != but)
        for name in sorted((*folders, *files)):
            state = os.lstat(Path(place, name))
            seen.append((place, name, state.st_size if name in files else 0, state.st_mtime_ns if name in files else 0))
    return hashlib.sha256(repr(seen).encode("utf-8", "surrogatepass")).hexdigest()


def argv_of(draw: random.Random, files: list[Path], outputs: Path) -> list[str]:
    """A command with hostile words in the places of its values, some left out, doubled or moved."""
    fill = {
        "METHOD": lambda: draw.choice(("random", "similarity", "sft", draw.choice(WORDS))),
        "FILE": lambda: draw.choice((str(draw.choice(files)), draw.choice(WORDS))),
        "OUT": lambda: draw.choice((str(outputs), str(outputs / "deep" / "x"), str(draw.choice(files)))),
        "SET": lambda: draw.choice(("epochs=1", draw.choice(WORDS))),
        "WORD": lambda: draw.choice(WORDS),
    }
    words = [fill[word]() if word in fill else word for word in draw.choice(COMMANDS)]
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = draw.randrange(len(words))
        words[at : at + 1] = draw.choice(([], words[at : at + 1] * 2, [draw.choice(WORDS)]))
    return [word.replace("\0", "") for word in words]


def command(draw: random.Random, files: list[Path], outputs: Path) -> None:
    """One command line in this process; it may end with a status, and may not train for long."""
    argv = argv_of(draw, files, outputs)
    sys.stdin = io.StringIO("what is tea\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err := io.StringIO()):
        try:
            status = cli.main(argv)
        except SystemExit as stop:
            status = stop.code or 0
    assert status in (0, 1, 2), (argv, status)
    assert "Traceback" not in err.getvalue(), (argv, err.getvalue()[-500:])


def without_training() -> None:
    """What takes long for a good reason is refused: runs that train, grids, a language model that is unpacked."""
    real, shown = cli.run_once, cli.train_method

    def few(run, *rest):
        if run.method not in ("random", "similarity"):
            raise DataError("it would be trained.")
        return real(run, *rest)

    def none(*_, **__):
        raise DataError("it would be run.")

    def untrained(row, *rest):
        if row.name not in ("random", "similarity"):
            raise DataError("it would be trained.")
        return shown(row, *rest)

    cli.run_once, cli.train_method, cli.run_grid, cli.run_workflow = few, untrained, none, none
    stored.BASES["smollm2"] = none, 1.0


def reader(draw: random.Random, corpus: dict[str, list[bytes]]) -> None:
    name = draw.choice(sorted(targets.TARGETS))
    targets.TARGETS[name](mutated(draw.choice(corpus[name]), draw))


def one(call, figures: Counter, findings: Path, number: int) -> None:
    """A call under the alarm, and what came of it."""
    signal.setitimer(signal.ITIMER_PROF, COMPUTING)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        call()
    except Hung:
        figures["hangs"] += 1
        (findings / f"hang-{number}").write_text(traceback.format_exc())
    except BaseException:
        figures["tracebacks"] += 1
        (findings / f"traceback-{number}").write_text(traceback.format_exc(), errors="replace")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--calls", type=int, default=5000)
    ask.add_argument("--first", type=int, default=0, help="the number of the first call: a finding's, to see it again")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    ask.add_argument("--figures", type=Path, help="write the figures here, too, as JSON")
    args = ask.parse_args()
    imported()
    args.findings.mkdir(parents=True, exist_ok=True)
    out = args.figures.resolve() if args.figures else None
    findings, world = args.findings.resolve(), Path(tempfile.mkdtemp(prefix="campaign-")).resolve()
    mine = world / "mine"  # the folder of the call; everything else in the world is a canary
    for name in ("beside", "mine"):
        (world / name).mkdir()
        (world / name / "kept.txt").write_text("a canary")
    toy, corpus = write_toy(world / "beside" / "toy.safetensors", dialogues=60, turns=2), targets.seeds()
    os.environ |= {"HOME": str(mine), "XDG_CACHE_HOME": str(mine / "cache"), "COLUMNS": "80"}
    os.chdir(mine)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, ring)
    without_training()
    before, figures, largest = listing(world, mine), Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(args.first, args.first + args.calls):
        draw = random.Random(f"{args.seed}/{number}")
        if number % 2:
            one(lambda draw=draw: reader(draw, corpus), figures, findings, number)
        else:
            name = draw.choice(sorted(corpus))
            spoilt = mine / draw.choice(("x.json", "x.safetensors", "x.csv", "-x", "é x.jsonl"))
            spoilt.write_bytes(mutated(draw.choice(corpus[name]), draw))
            files = [toy, spoilt, mine]
            one(lambda draw=draw, files=files: command(draw, files, mine / "out"), figures, findings, number)
        if (now := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > max(largest, BYTES >> 10):
            figures["calls above 4 GB"] += 1
        largest = max(largest, now)
        if number % 2 == 0 and listing(world, mine) != before:
            figures["writes outside"] += 1
            (findings / f"outside-{number}").write_text(repr(sorted(map(str, world.rglob("*")))), errors="replace")
            before = listing(world, mine)
        if number % 500 == 499:
            shutil.rmtree(mine / "out", ignore_errors=True)
            print(f"{number + 1} calls: {dict(figures)}", flush=True)
    os.chdir("/")
    shutil.rmtree(world, ignore_errors=True)
    for name in COUNTED:
        print(f"{name}: {figures[name]}")
    if out:
        counted = {"calls": args.calls, "seed": args.seed} | {name: figures[name] for name in COUNTED}
        out.write_text(json.dumps(counted | {"largest GB": round(largest / 1e6, 1)}, indent=1) + "\n")
    print(f"calls: {args.calls}, largest process {largest / 1e6:.1f} GB; findings in {findings}")
    return int(any(figures.values()))


if __name__ == "__main__":
    sys.exit(main())
