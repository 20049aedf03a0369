"""Check a built site: `python tools/links.py FOLDER`. Every link inside it leads somewhere, and no page asks outside.

Links that a reader may click may lead anywhere; what a page loads by itself must lie in the folder.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"src", "srcset", "poster", "data", "action", "background"}
STYLE = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
CLICKED = {"a", "area"}  # elsewhere, an href is loaded: link, image, use


class Page(HTMLParser):
    "The anchors of a page, the links that a reader clicks, and what it loads."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.clicked: list[str] = []
        self.loaded: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        for key in ("href", "xlink:href"):
            quiet = tag == "link" and given.get("rel", "") in {"canonical", "next", "prev", "index", "search", "author"}
            if key in given:
                (self.clicked if tag in CLICKED or quiet else self.loaded).append(given[key])
        for key in LOADS & set(given):
            found = given[key].split(",") if key == "srcset" and not given[key].startswith("data:") else [given[key]]
            self.loaded += [one.split()[0] for one in found if one.split()]
        if "srcdoc" in given:
            within = Page(given["srcdoc"])
            self.loaded += within.loaded
        self.loaded += styled(given.get("style", ""))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.loaded += styled(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def styled(text: str) -> list[str]:
    "Addresses that a style sheet loads."
    return [one or other for one, other in STYLE.findall(text)]


def outside(address: str) -> bool:
    return bool(re.match(r"(https?|ftp|wss?):|//", address.strip(), flags=re.I))


def faults(folder: Path) -> list[str]:
    "A sentence for every link of a page that leads nowhere, and everything that a page would load from outside."
    read = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in read.items():
        here = path.relative_to(folder.resolve())
        found += [f"{here} loads {address[:100]}" for address in page.loaded if outside(address)]
        for address in page.clicked + page.loaded:
            parts = urlsplit(address)
            if outside(address) or parts.scheme:  # mailto, data, javascript: nothing to look up
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_relative_to(folder.resolve()) or not target.is_file():
                found.append(f"{here} leads to {address[:100]}, which is not there")
            elif parts.fragment and target in read and unquote(parts.fragment) not in read[target].names:
                found.append(f"{here} leads to {address[:100]}, but nothing there has that name")
    for path in sorted(folder.rglob("*.css")):
        asked = styled(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(folder)} loads {address[:100]}" for address in asked if outside(address)]
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "every link holds, and nothing is asked for outside")
    sys.exit(bool(wrong))
