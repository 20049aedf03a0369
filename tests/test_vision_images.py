"""Pictures from outside: what is opened comes out right, and whatever is wrong costs one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualppo.core.errors import DataError
from dualppo.vision.images import PictureLimits, open_picture, picture_sha256, square

ORIENTATIONS = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_270],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_90],
}


def written(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = (12, 8)) -> Image.Image:
    """A picture without two equal corners."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def svg(body: str, attributes: str = 'viewBox="0 0 8 8"') -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'.encode()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_is_turned_as_its_camera_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = noise()
    for turn in ORIENTATIONS[orientation]:
        upright = upright.transpose(turn)
    assert np.array_equal(open_picture(written(noise(), exif=exif)), upright)


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_pixels_back(kind, options):
    assert np.array_equal(open_picture(written(noise(), kind, **options)), noise())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_three_colours(mode):
    grey = Image.new("L", (4, 4), 255).convert("RGB").convert(mode if mode != "LA" else "L").convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    opened = open_picture(written(grey, kind))
    assert opened.mode == "RGB" and np.asarray(opened).min() >= 250


@pytest.mark.parametrize("seed", range(3))
def test_sixteen_bits_keep_their_order(seed):
    deep = np.sort(np.random.default_rng(seed).integers(0, 65536, 64).astype(np.uint16)).reshape(8, 8)
    shown = np.asarray(open_picture(written(Image.fromarray(deep))))[..., 0]
    assert np.array_equal(shown, deep // 257)


def test_what_is_transparent_shows_a_white_page():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (0, 0, 0, 0))
    pixels = np.asarray(open_picture(written(half)))[0]
    assert pixels[1].tolist() == [255, 255, 255] and pixels[0].tolist() == pytest.approx([255, 127, 127], abs=1)


def test_of_several_frames_the_first_is_seen():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        moving = written(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(open_picture(moving), int) - [255, 0, 0]).max() < 12, kind


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"<svg "]),
)
def test_rubbish_costs_a_sentence(rest, start):
    with pytest.raises(DataError, match="^the picture"):
        open_picture(start + rest)


@given(st.integers(1, 2000), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]))
def test_a_part_of_a_file_is_a_picture_or_a_sentence(length, kind):
    whole = written(noise(), kind)
    try:
        assert open_picture(whole[: min(length, len(whole) - 1)]).size == (12, 8)
    except DataError as error:
        assert str(error).startswith("the picture")


def test_a_bomb_is_refused_by_its_header():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for width, height in ((60_000, 60_000), (9_000, 9_000), (2**31 - 1, 1)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        with pytest.raises(DataError, match="million"):
            open_picture(bomb)


def test_size_and_formats_are_limited(tmp_path):
    with pytest.raises(DataError, match="larger than 1 MiB"):
        open_picture(bytes(2 << 20), PictureLimits(megabytes=1))
    (tmp_path / "big.png").write_bytes(bytes(2 << 20))
    with pytest.raises(DataError, match="big.png: larger than 1 MiB"):
        open_picture(tmp_path / "big.png", PictureLimits(megabytes=1))
    with pytest.raises(DataError, match="not a picture of a format that is read .PNG"):
        open_picture(written(noise(), "TIFF"), PictureLimits(formats=("PNG",)))
    with pytest.raises(DataError, match="an SVG; what is read here"):
        open_picture(svg("<g/>"), PictureLimits(formats=("PNG",)))
    with pytest.raises(DataError, match="folder"):
        open_picture(tmp_path)


@pytest.mark.parametrize(
    "body, said",
    [
        ('<image href="x.png"/>', "'image'"),
        ('<image href="data:image/png;base64,AA"/>', "'image'"),
        ("<script>1</script>", "'script'"),
        ("<text>a</text>", "'text'"),
        ("<foreignObject/>", "'foreignObject'"),
        ('<use href="other.svg#a"/>', "outside"),
        ('<use xmlns:x="http://www.w3.org/1999/xlink" x:href="file:///etc/hostname"/>', "outside"),
        ('<rect fill="url(//example.org/a)"/>', "outside"),
        ('<rect fill="URL( &quot;https://example.org/a&quot; )"/>', "outside"),
        ("<style>@import 'a.css';</style>", "outside"),
        ("<style>rect{fill:url('http://example.org')}</style>", "outside"),
        ('<rect onload="1"/>', "outside"),
        ('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>', "draws itself"),
        ('<mask id="m"><rect mask="url(#m)"/></mask>', "draws itself"),
        ("<g>" * 70 + "</g>" * 70, "nested deeper"),
        ("<g>", "broken SVG"),
    ],
)
def test_an_svg_that_is_a_program_is_refused(body, said):
    with pytest.raises(DataError, match=said):
        open_picture(svg(body))


def test_repetition_of_repetition_is_counted_not_drawn():
    twice = "".join(f'<g id="a{n + 1}"><use href="#a{n}"/><use href="#a{n}"/></g>' for n in range(40))
    with pytest.raises(DataError, match="draws .* elements"):
        open_picture(svg(f'<defs><path id="a0" d="M0 0"/>{twice}</defs><use href="#a40"/>'))


def test_entities_and_flat_drawings_are_refused():
    with pytest.raises(DataError, match="document type"):
        open_picture(b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "b">]>' + svg("&a;"))
    with pytest.raises(DataError, match="useful size"):
        open_picture(svg("<g/>", 'viewBox="0 0 1000 1"'))


def test_an_svg_is_drawn_the_same_each_time():
    drawing = svg('<circle cx="4" cy="4" r="3" fill="#08c"/><path d="M0 0h2v2z"/>')
    first, second = (square(open_picture(drawing)) for _ in range(2))
    assert picture_sha256(first) == picture_sha256(second) and first[112, 112].tolist() == [0, 136, 204]
    wide = open_picture(svg('<rect width="16" height="8" fill="red"/>', 'viewBox="0 0 16 8"'))
    assert wide.size == (224, 112)
