"""The image encoders and the sound block: against another implementation, against the formula, without a network."""

import contextlib
import hashlib
import io
import json

import pytest
import torch
from PIL import Image

from dualppo.core.errors import DataError
from dualppo.vision.audio import MEL, LogMel, MelConfig, log_mel, mel_centres, mel_filters
from dualppo.vision.blocks import encode_block
from dualppo.vision.clip import Clip, picture_encoder, picture_spec, tiny_clip
from dualppo.vision.efficientnet import LITE0_SHA256, EfficientNet, SamePadding, lite0_path
from dualppo.vision.images import square

# What an independent port of the same weights gave for the three pictures of `formula`: norm, product with cos 0,
# cos 1, …, and the probability of the likeliest kind.
PORT = [[15.25519, 5.78231, 0.27928], [16.87266, -2.54256, 0.31675], [18.76177, 6.05626, 0.32239]]


def formula(k: int) -> torch.Tensor:
    """Picture k, uint8 `[224, 224, 3]`."""
    y, x = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    red, green = (x * (k + 1) * 3 + y * 2) % 256, ((x // 16 + y // 16 + k) % 2) * 255
    return torch.stack([red, green, (((x - 112) ** 2 + (y - 112) ** 2) // (40 + k * 9)) % 256], -1).to(torch.uint8)


@pytest.fixture(scope="module")
def eyes() -> EfficientNet:
    return EfficientNet()


def test_efficientnet_gives_what_another_port_gives(eyes):
    seen = eyes.encode([formula(k) for k in range(3)])
    ours = torch.stack([seen.norm(dim=1), seen @ torch.arange(1280.0).cos(), eyes.net._fc(seen).softmax(-1).amax(1)], 1)
    assert torch.allclose(ours, torch.tensor(PORT), rtol=1e-4, atol=1e-4)


def test_a_picture_does_not_see_its_neighbours(eyes):
    pictures = [formula(k) for k in range(3)]
    together = eyes.encode(pictures)
    assert torch.allclose(eyes.encode(pictures[1:2]), together[1:2], atol=2e-4)
    assert eyes.encode([]).shape == (0, 1280)


def test_files_images_and_pixels_are_the_same_picture(eyes, tmp_path):
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    image.save(tmp_path / "a.png")
    three = eyes.encode([tmp_path / "a.png", image, square(image)])
    assert torch.allclose(three[0], three[1]) and torch.allclose(three[0], three[2])
    with pytest.raises(DataError, match="uint8"):
        eyes.encode([torch.zeros(3, 224, 224)])


def test_a_missing_picture_never_reaches_the_encoder(eyes):
    block = encode_block("vision", [None, formula(0)], encoder=eyes)
    assert block.present.tolist() == [False, True] and block.spec.sha256 == LITE0_SHA256


@pytest.mark.parametrize("n, k, s", [(224, 3, 2), (7, 5, 2), (14, 3, 1), (5, 5, 1), (9, 3, 3)])
def test_same_padding_gives_the_ceiling(n, k, s):
    assert SamePadding(1, 1, k, s)(torch.zeros(1, 1, n, n)).shape[-1] == -(-n // s)


def test_the_weights_in_the_cache_are_made_again_when_damaged(tmp_path):
    path = lite0_path(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == LITE0_SHA256
    path.write_bytes(path.read_bytes()[:-1])
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert lite0_path(tmp_path) == path and "renamed" in said.getvalue()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == LITE0_SHA256


def test_a_clip_goes_the_way_of_every_encoder(tmp_path):
    clip = picture_encoder(str(tiny_clip(tmp_path)))
    assert isinstance(clip, Clip)
    pictures = [Image.effect_noise((40, 50), 30 + 60 * k).convert("RGB") for k in range(3)]
    pictures[0].save(tmp_path / "a.png")
    seen, said = clip.encode_pictures(pictures), clip.encode_texts(["a dog", "a cat"])
    assert seen.shape == (3, clip.dim) and said.shape == (2, clip.dim)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3)) and torch.allclose(said.norm(dim=1), torch.ones(2))
    assert torch.allclose(clip.encode_pictures([tmp_path / "a.png"]), seen[:1], atol=1e-5)
    with torch.inference_mode():
        pixels = clip.words.model[0].processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        by_hand = clip.words.model[0].model.get_image_features(pixels)
    by_hand = getattr(by_hand, "pooler_output", by_hand)
    assert torch.allclose(torch.nn.functional.normalize(by_hand, dim=1), seen, atol=1e-5)
    spec = picture_spec(clip)
    assert (spec.name, spec.width, spec.optional) == ("vision", 24, True) and len(spec.sha256) == 64


def test_a_folder_with_code_of_its_own_and_one_without_pictures_are_refused(tmp_path):
    folder = tiny_clip(tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "mine.Model"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match="code of its own"):
        Clip(str(folder))
    with pytest.raises(DataError, match="no such folder"):
        Clip(str(tmp_path / "none"))


@pytest.mark.parametrize("band", range(30, MEL.bands, 4))
def test_a_tone_is_loudest_in_its_own_band(band):
    hertz = float(mel_centres()[band + 1])
    wave = torch.sin(2 * torch.pi * hertz * torch.arange(4000) / MEL.rate)
    assert int(log_mel(wave).mean(1).argmax()) == band


def test_triangles_meet_and_a_sound_that_is_none_is_refused():
    inside = mel_filters()[:, 3:195].sum(0)  # between the first and the last centre neighbours sum to one
    assert torch.allclose(inside[10:180], torch.ones(170), atol=1e-4)
    for bad in (torch.zeros(10), torch.zeros(2, 4000), torch.full((4000,), torch.nan)):
        with pytest.raises(DataError, match="is not read"):
            LogMel().encode([bad])
    with pytest.raises(DataError, match="do not fit"):
        mel_filters(MelConfig(high=9000.0))
