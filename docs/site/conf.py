"""The site, as Sphinx reads it. tools/docs.py lays out the pages and calls it with its settings of the project.

Why Sphinx with MyST-NB: it is maintained, pip installs it with hashes, it reads the notebooks as they are, and what it
writes opens from a disk, search included. nbdev's own pages need quarto and Jupyter Book 2 needs node: both fetch their
programs or themes from elsewhere, and pages of the latter want a server.

Why MathJax, and this one: Sphinx's own renderer, fed by one file of MathJax 3.2.2 that draws every letter itself. No
font and no address is asked for. MathML was tried: without a mathematical font on the machine it is hard to read.
"""

import hashlib
import re
import tomllib
from configparser import ConfigParser
from dataclasses import is_dataclass
from importlib.util import find_spec
from inspect import Signature
from pathlib import Path
from typing import get_type_hints

from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
# The package is only a carrier: pip checks its sha256, and this one is that of MathJax's own archive.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
MATHJAX_SHA256 = "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"
if hashlib.sha256(MATHJAX.read_bytes()).hexdigest() != MATHJAX_SHA256:
    raise SystemExit(f"{MATHJAX} is not the file of MathJax 3.2.2: install docs/site/requirements.txt again.")

project = PROJECT["name"]
author = SETTINGS["DEFAULT"]["author"]
version = release = SETTINGS["DEFAULT"]["version"]
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.autodoc"]

# Notebooks are shown as they were run when they were committed.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a notebook may go from its title to a third heading

mathjax_path = MATHJAX.name
mathjax3_config = {"options": {"enableMenu": False}}

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"
add_module_names = False
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = [str(Path(__file__).parent / "static"), str(MATHJAX)]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False
html_show_search_summary = False  # it would fetch each page that it found, which a browser refuses from a disk


def as_rest(app, what, name, obj, options, lines):
    "Docstrings are plain text with code and formulas in Markdown's signs: what reST reads otherwise is marked."
    text = "\n".join(lines)
    pieces = re.split(r"(``?[^`]+``?|\$[^$\n]+(?:\n[^$\n]+)?\$)", text)
    for i, piece in enumerate(pieces):
        if piece.startswith("$"):
            pieces[i] = f":math:`{' '.join(piece[1:-1].split())}`"
        elif not piece.startswith("`"):
            pieces[i] = re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", piece)
    lines[:] = "".join(pieces).split("\n")


def plain_types(app, what, name, obj, options, signature, returned):
    "The signature of a configuration with its types, without the ranges that their annotations carry."
    whole = getattr(obj, "__signature__", None)
    if not (is_dataclass(obj) and isinstance(whole, Signature)):
        return None
    kinds = get_type_hints(obj)
    plain = [one.replace(annotation=kinds.get(name, one.annotation)) for name, one in whole.parameters.items()]
    whole = whole.replace(parameters=plain)
    return stringify_signature(whole, show_return_annotation=False, unqualified_typehints=True), None


def setup(app):
    app.connect("autodoc-process-signature", plain_types)
    app.connect("autodoc-process-docstring", as_rest)
