"""Embed the tutorial's texts and score their harm: `python tools/tutorial.py` (a minute; needs the extra `build`).

Writes dualppo/assets/tutorial.safetensors, which lets everybody read the tutorial as a bench without any model.
"""

from pathlib import Path

import torch

from dualppo.bench.features import quantise, text_id
from dualppo.bench.readable import told_texts
from dualppo.core.files import atomic_write
from dualppo.core.tensors import safetensors_bytes
from dualppo.text.encoders import MiniLM
from dualppo.text.exchanges import tutorial
from dualppo.text.harm import ToxBlock, ToxicCommentClassifier

ASSET = Path(__file__).resolve().parent.parent / "dualppo" / "assets" / "tutorial.safetensors"


def main() -> None:
    """Every text once: its number, its embedding as int8 with a scale, its harm by two estimators."""
    torch.set_num_threads(1)
    texts, encoder = list(dict.fromkeys(told_texts(tutorial()))), MiniLM()
    q, scale = quantise(encoder.encode(texts))
    tensors = {"text_id": torch.tensor([text_id(text) for text in texts]), "q": q, "scale": scale}
    for harm in (ToxBlock(), ToxicCommentClassifier()):
        tensors[f"p_harm.{harm.name}"] = harm(texts).half()
    atomic_write(ASSET, safetensors_bytes(tensors, {f"encoder.{k}": v for k, v in encoder.identity.items()}))
    print(f"{len(texts)} texts, {ASSET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
