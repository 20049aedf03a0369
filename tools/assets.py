"""Fit the shipped heads again and write their cards and reports: `python tools/assets.py DATA` (minutes on two cores).

DATA is a folder with jigsaw/, diasafety/, surge_toxicity/, begin/ and wow/. Writes dualppo/assets/{harm_head,judge}.*
and outputs/published/{harm_estimators,judge}.json; nothing typed by hand enters them.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch

from dualppo.bench.build import default_cache
from dualppo.core.files import atomic_write, sha256_of
from dualppo.text.encoders import MiniLM, embed_cached, encoder_identity
from dualppo.text.harm import (
    TOX_BLOCK,
    TOXIC_COMMENT,
    FrozenHead,
    ToxBlock,
    ToxicCommentClassifier,
    harm_report,
    train_head,
    write_asset,
)
from dualppo.bench.judges import BEGIN_FILES, judge_report, train_judge

ROOT = Path(__file__).resolve().parent.parent
ASSETS, PUBLISHED = ROOT / "dualppo" / "assets", ROOT / "outputs" / "published"
HARM_FILES = ("jigsaw/jigsaw_binary_8120.csv", "diasafety/train.json", "wow/valid.json")
REPORT_FILES = (*HARM_FILES, "diasafety/val.json", "surge_toxicity/toxicity_en.csv", "wow/test.json")


def rounded(value, digits: int = 5):
    """Floats inside lists and dicts rounded, so that reports can be read."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value


def sources(data: Path, files) -> list[dict[str, str]]:
    """Files and their sha256."""
    return [{"file": f, "sha256": sha256_of(data / f)} for f in files]


def write_report(name: str, report: dict) -> None:
    atomic_write(PUBLISHED / name, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def harm(data: Path, embed) -> None:
    """The calibrated head on the frozen encoder, and what the three offline estimators are worth."""
    weights = train_head(data, embed)
    head = FrozenHead(weights=weights, encoder=SimpleNamespace(encode=embed))
    report = rounded(harm_report(data, {"tox_block": ToxBlock(), "tcc": ToxicCommentClassifier(), "head": head}))
    del report["estimators"]["head"]["texts_per_second"]  # embeddings come from the cache here
    report |= {
        "sources": sources(data, REPORT_FILES),
        "encoder": encoder_identity(),
        "carriers": {c.package: asdict(c) for c in (TOX_BLOCK, TOXIC_COMMENT)},
    }
    old = json.loads((ASSETS / "harm_head.json").read_text())
    card = old | {
        "base_rate": weights.base_rate,
        "sources": sources(data, HARM_FILES),
        "measured": {
            k: report["estimators"]["head"][k] for k in ("jigsaw", "surge", "diasafety", "polite", "calibration_error")
        },
    }
    write_asset("harm_head", {"weight": weights.weight, "bias": torch.tensor([weights.bias])}, card, ASSETS)
    write_report("harm_estimators.json", report)


def judge(data: Path, embed) -> None:
    """The attribution judge, and its agreement with people on knowledge and generators it has not seen."""
    weights, strength = train_judge(data, embed)
    begin = sources(data, [f"begin/{f}" for f in BEGIN_FILES])
    report = (
        {"sources": begin, "encoder": encoder_identity()}
        | rounded(judge_report(data, embed), 4)
        | {"strength": strength}
    )
    old = json.loads((ASSETS / "judge.json").read_text())
    card = old | {
        "C": strength,
        "sources": begin,
        "measured": {k: report[k] for k in ("grouped", "unseen_model", "model_name_only", "cosine_only")},
    }
    write_asset("judge", {"weight": weights.weight, "bias": torch.tensor([weights.bias])}, card, ASSETS)
    write_report("judge.json", report)


if __name__ == "__main__":
    folder, encoder = Path(sys.argv[1]), MiniLM()
    for fit in (harm, judge):
        fit(folder, lambda texts: embed_cached(encoder, texts, default_cache() / "fp32", progress=True))
