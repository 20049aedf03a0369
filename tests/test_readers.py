"""Whatever lies at a path that is to be read: nothing hangs, nothing is read forever, one sentence says what it is.

The first test reads the package's source, so that a new reader is covered without a new test.
"""

import ast
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_hostile import refusal
from test_tables import record, store

from dualppo import cli
from dualppo.bench import build, features, judges, reward_models
from dualppo.core import files, tensors
from dualppo.papers import ambiguities
from dualppo.policies import stored
from dualppo.runs import records
from dualppo.show import report
from dualppo.text import download, encoders, exchanges, harm

PACKAGE = Path(cli.__file__).parent

# ---- the source: one way to open a file for reading

OPENERS = {  # what opens a file that is named, whatever it is called on
    "open", "read_text", "read_bytes", "read_csv", "read_table", "read_json", "read_excel", "read_parquet",
    "ZipFile", "is_zipfile", "is_tarfile", "safe_open", "load_file", "fromfile", "loadtxt", "genfromtxt", "memmap",
    "imread", "File", "fdopen", "unpack_archive", "from_pretrained",
}  # fmt: skip
LOADERS = {"torch.load", "np.load", "json.load", "tomllib.load", "pickle.load", "joblib.load", "yaml.safe_load"}
OURS = {"read_text", "read_bytes", "open_regular", "read_tensors", "load_json"}  # called by name, not as methods
ALLOWED = {  # where another way is right, and why
    ("core/files.py", "open"): "open_regular itself",
    ("core/files.py", "fdopen"): "open_regular itself",
    ("methods/rows.py", "read_text"): "a file of the package",
    ("writing/hf.py", "from_pretrained"): "a folder of local safetensors that the user names",
    ("writing/smollm.py", "from_pretrained"): "a folder unpacked from a verified package",
    ("cli.py", "open"): "/dev/null in place of a pipe that nobody reads",
    ("core/locks.py", "open"): "lock files, never read",
    ("runs/jobs.py", "open"): "lock files, never read; the log of a process in a new folder, to be written",
    ("text/download.py", "open"): "written, in folders of our own; tarfile.open gets a stream of open_regular",
    ("text/harm.py", "open"): "a member of an archive that open_regular opened",
    ("text/harm.py", "ZipFile"): "gets a file of open_regular",
    ("text/harm.py", "File"): "HDF5 from bytes",
    ("text/harm.py", "torch.load"): "from bytes, weights only",
    ("text/harm.py", "from_pretrained"): "config.json and tokenizer of a checkpoint that the user names",
    ("text/encoders.py", "from_pretrained"): "a folder whose files were all read and hashed before",
    ("show/report.py", "read_csv"): "from a text in memory",
    ("vision/efficientnet.py", "torch.load"): "from bytes of a verified package, weights only",
    ("vision/images.py", "open"): "PIL.Image.open, from bytes",
}  # fmt: skip


def openings(source: str) -> Iterator[str]:
    """The names of calls in a source that open a file by its name, by any function but ours."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            if node.func.id in OPENERS - OURS:
                yield node.func.id
        elif isinstance(node.func, ast.Attribute):
            dotted = ast.unparse(node.func)
            if dotted in LOADERS:
                yield dotted
            elif node.func.attr in OPENERS:
                yield node.func.attr


def test_files_are_opened_in_one_way_only():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for name in openings(path.read_text(encoding="utf-8")):
            found.setdefault((place, name), 0)
    assert not (more := set(found) - set(ALLOWED)), f"use core.files.open_regular (or read_text, read_bytes): {more}"
    assert not (gone := set(ALLOWED) - set(found)), f"allowed, but not there any more: {gone}"


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open()",
        "Path(path).read_text()",
        "path.read_bytes()",
        "pd.read_csv(path)",
        "json.load(file)",
        "zipfile.ZipFile(path)",
        "tarfile.open(path)",
        "safetensors.safe_open(path)",
        "safe_open(path)",
        "safetensors.torch.load_file(path)",
        "np.load(path)",
        "torch.load(path)",
        "h5py.File(path)",
        "gzip.open(path)",
        "os.open(path, 0)",
        "AutoModel.from_pretrained(path)",
    ],
)
def test_another_opener_would_be_seen(line):
    assert list(openings(line))
    assert not list(openings("read_text(path); read_bytes(path); open_regular(path)"))


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x/\udfff\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name):
    assert "no path holds" in refusal(lambda: files.read_text(name))


# ---- whatever lies there


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def sparse(path: Path) -> None:
    """One byte more than any reader takes that reads a file whole."""
    with path.open("wb") as file:
        file.truncate(files.LARGEST_FILE + 1)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def unreadable_name(path: Path) -> None:
    (path.parent / "loop").symlink_to("loop")
    path.symlink_to("loop")


ODD = [fifo, device, folder, sparse, dangling, unreadable_name]
ABSENT = [dangling, unreadable_name]  # for who would make the file


@contextlib.contextmanager
def no_waiting(seconds: int = 300) -> Iterator[None]:
    """A call that hangs ends in an error, not the whole suite."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def asset(read: Callable[[Path], object], stem: str) -> Callable[[Path], object]:
    """A reader of NAME.safetensors beside NAME.json, of which the first is odd."""

    def of(path: Path) -> object:
        (path.parent / f"{stem}.json").write_text("{}")
        path.rename(path.parent / f"{stem}.safetensors")
        return read(path.parent)

    return of


READERS: dict[str, Callable[[Path], object]] = {
    "text": files.read_text,
    "bytes": files.read_bytes,
    "json": files.load_json,
    "table": lambda p: files.table_rows(p, ("text",)),
    "json rows": lambda p: files.json_rows(p, ("text",)),
    "tensors": tensors.read_tensors,
    "pairs": exchanges.read_pairs,
    "official": exchanges.read_official,
    "tutorial": exchanges.read_tutorial,
    "own": exchanges.read_own,
    "messages": exchanges.read_messages,
    "own csv": lambda p: exchanges.read_own(p.rename(p.with_suffix(".csv"))),
    "own jsonl": lambda p: exchanges.read_own(p.rename(p.with_suffix(".jsonl"))),
    "chitchat": lambda p: exchanges.read_chitchat(path=p),
    "jigsaw": build.read_jigsaw,
    "diasafety": build.read_diasafety,
    "bad": build.read_bad,
    "begin": lambda p: (p.rename(p.with_name(judges.BEGIN_FILES[0])), judges.read_begin(p.parent)),
    "archive": lambda p: download.extract_safely(p, p.parent / "out"),
    "wheel": lambda p: harm._from_archive(p, "x/y"),
    "carrier": lambda p: harm._from_archive(p.rename(p.with_suffix(".gz")), "x/y"),
    "checkpoint of Detoxify": harm.read_checkpoint,
    "asset": asset(lambda at: harm.read_asset("judge", at), "judge"),
    "reward model pairs": asset(reward_models.load_pairs, "pairs"),
    "features": features.load_features,
    "verify": features.verify,
    "policy": stored.load_policy,
    "cache of embeddings": lambda p: encoders._load_cache(p, 384),
    "frame of a report": report.read_frame,
    "ambiguities": ambiguities.load_ambiguities,
    "sha256": files.sha256_of,
    "tail": files.tail,
}


@pytest.mark.parametrize(
    "name, lay",
    [(name, lay) for name in READERS for lay in ODD if name != "cache of embeddings" or lay not in ABSENT],
)
def test_no_reader_takes_what_is_no_file(name, lay, tmp_path):
    lay(path := tmp_path / "x.whl")
    with no_waiting():
        refusal(lambda: READERS[name](path))


@pytest.mark.parametrize("lay", ODD)
def test_what_may_be_missing_is_taken_for_missing(lay, tmp_path):
    """Checkpoints and records: what cannot be read is made anew."""
    lay(path := tmp_path / "x.json")
    with no_waiting():
        assert files.read_sealed(path) is None and records.read_record(path) is None
        (tmp_path / "runs" / "quick" / "clean").mkdir(parents=True)
        lay(tmp_path / "runs" / "quick" / "clean" / "sft.json")
        assert records.manifest(tmp_path)["runs"] == []


COMMANDS = {
    "verify": ("data", "verify", "{path}.safetensors"),
    "build": ("data", "build", "{path}.json", "--out", "{folder}/out.safetensors"),
    "train": ("train", "sft", "--data", "{path}.safetensors", "--outputs", "{folder}/out"),
    "train on dialogues": ("train", "sft", "--data", "{path}.json", "--outputs", "{folder}/out"),
    "reproduce": ("reproduce", "--data", "{path}.safetensors", "--outputs", "{folder}/out"),
    "study": ("study", "weights", "--data", "{path}.safetensors", "--outputs", "{folder}/out"),
    "rank": ("rank", "{path}.safetensors", "--query", "a", "--replies", "{folder}/replies", "--no-mask"),
    "rank replies": ("rank", "{folder}/none", "--query", "a", "--replies", "{path}.txt", "--no-mask"),
}


@pytest.mark.parametrize("lay", [fifo, device, folder, sparse])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_what_is_no_file(command, lay, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DUALPPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "replies").write_text("a\nb\n")
    for ending in (".safetensors", ".json", ".txt"):
        lay(tmp_path / f"x{ending}")
    words = [word.format(path=tmp_path / "x", folder=tmp_path) for word in COMMANDS[command]]
    with no_waiting():
        assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("dualppo: ") and said.count("\n") == 1
    assert not list(tmp_path.glob("out*/runs")) and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("lay", [fifo, device, sparse])
def test_a_report_names_what_is_no_picture(lay, tmp_path, capsys):
    store(tmp_path, [record(name, "clean") for name in ("random", "similarity")])
    (tmp_path / "figures").mkdir()
    lay(tmp_path / "figures" / "x.png")
    with no_waiting():
        assert cli.main(["report", "--outputs", str(tmp_path), "--profile", "quick"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dualppo: ") and said.count("\n") == 1 and "x.png" in said
