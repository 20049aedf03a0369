"""Fuzz one reader for a while: `python tests/fuzz/run.py --reader archive --seconds 600`.

Coverage-guided where atheris is installed (`pip install atheris`: Linux, Python 3.11 and 3.12), else plain mutation of
the seeds. A finding ends the campaign with its traceback and leaves the input beside `--findings` as `crash-*`.
"""

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
warnings.simplefilter("ignore")


def mutated(content: bytes, draw: random.Random) -> bytes:
    "A few bytes changed, cut out, doubled or put in."
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(len(out) + 1)
        end = min(len(out), at + draw.choice((1, 1, 2, 8, 64)))
        kind = draw.randrange(4)
        if kind == 0:
            out[at:end] = draw.randbytes(end - at)
        elif kind == 1:
            del out[at:end]
        elif kind == 2:
            out[at:at] = out[at:end]
        else:
            out[at:end] = draw.choice(
                (b"\0", b"\xff" * 8, b'"', b"[", b"{", b"-1", b"1e999", b"null", b"\\ud800", b"../", b"\n")
            )
    return bytes(out)


def plainly(target, corpus: list[bytes], seconds: float, seed: int, findings: Path, runs: int | None = None) -> int:
    "Mutate without coverage; returns the number of executions."
    draw, end, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end and (runs is None or count < runs):
        content = corpus[count] if count < len(corpus) else mutated(draw.choice(corpus), draw)
        count += 1
        try:
            target(content)
        except BaseException:
            findings.mkdir(parents=True, exist_ok=True)
            path = findings / f"crash-{hashlib.sha256(content).hexdigest()[:16]}"
            path.write_bytes(content)
            print(f"finding after {count} executions: {path}", file=sys.stderr)
            raise
    return count


def guided(name: str, seconds: int, seed: int, findings: Path) -> None:
    "atheris over the target, our modules and the standard library's parsers instrumented; ends the process."
    import atheris

    with atheris.instrument_imports(
        include=["dualppo", "tarfile", "zipfile", "pickletools", "csv", "json"], enable_loader_override=False
    ):
        import targets
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, content in enumerate(targets.seeds()[name]):
        (corpus / str(number)).write_bytes(content)
    findings.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed + 1}",
        "-max_len=65536",
        "-timeout=20",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], targets.TARGETS[name])
    atheris.Fuzz()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument(
        "--reader", required=True, help="a name from TARGETS in tests/fuzz/targets.py: archive, dialogues, ..."
    )
    ask.add_argument("--seconds", type=int, default=60)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    ask.add_argument("--plain", action="store_true", help="no coverage, even where atheris is installed")
    args = ask.parse_args()
    if find_spec("atheris") and not args.plain:
        guided(args.reader, args.seconds, args.seed, args.findings)
    import targets

    count = plainly(targets.TARGETS[args.reader], targets.seeds()[args.reader], args.seconds, args.seed, args.findings)
    print(f"{args.reader}: {count} executions in {args.seconds} s, nothing found")


if __name__ == "__main__":
    main()
