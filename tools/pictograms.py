"""Make the features of pictograms that are shipped: `python tools/pictograms.py WORK`.

A maintainer's command; a user needs neither npm nor a renderer. WORK is a folder for what is downloaded and for what
takes minutes; a second call goes on from there. Needs npm, resvg-py and the encoder's weights.

1. fetch   the packages named in assets/pictograms.toml, each checked by its sha256;
2. encode  every object in every design: SVG → 224 × 224 pixels on white → 1,280 numbers (five minutes on one core);
3. rate    what is dangerous: by our list, and by the rule on keywords, which knows nothing of the list;
4. pack    dualppo/assets/pictograms*.safetensors and their card.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dualppo.bench.features import quantise
from dualppo.core.files import atomic_write
from dualppo.core.tensors import safetensors_bytes
from dualppo.text.download import extract_safely
from dualppo.text.encoders import MiniLM, encoder_identity
from dualppo.vision.efficientnet import LITE0_SHA256, EfficientNet

ASSETS = Path(__file__).resolve().parent.parent / "dualppo" / "assets"
PIXELS = 224
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
NOT_OBJECTS = ("time",)  # subgroups
SHARE_ALIKE = "CC-BY-SA"
STEPS = 31  # of a feature's square root: as many right neighbours as with 255, and files that compress
THUMBS, SIDE = (
    ("spoon", "teapot", "firecracker", "bomb"),
    48,
)  # shown in a notebook, in the designs that ask for a name only
SHOWN = ("noto", "twemoji", "fluent")


def plan() -> dict[str, Any]:
    "Packages, designs, families, the list of dangers and the rule of the second rater."
    return tomllib.loads((ASSETS / "pictograms.toml").read_text(encoding="utf-8"))


# ---- fetch


def fetched(package: str, version: str, sha256: str, work: Path) -> Path:
    "The unpacked folder of an npm package. Raises SystemExit where its bytes are not those that are pinned."
    name = f"{package.removeprefix('@').replace('/', '-')}-{version}"
    archive, folder = work / f"{name}.tgz", work / name
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"], cwd=work, check=True, stdout=subprocess.DEVNULL
        )
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{archive}: sha256 {found}, but assets/pictograms.toml pins {sha256}.")
    if not folder.exists():
        extract_safely(archive, folder)
    return folder / "package"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def concepts(names: Path) -> list[dict[str, Any]]:
    "Single objects: no person, no sequence of several characters, no clock face."
    sub = read(names / "meta" / "groups.json")
    out = []
    for row in read(names / "en" / "data.json"):
        group, kind = (
            sub[which].get(str(row.get(key))) for which, key in (("groups", "group"), ("subgroups", "subgroup"))
        )
        if group in GROUPS and kind not in NOT_OBJECTS and "200D" not in row["hexcode"] and "gender" not in row:
            out.append({"name": row["label"], "hex": row["hexcode"].lower(), "kind": kind, "tags": row.get("tags", [])})
    return out


# ---- encode


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", label.lower().replace("&", "and"))).strip("-")


def spellings(concept: dict[str, Any], by_hex: dict[str, list[str]]) -> list[str]:
    "Names under which a design may keep an object; one of them glues the words."
    known = by_hex.get(concept["hex"], []) + by_hex.get(concept["hex"].replace("-fe0f", ""), [])
    names = [slug(concept["name"]), *known]
    return list(dict.fromkeys(names + [name.replace("-", "") for name in names]))


def svg(icons: dict[str, Any], name: str) -> str | None:
    "A picture as SVG, alone; None if the design has none of that name."
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    if (icon := icons["icons"].get(name)) is None:
        return None
    box = [
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{PIXELS}" height="{PIXELS}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )


def pixels(picture: str) -> np.ndarray:
    "uint8 `[224, 224, 3]` on a white ground."
    png = bytes(resvg_py.svg_to_bytes(svg_string=picture, width=PIXELS, height=PIXELS))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB").resize((PIXELS, PIXELS)))


def pictures(
    design: Path, objects: list[dict[str, Any]], by_hex: dict[str, list[str]]
) -> Iterator[tuple[int, np.ndarray]]:
    "(object, pixels) of what a design draws."
    icons = read(design / "icons.json")
    for number, concept in enumerate(objects):
        found = next((s for name in spellings(concept, by_hex) if (s := svg(icons, name))), None)
        if found:
            yield number, pixels(found)


def names_by_hex(designs: list[Path]) -> dict[str, list[str]]:
    "Code point → names that some design uses for it."
    out: dict[str, list[str]] = {}
    for design in designs:
        chars = design / "chars.json"
        for code, name in read(chars).items() if chars.exists() else ():
            out.setdefault(code, []).append(name)
    return out


def encoded(
    work: Path, designs: dict[str, Path], objects: list[dict[str, Any]], net: EfficientNet
) -> dict[str, torch.Tensor]:
    "design.object Long and design.x fp32 `[n, 1280]` of every design; kept in WORK."
    by_hex, out = names_by_hex(list(designs.values())), {}
    for name, folder in designs.items():
        kept = work / f"encoded-{name}.safetensors"
        if not kept.exists():
            which, images = zip(*pictures(folder, objects, by_hex))
            x = net.encode([torch.from_numpy(image.copy()) for image in images])
            save_file({"object": torch.tensor(which), "x": x}, kept)
            print(f"{name}: {len(which)} of {len(objects)} objects", flush=True)
        out |= {f"{name}.{key}": value for key, value in load_file(kept).items()}
    return out


# ---- rate


def rated(objects: list[dict[str, Any]], rule: dict[str, Any]) -> list[bool]:
    """The second rater's verdicts, by the words of an object's name and keywords."""
    dangers = set(rule["words"])
    return [bool(dangers & set(" ".join([one["name"], *one["tags"]]).lower().split())) for one in objects]


def levels(objects: list[dict[str, Any]], dangers: list[dict[str, Any]]) -> list[int]:
    """The first rater's levels. Raises SystemExit for an object of the list that no package has."""
    order, names = ("harmless", "minor", "moderate", "severe"), [one["name"] for one in objects]
    level = {name: order.index(one["level"]) for one in dangers for name in one["objects"]}
    if missing := sorted(set(level) - set(names)):
        raise SystemExit(f"assets/pictograms.toml: no object is called {', '.join(missing)}.")
    return [level.get(name, 0) for name in names]


# ---- pack


def squeezed(values: torch.Tensor) -> torch.Tensor:
    """Bytes of a uint8 tensor, compressed."""
    return torch.frombuffer(bytearray(zlib.compress(values.contiguous().numpy().tobytes(), 9)), dtype=torch.uint8)


def features(
    parts: dict[str, torch.Tensor], names: list[str], designs: list[str], scale: float
) -> dict[str, torch.Tensor]:
    """The tensors of some designs: features as compressed steps, design and object of every picture."""
    x = torch.cat([parts[f"{name}.x"] for name in names])
    counts = torch.tensor([len(parts[f"{name}.object"]) for name in names])
    return {
        "x": squeezed((x.sqrt() / scale).round().clamp(max=255).to(torch.uint8)),
        "design": torch.tensor([designs.index(name) for name in names]).repeat_interleave(counts).to(torch.uint8),
        "object": torch.cat([parts[f"{name}.object"] for name in names]).to(torch.int16),
    }


def spoken(objects: list[dict[str, Any]], forms: list[str], seed: int) -> list[str]:
    """A reply for every object, in a form that is drawn."""
    draw, out = np.random.default_rng(seed), []
    for one in objects:
        name = one["name"]
        a = ("an " if name[0].lower() in "aeiou" else "a ") + name
        out.append(forms[draw.integers(len(forms))].format(a=a, A=a[0].upper() + a[1:]))
    return out


def texts(objects: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Embeddings of questions and replies in int8."""
    said, encoder, out = tomllib.loads((ASSETS / "picture_texts.toml").read_text(encoding="utf-8")), MiniLM(), {}
    spoken_of = {"use": spoken(objects, said["use"], 1), "caution": spoken(objects, said["caution"], 2)}
    for name, lines in {"question": said["questions"], **spoken_of, "refusal": said["refusal"]}.items():
        out[f"{name}.q"], out[f"{name}.scale"] = quantise(encoder.encode(lines))
    return out


def thumbs(designs: dict[str, Path], objects: list[dict[str, Any]], by_hex: dict[str, list[str]]) -> torch.Tensor:
    """uint8 `[len(THUMBS), len(SHOWN), SIDE, SIDE, 3]`."""
    by_name, out = {one["name"]: one for one in objects}, []
    for thing in THUMBS:
        for name in SHOWN:
            icons = read(designs[name] / "icons.json")
            found = next(s for spelling in spellings(by_name[thing], by_hex) if (s := svg(icons, spelling)))
            out.append(np.asarray(Image.fromarray(pixels(found)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(out).reshape(len(THUMBS), len(SHOWN), SIDE, SIDE, 3))


def main(work: Path) -> None:
    """All four steps."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    made = plan()
    one = made["names"]
    objects = concepts(fetched(one["package"], one["version"], one["sha256"], work))
    designs = {d["name"]: fetched(d["package"], d["version"], d["sha256"], work) for d in made["designs"]}
    parts = encoded(work, designs, objects, EfficientNet())
    names = list(designs)
    open_, alike = (
        [d["name"] for d in made["designs"] if d["licence"].startswith(SHARE_ALIKE) is s] for s in (False, True)
    )
    scale = float(max(parts[f"{name}.x"].max() for name in names)) ** 0.5 / STEPS
    seen = thumbs(designs, objects, names_by_hex(list(designs.values())))
    files = {
        "pictograms": features(parts, open_, names, scale) | texts(objects) | {"thumbs": squeezed(seen)},
        "pictograms-sharealike": features(parts, alike, names, scale),
    }
    contents = {stem: safetensors_bytes(tensors) for stem, tensors in files.items()}
    for stem, content in contents.items():
        atomic_write(ASSETS / f"{stem}.safetensors", content)
    card = {
        "what": "pictures of objects as 1,280 numbers of an image encoder; questions and replies of ours as embeddings",
        "sha256": {stem: hashlib.sha256(content).hexdigest() for stem, content in contents.items()},
        "scale": scale,
        "picture_encoder": {"name": "efficientnet-lite0", "sha256": LITE0_SHA256},
        "encoder": encoder_identity(),
        "names_from": made["names"],
        "designs": made["designs"],
        "thumbs": {"objects": THUMBS, "designs": SHOWN, "side": SIDE},
        "second_rater": "a rule on keywords, written before they were read; see pictograms.toml",
        "objects": {
            "name": [o["name"] for o in objects],
            "kind": [o["kind"] for o in objects],
            "level": levels(objects, made["dangers"]),
            "rated": [int(yes) for yes in rated(objects, made["second_rater"])],
        },
    }
    atomic_write(ASSETS / "pictograms.json", json.dumps(card, ensure_ascii=False, separators=(",", ":")) + "\n")
    print({stem: len(content) for stem, content in contents.items()})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
