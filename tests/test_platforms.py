"""Other machines: no home, no name, a read-only home, odd paths, plain terminals; Windows, and a clone's parent.

Each row is asked through the real command line, in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toys import write_toy

from dualppo.runs import parallel
from dualppo.runs.records import read_record

pytestmark = pytest.mark.ci

ROOT = Path(__file__).resolve().parent.parent
CALL = "import json, sys; from dualppo.cli import main; sys.exit(max(main(argv) for argv in json.loads(sys.argv[1])))"


def commands(toy: Path, outputs: str) -> list[list[str]]:
    """Everything a first hour tries: `=` keeps a path that begins with a dash a value."""
    where = f"--outputs={outputs}"
    return [
        ["methods"],
        ["data", "verify", str(toy)],
        ["train", "random", "--setting", "clean", "--profile", "smoke", "--seeds", "2", "--data", str(toy), where],
        ["reproduce", "--profile", "smoke", "--methods", "random", "--settings", "clean", "--data", str(toy), where]
        + ["--no-notebooks", "--workers", "1"],
        ["tables", "--profile", "custom", where],
        ["report", "--profile", "custom", where],
    ]


def call(
    argvs: list[list[str]], cwd: Path, environment: dict[str, str], before: str = ""
) -> subprocess.CompletedProcess:
    text = json.dumps(argvs)
    kept = {k: v for k, v in parallel.child_environment().items() if k not in ("HOME", "LC_ALL", "LANG", "COLUMNS")}
    kept |= {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", before + CALL, text], cwd=cwd, env=kept, capture_output=True)


def in_order(done: subprocess.CompletedProcess, outputs: Path) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == 0 and b"Traceback" not in said, said.decode(errors="replace")[-3000:]
    found = list((outputs / "runs").glob("*/*/*.json"))
    assert len(found) == 2 and all(map(read_record, found)) and (outputs / "report.html").is_file()
    assert list((outputs / "tables").rglob("*.csv"))


ROWS: dict[str, tuple[dict[str, str], str]] = {  # what the machine lacks, and what its folder is called
    "no HOME": ({}, "with a space"),
    "a home that is read-only": ({"HOME": "/proc"}, "-é 漢"),
    "a home that is a file": ({"HOME": "/dev/null"}, "new\nline"),
    "LC_ALL=C": ({"LC_ALL": "C", "HOME": "/tmp"}, "-"),
    "ASCII to the letter": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/tmp"}, "\udcff"),
    "a dumb terminal of 40 columns": ({"TERM": "dumb", "COLUMNS": "40", "HOME": "/tmp"}, "it's $HOME `id` {x} %s"),
}

QUICK = ("ASCII to the letter",)


@pytest.mark.parametrize(
    "row", [*QUICK, *(pytest.param(row, marks=pytest.mark.slow) for row in ROWS if row not in QUICK)]
)
def test_a_machine_that_lacks_something_and_a_folder_of_any_name(toy, tmp_path, row):
    environment, name = ROWS[row]
    (tmp_path / "work").mkdir()
    in_order(call(commands(toy, name), tmp_path / "work", environment), tmp_path / "work" / name)
    assert os.listdir(os.fsencode(tmp_path / "work")) == [os.fsencode(name)], "something lies elsewhere"


@pytest.mark.slow
def test_the_data_and_the_current_folder_of_any_name(tmp_path):
    folder = tmp_path / "-é\nfolder"
    folder.mkdir()
    toy = write_toy(folder / "-my data é.safetensors", dialogues=440, turns=2)
    in_order(call(commands(toy, "out"), folder, {"HOME": "/tmp"}), folder / "out")


@pytest.mark.slow
def test_a_user_without_a_name_and_a_home(toy, tmp_path):
    """As in a container that is given any uid: the system knows no entry for it."""
    nameless = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n"
    in_order(call(commands(toy, "out"), tmp_path, {}, nameless), tmp_path / "out")


@pytest.mark.slow
def test_notebooks_in_a_folder_whose_name_begins_like_an_option(toy, tmp_path):
    name = "-k é\n{x} 'q'"
    argv = ["reproduce", "--profile", "smoke", "--methods", "random", "--settings", "clean", "--workers", "1"]
    done = call([[*argv, "--data", str(toy), f"--outputs={name}"]], tmp_path, {"HOME": "/tmp"})
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-2000:]
    (notebook,) = (tmp_path / name / "notebooks").rglob("*.ipynb")
    assert "Table 1" in notebook.read_text(encoding="utf-8") and os.listdir(tmp_path) == [name]


def test_notebooks_in_a_folder_that_is_no_text_are_refused(toy, tmp_path):
    argv = ["reproduce", "--profile", "smoke", "--methods", "random", "--data", str(toy), "--outputs=\udcff"]
    done = call([argv], tmp_path, {"HOME": "/tmp"})
    said = done.stderr.decode()
    assert done.returncode == 2 and "--no-notebooks" in said and said.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_windows_is_refused_in_a_sentence():
    code = "import sys\nsys.platform = 'win32'\ntry: import dualppo\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert "WSL" in done.stdout and done.stdout.count("\n") == 1 and not done.stderr


def test_the_readme_says_which_platforms():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "**Linux**" in text and "**macOS**" in text and "**Windows**" in text and "WSL" in text


def test_a_script_beside_a_clone_gets_the_package(tmp_path):
    """A clone is called as its package: from above, Python would take the clone for a package without code."""
    clone, site = tmp_path / "dualppo", tmp_path / "site"
    kept = ("dualppo", "nbs/runs", "workflow", "setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE")
    for name in (*kept, "NOTICE", "ATTRIBUTION.md"):
        source = ROOT / name
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, clone / name)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(site), "-e", str(clone)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "script.py").write_text(
        "import os, site, sys\n"  # the package is installed here already: not that one
        "sys.path = [p for p in sys.path if not os.path.isfile(os.path.join(p, 'dualppo', '__init__.py'))]\n"
        f"site.addsitedir({str(site)!r})\n"
        "import dualppo, dualppo.bench.features as f; print(dualppo.__file__, f.embedded_path().is_file())"
    )
    elsewhere = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=elsewhere)
    assert done.stdout.split() == [str(clone / "dualppo" / "__init__.py"), "True"], done.stderr[-1500:]
