"""Pin everything that settings.ini asks for, each file by its sha256, and write the lock files (`make lock`).

uv resolves for all platforms at once, which pip cannot, in an environment of its own that is thrown away. What is
pinned stays where it fits; `--upgrade` resolves anew; `site` writes only what the site needs besides the locks.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKER = "uv==0.13.9"
EXTRAS = tuple(
    "dev build detoxify pictures chitchat workflow writing hf trl aggregators fuzz bench".split()
)
# One exact torch everywhere: the CPU build where a machine offers it, else the index's, which on Linux is CUDA's.
TORCH = "torch==2.13.0"
PLATFORMS = tuple(f"sys_platform == '{name}' and python_version < '3.13'" for name in ("linux", "darwin"))
LOCKS = ("requirements.lock", "requirements-cuda.lock")
SITE = ROOT / "docs" / "site" / "requirements.txt"
CUDA = re.compile(r"nvidia-|cuda-|triton==")  # what torch's CUDA build brings, and its CPU build does without
HEADER = f"""\
# Exact versions of everything `make env` installs: the library with its extras {",".join(EXTRAS)},
# and the sha256 of every file that the index has of them, so that one lock serves all platforms.
# Written by `make lock`; edit settings.ini instead.
"""
HEADER_SITE = """\
# What the site needs besides requirements.lock; `make docs` installs it. Written by `make lock` from requirements.in.
"""
HEADER_CUDA = """\
# What torch's CUDA build needs besides requirements.lock; `make env` installs it where that build was installed.
# Written by `make lock`.
"""


def wanted() -> list[str]:
    """The requirements of settings.ini, of the library and of `EXTRAS`, and the one torch."""
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    fields = ("requirements", *(f"{name}_requirements" for name in EXTRAS))
    return [TORCH, *(need for field in fields for need in settings["DEFAULT"][field].split())]


def resolve(folder: Path, upgrade: bool, more: Sequence[str] = (), also: str = "") -> str:
    """The lock of everything wanted and `more`, as uv writes it; what locks and `also` pin is kept where it fits."""
    needs, platforms = (", ".join(f'"{one}"' for one in many) for many in ([*wanted(), *more], PLATFORMS))
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "all"\nversion = "0"\nrequires-python = ">=3.11,<3.13"\ndependencies = [{needs}]\n'
        f"[tool.uv]\nenvironments = [{platforms}]\n"
    )
    kept = [] if upgrade else [line for name in LOCKS for line in pins((ROOT / name).read_text())] + pins(also)
    (folder / "out.lock").write_text("\n".join(kept) + "\n")
    venv.create(folder / "env", with_pip=True)
    tools = folder / "env" / "bin"
    subprocess.run([tools / "python", "-m", "pip", "install", "-qq", LOCKER], check=True)
    options = "--universal --fork-strategy fewest --generate-hashes --no-header --no-annotate --quiet"
    command = [tools / "uv", "pip", "compile", *options.split(), "--output-file", "out.lock", "pyproject.toml"]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, "UV_NO_CACHE": "1"})
    return (folder / "out.lock").read_text()


def pins(text: str) -> list[str]:
    """The `name==version` lines of a lock, without hashes."""
    return [line.removesuffix(" \\") for line in text.splitlines() if re.match(r"[a-z0-9]", line)]


def chosen_here(folder: Path) -> str:
    """sha256 of the torch that pip takes on this machine, which need not be one of the index's files."""
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder / "torch"), TORCH]
    subprocess.run(pip, check=True)
    (wheel,) = (folder / "torch").iterdir()
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def blocks(text: str) -> list[str]:
    """The entries of a lock, each with its hashes; of the markers only what does not hold everywhere here."""
    for common in (" and (sys_platform == 'darwin' or sys_platform == 'linux')", "python_full_version < '3.13' and "):
        text = text.replace(common, "")
    return re.split(r"\n(?=[a-z0-9])", text.replace(" ; python_full_version < '3.13'", "").strip())


def library(upgrade: bool) -> None:
    """Write the locks of the library."""
    with tempfile.TemporaryDirectory() as tmp:
        found = blocks(resolve(Path(tmp), upgrade))
        line = f"    --hash=sha256:{chosen_here(Path(tmp))}"
    found = [f"{b} \\\n{line}" if b.startswith(TORCH) and line not in b else b for b in found]
    parts = [b for b in found if not CUDA.match(b)], [b for b in found if CUDA.match(b)]
    for name, header, entries in zip(LOCKS, (HEADER, HEADER_CUDA), parts):
        (ROOT / name).write_text(header + "\n".join(entries) + "\n")
        print(f"{name}: {len(entries)} packages")


def site(upgrade: bool) -> None:
    """Write what the site needs besides the locks. Raises SystemExit where it needs other versions of what they pin."""
    kept = {line for name in LOCKS for line in pins((ROOT / name).read_text())}
    also = "" if upgrade or not SITE.exists() else SITE.read_text()
    with tempfile.TemporaryDirectory() as tmp:
        needs = SITE.with_suffix(".in").read_text().split()
        found = blocks(resolve(Path(tmp), False, needs, also))
    entries = [b for b in found if pins(b)[0] not in kept]
    names = {line.partition("==")[0] for line in kept}
    if moved := [pins(b)[0] for b in entries if pins(b)[0].partition("==")[0] in names]:
        raise SystemExit(f"the site would need {moved}, which the locks have in another version: change {SITE.stem}.in")
    SITE.write_text(HEADER_SITE + "\n".join(entries) + "\n")
    print(f"{SITE.relative_to(ROOT)}: {len(entries)} packages")


if __name__ == "__main__":
    if "site" not in sys.argv[1:]:
        library("--upgrade" in sys.argv[1:])
    site("--upgrade" in sys.argv[1:])
