"""Make the preference pairs that are shipped, and the report on the reward models fitted on them: `python tools/pairs.py DATA`.

DATA is a folder with hh_harmless/, begin/ and diasafety/. Writes dualppo/assets/pairs.* and outputs/published/reward_models.json
(some minutes on one core); no text and nothing typed by hand enters them.
"""

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from dualppo.build import default_cache
from dualppo.data import normalise, sha256_of
from dualppo.encoders import MiniLM, embed_cached, encoder_identity
from dualppo.features import quantise
from dualppo.harm import write_asset
from dualppo.judges import BEGIN_FILES, read_begin
from dualppo.rewards import context_embedding

ROOT = Path(__file__).resolve().parent.parent
ASSETS, PUBLISHED = ROOT / "dualppo" / "assets", ROOT / "outputs" / "published"
HH_FILE = "hh_harmless/harmless-base_test.jsonl.gz"
LARGEST_GROUP = 12


def turns(dialogue: str) -> list[tuple[str, str]]:
    """(speaker, text) of a dialogue written as '\\n\\nHuman: … \\n\\nAssistant: …'."""
    parts = re.split(r"\n\n(Human|Assistant): ?", dialogue)[1:]
    return [(speaker, normalise(text)) for speaker, text in zip(parts[::2], parts[1::2])]


def read_hh(path: Path) -> tuple[list[tuple[str, str, str, str]], dict[str, int]]:
    """(opening, last human turn, chosen, rejected) of every usable pair, and how many were read and left out, and why."""
    rows, counts = [], Counter(read=0, earlier_turns_differ=0, replies_equal=0, empty=0)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
            counts["read"] += 1
            if chosen[:-1] != rejected[:-1] or len(chosen) < 2 or (chosen[-2][0], chosen[-1][0], rejected[-1][0]) != ("Human", "Assistant", "Assistant"):
                counts["earlier_turns_differ"] += 1
            elif chosen[-1] == rejected[-1]:
                counts["replies_equal"] += 1
            elif not all((chosen[-2][1], chosen[-1][1], rejected[-1][1])):
                counts["empty"] += 1
            else:
                rows.append((chosen[0][1], chosen[-2][1], chosen[-1][1], rejected[-1][1]))
    return rows, dict(counts) | {"pairs": len(rows)}


def distinct(items: list) -> tuple[list, list[int]]:
    """Distinct items in order of appearance, and the place of each item among them."""
    place = {item: i for i, item in enumerate(dict.fromkeys(items))}
    return list(place), [place[item] for item in items]


def hh_pairs(data: Path, embed) -> tuple[dict[str, torch.Tensor], dict]:
    """hh_harmless: prompt is the last human turn; dialogues with the same opening are one group."""
    rows, counts = read_hh(data / HH_FILE)
    opening, asked, chosen, rejected = map(list, zip(*rows))
    prompts, x = distinct(asked)
    replies, y = distinct(chosen + rejected)
    group = distinct(opening)[1]
    return packed(embed(prompts), embed(replies), [x, y[:len(rows)], y[len(rows):], group]), counts | {"groups": max(group) + 1}


def begin_pairs(data: Path, embed) -> tuple[dict[str, torch.Tensor], dict]:
    """BEGIN: a 'Fully attributable' reply against one that is not, to the same knowledge sentence; at most LARGEST_GROUP a sentence.

    Pairs that answer the same message come first. Where the messages differ the prompt takes that of the chosen and that of the rejected
    reply in turn, so that nearness to the message favours neither.
    """
    begin = read_begin(data / "begin")
    message = [normalise(q, lowercase=True) for q in begin.query]
    knowledge = [normalise(k, lowercase=True) for k in begin.knowledge]
    reply = [normalise(r) for r in begin.reply]
    draw = np.random.default_rng(0)
    rows, counts = [], Counter(rows=len(reply), possible=0)
    for g in range(begin.group.max() + 1):
        good, bad = (np.flatnonzero((begin.group == g) & (begin.good == v)) for v in (1, 0))
        pairs = [(i, j) for i in good for j in bad if reply[i] != reply[j]]
        counts["possible"] += len(pairs)
        pairs = [pairs[k] for k in draw.permutation(len(pairs))]
        pairs = sorted(pairs, key=lambda p: message[p[0]] != message[p[1]])[:LARGEST_GROUP]
        rows += [(i, j, (i, j)[turn % 2], g) for turn, (i, j) in enumerate(pairs)]
        counts["same_message"] += sum(message[i] == message[j] for i, j in pairs)
    i, j, asked, group = map(list, zip(*rows))
    prompts, x = distinct([(message[a], knowledge[a]) for a in asked])
    replies, y = distinct([reply[k] for k in i + j])
    context = context_embedding(*(embed(list(part)) for part in zip(*prompts)))
    group = distinct(group)[1]
    return packed(context, embed(replies), [x, y[:len(rows)], y[len(rows):], group]), dict(counts) | {"pairs": len(rows), "groups": max(group) + 1}


def packed(prompt: torch.Tensor, reply: torch.Tensor, columns: list[list[int]]) -> dict[str, torch.Tensor]:
    """Embeddings in int8, each distinct text once, and the pairs Int [n, 4] as rows (prompt, chosen, rejected, group)."""
    out = {f"{name}.{part}": value for name, e in (("prompt", prompt), ("reply", reply)) for part, value in zip(("q", "scale"), quantise(e))}
    return out | {"pairs": torch.tensor(columns, dtype=torch.int32).T.contiguous()}


def write_pairs(data: Path, embed) -> None:
    """The asset and its card."""
    (hh, hh_counts), (begin, begin_counts) = hh_pairs(data, embed), begin_pairs(data, embed)
    source = lambda files: [{"file": f, "sha256": sha256_of(data / f)} for f in files]
    card = {
        "what": "preference pairs as int8 sentence embeddings: prompt, chosen reply, rejected reply, group; no text",
        "encoder": encoder_identity(),
        "sets": {
            "hh_harmless": {"prompt": "the last human turn", "preference": "the reply a crowd worker found less harmful", "group": "dialogues with the same first turn",
                            "counts": hh_counts, "sources": source([HH_FILE]), "licence": "MIT",
                            "attribution": "Bai et al. 2022, arXiv:2204.05862; anthropics/hh-rlhf"},
            "begin": {"prompt": "mean direction of message and knowledge", "preference": "'Fully attributable' over any other label, same knowledge sentence",
                      "group": "the knowledge sentence", "largest_group": LARGEST_GROUP, "counts": begin_counts, "sources": source([f"begin/{f}" for f in BEGIN_FILES]),
                      "licence": "CC-BY-4.0", "attribution": "Dziri et al. 2022, arXiv:2105.00071; google/BEGIN-dataset"}}}
    tensors = {f"{name}.{k}": v for name, part in (("hh_harmless", hh), ("begin", begin)) for k, v in part.items()}
    write_asset("pairs", tensors, card, ASSETS)


if __name__ == "__main__":
    folder, encoder = Path(sys.argv[1]), MiniLM()
    write_pairs(folder, lambda texts: embed_cached(encoder, texts, default_cache() / "fp32", progress=True))
