"""Render the notebooks as HTML into _docs (`make docs`).

nbdev's own command needs quarto and would try to download it. Where there is none, the same processed notebooks
go through nbconvert: plainer pages, but every equation, table and picture is there.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def with_quarto() -> None:
    """The site, as nbdev makes it."""
    subprocess.run(["nbdev-docs", "--n-workers", "2"], cwd=ROOT, check=True)


def without_quarto() -> None:
    """Processed notebooks through nbconvert; links between notebooks become links between pages."""
    from nbdev.quarto import proc_nbs

    cache, out = Path(proc_nbs(n_workers=2)), ROOT / "_docs"
    shutil.rmtree(out, ignore_errors=True)
    for folder in sorted({p.parent for p in cache.rglob("*.ipynb")}):
        convert = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--log-level", "WARN", "--output-dir"]
        pages = sorted(str(p) for p in folder.glob("*.ipynb"))
        subprocess.run([*convert, str(out / folder.relative_to(cache)), *pages], check=True)
    for page in out.rglob("*.html"):
        page.write_text(re.sub(r'(href="[^":]*)\.ipynb', r"\1.html", page.read_text()))
    print(f"{out / 'index.html'}")


if __name__ == "__main__":
    with_quarto() if shutil.which("quarto") else without_quarto()
