"""Give published records the key of today's code, once, after running a seed of each again.

    python tools/rekey.py rerun          run the cheapest seed of every record again; goes on where it was
    python tools/rekey.py before TREE    run those that came out otherwise by the code of TREE, a checkout of 0.1.0
    python tools/rekey.py write          write the new keys, and rekey.csv, which says what was compared

A record is given its key if its seed came out again: all metrics on test within `WITHIN`, the same best epoch. Where it
did not, the machine is asked: if the code of 0.1.0 gives here exactly what today's code gives here, it is the processor
that differs from the one of the record, and not the code. The others keep their old key, so that the next
`dualppo reproduce` makes them anew; the csv names them too.
"""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from dualppo.bench.features import load_features
from dualppo.core.files import atomic_write
from dualppo.papers.studies import STUDIES
from dualppo.runs.execution import execute
from dualppo.runs.key import describe, to_json
from dualppo.runs.records import job_path, manifest, read_record
from dualppo.runs.spec import PROFILES, Run, grid

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "outputs" / "published"
WITHIN = 1e-4  # largest difference of a metric on test between machines: their kernels add in another order
FIELDS = (
    "record",
    "method",
    "setting",
    "seed",
    "largest difference on test",
    "best epoch",
    "published best epoch",
    "by 0.1.0 on this machine",
    "comes out again",
)
BEFORE = """
import json, sys
from dualppo.runner import Run, execute
fields = json.loads(sys.argv[1])
one = execute(Run(**fields | {"seeds": tuple(fields["seeds"])}))["results"][0]
print(json.dumps({"test": one["test"], "best_epoch": one["best_epoch"]}))
"""  # a run by the code of 0.1.0, whose modules had other names


def known() -> dict[Path, Run]:
    """Every run of a profile or a study that has a published record, by the path of the record."""
    runs = [run for profile in PROFILES if profile != "smoke" for run in grid(profile, device="cpu")]
    runs += [run for study in STUDIES.values() for run in study.runs(device="cpu").values()]
    places = {job_path(PUBLISHED, run): run for run in runs}
    return {path: run for path, run in places.items() if path.is_file()}


def cheapest(record: dict) -> int:
    """The seed of a record that took the least time."""
    return min(zip(record["measured"]["wall_clock_s"], record["seeds"]))[1]


def rerun(job: tuple[Path, Run, Path]) -> str:
    """Run the cheapest seed of a record again and keep its result; the path of the record."""
    path, run, kept = job
    record = read_record(path)
    seed = cheapest(record)
    result = execute(replace(run, seeds=(seed,)))["results"][0]
    atomic_write(kept, json.dumps({"seed": seed, "test": result["test"], "best_epoch": result["best_epoch"]}))
    return path.relative_to(PUBLISHED).as_posix()


def kept_at(folder: Path, path: Path, run: Run, data: str) -> Path:
    """Where the result of a rerun lies while this tool works; named by the key, so that it is never stale."""
    return (
        folder
        / f"{hashlib.sha256((str(path.relative_to(PUBLISHED)) + describe(run, data)['key']).encode()).hexdigest()}.json"
    )


def before_at(kept: Path) -> Path:
    """Where the result of the same seed by the code of 0.1.0 lies."""
    return kept.with_suffix(".before")


def farthest(ours: dict, theirs: dict) -> float:
    """The largest difference of a metric that both have."""
    return max(
        abs(ours[name] - value) for name, value in theirs.items() if value is not None and ours.get(name) is not None
    )


def before(job: tuple[Run, int, Path, Path]) -> str:
    """Run a seed by the code of another tree, and keep its result."""
    run, seed, tree, kept = job
    fields = {name: getattr(run, name) for name in ("method", "setting", "profile", "data", "device")}
    asked = json.dumps(fields | {"seeds": [seed], "overrides": dict(run.overrides)})
    command = [sys.executable, "-c", BEFORE, asked]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True)
    atomic_write(before_at(kept), done.stdout)
    return f"{run.profile} {run.setting} {run.method}"


def compared(folder: Path) -> Iterator[tuple[Path, Run, dict, dict]]:
    """(path, run, record, row of the csv) of every record whose seed was run again."""
    data = load_features().sha256
    for path, run in sorted(known().items()):
        kept = kept_at(folder, path, run, data)
        if not kept.is_file():
            continue
        record, again = read_record(path), json.loads(kept.read_text())
        then = next(one for one in record["results"] if one["seed"] == again["seed"])
        off = farthest(again["test"], then["test"])
        same = off <= WITHIN and again["best_epoch"] == then["best_epoch"]
        old = before_at(kept)
        alike = old.is_file() and farthest(json.loads(old.read_text())["test"], again["test"]) == 0.0
        values = (
            path.relative_to(PUBLISHED).as_posix(),
            record["method"],
            record["setting"],
            again["seed"],
            f"{off:.1e}",
            again["best_epoch"],
            then["best_epoch"],
            "not asked" if not old.is_file() else "the same" if alike else "another",
            "yes" if same or alike else "no",
        )
        yield path, run, record, dict(zip(FIELDS, values))


def with_facts(record: dict) -> list[dict]:
    """The results of a record, each seed with two facts: whether it kept its start, and whether it ended at the cap."""
    length = record["config"]["method"].get("epochs") or record["config"]["method"].get("iterations") or 0
    return [
        {"facts": {"kept_start": one["best_epoch"] == 0, "at_cap": 0 < length <= one["curves"][-1]["epoch"]}} | one
        for one in record["results"]
    ]


def write(folder: Path) -> None:
    """Write the keys and the csv."""
    data, rows = load_features().sha256, []
    for path, run, record, row in compared(folder):
        rows.append(row)
        if row["comes out again"] == "yes":
            described = describe(run, data)
            measured = record["measured"] | {"key_before": record["measured"].get("key_before", record["key"])}
            record = record | described | {"results": with_facts(record), "measured": measured}
            atomic_write(path, to_json(record))
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(PUBLISHED / "rekey.csv", text.getvalue())
    atomic_write(PUBLISHED / "manifest.json", to_json(manifest(PUBLISHED)))
    print(f"{len(rows)} records compared, {sum(row['new key'] == 'yes' for row in rows)} with a new key")


def main() -> None:
    """The command line."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = ROOT / "outputs" / "local" / "rekey"
    if sys.argv[1:] == ["rerun"]:
        data = load_features().sha256
        jobs = [(path, run, kept_at(folder, path, run, data)) for path, run in known().items()]
        todo = sorted(
            (job for job in jobs if not job[2].is_file()),
            key=lambda job: min(read_record(job[0])["measured"]["wall_clock_s"]),
        )
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{len(jobs)} records, {len(todo)} to run", flush=True)
        with ProcessPoolExecutor(2) as pool:
            for i, name in enumerate(pool.map(rerun, todo), 1):
                print(f"{i}/{len(todo)} {name}", flush=True)
    elif sys.argv[1:2] == ["before"] and len(sys.argv) == 3:
        data, tree = load_features().sha256, Path(sys.argv[2]).resolve()
        others = [
            (run, row["seed"], tree, kept)
            for path, run, _, row in compared(folder)
            if row["comes out again"] == "no" and not before_at(kept := kept_at(folder, path, run, data)).is_file()
        ]
        with ProcessPoolExecutor(2) as pool:
            for i, name in enumerate(pool.map(before, others), 1):
                print(f"{i}/{len(others)} {name}", flush=True)
    elif sys.argv[1:] == ["write"]:
        write(folder)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
