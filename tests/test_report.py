"""One page that fetches nothing: whole, escaped, the same bytes for the same inputs.

It is opened in Chromium where there is one.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from test_tables import NAMES, own, record, store

from dualppo.cli import main
from dualppo.papers import tables
from dualppo.show import report
from dualppo.core.errors import DataError
from dualppo.papers.ledger import Entry, Verdict, read_ledger

pytestmark = pytest.mark.ci

PUBLISHED = Path(__file__).resolve().parent.parent / "outputs" / "published"
HOSTILE = (
    "<script>alert(1)</script>\x00\x1b[31m\u202e$\\input{x}$\"'>"
    "<img src=http://x.example/a.png onerror=alert(2)> & \ud800"
)
VOID = {"meta", "link", "img", "br", "input", "hr"}
FETCHING = {
    ("img", "src"),
    ("script", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("object", "data"),
    ("embed", "src"),
    ("source", "src"),
    ("base", "href"),
    ("video", "src"),
    ("audio", "src"),
    ("form", "action"),
}


class Tree(HTMLParser):
    """Ids, links, fetched addresses, headings, pictures and the texts of style and script; tags must close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.ids, self.links, self.fetched, self.levels, self.images, self.open, self.metas, self.handlers = (
            [],
            [],
            [],
            [],
            [],
            [],
            [],
            [],
        )
        self.inline = {"style": [], "script": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.fetched += [v for k, v in attrs if (tag, k) in FETCHING or k in ("srcset", "poster", "background")]
        self.handlers += [k for k in given if k.startswith("on") or k == "style"]
        self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.images += [given] if tag == "img" else []
        self.metas += [given] if tag == "meta" else []
        self.inline.get(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] in self.inline:
            self.inline[self.open[-1]][-1] += data


def claim(name="C1", verdict="reproduced", **more) -> dict:
    return asdict(Entry(name, "a claim", "1", "0.5", "0.4 to 0.6", "3", "stress", verdict, "", "", "")) | more


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as a grid leaves it, with a ledger."""
    outputs = tmp_path_factory.mktemp("outputs")
    store(outputs, [record(n, s) for n in NAMES for s in ("clean", "stress")])
    tables.write_tables(outputs)
    (outputs / "claims.json").write_text(
        json.dumps(
            {
                "questions": ["**Does it work?** Yes."],
                "claims": [
                    claim(f"C{i // 2}", v, claim=f"claim {i // 2}", why=str(i)) for i, v in enumerate(report.VERDICTS)
                ],
            }
        )
    )
    (outputs / "tuning.csv").write_text("method,learning_rate,dev_help\nsft,3e-05,0.8011\n")
    return outputs


@pytest.fixture
def outputs(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "outputs"))


def check(page: str) -> Tree:
    """What every page must keep, whatever it shows."""
    tree = Tree(page)
    assert not tree.open and all(address.startswith("data:") for address in tree.fetched) and not tree.handlers
    assert len(set(tree.ids)) == len(tree.ids) and {a[1:] for a in tree.links if a.startswith("#")} <= set(tree.ids)
    assert (
        tree.levels[0] == 1
        and tree.levels.count(1) == 1
        and all(b - a <= 1 for a, b in zip(tree.levels, tree.levels[1:]))
    )
    assert not [m for m in tree.metas if m.get("http-equiv") == "refresh"]
    assert all(image["alt"] and image["width"] and image["height"] for image in tree.images)
    (policy,) = [m["content"] for m in tree.metas if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for kind, (inline,) in tree.inline.items():
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
    assert not re.search(
        r"@import|url\(|fetch\(|XMLHttpRequest|localStorage|cookie",
        "".join(tree.inline["style"] + tree.inline["script"]),
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    return tree


def test_the_page_has_every_part_and_fetches_nothing(outputs):
    page = report.write_report(outputs).read_text(encoding="utf-8")
    tree = check(page)
    assert {
        "claims",
        "table2",
        "table3",
        "figures",
        "arithmetic",
        "method",
        "tuning",
        "data",
        "manifest",
        "cite",
        "licence",
    } <= set(tree.ids)
    assert tree.ids.index("claims") < tree.ids.index("table2") < tree.ids.index("table3") < tree.ids.index("figures")
    assert len(tree.images) == 1 and "Graph 1" in tree.images[0]["alt"]  # the pictures of tables are not repeated
    assert base64.b64encode((outputs / "figures" / "graph1.png").read_bytes()).decode() in page


def test_every_cell_of_a_table_is_on_the_page(outputs):
    page = report.write_report(outputs).read_text(encoding="utf-8")
    for name in tables.shown_tables(tables.read_runs(outputs)):
        section = re.search(rf'<section id="{name}".*?</section>', page, re.S)[0]
        got = [
            [
                re.sub(r"<[^>]+>", "", cell).replace("\u00a0", " ")
                for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
            ]
            for row in re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", section)
        ]
        assert [tuple(html.unescape(cell) for cell in row) for row in got] == list(
            tables.build_table(name, tables.read_runs(outputs)).rows
        )


def test_a_verdict_is_a_word_and_a_sign_not_only_a_colour(outputs):
    page = report.write_report(outputs).read_text(encoding="utf-8")
    for word, (sign, colour) in report.VERDICTS.items():
        assert f'<span class="chip {colour}"><span aria-hidden="true">{sign}</span> {word}' in page
    assert len({sign for sign, _ in report.VERDICTS.values()}) == len(report.VERDICTS)


def test_every_verdict_of_the_ledger_has_a_sign_and_a_colour():
    assert set(report.VERDICTS) == set(get_args(Verdict))
    assert {e.verdict for e in read_ledger(PUBLISHED)[1]} <= set(get_args(Verdict))


def test_a_claim_stands_once_with_all_its_readings(outputs):
    page = report.write_report(outputs).read_text(encoding="utf-8")
    groups = re.findall(r'<tbody id="claim-C\d">(.*?)</tbody>', page, re.S)
    assert [g.count("<tr>") for g in groups] == [2, 2, 2, 2, 2, 1] and all(
        g.count('scope="rowgroup"') == 1 and f'rowspan="{g.count("<tr>")}"' in g for g in groups
    )
    assert "<li><strong>Does it work?</strong> Yes.</li>" in page and all(
        f"<small>{i}</small>" in page for i in range(len(report.VERDICTS) - 1)
    )


def test_equal_inputs_give_equal_bytes_and_nothing_is_left_behind(outputs):
    before = {p.name for p in outputs.iterdir()}
    first = report.write_report(outputs).read_bytes()
    assert report.write_report(outputs).read_bytes() == first
    assert {p.name for p in outputs.iterdir()} == before | {"report.html"}


def test_a_page_that_fails_leaves_the_old_one(outputs, monkeypatch):
    old = report.write_report(outputs).read_bytes()
    (outputs / "tuning.csv").unlink()
    monkeypatch.setattr("dualppo.core.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(DataError, match="the disk is full"):
        report.write_report(outputs)
    assert (outputs / "report.html").read_bytes() == old and not list(outputs.glob(".dualppo-*"))


def test_hostile_text_is_only_text(outputs, monkeypatch):
    records = [
        record(n, "stress", label=HOSTILE) | {"measured": {"device": HOSTILE, "versions": {HOSTILE: HOSTILE}}}
        for n in NAMES
    ]
    for r in records:
        r["data"]["source"] = HOSTILE
    store(outputs, records)
    rows = [
        claim(
            HOSTILE,
            HOSTILE,
            claim=HOSTILE,
            printed=HOSTILE,
            ours=HOSTILE,
            interval=[HOSTILE, {HOSTILE: 1}],
            n=HOSTILE,
            setting=HOSTILE,
            why=HOSTILE,
            notebook=HOSTILE,
            command=HOSTILE,
        )
    ]
    (outputs / "claims.json").write_text(json.dumps({"questions": [HOSTILE], "claims": rows * 2}))
    (outputs / "manifest.json").write_text(
        json.dumps({"runs": [{"path": HOSTILE, "sha256": [HOSTILE], "seeds": HOSTILE}, {"seeds": 7}]})
    )
    (outputs / "harm_estimators.json").write_text(
        json.dumps({"estimators": {HOSTILE: {HOSTILE: {"auc": HOSTILE, HOSTILE: 1}}}})
    )
    (outputs / "judge.json").write_text(json.dumps({HOSTILE: {"auc": 0.5}}))
    (outputs / "judge_hacks.csv").write_text('hack,rate\n"<script>alert(3)</script>",0.5\n', encoding="utf-8")
    shutil.copy(outputs / "figures" / "graph1.png", outputs / "figures" / "<script>alert(4)<\u2215script>.png")
    monkeypatch.setattr(
        report,
        "discrepancies",
        lambda _: report.pd.DataFrame(
            [[HOSTILE] * 4] * 2, dtype=object, columns=report.pd.Index([HOSTILE, "b", "topic", "c"], dtype=object)
        ),
    )
    page = report.write_report(outputs).read_text(encoding="utf-8")
    tree = check(page)
    assert (
        len(tree.inline["script"]) == 1
        and "alert" not in tree.inline["script"][0]
        and page.count("&lt;script&gt;alert(") > 20
    )
    assert (
        "<script>alert" not in page
        and "x.example" not in "".join(filter(None, tree.fetched + tree.links))
        and len(tree.images) == 2
    )


def test_nothing_in_a_template_goes_round_the_escaping():
    templates = sorted(Path(report.__file__).parent.parent.glob("assets/templates/*.html.j2"))
    assert {"page.html.j2", "parts.html.j2"} <= {path.name for path in templates}
    # `safe` trusts; the others escape what they join before `finalize` sees it; a value without quotes ends at a blank.
    loose = r"\|\s*(safe|e|escape|forceescape|join|format|replace|xmlattr|tojson)\b|autoescape|\w ~|=\{\{"
    for path in templates:
        source = re.sub(r"\{#.*?#\}", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert not (found := re.search(loose, source)), f"{path.name}: {found[0]}"


def test_text_that_is_not_markup_is_plain_and_escaped_also_in_an_attribute():
    page = report.TEMPLATES.from_string('<p title="{{ said }}">{{ said }}</p>{{ part }}').render(
        said=HOSTILE, part=report.text("<b>")
    )
    title, said = re.fullmatch('<p title="([^"<>]*)">([^<>]*)</p>&lt;b&gt;', page).groups()
    assert title == said and html.unescape(said) == tables.plain(HOSTILE)
    with pytest.raises(UndefinedError):
        report.TEMPLATES.from_string("{{ nobody }}").render()


def test_what_is_missing_is_left_out(made, tmp_path):
    tree = check(report.write_report(tmp_path / "none").read_text(encoding="utf-8"))
    assert {"arithmetic", "method", "cite"} <= set(tree.ids) and not {
        "claims",
        "table2",
        "figures",
        "data",
        "manifest",
        "compared",
    } & set(tree.ids)
    store(tmp_path / "runs only", [record("sft", "stress")])
    page = report.write_report(tmp_path / "runs only", published=made).read_text(encoding="utf-8")
    assert {"table2", "data", "compared"} <= set(check(page).ids) and tables.summary_line(
        tables.compare([record("sft", "stress")], [record("sft", "stress")], "table2")
    ) in page
    assert 'id="compared"' not in report.write_report(made, published=made).read_text(
        encoding="utf-8"
    )  # nothing is compared with itself


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("claims.json", "[1]"),
        ("claims.json", "{"),
        ("claims.json", '[{"id": 1}]'),
        ("claims.json", '{"claims": 1}'),
        ("manifest.json", "[]"),
        ("manifest.json", '{"runs": [1]}'),
        ("tuning.csv", ""),
        ("judge.json", "["),
        ("judge_hacks.csv", ""),
        ("harm_estimators.json", "{"),
    ],
)
def test_a_broken_input_is_named_set_aside_and_left_out(outputs, capsys, name, content):
    (outputs / name).write_text(content)
    check(report.write_report(outputs).read_text(encoding="utf-8"))
    (said,) = capsys.readouterr().err.splitlines()
    assert name in said and "the page is written without it" in said
    assert (outputs / f"{name}.damaged").read_text() == content and not (outputs / name).exists()


def test_a_picture_that_is_none_is_one_sentence_that_names_it(outputs):
    (outputs / "figures" / "graph1.png").write_text("no")
    with pytest.raises(DataError, match="graph1.png") as caught:
        report.write_report(outputs)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


HACKS = PUBLISHED / "judge_hacks.csv"


def hacks_section(outputs: Path) -> str:
    """The section of the graders, as text."""
    page = report.write_report(outputs).read_text(encoding="utf-8")
    check(page)
    return re.sub(r"<[^>]+>", " ", re.search(r'<section id="graders".*?</section>', page, re.S)[0])


def test_a_short_table_of_hacks_leaves_cells_open(outputs):
    whole = pd.read_csv(HACKS, comment="#")
    path = outputs / "judge_hacks.csv"
    whole.drop(columns="over_human_low").to_csv(path, index=False)
    assert "Judges and planted hacks" not in hacks_section(outputs)  # but every number that is there
    spoilt = whole.astype(object)
    planted = spoilt.index[~spoilt.reply.isin(("human", spoilt.honest[0]))]
    spoilt.loc[planted[0], "over_human"] = "many"
    spoilt.loc[planted[1], "over_honest_high"] = None
    spoilt.loc[planted[2], ["data", "judge", "reply"]] = None
    spoilt.to_csv(path, index=False)
    assert "Judges and planted hacks" in hacks_section(outputs) and "nan" not in hacks_section(outputs)
    lines = HACKS.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:6], lines[6][: len(lines[6]) // 2]]))
    hacks_section(outputs)
    path.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(DataError, match="judge_hacks.csv: judge .* twice"):
        report.hacks_html(report.read_frame(path))
    report.write_report(outputs)
    assert path.with_name("judge_hacks.csv.damaged").exists()


FILES = {
    "judge_hacks.csv": HACKS.read_bytes()[:6000],
    "judge.json": (PUBLISHED / "judge.json").read_bytes(),
    "harm_estimators.json": (PUBLISHED / "harm_estimators.json").read_bytes(),
    "tuning.csv": b"method,learning_rate,dev_help,self\nsft,3e-05,0.8011,1\ndpo,0.001,,x\n",
    "manifest.json": b'{"schema": "dualppo-manifest/1", "runs": [{"path": "a", "sha256": "b", "seeds": [0]}]}',
    "claims.json": json.dumps({"questions": ["x"], "claims": [claim()]}).encode(),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with one run, quick to report on, and without what does not depend on the damaged file."""
    outputs = tmp_path_factory.mktemp("small")
    store(outputs, [record("sft", "stress")])
    return outputs


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_is_one_sentence_or_open_cells(name, data, small):
    """Cut, with bytes changed, or with lines and columns taken out: never an error of the program."""
    content = bytearray(FILES[name])
    kind = data.draw(st.sampled_from(["cut", "bytes", "lines", "cells"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif kind == "bytes":
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
            content[at] = data.draw(st.integers(0, 255))
    else:
        lines = content.split(b"\n")
        at = data.draw(st.integers(0, len(lines) - 1))
        if kind == "lines":
            lines = lines[:at] + lines[at + 1 :] + lines[at : at + data.draw(st.integers(0, 2))]
        else:
            cells = lines[at].split(b",")
            del cells[data.draw(st.integers(0, len(cells) - 1))]
            lines[at] = b",".join(cells)
        content = b"\n".join(lines)
    for other in FILES:
        (small / other).unlink(missing_ok=True)
    (small / name).write_bytes(bytes(content))
    try:
        report.render(page_of(small))
    except DataError as error:
        assert "\n" not in str(error) and str(error).endswith(".") and name in str(error)


def page_of(outputs: Path) -> report.Page:
    """The parts of the page that are read from files beside the runs."""
    parts = [
        report.ledger_html(*report.read_ledger(outputs)) if (outputs / "claims.json").is_file() else "",
        report.graders_html(outputs),
        report._tuning(outputs / "tuning.csv") if (outputs / "tuning.csv").is_file() else "",
        report.manifest_html(outputs) if (outputs / "manifest.json").is_file() else "",
    ]
    return report.Page(sections=tuple(report.Section(str(i), "part", part) for i, part in enumerate(parts)))


# ---- own data


def test_a_page_of_own_data_is_of_these_alone(outputs, tmp_path):
    mine = tmp_path / "mine"
    store(mine, [own(n, s) for n in NAMES for s in ("clean", "stress")], "quick-chat-dddddddd")
    for name in ("claims.json", "tuning.csv"):
        shutil.copy(outputs / name, mine / name)  # of other runs
    tables.write_tables(mine, "quick-chat-dddddddd")
    page = report.write_report(mine, published=outputs).read_text(encoding="utf-8")
    tree = check(page)
    assert {"table2", "table3", "figures", "method", "data", "cite", "licence"} <= set(tree.ids)
    assert not {"claims", "arithmetic", "log", "compared", "molma", "studies", "tuning"} & set(tree.ids)
    assert page.count("our tickets, given by the user: internal") >= 3  # under both tables, data, licence
    for words in ("Wizard of Wikipedia", "78.4", "outside", "printed ·", "CC-BY", "Shastri &amp; Agrawal)"):
        assert words not in page
    assert "hollow diamonds" not in page and "Runs on own data: chat" in page
    nameless = [own(n, "clean") for n in NAMES]
    for r in nameless:
        r["data"] = {**r["data"], "source": "", "name": HOSTILE + "x" * 5000}
    store(tmp_path / "none", nameless)
    page = report.write_report(tmp_path / "none").read_text(encoding="utf-8")
    check(page)
    assert "names no source" in page and "<script>alert" not in page and "x" * 100 not in page


def test_the_published_page_is_small_and_sound():
    page = (PUBLISHED / "report.html").read_text(encoding="utf-8")  # notebook 3b renders the same folder anew
    tree = check(page)
    assert len(page.encode()) < 1.5e6 and "Profile: paper" in page
    alts = " ".join(image["alt"] for image in tree.images)
    assert "studies" in tree.ids and all(
        words in alts for words in ("exact front", "training goes on", "each rule does", "Class and data")
    )
    assert page.count("Judges and planted hacks") >= 4 and re.search(
        r"0\.\d\d \[0\.\d\d, 0\.\d\d\] resists", page
    )  # two exams, two controls


def test_the_published_page_and_ledger_are_what_the_code_gives(tmp_path):
    """All but the pictures, whose bytes depend on the fonts of a machine."""
    made = tmp_path / "published"
    shutil.copytree(PUBLISHED, made)
    assert main(["report", "--outputs", str(made)]) == 0
    assert (made / "claims.json").read_bytes() == (PUBLISHED / "claims.json").read_bytes()
    texts = ((at / "report.html").read_text(encoding="utf-8") for at in (made, PUBLISHED))
    pages = (re.sub(r"data:image/[^\"]+", "", text) for text in texts)
    assert len(set(pages)) == 1, "outputs/published/report.html is stale: dualppo report --outputs outputs/published"


# ---- colours


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), channels)
    )


@pytest.mark.parametrize("night", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_by_day_and_by_night(night):
    colours = {
        name: pair.split(", ")[night] for name, pair in re.findall(r"--(\w+): light-dark\((#\w+, #\w+)\)", report.STYLE)
    }
    assert {"ink", "muted", "link", *(colour for _, colour in report.VERDICTS.values())} <= colours.keys()
    for name in colours.keys() - {"bg", "raised", "line", "card", "strong"}:
        for ground in ("bg", "raised"):
            one, other = sorted((luminance(colours[name]), luminance(colours[ground])))
            assert (other + 0.05) / (one + 0.05) >= 4.5, f"{name} on {ground}"


# ---- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--dump-dom",
)


def visit(path: Path, scratch: Path) -> tuple[str, list[str], list[str]]:
    """What the page became, its console lines, and the http(s) addresses it asked for.

    Those that Chromium asks for by itself have no origin.
    """
    log = scratch / "net.json"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    asked = [
        e["params"] for e in json.loads(log.read_text(encoding="utf-8"))["events"] if "initiator" in e.get("params", {})
    ]
    return (
        done.stdout,
        [line for line in done.stderr.splitlines() if "CONSOLE" in line],
        [p["url"] for p in asked if p["initiator"] != "not an origin" and p["url"].startswith("http")],
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_chromium_opens_it_without_an_error_or_a_request(outputs, tmp_path):
    control = tmp_path / "control.html"  # a page that does what ours must not: this test sees it
    control.write_text(
        '<!doctype html><p id="here"><img src="http://a.invalid/i.png">'
        '<script>console.error("planted"); fetch("https://b.invalid/")</script>'
    )
    page, console, asked = visit(control, tmp_path)
    if 'id="here"' not in page:
        pytest.skip("this Chromium may not open files here")
    assert any("planted" in line for line in console) and {"http://a.invalid/i.png", "https://b.invalid/"} <= set(asked)

    page, console, asked = visit(report.write_report(outputs), tmp_path)
    assert console == [] and asked == []
    assert re.search(r'<button id="theme"[^>]*aria-label="Switch to (dark|light) colours"', page), (
        "the script did not run"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_policy_stops_what_slips_through(outputs, tmp_path):
    path = report.write_report(outputs)
    planted = (
        '<img src="http://a.invalid/i.png"><script>document.title = "taken"; fetch("https://b.invalid/")</script>'
        '<p style="color:red" onclick="x()">'
    )
    path.write_text(path.read_text(encoding="utf-8").replace("<footer>", planted + "<footer>"), encoding="utf-8")
    page, console, asked = visit(path, tmp_path)
    if "<footer>" not in page:
        pytest.skip("this Chromium may not open files here")
    assert asked == [] and "<title>taken" not in page and len(console) >= 3
