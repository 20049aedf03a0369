"""Write one page a method, from its notebook, its row and the published board.

python tools/method_pages.py
"""

from pathlib import Path

from dualppo.papers.tables import read_runs
from dualppo.show.method_pages import write_pages

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "outputs" / "published"


def main() -> None:
    runs = read_runs(PUBLISHED, "board") if (PUBLISHED / "runs" / "board").is_dir() else []
    print(len(write_pages(PUBLISHED / "methods", ROOT, runs)), "pages")


if __name__ == "__main__":
    main()
