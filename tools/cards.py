"""Write a card for each stored policy, each fitted model and each data set of the package into docs/cards.

    python tools/cards.py

What a thing is for and where it ends is said below, in words. Every number comes from its file: the tensors and notes
of the safetensors, the card beside it, the published records.
"""

import hashlib
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from dualppo.core.files import atomic_write
from dualppo.papers.token_plan import token_plan
from dualppo.papers.token_tables import arm_table
from dualppo.runs.tokens import UNTRAINED, token_records
from dualppo.writing.smollm import SMOLLM2
from dualppo.writing.starts import TO_MILD
from dualppo.writing.stored import BASES, stored_names, writer_asset

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "dualppo" / "assets"
PUBLISHED = ROOT / "outputs" / "published"
LONG = 12  # a list with more entries is counted, not shown


@dataclass(frozen=True)
class Subject:
    "What no file says: a title, a licence, what it is for, where it ends, and the notebook that makes or reads it."

    title: str
    files: tuple[str, ...]  # of dualppo/assets; a JSON is the card of the tensors beside it
    licence: str
    use: str
    limits: str
    notebook: str


DATA = {
    "wow": Subject(
        "Wizard of Wikipedia as numbers",
        ("wow.safetensors", "wow.card.json"),
        "CC-BY-4.0, and what it is derived from under its own licences",
        "The bench of the paper: states, candidate replies, rewards and harm, from which every table is computed.",
        "English, written by crowd workers about encyclopaedic topics. Harm is what networks and labels say, not what "
        "a person felt. The unsafe replies come from other data sets than the dialogues, so a policy may learn to tell "
        "sources apart. Texts cannot be read back: to look at replies, build the features from the sources yourself.",
        "bench/04_features.ipynb",
    ),
    "pairs": Subject(
        "Preference pairs as numbers",
        ("pairs.safetensors", "pairs.json"),
        "That of each set, see below",
        "Fitting and testing reward models on what people preferred.",
        "Embeddings only. One set prefers what is less harmful, the other what its knowledge supports: neither is "
        "preference in general, and pairs of one group are not independent.",
        "bench/10_reward_models.ipynb",
    ),
    "pictograms": Subject(
        "Pictograms as numbers",
        (
            "pictograms.safetensors",
            "pictograms-sharealike.safetensors",
            "pictograms.json",
            "pictograms.toml",
            "picture_texts.toml",
        ),
        "That of each design, see below; the share-alike designs are a file of their own",
        "A bench where what is safe to say stands in the picture alone.",
        "Drawings, not photographs. Which object is dangerous is our judgement, with a rule on keywords as second "
        "rater. Thumbnails are there to be looked at in a notebook, for a few objects only.",
        "vision/65_pictograms.ipynb",
    ),
    "tutorial": Subject(
        "The tutorial's dialogues",
        ("tutorial.json", "tutorial.safetensors"),
        "Apache-2.0; written by the dualppo developers",
        "Teaching: the only dialogues whose sentences are in the repository, small enough to read whole.",
        "Written by us to be clear, so they are easier than people's dialogues. No result of the paper rests on them.",
        "bench/08a_readable.ipynb",
    ),
    "answers": Subject(
        "Replies to provocations",
        ("answers.toml",),
        "Apache-2.0; written by the dualppo developers",
        "What a friendly person could say, per family of provocations: the reference that help is measured against.",
        "One tone, one culture, English. A good reply that is unlike all of these counts as little help.",
        "writing/53c_answers.ipynb",
    ),
    "trust": Subject(
        "Sentences about people, and paraphrases",
        ("trust.toml",),
        "Apache-2.0; written by the dualppo developers",
        "Does an estimator of harm change its mind when only the person changes? Does a policy when only the words do?",
        "Templates, not speech. What differs between groups here is a lower bound of what may differ elsewhere.",
        "papers/3l1_harm_trust.ipynb",
    ),
    "chat_tokens": Subject(
        "Tokens of short English chat",
        ("chat_tokens.safetensors",),
        "Apache-2.0; numbers of tokens of SmolLM2's tokenizer, chosen by what short chat needs",
        "The tokens that the default writing policy can write, so that its last layer is small.",
        "What has no token here cannot be written: other languages, code, rare words.",
        "writing/53b_smollm.ipynb",
    ),
}
MODELS = {
    "harm_head": Subject(
        "Harm head",
        ("harm_head.safetensors", "harm_head.json"),
        "CC-BY-SA-3.0",
        "An estimator of harm beside two networks of other people's, so that no claim rests on one of them.",
        "A linear head on a sentence embedding. What it misses on sets that it has not seen stands below as `found`, "
        "the share of harmful texts that it finds. It is no filter for a product.",
        "text/03_harm.ipynb",
    ),
    "judge": Subject(
        "Judge",
        ("judge.safetensors", "judge.json"),
        "CC-BY-4.0",
        "A second opinion on whether a reply is supported by its knowledge, independent of the rewards.",
        "Fitted on replies of four old models. How much of what it knows is only which model wrote a reply: the rows "
        "`unseen_model` and `model_name_only` say it.",
        "bench/30_judges.ipynb",
    ),
}
POLICY_USE = """\
Research on how rewards, masks and weights change a policy that writes: a small one, trained without a GPU.
Not for talking to people: it has a small model's knowledge, makes facts up, and its replies are short by design."""
POLICY_LIMITS = """\
English chat only. Harm is what estimators say of its replies, and a policy trained against one may learn its gaps.
A seed is a sample of one: what holds of a method is said by the tables of all its seeds, not by this file."""


# ---- Markdown


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    "A Markdown table; a bar in a cell is escaped."
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def shown(value: object) -> str:
    "A value of a card as a cell: a hash as code, a list joined, or counted where it is long."
    if isinstance(value, list):
        return f"{len(value):,} entries" if len(value) > LONG else ", ".join(map(str, value))
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"`{value}`"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def flat(value: object, name: str = "") -> list[tuple[str, object]]:
    "(dotted name, value) of everything in a card; lists are values."
    if isinstance(value, Mapping):
        return [row for key, one in value.items() for row in flat(one, f"{name}.{key}" if name else str(key))]
    return [(name, value)]


def card_tables(card: Mapping[str, object]) -> list[str]:
    "A card as one table of its values, one of what has the same fields, and one for each list of records in it."
    rows = flat(card)
    lists = [(name, value) for name, value in rows if isinstance(value, list) and value and isinstance(value[0], dict)]
    rows = [row for row in rows if row not in lists]
    parts: dict[str, dict[str, object]] = {}
    for name, value in rows:
        parent, _, leaf = name.rpartition(".")
        parts.setdefault(parent, {})[leaf] = value
    alike = Counter(tuple(part) for part in parts.values() if len(part) > 2)
    wide = [fields for fields, n in alike.items() if n > 1]
    plain = [(f"`{n}`", shown(v)) for n, v in rows if tuple(parts[n.rpartition(".")[0]]) not in wide]
    out = [table(("what its card says", "value"), plain)]
    for fields in wide:
        own = [(f"`{p}`", *map(shown, part.values())) for p, part in parts.items() if tuple(part) == fields]
        out.append(table(("", *fields), own))
    for name, value in lists:
        out += [f"`{name}`:", table(value[0], [map(shown, one.values()) for one in value])]
    return out


# ---- what files say


def size_of(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def file_table(paths: Iterable[Path]) -> str:
    return table(
        ("file", "size", "sha256"),
        [
            (f"`{p.relative_to(ROOT).as_posix()}`", size_of(p), f"`{hashlib.sha256(p.read_bytes()).hexdigest()}`")
            for p in paths
        ],
    )


def tensors_of(path: Path) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
    "Name → (type, shape) of each tensor, and the notes of the file."
    with safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in sorted(file.keys())}
        found = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
        return found, file.metadata() or {}


def tensor_table(path: Path) -> str:
    rows = [(f"`{n}`", kind, " × ".join(f"{k:,}" for k in shape)) for n, (kind, shape) in tensors_of(path)[0].items()]
    return table(("tensor", "type", "shape"), rows)


def holds(path: Path) -> list[str]:
    "What a file says of itself, as Markdown."
    name = f"### `{path.name}`"
    if path.suffix == ".safetensors":
        notes = {k: v for k, v in sorted(tensors_of(path)[1].items()) if k != "card"}  # wow's card lies beside it, too
        return [name, *(card_tables(notes) if notes else []), tensor_table(path)]
    content = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    if isinstance(content, list):
        keys = list(content[0])
        return [name, f"{len(content):,} entries with {', '.join(f'`{key}`' for key in keys)}."]
    if path.suffix == ".toml":
        content = {k: len(v) if isinstance(v, (list, dict)) else v for k, v in content.items()}
        return [name, table(("table", "entries, or value"), [(f"`{k}`", shown(v)) for k, v in content.items()])]
    return [name, *card_tables(content)]


def notebook_link(name: str) -> str:
    return f"[nbs/{name}](../../nbs/{name})"


def subject_card(name: str, subject: Subject, kind: str) -> str:
    "The card of a data set or a fitted model."
    paths = [ASSETS / file for file in subject.files]
    parts = [
        f"# {subject.title}",
        f"*{kind} `{name}`. Written by `python tools/cards.py` from the files themselves.*",
        "## Use",
        subject.use,
        "## Limits",
        subject.limits,
        "## Licence",
        f"{subject.licence}. Whom to name, and what was changed: [ATTRIBUTION.md](../../ATTRIBUTION.md).",
        "## Files",
        file_table(paths),
        f"How it is made or read: {notebook_link(subject.notebook)}.",
        "## What they hold",
        *(part for path in paths for part in holds(path)),
    ]
    return "\n\n".join(parts) + "\n"


# ---- policies


def base_card(name: str) -> str:
    "The card of a base that nothing was added to."
    if name == "toy":
        about = "A model of a few words, made on the spot from a seed: for tests and for the notebooks."
        origin = "Nothing is downloaded and nothing is stored."
    else:
        about = "SmolLM2-135M-Instruct as it is, cut in a trunk that is cached and a head that can be trained."
        origin = (
            f"Apache-2.0, by Hugging Face. Not shipped: read from the package `{SMOLLM2.package}` {SMOLLM2.version}, "
            f"whose weights are checked by their sha256, `{SMOLLM2.weights_sha256}`."
        )
    facts = [("base", f"`{name}`"), ("temperature", BASES[name][1])]
    notebook = "writing/50_policy.ipynb" if name == "toy" else "writing/53b_smollm.ipynb"
    return policy_text(name, about, facts, origin, f"How it is built: {notebook_link(notebook)}.", "base")


def policy_text(name: str, about: str, facts: list, origin: str, more: str, start: str, arm: str = UNTRAINED) -> str:
    parts = [
        f"# Policy `{name}`",
        "*Written by `python tools/cards.py` from the policy's file, the registration and the published records.*",
        about,
        f'```python\nimport dualppo\n\nprint(dualppo.load("{name}").reply("How are you today?"))\n```',
        "## Use",
        POLICY_USE,
        "## Limits",
        POLICY_LIMITS,
        "## Facts",
        table(("what", "value"), facts),
        "## Where it comes from",
        origin,
        more,
        "## What was measured",
        "Nothing: the toy is no result." if name == "toy" else measured(arm, start),
    ]
    return "\n\n".join(parts) + "\n"


def measured(arm: str, start: str) -> str:
    "The figures of an arm over its seeds, from the published records, or that there are none."
    plan = token_plan()
    rows = [row for row in arm_table(token_records(PUBLISHED), plan, start).to_dict("records") if row["arm"] == arm]
    if not rows or rows[0]["n"].startswith("0 "):
        return "No run of it is published yet."
    figures = [(k, v) for k, v in rows[0].items() if k not in ("arm", "n")]
    said = f"Mean over seeds ± half its {plan.level:.0%} interval on the test prompts; seeds: {rows[0]['n']} planned."
    return said + "\n\n" + table(("metric", "value"), figures)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def stored_card(name: str) -> str:
    "The card of a policy of dualppo/assets/writers."
    path = writer_asset(name)
    tensors, notes = tensors_of(path)
    adapter = json.loads(notes["adapter"])
    said = adapter["notes"]
    learned = sum(math.prod(shape) for key, (_, shape) in tensors.items() if key != "kept")
    last = adapter["split"] + adapter["layers"] - 1
    facts = [
        ("base", f"[`{said['base']}`](policy-{said['base']}.md)"),
        ("identity of the base", f"`{said['model']}`"),
        ("temperature", said["temperature"]),
        ("adapter", f"of rank {adapter['rank']} on layers {adapter['split']} to {last}, scale {adapter['scale']:g}"),
        ("parameters added", f"{learned:,}"),
        ("tokens it writes", f"{tensors['kept'][1][0]:,}"),
        ("file", f"`{path.relative_to(ROOT).as_posix()}`, {size_of(path)}"),
        ("sha256", f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`"),
    ]
    origin = "Sources and licences: [ATTRIBUTION.md](../../ATTRIBUTION.md), *Writing policies*."
    if name == "mild":
        keys = ("loss", "iterations", "prompts", "longest", "lr")
        facts += [(f"training, `{key}`", getattr(TO_MILD, key)) for key in keys]
        more = f"Where training begins, and how it was made: {notebook_link('writing/5a_starts.ipynb')}."
        return policy_text(name, sentence(said["about"]), facts, origin, more, "mild")
    arms = {arm.name: arm for arm in token_plan().arms}
    more = "It is no arm of the registration."
    if name in arms:
        method = {"method": arms[name].method} | dict(arms[name].overrides)
        facts += [(f"training, `{key}`", shown(value)) for key, value in method.items()]
        more = f"An arm of the registration, from the mild start: {notebook_link('papers/3i_token_plan.ipynb')}."
    return policy_text(name, sentence(said["about"] or arms[name].about), facts, origin, more, "mild", name)


# ---- all of them


def policies() -> list[str]:
    "Names of all policies of the package: the bases, and what is stored beside them."
    return stored_names([writer_asset("").parent])


def cards() -> dict[str, str]:
    "File name → text of every card, and of the list of them."
    found = {f"policy-{name}.md": base_card(name) if name in BASES else stored_card(name) for name in policies()}
    found |= {f"model-{name}.md": subject_card(name, one, "Model") for name, one in MODELS.items()}
    found |= {f"data-{name}.md": subject_card(name, one, "Data set") for name, one in DATA.items()}
    lists = []
    for kind, title in (("policy", "Policies that write"), ("model", "Fitted models"), ("data", "Data sets")):
        own = [f"- {link(file, text)}" for file, text in found.items() if file.startswith(kind)]
        lists += [f"## {title}", "\n".join(own)]
    intro = "What each policy, model and data set of the package is, what it holds, how it did, and what it is not for."
    return found | {"README.md": "\n\n".join(["# Cards", intro, *lists]) + "\n"}


def link(file: str, text: str) -> str:
    return f"[{text.splitlines()[0].removeprefix('# ')}]({file})"


def write_cards(folder: Path) -> list[Path]:
    "Write every card into a folder, and remove those of what is gone."
    texts = cards()
    for path in folder.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        atomic_write(folder / name, text)
    return [folder / name for name in texts]


if __name__ == "__main__":
    print(len(write_cards(ROOT / "docs" / "cards")), "pages in docs/cards")
