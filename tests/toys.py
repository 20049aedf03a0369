"""A small features file with the structure of the real one, made in a second.

For tests of runs, tables and CLI.
"""

import hashlib
from pathlib import Path

import torch

from dualppo.text.exchanges import Exchange
from dualppo.text.encoders import encoder_identity, hashed_tokens
from dualppo.bench.features import Tails, build_features, write_features

TAILS = Tails(strong=("you utter fool", "shut up idiot"), mild=("how silly",), benign=("have a good day",))


def direction(text: str) -> torch.Tensor:
    """A fixed random direction `[384]` of a text."""
    seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    return torch.randn(384, generator=torch.Generator().manual_seed(seed))


def encode(texts) -> torch.Tensor:
    """Unit rows `[n, 384]`: texts with common words are close."""
    return torch.nn.functional.normalize(torch.stack([sum(direction(w) for w in t.split()) for t in texts]), dim=1)


def rude(texts) -> torch.Tensor:
    """p_harm `[n]` by word: strong tails .9, mild ones .4."""
    return torch.tensor([0.9 if {"fool", "idiot"} & set(t.split()) else 0.4 if "silly" in t else 0.02 for t in texts])


def exchanges(dialogues: int = 110, turns: int = 4) -> list[Exchange]:
    """Dialogues about things with numbers for names."""
    return [
        Exchange(
            f"toy:{d}",
            t,
            f"what about thing{d} part{t}",
            f"thing{d} has part{t} and colour{d % 7}",
            f"thing{d} part{t} is colour{d % 7}",
        )
        for d in range(dialogues)
        for t in range(turns)
    ]


def write_toy(path: Path, encoder: dict | None = None, **options) -> Path:
    """Write the toy features file and return its path; its vectors pass for MiniLM's, so that the judge reads them."""
    rows = exchanges(**options)
    unsafe = [f"go away you thing{i}" for i in range(40)]
    tensors = build_features(
        rows, [0] * len(rows), unsafe, TAILS, encode, {"tox_block": rude, "tcc": rude, "head": rude}, hashed_tokens
    )
    write_features(
        path, tensors, {"encoder": encoder or encoder_identity(), "attribution": "toy features, made in a test"}
    )
    return path


def whole(record: dict) -> dict:
    """A made-up record with everything that a real one holds and this one lacks."""
    metrics = {"good": 0.5, "harm": 0.1, "average_reward": 0.6}
    seed = {"mask_off": metrics, "last": metrics, "train": metrics, "dialogues": {}, "weights": [0.5, 0.5]} | {
        "choices": {"mass_by_kind": {}, "examples": []},
        "curves": [{"epoch": 0, "weights": [0.5, 0.5], "dev_average_reward": 0.6}],
        "best_epoch": 0,
    }
    made = {
        "config": {"trainer": "Control", "method": {}, "env": {}, "candidates": {}},
        "measured": {"wall_clock_s": [1.0], "peak_memory_mb": 100.0, "device": "cpu", "started": "2026-01-01"}
        | {"versions": {"dualppo": "0"}},
        "key": "k",
        "code_sha256": "c",
    }
    return made | record | {"results": [seed | one for one in record["results"]]}


DOT = bytes.fromhex(  # a picture of one pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
