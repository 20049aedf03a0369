"""Write llms.txt, the map of the repository for language models: `make readme`.

The form is that of llmstxt.org: a title, a line about the project, lists of links. The order is that of nbs/book.toml,
titles and summaries are the notebooks' own first lines.
"""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "Results": {
        "RESULTS.md": ("Results", "every claim, table and figure, generated from the published records"),
        "outputs/published/methods/README.md": ("Methods", "one page each: equation, source, defaults, result"),
        "outputs/published/report.html": ("Report", "everything that was measured, one self-contained page"),
        "outputs/published/explorer.html": ("Explorer", "move weight, mask, start and tilt in the browser"),
        "benchmarks/RESULTS.md": ("Benchmarks", "how fast it is and how far it scales"),
        "DISCREPANCIES.md": ("Discrepancies", "what the papers leave open or contradict, and what this project does"),
    },
    "Use": {
        "README.md": ("Read me", "what it is, what holds, two commands, ten lines"),
        "GUIDE.md": ("Guide", "your own data, estimators, rewards, methods; learned weights in TRL"),
        "CONTRIBUTING.md": ("Contributing", "a first change, where a change goes, what is held to"),
        "docs/cards/README.md": ("Cards", "a card for each stored policy, fitted model and data set"),
        "CITATION.cff": ("Citation", "how to cite"),
        "ATTRIBUTION.md": ("Attribution", "whose data and weights are used, and under which licence"),
    },
    "Optional": {
        "CHANGELOG.md": ("Changelog", "what changed"),
        "SECURITY.md": ("Security", "what is promised about hostile input"),
        "nbs/book.toml": ("The book's order", "parts and notebooks, for machines"),
    },
}


def parts() -> list[dict]:
    "The parts of the book: title, about, notebooks."
    return tomllib.loads((ROOT / "nbs" / "book.toml").read_text(encoding="utf-8"))["part"]


def opening(path: Path) -> tuple[str, str]:
    "Title and one-line summary of a notebook, from its first cell."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    lines = [line.strip() for line in first.splitlines()]
    title = next((line[2:] for line in lines if line.startswith("# ")), path.stem)
    return title, next((line[2:] for line in lines if line.startswith("> ")), "")


def entry(path: str, title: str, about: str) -> str:
    return f"- [{title}]({path})" + (f": {about}" if about else "")


def llms_txt() -> str:
    "The text of llms.txt, with links relative to the repository."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = [
        f"# {project['name']}",
        f"> {project['description']}.",
        "The library is exported from the notebooks below, which are the source. Each goes from words to an equation, "
        "the lines that compute it and a check. The package ships numbers only, no third-party text.",
    ]
    for part in parts():
        own = [entry(f"nbs/{name}", *opening(ROOT / "nbs" / name)) for name in part["notebooks"]]
        said += [f"## {part['title']}", part["about"], "\n".join(own)]
    for title, pages in PAGES.items():
        said += [f"## {title}", "\n".join(entry(path, *page) for path, page in pages.items())]
    return "\n\n".join(said) + "\n"


if __name__ == "__main__":
    (ROOT / "llms.txt").write_text(llms_txt(), encoding="utf-8")
    print("llms.txt")
