"""Write the generated parts of README.md and RESULTS.md, and the index, from outputs/published (`make readme`)."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (\w+):begin -->\n)(.*?)(<!-- \2:end -->)", re.DOTALL)


def blocks(text: str) -> dict[str, str]:
    """What stands between each pair of markers, by the markers' name."""
    return {name: body for _, name, body, _ in BLOCK.findall(text)}


def filled(text: str, sections: Mapping[str, str]) -> str:
    """`text` with each marked block replaced by its section. Raises KeyError for a marker nobody generates."""
    return BLOCK.sub(lambda m: f"{m[1]}{sections[m[2]].strip()}\n{m[4]}", text)


def generated(published: Path) -> dict[str, str]:
    """Every section that is written from the published runs, by the name of its markers."""
    from dualppo.papers import molma, picture_study
    from dualppo.papers.ledger import ledger_sections
    from dualppo.papers.tables import table_sections
    from dualppo.show import report

    return (
        table_sections(published)
        | ledger_sections(published)
        | molma.molma_sections(published)
        | picture_study.picture_sections(published)
        | report.machine_sections(published)
    )


PAGES = ("README.md", "RESULTS.md")


if __name__ == "__main__":
    sections = generated(ROOT / "outputs" / "published")
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        (ROOT / name).write_text(filled(text, sections), encoding="utf-8")
        print(f"{name}: {', '.join(blocks(text))} written from outputs/published")
    index = ROOT / "nbs" / "index.ipynb"
    execute = ["-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "--log-level", "ERROR"]
    subprocess.run([sys.executable, *execute, str(index)], check=True)
    subprocess.run([Path(sys.executable).parent / "nbdev-clean", "--fname", str(index)], check=True)
