"""Write the generated parts of README.md, and nbs/index.ipynb's outputs, from outputs/published (`make readme`)."""

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


if __name__ == "__main__":
    from dualppo.papers import molma
    from dualppo.show import report
    from dualppo.papers.ledger import ledger_sections
    from dualppo.papers.tables import table_sections

    readme = ROOT / "README.md"
    published = ROOT / "outputs" / "published"
    readme.write_text(
        filled(
            readme.read_text(),
            table_sections(published)
            | ledger_sections(published)
            | molma.molma_sections(published)
            | report.machine_sections(published),
        )
    )
    index = ROOT / "nbs" / "index.ipynb"
    execute = ["-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "--log-level", "ERROR"]
    subprocess.run([sys.executable, *execute, str(index)], check=True)
    subprocess.run([Path(sys.executable).parent / "nbdev-clean", "--fname", str(index)], check=True)
    print(f"{readme.name}, {index.name}: {', '.join(blocks(readme.read_text()))} written from outputs/published")
