"""Resolve everything that settings.ini asks for and write requirements.lock (`make lock`).

pip resolves as for an empty environment and installs nothing, so the lock never inherits a stray package.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "dev,build,detoxify,chitchat,workflow,trl,aggregators,fuzz,bench"
# One exact torch everywhere: the CPU build where an index offers it, CUDA's on other Linux machines.
TORCH = "torch==2.13.0"
PLATFORM = re.compile(r"sys_platform|platform_machine|platform_system|os_name")
HEADER = f"""\
# Exact versions of everything `make env` installs: the library with its extras {EXTRAS}.
# Written by `make lock`; edit settings.ini instead. No hashes and no build tags, so that the same file serves
# CPU and CUDA machines: torch's CUDA build brings its own companion packages on top of these.
"""


def resolve() -> list[dict]:
    """Metadata of each package pip would install, from its own report."""
    with tempfile.TemporaryDirectory() as tmp:
        report = Path(tmp) / "report.json"
        wanted = [TORCH, f"{ROOT}[{EXTRAS}]"]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qq",
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
        ]
        subprocess.run(pip + wanted, check=True, cwd=tmp)
        return [entry["metadata"] for entry in json.loads(report.read_text())["install"]]


def name_of(requirement: str) -> str:
    """Normalised project name at the start of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def platform_marker(name: str, packages: list[dict]) -> str:
    """The marker every dependant puts on `name`, if it speaks of platforms; else an empty string."""
    asked = [need for pkg in packages for need in pkg.get("requires_dist", []) if name_of(need) == name]
    markers = {need.partition(";")[2].strip() for need in asked if "extra ==" not in need}
    return markers.pop() if len(markers) == 1 and PLATFORM.search(next(iter(markers))) else ""


def lines(packages: list[dict]) -> list[str]:
    """One `name==version` line for each package, the project itself left out, sorted."""
    out = []
    for pkg in packages:
        name = name_of(pkg["name"])
        if name == "dualppo":
            continue
        marker = platform_marker(name, packages)
        out.append(f"{name}=={pkg['version'].partition('+')[0]}" + (f" ; {marker}" if marker else ""))
    return sorted(out)


if __name__ == "__main__":
    packages = resolve()
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines(packages)) + "\n")
    print(f"requirements.lock: {len(packages) - 1} packages")
