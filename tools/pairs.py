"""Make the preference pairs that are shipped, and the report on the reward models fitted on them.

`python tools/pairs.py DATA`: DATA is a folder with hh_harmless/, begin/, diasafety/ and wow/. Writes
dualppo/assets/pairs.* and outputs/published/reward_models.json (some minutes on one core); no text and nothing typed by
hand enters them.
"""

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from assets import rounded, sources
from dualppo.bench.build import default_cache
from dualppo.bench.candidates import SETTINGS
from dualppo.core.files import atomic_write, json_rows
from dualppo.text.exchanges import clean, load_dialogues, normalise_text
from dualppo.text.encoders import MiniLM, embed_cached, encoder_identity
from dualppo.bench.env import Env, make_envs
from dualppo.bench.features import REFERENCE, STRONG, UNSAFE, load_features, quantise
from dualppo.text.harm import FrozenHead, calibration_error, reliability, write_asset
from dualppo.bench.judges import BEGIN_FILES, read_begin
from dualppo.bench.reward_models import (
    STRENGTH,
    Pairs,
    accuracy_of,
    bradley_terry_loss,
    cross_fitted,
    fit_reward_model,
    gold_pairs,
    load_pairs,
    margins,
    pair_accuracy,
    shipped_pairs,
)
from dualppo.bench.rewards import context_embedding

ROOT = Path(__file__).resolve().parent.parent
ASSETS, PUBLISHED = ROOT / "dualppo" / "assets", ROOT / "outputs" / "published"
HH_FILE = "hh_harmless/harmless-base_test.jsonl.gz"
LARGEST_GROUP = 12


def turns(dialogue: str) -> list[tuple[str, str]]:
    """(speaker, text) of a dialogue written as '\\n\\nHuman: … \\n\\nAssistant: …'."""
    parts = re.split(r"\n\n(Human|Assistant): ?", dialogue)[1:]
    return [(speaker, normalise_text(text)) for speaker, text in zip(parts[::2], parts[1::2])]


def read_hh(path: Path) -> tuple[list[tuple[str, str, str, str]], dict[str, int]]:
    """(opening, last human turn, chosen, rejected) of every usable pair.

    And how many were read and left out, and why.
    """
    rows, counts = [], Counter(read=0, earlier_turns_differ=0, replies_equal=0, empty=0)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
            counts["read"] += 1
            if (
                chosen[:-1] != rejected[:-1]
                or len(chosen) < 2
                or (chosen[-2][0], chosen[-1][0], rejected[-1][0]) != ("Human", "Assistant", "Assistant")
            ):
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
    return packed(embed(prompts), embed(replies), [x, y[: len(rows)], y[len(rows) :], group]), counts | {
        "groups": max(group) + 1
    }


def begin_pairs(data: Path, embed) -> tuple[dict[str, torch.Tensor], dict]:
    """BEGIN: a 'Fully attributable' reply against one that is not, to the same knowledge sentence.

    At most LARGEST_GROUP a sentence. Pairs that answer the same message come first. Where the messages differ the
    prompt takes that of the chosen and that of the rejected reply in turn, so that nearness to the message favours
    neither.
    """
    begin = read_begin(data / "begin")
    message = [normalise_text(q, lowercase=True) for q in begin.query]
    knowledge = [normalise_text(k, lowercase=True) for k in begin.knowledge]
    reply = [normalise_text(r) for r in begin.reply]
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
    return packed(context, embed(replies), [x, y[: len(rows)], y[len(rows) :], group]), dict(counts) | {
        "pairs": len(rows),
        "groups": max(group) + 1,
    }


def packed(prompt: torch.Tensor, reply: torch.Tensor, columns: list[list[int]]) -> dict[str, torch.Tensor]:
    """Embeddings in int8, each distinct text once, and the pairs Int [n, 4].

    A row is (prompt, chosen, rejected, group).
    """
    out = {
        f"{name}.{part}": value
        for name, e in (("prompt", prompt), ("reply", reply))
        for part, value in zip(("q", "scale"), quantise(e))
    }
    return out | {"pairs": torch.tensor(columns, dtype=torch.int32).T.contiguous()}


def write_pairs(data: Path, embed) -> None:
    """The asset and its card."""
    (hh, hh_counts), (begin, begin_counts) = hh_pairs(data, embed), begin_pairs(data, embed)
    card = {
        "what": "preference pairs as int8 sentence embeddings: prompt, chosen reply, rejected reply, group; no text",
        "encoder": encoder_identity(),
        "sets": {
            "hh_harmless": {
                "prompt": "the last human turn",
                "preference": "the reply a crowd worker found less harmful",
                "group": "dialogues with the same first turn",
                "counts": hh_counts,
                "sources": sources(data, [HH_FILE]),
                "licence": "MIT",
                "attribution": "Bai et al. 2022, arXiv:2204.05862; anthropics/hh-rlhf",
            },
            "begin": {
                "prompt": "mean direction of message and knowledge",
                "preference": "'Fully attributable' over any other label, same knowledge sentence",
                "group": "the knowledge sentence",
                "largest_group": LARGEST_GROUP,
                "counts": begin_counts,
                "sources": sources(data, [f"begin/{f}" for f in BEGIN_FILES]),
                "licence": "CC-BY-4.0",
                "attribution": "Dziri et al. 2022, arXiv:2105.00071; google/BEGIN-dataset",
            },
        },
    }
    tensors = {f"{name}.{k}": v for name, part in (("hh_harmless", hh), ("begin", begin)) for k, v in part.items()}
    write_asset("pairs", tensors, card, ASSETS)


# ---- the report: how often each model is right on pairs it has not seen

GRID = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
PAPER = {  # accuracy in %, seed 003 Table 2
    "columns": [
        "Stanford SHP",
        "Anthropic Helpful",
        "Anthropic Harmless",
        "PKU-SafeRLHF (helpfulness)",
        "PKU-SafeRLHF (safety)",
    ],
    "rows": {
        "SteamSHP-XL": [76.9, 66.8, 63.2, 63.4, 47.2],
        "Open Assistant": [47.6, 71.9, 69.0, 46.2, 57.4],
        "RMhelp": [61.5, 60.8, None, 73.4, None],
        "RMsafe": [None, None, 60.6, None, 62.7],
    },
    "printed_average": {"SteamSHP-XL": 63.5, "Open Assistant": 58.4, "RMhelp": 65.2, "RMsafe": 61.7},
}


def equal_averages() -> dict[str, dict[str, float]]:
    """M12: the average of every row over the columns that RMhelp, and that RMsafe, was measured on."""
    out = {}
    for model in ("RMhelp", "RMsafe"):
        columns = [i for i, v in enumerate(PAPER["rows"][model]) if v is not None]
        whole = {
            name: [row[i] for i in columns]
            for name, row in PAPER["rows"].items()
            if all(row[i] is not None for i in columns)
        }
        out[f"columns of {model}"] = {name: sum(row) / len(row) for name, row in whole.items()}
    return out


def diasafety_pairs(data: Path, embed) -> Pairs:
    """A safe over an unsafe reply to the same context, one pair a context.

    Nothing here was fitted on them but the harm head.
    """
    rows = [
        r
        for name in ("train", "val")
        for r in json_rows(data / "diasafety" / f"{name}.json", ("context", "response", "category", "label"))
    ]
    first: dict[str, dict[str, str]] = {}
    for r in rows:
        context = normalise_text(r["context"], lowercase=True)
        first.setdefault(context, {}).setdefault(r["label"], normalise_text(r["response"]))
    both = {c: v for c, v in first.items() if len(v) == 2 and c and all(v.values()) and v["Safe"] != v["Unsafe"]}
    prompt, safe, unsafe = (
        embed(list(t)) for t in (both, [v["Safe"] for v in both.values()], [v["Unsafe"] for v in both.values()])
    )
    return Pairs(prompt, safe, unsafe, torch.arange(len(both)))


def knowledge_shared(data: Path) -> float:
    """Share of BEGIN rows whose knowledge sentence also occurs in the dialogues of the features."""

    def letters(text):
        return re.sub("[^a-z0-9]", "", text.lower())

    known = {
        letters(e.knowledge) for f in ("valid.json", "test.json") for e in clean(load_dialogues(data / "wow" / f)[0])[0]
    }
    return float(np.mean([letters(k) in known for k in read_begin(data / "begin").knowledge]))


def tuned(sets: dict[str, list[Pairs]]) -> dict[str, dict]:
    """Held-out loss (eq. 3.2) for every strength of the grid, and the best.

    Mean over the sets of pairs of each model.
    """
    out = {}
    for name, several in sets.items():
        loss = {
            s: float(
                np.mean([bradley_terry_loss(m := cross_fitted(p, s), torch.zeros_like(m)).item() for p in several])
            )
            for s in GRID
        }
        out[name] = {
            "loss": {str(s): v for s, v in loss.items()},
            "best": min(loss, key=loss.__getitem__),
            "used": STRENGTH[name],
        }
    return out


def calibrated(margin: torch.Tensor) -> dict:
    """How often a pair is right against σ(|margin|), the confidence of eq. 3.2."""
    table = reliability(torch.sigmoid(margin.abs()), (margin > 0).float())
    return {"table": table.to_dict("records"), "error": calibration_error(table)}


def seen_by(model, env: Env) -> dict[str, float]:
    """AUC over all candidates of test states.

    Does the score fall for people's label 'unsafe', and where the grading classifier says harmful?
    """
    replies = env.pool[env.cand]
    score = -model(env.anchor[:, None].expand_as(replies).flatten(0, 1), replies.flatten(0, 1))

    def auc(y, keep=slice(None)):
        return float(roc_auc_score(y.flatten()[keep], score.flatten()[keep]))

    kind, alike = env.kind.flatten(), torch.isin(env.kind.flatten(), torch.tensor([REFERENCE, STRONG]))
    return {
        "unsafe_label": auc(env.unsafe),
        "p_grade": auc(env.p_grade > 0.5),
        "strong_lookalike_vs_reference": auc((env.kind == STRONG), alike),
        "unsafe_vs_reference": auc((env.kind == UNSAFE), torch.isin(kind, torch.tensor([REFERENCE, UNSAFE]))),
    }


def report(data: Path, embed, seed: int = 0) -> dict:
    """Rows: reward models; columns: pairs that the row has not seen, nor their group."""
    features, head = load_features(), FrozenHead()
    splits = {name: make_envs(features, spec, seed) for name, spec in SETTINGS.items()}
    begin, hh, dia = shipped_pairs("begin"), shipped_pairs("hh_harmless"), diasafety_pairs(data, embed)
    gold = {name: gold_pairs(s.train, seed) for name, s in splits.items()}
    test = {name: gold_pairs(s.test, seed, per_state=1) for name, s in splits.items()}
    apart = cross_fitted(hh, STRENGTH["safe"])
    safe = fit_reward_model(hh, STRENGTH["safe"])
    plain = {"cosine": lambda x, y: (x * y).sum(-1), "harm_head": lambda x, y: 1 - head.score(y)}
    out = {"settings": {}, "calibration": {"safe on hh_harmless": calibrated(apart)}, "auc": {}}
    for name, env in splits.items():
        s = STRENGTH["help"]
        help_ = {
            "help": fit_reward_model(gold[name].join(begin), s),
            "help_gold": fit_reward_model(gold[name], s),
            "help_begin": fit_reward_model(begin, s),
        }
        sets = {f"gold, {k}": p for k, p in test.items()} | {"begin": begin, "hh_harmless": hh, "diasafety": dia}
        rows = {
            row: {column: pair_accuracy(model, p) for column, p in sets.items()}
            for row, model in (help_ | {"safe": safe} | plain).items()
        }
        own = {"help": cross_fitted(begin, s, more=gold[name]), "help_begin": cross_fitted(begin, s)}
        for row, margin in own.items():
            rows[row]["begin"] = accuracy_of(margin)
        rows["safe"]["hh_harmless"] = accuracy_of(apart)
        rows["harm_head"]["diasafety"] = None  # it was fitted on most of them
        out["settings"][name] = rows
        out["calibration"] |= {
            f"help on gold, {name}": calibrated(margins(help_["help"], test[name])),
            f"help ({name}) on begin": calibrated(own["help"]),
        }
        if name == "stress":
            out["auc"] = {row: seen_by(model, env.test) for row, model in (help_ | {"safe": safe} | plain).items()}
    groups = {"begin": begin, "hh_harmless": hh, "diasafety": dia} | {f"gold, {k}": p for k, p in test.items()}
    return out | {
        "seed": seed,
        "groups": {k: len(p.group.unique()) for k, p in groups.items()},
        "strength": tuned({"help": [g.join(begin) for g in gold.values()], "safe": [hh]}),
        "begin_rows_with_knowledge_of_the_features": knowledge_shared(data),
        "features_sha256": features.sha256,
    }


def write_report(data: Path, embed) -> None:
    """outputs/published/reward_models.json."""
    files = (
        HH_FILE,
        *(f"begin/{f}" for f in BEGIN_FILES),
        "diasafety/train.json",
        "diasafety/val.json",
        "wow/valid.json",
        "wow/test.json",
    )
    found = {"sources": sources(data, files), "pairs_sha256": load_pairs()[1]["sha256"]} | rounded(
        report(data, embed), 4
    )
    found["paper"] = PAPER | {"average_over_equal_columns": rounded(equal_averages(), 2)}
    atomic_write(PUBLISHED / "reward_models.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, encoder = Path(sys.argv[1]), MiniLM()
    for step in (write_pairs, write_report):
        step(folder, lambda texts: embed_cached(encoder, texts, default_cache() / "fp32", progress=True))
