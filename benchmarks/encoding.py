"""Texts per second of the frozen sentence encoder in fp32, bf16 and int8, and how close each stays to fp32.

`python benchmarks/encoding.py` writes results/encoding.json. The texts are the tutorial's own.
"""

import warnings

import torch
from machine import save, seconds

from dualppo.text.encoders import MiniLM
from dualppo.text.exchanges import tutorial


def texts() -> list[str]:
    """Every query, knowledge sentence and reference of the tutorial."""
    return [text for one in tutorial() for text in (one.query, one.knowledge, one.reference)]


def quantised() -> MiniLM:
    """The encoder with its linear layers in int8, activations quantised as they come."""
    encoder = MiniLM()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder.model = torch.ao.quantization.quantize_dynamic(encoder.model, {torch.nn.Linear}, dtype=torch.qint8)
    return encoder


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    items = texts()
    encoders = {"fp32": MiniLM(), "bf16": MiniLM("bf16"), "int8": quantised()}
    embedded = {name: encoder.encode(items) for name, encoder in encoders.items()}
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encoder in encoders.items():
            times[name].append(seconds(lambda encoder=encoder: encoder.encode(items)))
    cosines = {name: (embedded[name] * embedded["fp32"]).sum(1) for name in encoders}
    save(
        "encoding",
        {
            "texts": len(items),
            "rows": {
                name: {
                    "texts_per_second": len(items) / min(times[name]),
                    "ratio": min(times["fp32"]) / min(times[name]),
                    "least_cosine": cosines[name].min().item(),
                    "mean_cosine": cosines[name].mean().item(),
                }
                for name in encoders
            },
        },
    )


if __name__ == "__main__":
    main()
