"""What pictures cost: opening and encoding one, memory, the block's price in an epoch, and growth with states.

`python benchmarks/pictures.py` writes results/pictures.json. The pictures are noise; the ratios are of one run.
"""

import io

import torch
from machine import peak_mb, save, seconds
from PIL import Image

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import EnvConfig, make_envs
from dualppo.bench.features import load_features
from dualppo.methods.base import train
from dualppo.methods.rows import configure, method
from dualppo.text.encoders import MiniLM
from dualppo.text.exchanges import tutorial
from dualppo.vision.blocks import BlockSpec, encoded, with_blocks
from dualppo.vision.efficientnet import EfficientNet
from dualppo.vision.images import open_picture, square


def files(n: int) -> list[bytes]:
    """n pictures of 256 × 256 as PNG files."""
    out = []
    for _ in range(n):
        file = io.BytesIO()
        Image.effect_noise((256, 256), 60).convert("RGB").save(file, "PNG")
        out.append(file.getvalue())
    return out


def encoding(n: int, rounds: int) -> dict:
    """Pictures and texts per second, the best of some rounds, and the peak memory."""
    texts = [text for one in tutorial() for text in (one.query, one.knowledge)][:n]
    words, before = MiniLM(), peak_mb()
    eyes, content = EfficientNet(), files(n)
    pixels = [square(open_picture(one)) for one in content]
    work = {
        "open": lambda: [square(open_picture(one)) for one in content],
        "encode": lambda: eyes.encode(pixels),
        "encode_half": lambda: eyes.encode(pixels[: n // 2]),
        "texts": lambda: words.encode(texts),
    }
    best = {name: min(seconds(one) for _ in range(rounds)) for name, one in work.items()}
    return {
        "pictures": n,
        "opened_per_second": n / best["open"],
        "pictures_per_second": n / best["encode"],
        "texts_per_second": len(texts) / best["texts"],
        "twice_as_many": best["encode"] / best["encode_half"],
        "peak_mb": peak_mb(),
        "peak_before_mb": before,
    }


def epochs(share: float, rounds: int) -> dict:
    """Seconds of two epochs of the exact gradient on a share of training, with and without 1,280 columns."""
    features, few = load_features(), configure(method("exact_gradient"), {"epochs": 2})
    splits = make_envs(features, STRESS, 0, EnvConfig(train_share=share))
    seen = torch.randn(len(features), 1280, generator=torch.Generator().manual_seed(0))
    block = encoded(BlockSpec("vision", 1280, optional=True), seen)
    wide = with_blocks(splits, {"vision": block}).splits
    without, with_ = (min(seconds(lambda s=s: train(s, few.config, 0)) for _ in range(rounds)) for s in (splits, wide))
    adding = seconds(lambda: with_blocks(splits, {"vision": block}))
    return {"states": len(splits.train), "without": without, "with": with_, "adding": adding}


def main(n: int = 48, rounds: int = 2) -> None:
    torch.set_num_threads(1)
    figures = encoding(n, rounds)
    save(
        "pictures", figures | {"epochs": 2, "rounds": rounds, "rows": [epochs(share, rounds) for share in (0.25, 0.5)]}
    )


if __name__ == "__main__":
    main()
