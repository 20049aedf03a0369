"""Reading, cleaning, splitting, unpacking and downloading: what good input gives and which sentence bad input gets."""

import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualppo.core import files
from dualppo.core.errors import DataError
from dualppo.text import download, exchanges
from dualppo.text.exchanges import Exchange

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOOD = {"dialogue": [["hello", "hi"], ["and you", "fine"]], "meta": [["a fact"], []]}
OFFICIAL = {
    "chosen_topic": "Tea",
    "dialog": [
        {
            "speaker": "0_Wizard",
            "text": "Tea is old.",
            "checked_sentence": {"t": "Tea is a drink."},
            "checked_passage": {},
        },
        {"speaker": "1_Apprentice", "text": "How old?"},
        {"speaker": "0_Wizard", "text": "Very.", "checked_sentence": {"no_passages_used": "no_passages_used"}},
        {"speaker": "1_Apprentice", "text": "Where from?"},
        {"speaker": "0_Wizard", "text": "China.", "checked_sentence": {"t": "Tea comes from China."}},
    ],
}


def put(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# ---------------------------------------------------------------- readers
def test_pairs(tmp_path):
    kept, left_out = exchanges.load_dialogues(put(tmp_path / "a.json", [GOOD]))
    assert kept == [Exchange("a:0", 0, "hello", "a fact", "hi")]
    assert [(r.file, r.row, r.turn, r.field, r.why) for r in left_out] == [
        ("a.json", 0, 1, "meta", "no knowledge sentence")
    ]


def test_official_queries_turns_and_knowledge(tmp_path):
    kept, left_out = exchanges.load_dialogues(put(tmp_path / "train.json", [OFFICIAL]))
    assert [(x.turn, x.query, x.knowledge, x.reference, x.topic) for x in kept] == [
        (0, "Tea", "Tea is a drink.", "Tea is old.", "Tea"),
        (2, "Where from?", "Tea comes from China.", "China.", "Tea"),
    ]
    assert [(r.turn, r.why) for r in left_out] == [(1, "no knowledge sentence")]


def test_folder_reads_parts_once(tmp_path):
    for name in ("train", "data", "x_examples"):
        put(tmp_path / f"{name}.json", [OFFICIAL])
    put(tmp_path / "topic_splits.json", {"train": []})
    put(tmp_path / "valid.json", [GOOD])
    kept, _ = exchanges.load_dialogues(tmp_path)
    assert Counter(x.dialogue for x in kept) == {"train:0": 2, "valid:0": 1}


def test_given_ids_name_the_dialogue(tmp_path):
    kept, _ = exchanges.read_pairs(put(tmp_path / "a.json", [GOOD | {"id": "first"}, GOOD | {"id": 7}]))
    assert [x.dialogue for x in kept] == ["a:first", "a:7"]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([GOOD, {"dialogue": [], "meta": []}], ["row 1", "dialogue", "without turns"]),
        ([GOOD, {"dialogue": "hello", "meta": []}], ["row 1", "dialogue", "expected a list, found str"]),
        ([GOOD, {"dialogue": [["a", "b"]]}], ["row 1", "meta", "expected a list"]),
        ([GOOD, 7], ["row 1", "expected an object, found int"]),
        ([{"dialogue": [["a", 3]], "meta": [["k"]]}], ["row 0", "dialogue[0][1]", "expected a text, found int"]),
        ([{"dialogue": [["a"]], "meta": [["k"]]}], ["row 0", "dialogue[0]", "found 1 items"]),
        ([{"dialogue": [["a", "b"]], "meta": []}], ["row 0", "meta", "1 turns but 0"]),
        ([{"dialogue": [["a", "b"]], "meta": [[None]]}], ["row 0", "meta[0][0]", "NoneType"]),
        (
            [GOOD, {"dialogue": [["a", " \n"]], "meta": [["k"]]}],
            ["row 1", "dialogue[0][1]", "empty text", "strict=False"],
        ),
        ([GOOD, {"dialogue": [["\ud800", "b"]], "meta": [["k"]]}], ["row 1", "dialogue[0][0]", "surrogate"]),
        ([GOOD | {"id": "x"}, GOOD | {"id": "x"}], ["row 1", "id", "duplicate id 'x'"]),
        ([GOOD | {"id": [1]}], ["row 0", "id"]),
        ([], ["neither"]),
        ([{"text": "x"}], ["row 0", "neither 'query'", "'dialogue'"]),
        ([OFFICIAL | {"chosen_topic": None}], ["row 0", "chosen_topic", "NoneType"]),
        ([OFFICIAL | {"dialog": []}], ["row 0", "dialog", "without turns"]),
        ([OFFICIAL | {"dialog": [{"speaker": "0_Wizard", "text": 1}]}], ["row 0", "dialog[0].text", "found int"]),
        (
            [OFFICIAL | {"dialog": [{"speaker": "0_Wizard", "text": "x", "checked_sentence": [1]}]}],
            ["row 0", "dialog[0].checked_sentence", "found list"],
        ),
    ],
)
def test_each_broken_row_gets_its_sentence(tmp_path, rows, words):
    path = put(tmp_path / "mine.json", rows)
    with pytest.raises(DataError) as caught:
        exchanges.load_dialogues(path)
    sentence = str(caught.value)
    assert "mine.json" in sentence and sentence.endswith(".") and "\n" not in sentence and "; " in sentence
    assert all(word in sentence for word in words), sentence


def test_not_strict_leaves_empty_texts_out_with_a_line_in_the_log(tmp_path):
    rows = [GOOD, {"dialogue": [["a", " "], ["", "b"]], "meta": [["k"], ["k"]]}]
    kept, left_out = exchanges.load_dialogues(put(tmp_path / "a.json", rows), strict=False)
    assert len(kept) == 1 and [(r.row, r.turn, r.why) for r in left_out[1:]] == [
        (1, 0, "empty text"),
        (1, 1, "empty text"),
    ]
    assert exchanges.removal_table(left_out).exchanges.sum() == 3


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"dialogue": [["a", "b"]], "meta": [["k"]]}, {"dialo', ["row 1", "broken JSON", "copy it again"]),
        ('[{"dialogue": [["a", "b"]], "meta": [["k"]]}', ["row 1", "cut short"]),
        ('[{"dialogue": [["a", "b"]], "meta": [["k"]]}] x', ["text follows"]),
        ('{"dialogue": 1}', ["row 0", "dialogue", "expected a list"]),
        ("", ["must start with '['"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("[" + "9" * 5000 + "]", ["broken JSON"]),
    ],
)
def test_broken_json(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        exchanges.load_dialogues(put(tmp_path / "cut.json", text))
    assert all(word in str(caught.value) for word in ["cut.json", *words]), caught.value


def test_unreadable_files(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file.*DUALPPO_DATA"):
        exchanges.load_dialogues(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"no dialogue file \(\*.csv, \*.json"):
        exchanges.load_dialogues(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        exchanges.read_pairs(tmp_path)
    (tmp_path / "latin.json").write_bytes('[{"dialogue": "é"}]'.encode("latin-1"))
    with pytest.raises(DataError, match="latin.json.*UTF-8"):
        exchanges.load_dialogues(tmp_path / "latin.json")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(DataError, match="no permission to read it.*check the path"):
        exchanges.load_dialogues(tmp_path / "latin.json")


def test_rows_longer_than_a_chunk_are_read_and_bom_is_ignored(tmp_path):
    rows = [{"dialogue": [["a" * 700_000, "b"]], "meta": [["k" * 2_000_000]]} for _ in range(3)]
    path = tmp_path / "big.json"
    path.write_text("\ufeff " + json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    assert [value for _, value in exchanges.iter_rows(path)] == rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: (
        st.lists(x, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "dialogue",
                    "meta",
                    "dialog",
                    "id",
                    "speaker",
                    "text",
                    "checked_sentence",
                    "chosen_topic",
                    "messages",
                    "turn",
                    "replies",
                    "label",
                ]
            ),
            x,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@MANY
@given(
    st.one_of(
        JSON,
        st.lists(JSON, max_size=3),
        st.lists(st.fixed_dictionaries({"dialogue": JSON, "meta": JSON})),
        st.lists(st.fixed_dictionaries({"dialog": JSON, "chosen_topic": JSON})),
    )
)
def test_any_json_gives_a_result_or_a_data_error(tmp_path, value):
    path = put(tmp_path / "any.json", value)
    for read in (
        exchanges.load_dialogues,
        exchanges.read_pairs,
        exchanges.read_official,
        exchanges.read_tutorial,
        lambda p: exchanges.load_dialogues(p, strict=False),
        lambda p: exchanges.read_chitchat(path=p),
    ):
        try:
            read(path)
        except DataError as error:
            assert "any.json" in str(error)


@MANY
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_result_or_a_data_error(tmp_path, content, bracket):
    path = tmp_path / "any.json"
    path.write_bytes(b"[" * bracket + content)
    for read in (exchanges.load_dialogues, lambda p: exchanges.read_chitchat(path=p)):
        try:
            read(path)
        except DataError:
            pass


@MANY
@given(st.lists(JSON, max_size=5))
def test_streaming_equals_json_load(tmp_path, rows):
    path = put(tmp_path / "rows.json", rows)
    assert repr([v for _, v in exchanges.iter_rows(path)]) == repr(json.loads(path.read_text()))


# ---------------------------------------------------------------- cleaning
@MANY
@given(st.text(), st.booleans())
def test_normalise_is_idempotent_and_leaves_single_spaces(text, lowercase):
    once = exchanges.normalise_text(text, lowercase)
    assert exchanges.normalise_text(once, lowercase) == once
    assert "  " not in once and once == once.strip() and not any(c in once for c in "\n\t\r\u00a0\u200b")


def test_clean_removes_with_a_reason_keeps_case_and_order():
    rows = [
        Exchange("f:3", 0, " A  b", "K", "R"),
        Exchange("f:3", 1, "\u200b", "K", "R"),
        Exchange("f:4", 0, "A b", "K\n", "R "),
        Exchange("f:5", 2, "z", "K", "R"),
    ]
    kept, removed = exchanges.clean(rows)
    assert [x.query for x in kept] == ["A b", "z"] and exchanges.clean(kept) == (kept, [])
    assert [(r.file, r.row, r.turn, r.field, r.why) for r in removed] == [
        ("f", 3, 1, "query", "empty text"),
        ("f", 4, 0, "", "repeated exchange"),
    ]
    assert exchanges.clean(rows, lowercase=True)[0][0].query == "a b"


# ---------------------------------------------------------------- split
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=120)


@MANY
@given(SIZES, st.integers(0, 2**31))
def test_split_is_grouped_deterministic_and_near_its_target(sizes, seed):
    names = [f"d{i}" for i, n in enumerate(sizes) for _ in range(n)]
    part = exchanges.split_by_dialogue(names, seed)
    assert part.dtype == np.int8 and set(part.tolist()) <= {0, 1, 2}
    assert all(len({p for n, p in zip(names, part) if n == name}) == 1 for name in set(names))
    share = np.bincount(part, minlength=3)
    assert abs(share[0] - 0.70 * len(names)) <= max(sizes) / 2 + 1e-6
    assert abs(share[1] - 0.15 * len(names)) <= max(sizes) + 1e-6
    assert abs(share[2] - 0.15 * len(names)) <= max(sizes) / 2 + 1e-6
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = exchanges.split_by_dialogue([names[i] for i in order], seed)
    assert (shuffled == part[order]).all(), "row order must not matter"


def test_split_takes_numbers_and_refuses_bad_fractions():
    a = exchanges.split_by_dialogue([3, 3, 1, 2], 0)
    assert (a == exchanges.split_by_dialogue(np.array([3, 3, 1, 2]), 0)).all()
    assert len(exchanges.split_by_dialogue([], 0)) == 0
    for fractions in ((0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.2, 0.2), (float("nan"), 0.5, 0.5)):
        with pytest.raises(DataError, match="fractions"):
            exchanges.split_by_dialogue([1, 2], 0, fractions)


# ---------------------------------------------------------------- writing
@pytest.mark.parametrize(
    "code, words", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "no permission")]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, code, words):
    path = tmp_path / "result.json"
    files.atomic_write(path, "old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=f"result.json.*{words}"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_writing_where_a_file_stands_in_the_way(tmp_path):
    put(tmp_path / "file", "x")
    with pytest.raises(DataError, match="cannot be written"):
        files.atomic_write(tmp_path / "file" / "below.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder"):
        files.atomic_write(tmp_path / "folder", "x")


# ---------------------------------------------------------------- unpacking
def member(name, kind=tarfile.REGTYPE, content=b"x", link="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info, io.BytesIO(content)


def archive(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            tar.addfile(info, content)
    return path


@pytest.mark.parametrize(
    "bad, words",
    [
        (member("../evil"), "outside"),
        (member("/abs"), "outside"),
        (member("a/../../evil"), "outside"),
        (member("..\\evil"), "outside"),
        (member("C:evil"), "outside"),
        (member("a\nb"), "outside"),
        (member("link", tarfile.SYMTYPE, b""), "link"),
        (member("hard", tarfile.LNKTYPE, b"", "ok"), "link"),
        (member("dev", tarfile.CHRTYPE, b""), "special"),
        (member("fifo", tarfile.FIFOTYPE, b""), "special"),
        (member("ok"), "twice"),
        (member("./ok"), "twice"),
        (member("big", content=bytes(1 << 21)), "more bytes"),
    ],
)
def test_hostile_archives_leave_nothing_behind(tmp_path, bad, words):
    path = archive(tmp_path / "a.tgz", member("ok"), bad)
    with pytest.raises(DataError, match=f"a.tgz.*{words}"):
        download.extract_safely(path, tmp_path / "out", max_bytes=1 << 20)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_too_many_members_damage_and_bombs(tmp_path):
    many = archive(tmp_path / "many.tgz", *(member(f"f{i}") for i in range(20)))
    with pytest.raises(DataError, match="more than 10 members"):
        download.extract_safely(many, tmp_path / "out", max_members=10)
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(archive(tmp_path / "a.tgz", member("f", content=os.urandom(50_000))).read_bytes()[:20_000])
    noise = tmp_path / "noise.tgz"
    noise.write_bytes(b"\x1f\x8b" + bytes(100))
    for path in (cut, noise, put(tmp_path / "text.tgz", "no archive"), tmp_path / "absent.tgz"):
        with pytest.raises(DataError, match=path.name):
            download.extract_safely(path, tmp_path / "out")
    bomb = tmp_path / "bomb.tgz"
    bomb.write_bytes(gzip.compress(bytes(1 << 25)))
    with pytest.raises(DataError, match="bomb"):
        archive(tmp_path / "inner.tar", member("zeros", content=bytes(1 << 24)), mode="w")
        bomb.write_bytes(gzip.compress((tmp_path / "inner.tar").read_bytes()))
        download.extract_safely(bomb, tmp_path / "out", max_bytes=1 << 20)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".unpack*"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_good_archive_is_unpacked_and_never_over_something(tmp_path, mode):
    path = archive(tmp_path / "a.tgz", member("d", tarfile.DIRTYPE, b""), member("d/x.json", content=b"[]"), mode=mode)
    assert (download.extract_safely(path, tmp_path / "out") / "d" / "x.json").read_text() == "[]"
    with pytest.raises(DataError, match="already exists"):
        download.extract_safely(path, tmp_path / "out")


# ---------------------------------------------------------------- downloading
class Server:
    """A local server that can break off, ignore ranges, or answer with an error."""

    def __init__(self, content: bytes):
        self.content, self.stop_after, self.ranges, self.status, self.asked = content, None, True, 200, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                start = int(wanted[6:-1]) if wanted and server.ranges else 0
                if server.status != 200 or start >= len(server.content):
                    return self.send_error(server.status if server.status != 200 else 416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(server.content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
                self.end_headers()
                self.wfile.write(server.content[start : server.stop_after])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/wow.tgz"


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    noise = member("noise.bin", content=os.urandom(600_000))
    path = archive(tmp_path / "made.tgz", member("train.json", content=json.dumps([OFFICIAL]).encode()), noise)
    made = Server(path.read_bytes())
    yield made
    made.http.shutdown()
    made.http.server_close()


def fetch(server, cache, sha256=None):
    return download.download_official(
        cache, server.url, sha256 or hashlib.sha256(server.content).hexdigest(), progress=False, timeout=10
    )


def test_download_once_then_from_cache(server, tmp_path):
    sha256 = hashlib.sha256(server.content).hexdigest()
    assert download.cached_official(tmp_path / "cache", sha256) is None
    folder = fetch(server, tmp_path / "cache")
    assert len(exchanges.load_dialogues(folder)[0]) == 2
    assert download.cached_official(tmp_path / "cache", sha256) == folder
    assert fetch(server, tmp_path / "cache") == folder and server.asked == [None]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name], "the archive itself is not kept"


def test_download_resumes_where_it_stopped(server, tmp_path):
    server.stop_after = 400_000
    with pytest.raises(DataError, match="stopped.*call again to resume"):
        fetch(server, tmp_path)
    size = next(tmp_path.glob("*.part")).stat().st_size
    assert 0 < size <= 400_000
    server.stop_after = None
    assert (fetch(server, tmp_path) / "train.json").exists()
    assert server.asked == [None, f"bytes={size}-"]


def test_download_starts_again_when_the_server_cannot_resume(server, tmp_path):
    server.stop_after, server.ranges = 300_000, False
    with pytest.raises(DataError):
        fetch(server, tmp_path)
    server.stop_after = None
    assert (fetch(server, tmp_path) / "train.json").exists()


def test_a_complete_part_needs_no_network(server, tmp_path):
    sha256 = hashlib.sha256(server.content).hexdigest()
    (tmp_path / f"{sha256[:12]}.tgz.part").write_bytes(server.content)
    assert (fetch(server, tmp_path) / "train.json").exists() and server.asked == []


DOWNLOAD = """
import sys
from dualppo.text.download import download_official
print(download_official(sys.argv[1], sys.argv[2], sys.argv[3], progress=False, timeout=60))
"""


def test_two_processes_download_once(server, tmp_path):
    """V7: both appended to one file, and 1 to 3 of 3 failed."""
    words = [str(tmp_path / "cache"), server.url, hashlib.sha256(server.content).hexdigest()]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DOWNLOAD, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate() for process in started]
    assert {out for out, _ in said} == {f"{fetch(server, tmp_path / 'cache')}\n"}, said
    assert server.asked == [None], "one of them fetched it"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [Path(said[0][0].strip()).name], "and left nothing else"


def test_a_killed_download_is_taken_up_by_another_process(server, tmp_path):
    sha256 = hashlib.sha256(server.content).hexdigest()
    (tmp_path / f"{sha256[:12]}.tgz.part").write_bytes(server.content[:1000])
    (tmp_path / f".dualppo-{sha256[:12]}.download").write_text("")  # the lock file of one that was killed holds nobody
    assert (fetch(server, tmp_path) / "train.json").exists() and server.asked == ["bytes=1000-"]


def test_wrong_hash_is_refused_and_forgotten(server, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match="wrong sha256.*expected 000000000000"):
        fetch(server, cache, "0" * 64)
    assert list(cache.iterdir()) == []
    sha256 = hashlib.sha256(server.content).hexdigest()
    (cache / f"{sha256[:12]}.tgz.part").write_bytes(server.content + b"too long")
    with pytest.raises(DataError, match="wrong sha256"):
        fetch(server, cache)
    assert (fetch(server, cache) / "train.json").exists()


def test_download_errors_are_sentences(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="answers 404"):
        fetch(server, tmp_path / "c")
    with pytest.raises(DataError, match="only http and https"):
        download.download_official(tmp_path / "c", "file:///etc/passwd", progress=False)
    with pytest.raises(DataError, match="stopped"):
        download.download_official(tmp_path / "c", "http://127.0.0.1:9/x", progress=False, timeout=5)
    with pytest.raises(DataError, match="cannot be written"):
        server.status = 200
        fetch(server, put(tmp_path / "file", "x") / "below")
    with pytest.raises(DataError, match="more than 1000 bytes"):
        download.download_official(tmp_path / "d", server.url, progress=False, max_bytes=1000)


def test_the_official_address_is_pinned():
    assert len(download.ARCHIVE_SHA256) == 64 and download.ARCHIVE_SHA256.startswith("2a549627")
    assert download.ARCHIVE_SHA256.endswith("ae24b7") and download.ARCHIVE_URL.endswith("wizard_of_wikipedia.tgz")


# ---------------------------------------------------------------- what is shipped, the audit, the real files
def test_tutorial():
    ours = exchanges.tutorial()
    assert len(ours) == 59 and len({x.dialogue for x in ours}) == 15 and len({x.id for x in ours}) == len(ours)
    turns = {}
    for x in ours:
        assert x.turn == turns.get(x.dialogue, 0) and {r.label for r in x.replies} == set(exchanges.REPLY_LABELS)
        turns[x.dialogue] = x.turn + 1
    assert set(turns.values()) <= {3, 4, 5} and exchanges.clean(ours)[1] == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"query": " "}, "query.*empty"),
        ({"turn": "0"}, "turn"),
        ({"turn": True}, "turn"),
        ({"id": None}, "id"),
        ({"replies": [{"text": "x", "label": "great"}]}, "replies.0..label.*good, neutral, bad, harmful"),
        ({"replies": [{"text": "", "label": "bad"}]}, "replies.0..text.*empty"),
    ],
)
def test_tutorial_format_errors(tmp_path, change, words):
    good = {"id": "a", "dialogue": "d", "turn": 0, "query": "q", "knowledge": "k", "reference": "r", "replies": []}
    assert len(exchanges.read_tutorial(put(tmp_path / "t.json", [good]))) == 1
    with pytest.raises(DataError, match=f"row 1.*{words}"):
        exchanges.read_tutorial(put(tmp_path / "t.json", [good, good | {"id": "b"} | change]))
    with pytest.raises(DataError, match="row 1.*duplicate id 'a'"):
        exchanges.read_tutorial(put(tmp_path / "t.json", [good, good]))


def test_audit_says_what_does_not_add_up():
    table = exchanges.audit([Exchange("a", 0, "q", "k", "r")], []).set_index("claim")
    assert table.holds["train + dev + test = kept"] == "yes"
    assert table.holds["kept = unfiltered official training dialogues"] == "yes"
    assert table.holds["kept + removed = official training dialogues"] == "no"
    assert table.computed["70 % if the 412 had been removed from 18,430"] == 12_613
    assert table.computed["data at hand: exchanges kept"] == 1


def test_real_files(shared_data):
    kept, left_out = exchanges.load_dialogues(shared_data / "wow")
    cleaned, more = exchanges.clean(kept)
    assert len(kept) == len(cleaned) == 7305 and more == []
    assert Counter(r.file for r in left_out) == {"valid.json": 253, "test.json": 246}
    assert {r.why for r in left_out} == {"no knowledge sentence"}
    files = Counter(x.dialogue.partition(":")[0] for x in kept)
    assert files == {"valid": 3686, "test": 3619} and len({x.dialogue for x in kept}) == 1946


def test_official_examples(shared_data):
    kept, left_out = exchanges.load_dialogues(shared_data / "wow" / "original_format_examples.json")
    assert len(kept) == 23 and len(left_out) == 1 and len({x.topic for x in kept}) == 5
    assert kept[0].query == kept[0].topic, "the wizard opens the first dialogue: the topic is the query"


def test_chitchat():
    pytest.importorskip("chitchat_dataset")
    kept, left_out = exchanges.read_chitchat(limit=50)
    assert len(kept) > 200 and all(x.query and x.knowledge and x.reference for x in kept)
    assert {r.why for r in left_out} <= {"no knowledge sentence", "empty text"}
