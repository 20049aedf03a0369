"""Build the site into _docs (`make docs`): notebooks, API, method pages, results, explorer, cards, search.

The pages are laid out in _proc/site as they lie in the repository, so that links between them hold, and Sphinx builds
them by docs/site/conf.py. A link to a file that is no page leads to the repository, whose address pyproject.toml knows.
"""

import ast
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from links import faults
from llms import PAGES, llms_txt, opening, parts

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
BRANCH = PROJECT["urls"]["Changelog"].removeprefix(f"{SOURCE}/blob/").partition("/")[0]
SLUG = SOURCE.removeprefix("https://github.com/")  # owner/name
TEXTS = (
    "README.md",
    "RESULTS.md",
    "GUIDE.md",
    "CONTRIBUTING.md",
    "ATTRIBUTION.md",
    "DISCREPANCIES.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/RESULTS.md",
    "benchmarks/NOTES.md",
)
# Copied as they are, to the same place.
WHOLE = ("outputs/published/report.html", "outputs/published/explorer.html", "CITATION.cff", "LICENSE", "NOTICE")
FENCE = r"^```.*?^```$"
LINK = re.compile(rf"{FENCE}|(?P<image>!?)\[(?P<text>(?:[^\]\[]|\[[^\]]*\])*)\]\((?P<to>[^)\s]+)\)", re.M | re.S)
NAMED = re.compile(rf"{FENCE}|(?<![\[`])`(?P<to>nbs/[\w/]+\.ipynb)`(?!`)", re.M | re.S)


# ---- the layout


def pages() -> dict[str, str]:
    "Path in the repository → path of the page, for all that a reader reads."
    found = [p for folder in ("outputs/published/methods", "docs/cards") for p in (ROOT / folder).glob("*.md")]
    books = [ROOT / "nbs" / name for part in parts() for name in part["notebooks"]]
    names = [*TEXTS, *(p.relative_to(ROOT).as_posix() for p in [*found, ROOT / "nbs" / "index.ipynb", *books])]
    return {name: "index.md" if name == "README.md" else name for name in names}


def linked(text: str, here: str, known: dict[str, str]) -> str:
    "A page's Markdown, its relative links turned to where things are on the site, or to the repository."

    def to(target: str) -> str:
        path, mark, anchor = target.partition("#")
        full = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        start = posixpath.dirname(known.get(here, here)) or "."
        if full in known:
            return posixpath.relpath(known[full], start) + mark + anchor
        if not (ROOT / full).exists():
            raise SystemExit(f"{here} links to {target}, which does not exist")
        if full in WHOLE:
            return "raw:" + posixpath.relpath(full, start) + mark + anchor
        return f"{SOURCE}/{'tree' if (ROOT / full).is_dir() else 'blob'}/{BRANCH}/{full}{mark}{anchor}"

    def one(found: re.Match) -> str:
        target = found["to"]
        if target is None or re.match(r"[a-z]+:|#", target):
            return found[0]
        if found["image"]:
            return found[0]  # Sphinx takes it from where `pictures` says that it lies
        address = to(target)
        if address.startswith("raw:"):
            return f'<a href="{address[4:]}">{found["text"]}</a>'
        return f"[{found['text']}]({address})"

    def named(found: re.Match) -> str:
        full = found["to"]
        if full not in known or full == here:
            return found[0]
        return f"[`{full}`]({posixpath.relpath(known[full], posixpath.dirname(known[here]) or '.')})"

    return NAMED.sub(named, LINK.sub(one, text))


def pictures(text: str, here: str) -> list[str]:
    "Paths in the repository of the pictures that a page shows."
    shown = [found["to"] for found in LINK.finditer(text) if found["image"]]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(here), one)) for one in shown if ":" not in one]


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copied(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / name, folder / name)


def toctree(names: list[str], caption: str = "") -> str:
    head = f":hidden:\n:caption: {caption}\n" if caption else ":hidden:\n"
    return "\n\n```{toctree}\n" + head + "\n" + "\n".join(names) + "\n```\n"


# ---- notebooks


def places(name: str) -> dict[str, str]:
    "Where a notebook can be read as it is, and run."
    return {
        "Source": f"{SOURCE}/blob/{BRANCH}/{name}",
        "Binder": f"https://mybinder.org/v2/gh/{SLUG}/{BRANCH}?labpath={name}",
        "Colab": f"https://colab.research.google.com/github/{SLUG}/blob/{BRANCH}/{name}",
    }


def notebook(name: str, known: dict[str, str]) -> str:
    "A notebook for the site: links turned, no directives and hidden cells, folds named, a line of links on top."
    book = json.loads((ROOT / name).read_text(encoding="utf-8"))
    cells = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = linked(source, name, known)
        else:
            if re.match(r"#\s*\|\s*hide\b", source):
                continue
            cell["source"] = re.sub(r"^#\s*\|.*\n?", "", source, flags=re.M).strip("\n")
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = linked("".join(data["text/markdown"]), name, known)
            if not cell["source"].strip() and not cell["outputs"]:
                continue
            if "solution" in cell["metadata"].get("tags", []):
                words = {f"code_prompt_{what}": f"{what.title()} the solution" for what in ("show", "hide")}
                cell["metadata"]["mystnb"] = words
        cells.append(cell)
    lines = cells[0]["source"].splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith(">")), 0)
    while head + 1 < len(lines) and lines[head + 1].startswith(">"):
        head += 1
    launch = " · ".join(f"[{title}]({address})" for title, address in places(name).items())
    cells[0]["source"] = "\n".join([*lines[: head + 1], "", launch, "", *lines[head + 1 :]])
    return json.dumps(book | {"cells": cells}, ensure_ascii=False)


def part_pages(stage: Path) -> list[str]:
    "A page for each part of the book, in order; their names."
    names = []
    for i, part in enumerate(parts(), 1):
        rows = []
        for name in part["notebooks"]:
            title, about = opening(ROOT / "nbs" / name)
            rows.append(f"- [{title}]({name}): {about}" if about else f"- [{title}]({name})")
        page = f"# {part['title']}\n\n{part['about']}\n\n" + "\n".join(rows)
        written(stage / f"nbs/part-{i}.md", page + toctree([name.removesuffix(".ipynb") for name in part["notebooks"]]))
        names.append(f"nbs/part-{i}")
    return names


# ---- the library


def api_pages(stage: Path) -> None:
    "A page for each module, as autodoc reads it, below a page for each folder."
    folders: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "dualppo").rglob("*.py")):
        if path.stem in ("__init__", "_modidx"):
            continue
        text = path.read_text(encoding="utf-8")
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        about = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        source = re.search(r"File to edit: [./]*(nbs/[\w/]+)\.ipynb", text)
        said = f"Exported from :doc:`/{source[1]}`.\n\n" if source else ""
        title = module.removeprefix("dualppo.")
        page = f"{title}\n{'=' * len(title)}\n\n{said}.. automodule:: {module}\n   :members:\n"
        written(stage / "api" / f"{module}.rst", page)
        parent = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        folders.setdefault(parent, []).append((module, about))
    for folder, modules in folders.items():
        if folder == "dualppo":
            continue
        rows = "\n".join(f"- [`{m}`]({m}.rst): {about}" for m, about in modules)
        written(stage / "api" / f"{folder}.md", f"# {last(folder)}\n\n{rows}{toctree([m for m, _ in modules])}")
    inner = sorted(set(folders) - {"dualppo"})
    rows = [f"- [`{folder}`]({folder}.md): {', '.join(last(m) for m, _ in folders[folder])}" for folder in inner]
    rows += [f"- [`{m}`]({m}.rst): {about}" for m, about in folders["dualppo"]]
    names = [*inner, *(m for m, _ in folders["dualppo"])]
    written(stage / "api" / "index.md", "# The library\n\n" + "\n".join(rows) + toctree(names))


def last(module: str) -> str:
    return module.rpartition(".")[2]


# ---- all of it


def laid_out(stage: Path) -> None:
    "Every page, in a folder that is made anew."
    shutil.rmtree(stage, ignore_errors=True)
    known = pages()
    for name, page in known.items():
        if name.endswith(".ipynb"):
            written(stage / page, notebook(name, known))
            continue
        text = linked((ROOT / name).read_text(encoding="utf-8"), name, known)
        for picture in pictures(text, name):
            copied(picture, stage)
        if name.endswith("/README.md"):
            siblings = [p.stem for p in sorted((ROOT / name).parent.glob("*.md")) if p.stem != "README"]
            text += toctree(siblings)
        if name == "README.md":
            results = [p.removesuffix(".md") for p in PAGES["Results"] if p.endswith(".md")]
            text += toctree(["The map <nbs/index>", *part_pages(stage)], "The book")
            text += toctree(["results", *results, "benchmarks/NOTES"], "Results")
            text += toctree(["GUIDE", "api/index", "docs/cards/README", "CONTRIBUTING", "elsewhere"], "Use")
            text += toctree(["ATTRIBUTION", "SECURITY", "CHANGELOG"], "About")
        written(stage / page, text)
    api_pages(stage)
    listed = "\n".join(f"- [{title}]({path}): {about}" for path, (title, about) in PAGES["Results"].items())
    written(stage / "results.md", linked(f"# All results\n\n{listed}\n", "results.md", known))
    text = (ROOT / "docs" / "site" / "elsewhere.md").read_text(encoding="utf-8")
    binder = places("nbs/index.ipynb")["Binder"]
    for word, value in (("SOURCE", SOURCE), ("PROJECT", PROJECT["name"]), ("BINDER", binder)):
        text = text.replace(word, value)
    written(stage / "elsewhere.md", text)


def finished(out: Path) -> None:
    "What Sphinx does not copy: whole files, llms.txt with links to pages, a mark for GitHub's pages."
    known = pages()
    for name in WHOLE:
        copied(name, out)

    def to(found: re.Match) -> str:
        path = found[1]
        if path in known:
            return f"]({re.sub(r'[.](md|ipynb)$', '.html', known[path])})"
        return found[0] if path in WHOLE else f"]({SOURCE}/blob/{BRANCH}/{path})"

    written(out / "llms.txt", re.sub(r"\]\(([^)]+)\)", to, llms_txt()))
    written(out / ".nojekyll", "")


def build(work: Path, out: Path) -> None:
    "Lay out, build with warnings as errors, check every link; only then change `out`. Raises SystemExit otherwise."
    stage, html = work / "site", work / "html"  # MyST-NB writes beside the latter, too
    laid_out(stage)
    shutil.rmtree(html, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    folders = ["-c", ROOT / "docs" / "site", "-d", work / "doctrees", stage, html]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if subprocess.run([*sphinx, *folders], env=env).returncode:
        raise SystemExit("Sphinx found what it says above.")
    finished(html)
    if wrong := faults(html):
        raise SystemExit("\n".join(wrong))
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(html, out)


if __name__ == "__main__":
    build(ROOT / "_proc", ROOT / "_docs")
    print(ROOT / "_docs" / "index.html")
