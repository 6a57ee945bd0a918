from __future__ import annotations

import dataclasses
import io
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from places import REPOSITORY
from torchvision.models import VGG16_Weights, VGG19_Weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from vggfeat.core.preprocessing import NORMALISATIONS, Preprocess
from vggfeat.errors import DecodeError
from vggfeat.images import pillow as loading
from vggfeat.images import resize as geometry
from vggfeat.images.decode import decode, decode_file
from vggfeat.images.intensity import grey_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Crop

    Pixels = NDArray[np.uint8]

DATA = Path(os.environ.get("VGGFEAT_TEST_DATA", REPOSITORY.parent / "shared"))
PHOTOS = sorted((DATA / "photos").glob("*.JPEG"))
LIMIT = 10_000_000
SIDE = 32
SQUASH = Preprocess(size=SIDE, resize=None, crop="squash")
KEEP = Preprocess(size=SIDE, resize=None, crop="none")
IGNORE = Preprocess(size=SIDE, resize=None, crop="none", exif="ignore")

rng = np.random.default_rng(7)
NOISE: Pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
ALPHA: Pixels = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
GREY16 = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with some noise, in which a wrong pixel shows."""
    own = np.random.default_rng([width, height])
    small = own.integers(0, 256, (min(height, 9), min(width, 9), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noise = own.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def pixels(data: bytes, preprocess: Preprocess = SQUASH, limit: int = LIMIT) -> Pixels:
    return decode(io.BytesIO(data), preprocess, limit)


def reason(data: bytes, preprocess: Preprocess = SQUASH, limit: int = LIMIT) -> str:
    with pytest.raises(DecodeError) as caught:
        pixels(data, preprocess, limit)
    return str(caught.value)


def grey(values: NDArray[Any]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def on_white(colours: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    share = alpha.astype(float)[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(header: tuple[int, int, int, int], rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG of width, height, bit depth, colour type; unfiltered rows."""
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    end = chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + end


def grey_tiff(side: int, bits: int, rows: bytes) -> bytes:
    """A little-endian uncompressed TIFF, grey, black is zero."""
    tags = [
        (256, 4, side), (257, 4, side), (258, 3, bits), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 4, side), (279, 4, len(rows)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + directory + bytes(4)


def test_returns_writable_rgb_rows() -> None:
    """The array is uint8 (H, W, 3), C-contiguous, writable, and of the default size 224."""
    array = pixels(saved(photo(300, 200), "JPEG"), Preprocess())
    assert array.shape == (224, 224, 3)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP", "JPEG2000"])
def test_rgb_as_is(kind: str) -> None:
    """RGB pixels of a lossless file arrive unchanged."""
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(NOISE), kind, **options)
    np.testing.assert_array_equal(pixels(data), NOISE)


def test_jpeg_as_pillow_decodes_it() -> None:
    """A JPEG's pixels are those of Pillow's decoder at full size, no draft mode."""
    data = saved(photo(SIDE, SIDE), "JPEG")
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    """Eight-bit grey is repeated in red, green and blue."""
    flat = np.full((SIDE, SIDE), 77, np.uint8)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(flat), kind)), grey(flat))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    """Bilevel images come out as 0 and 255."""
    bits = ALPHA > 127
    data = saved(Image.fromarray(ALPHA).point(lambda v: 255 * (v > 127), "1"), kind)
    np.testing.assert_array_equal(pixels(data), grey(bits * 255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TGA"])
def test_rgba_lies_on_white(kind: str) -> None:
    """Transparent pixels show white in proportion to their alpha."""
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(np.dstack([NOISE, ALPHA])), kind, **options)
    np.testing.assert_array_equal(pixels(data), on_white(NOISE, ALPHA))


def test_la_lies_on_white() -> None:
    """Grey with alpha is composited like colour."""
    image = Image.merge("LA", [Image.fromarray(NOISE[..., 0]), Image.fromarray(ALPHA)])
    expected = on_white(grey(NOISE[..., 0]), ALPHA)
    np.testing.assert_array_equal(pixels(saved(image, "PNG")), expected)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha_lies_on_white(mode: str) -> None:
    """Premultiplied pixels come out as their plain form does, to within one level."""
    plain = Image.fromarray(np.dstack([NOISE, ALPHA])).convert("LA" if mode == "La" else "RGBA")
    bands = np.asarray(plain)
    expected = on_white(bands[..., :-1].repeat(3 if mode == "La" else 1, axis=2), bands[..., -1])
    got = np.asarray(loading.rgb(plain.convert(mode)), int)
    assert np.abs(got - expected).max() <= 1


def palette_image() -> tuple[Image.Image, Pixels]:
    """A palette image and the colours it shows, (32, 32, 3)."""
    indices = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 16
    colours = np.random.default_rng(3).integers(0, 256, (16, 3), np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    return image, colours[indices]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(kind: str) -> None:
    """Palette indices are looked up."""
    image, expected = palette_image()
    np.testing.assert_array_equal(pixels(saved(image, kind)), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparent_index(kind: str) -> None:
    """The one transparent palette entry shows white."""
    image, expected = palette_image()
    index = np.asarray(image)
    expected = np.where((index == 5)[..., None], 255, expected)
    np.testing.assert_array_equal(pixels(saved(image, kind, transparency=5)), expected)


def test_palette_with_alpha_per_entry() -> None:
    """Each palette entry lies on white with its own alpha, and no warning escapes."""
    image, colours = palette_image()
    alphas = np.arange(0, 256, 17, dtype=np.uint8)
    data = saved(image, "PNG", transparency=alphas.tobytes())
    np.testing.assert_array_equal(pixels(data), on_white(colours, alphas[np.asarray(image)]))


def test_palette_mode_with_alpha_band() -> None:
    """Mode PA lies on white by its alpha band."""
    image, colours = palette_image()
    both = image.convert("PA")
    both.putalpha(Image.fromarray(ALPHA))
    np.testing.assert_array_equal(np.asarray(loading.rgb(both)), on_white(colours, ALPHA))


def test_transparent_colour_of_rgb_png() -> None:
    """A PNG's transparent colour shows white, its neighbours stay."""
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[::2] = (10, 20, 30)
    colours[1::2] = (10, 20, 31)
    data = saved(Image.fromarray(colours), "PNG", transparency=(10, 20, 30))
    colours[::2] = 255
    np.testing.assert_array_equal(pixels(data), colours)


def test_transparent_level_of_grey_png() -> None:
    """A grey PNG's transparent level shows white."""
    level = int(ALPHA[0, 0])
    chosen = np.equal(ALPHA, level)
    data = saved(Image.fromarray(ALPHA), "PNG", transparency=level)
    np.testing.assert_array_equal(pixels(data), grey(np.where(chosen, 255, ALPHA)))


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (1, b"\x55", (255, 255)),  # levels 0 1, of which 0 is transparent
        (2, b"\x12", (255, 85, 255, 170)),  # levels 0 1 0 2
        (4, b"\x02", (255, 34)),
        (16, b"\0\0\1\x01", (255, 1)),
    ],
)
def test_transparent_black_at_every_depth(
    depth: int, row: bytes, expected: tuple[int, ...]
) -> None:
    """Level 0 as transparent colour shows white whatever the bits per pixel."""
    rows = [row * (SIDE * depth // 8 // len(row))] * SIDE
    array = pixels(png((SIDE, SIDE, depth, 0), rows, chunk(b"tRNS", b"\0\0")))
    assert tuple(array[0, : len(expected), 0]) == expected


@pytest.mark.parametrize(("depth", "key", "level"), [(2, 1, 85), (4, 3, 51)])
def test_transparent_level_is_in_the_depth_of_the_file(depth: int, key: int, level: int) -> None:
    """A transparent level above 0 is found in pixels that Pillow has scaled to eight bits."""
    packed = bytes([int(f"{key:0{depth}b}{0:0{depth}b}" * (4 // depth), 2)])
    rows = [packed * (SIDE * depth // 8)] * SIDE
    with_key = pixels(png((SIDE, SIDE, depth, 0), rows, chunk(b"tRNS", struct.pack(">H", key))))
    without = pixels(png((SIDE, SIDE, depth, 0), rows))
    assert (without[0, 0, 0], without[0, 1, 0]) == (level, 0)
    assert (with_key[0, 0, 0], with_key[0, 1, 0]) == (255, 0)


def test_transparent_colour_of_sixteen_bit_rgb() -> None:
    """The transparent colour of a 16-bit RGB PNG is found in the upper bytes Pillow keeps."""
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x2234, 0x5678, 0x9ABC) * (SIDE // 2)
    key = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    array = pixels(png((SIDE, SIDE, 16, 2), [row] * SIDE, key))
    assert array[0, :2].tolist() == [[255, 255, 255], [0x22, 0x56, 0x9A]]


def sixteen_bit_files() -> dict[str, bytes]:
    swapped = GREY16.astype(">u2")
    return {
        "png": png((SIDE, SIDE, 16, 0), [row.tobytes() for row in swapped]),
        "pgm": b"P5 32 32 65535\n" + swapped.tobytes(),
        "tiff": saved(Image.fromarray(GREY16), "TIFF"),
        "tiff, lzw": saved(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"),
        "tiff, big-endian": saved(
            Image.frombytes("I;16B", (SIDE, SIDE), swapped.tobytes()), "TIFF"
        ),
        "jpeg 2000": saved(Image.fromarray(GREY16), "JPEG2000"),
    }


@pytest.mark.parametrize("kind", sixteen_bit_files())
def test_sixteen_bit_grey_keeps_its_range(kind: str) -> None:
    """Sixteen-bit grey is divided by 257 to the nearest, not clipped to white."""
    expected = grey(np.rint(GREY16 / 257))
    np.testing.assert_array_equal(pixels(sixteen_bit_files()[kind]), expected)


@pytest.mark.parametrize("kind", ["png", "pgm"])
def test_dark_sixteen_bit_grey_stays_dark(kind: str) -> None:
    """A 16-bit file whose values happen to fit eight bits is as dark as its format says."""
    dark = np.full((SIDE, SIDE), 200, ">u2")
    data = {
        "png": png((SIDE, SIDE, 16, 0), [row.tobytes() for row in dark]),
        "pgm": b"P5 32 32 65535\n" + dark.tobytes(),
    }
    np.testing.assert_array_equal(pixels(data[kind]), 1)


@pytest.mark.parametrize(
    ("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")]
)
def test_every_sixteen_bit_mode(mode: str, dtype: str) -> None:
    """Pillow's 16-bit modes differ in byte order only."""
    image = Image.frombytes("I;16", (SIDE, SIDE), GREY16.astype("<u2").tobytes())
    if mode != "I;16":
        image = Image.frombytes(mode, (SIDE, SIDE), GREY16.astype(dtype).tobytes())
    np.testing.assert_array_equal(np.asarray(loading.rgb(image)), grey(np.rint(GREY16 / 257)))


def test_twelve_bit_tiff_fills_the_range() -> None:
    """Twelve-bit grey has its white at 4095."""
    pair = bytes([0xFF, 0xF8, 0x00])  # 4095, 2048
    array = pixels(grey_tiff(SIDE, 12, pair * (SIDE * SIDE // 2)))
    assert array[0, :2, 0].tolist() == [255, 128]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0, 0.25], [0, 128, 255, 64]),
        ([0.0, 1.5, 255.0, 99.4], [0, 2, 255, 99]),
        ([-1.0, 0.0, 1.0, 0.5], [0, 128, 255, 191]),
        ([0.0, 1000.0, 500.0, 250.0], [0, 255, 128, 64]),
        ([NAN, 0.5, 1.0, INF], [0, 128, 255, 255]),
        ([NAN, 100.0, 200.0, -INF], [0, 100, 200, 100]),
        ([NAN, NAN, INF, -INF], [0, 0, 0, 0]),
        ([7000.0, 7000.0, 7000.0, 7000.0], [0, 0, 0, 0]),
        ([-3e38, 3e38, 0.0, 0.0], [0, 255, 128, 128]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    """Floats go by what they hold: [0, 1], [0, 255], or stretched; NaN is black."""
    array = np.resize(np.array(values, np.float32), (SIDE, SIDE))
    assert pixels(saved(Image.fromarray(array), "TIFF"))[0, :4, 0].tolist() == expected


def test_nan_is_black_on_every_platform() -> None:
    """NaN is set to 0 before it is cast, which would be undefined."""
    values = np.array([[NAN, 100.0], [200.0, INF]], np.float32)
    assert grey_bytes(values, None, inverted=False).tolist() == [[0, 100], [200, 200]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 1, 0], [0, 1, 1, 0]),
        ([0, 200, 255, 1], [0, 200, 255, 1]),
        ([0, 65535, 32768, 257], [0, 255, 128, 1]),
        ([0, 2**31 - 1, 2**30, 0], [0, 255, 128, 0]),
        ([-300, 300, 0, 150], [0, 255, 128, 191]),
    ],
)
def test_integer_tiff(values: list[int], expected: list[int]) -> None:
    """32-bit integers go by what they hold: 8 bits, 16 bits, or stretched."""
    array = np.resize(np.array(values, np.int32), (SIDE, SIDE))
    assert pixels(saved(Image.fromarray(array), "TIFF"))[0, :4, 0].tolist() == expected


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 255, 0), (255, 255, 0)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg_with_adobe_marker(ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    """Photoshop's inverted CMYK comes out in its colours."""
    data = saved(Image.new("CMYK", (SIDE, SIDE), ink), "JPEG", quality=100)
    assert b"Adobe" in data
    assert np.abs(pixels(data).astype(int) - colour).max() <= 3


def test_cmyk_tiff() -> None:
    """CMYK outside JPEG is not inverted."""
    data = saved(Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)), "TIFF")
    assert pixels(data)[0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("mode", "value", "colour"),
    [
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (85, 255, 255), (0, 255, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
    ],
)
def test_other_colour_spaces(
    mode: str, value: tuple[int, ...], colour: tuple[int, int, int]
) -> None:
    """Modes that few files have are converted to the colour they mean."""
    got = np.asarray(loading.rgb(Image.new(mode, (4, 4), value)), int)
    assert np.abs(got - colour).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "MPO"])
def test_first_of_several_frames(kind: str) -> None:
    """Of an animation, a multi-page file or a stereo pair the first frame counts."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert np.abs(pixels(data).astype(int) - colours[0]).max() <= 2


TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
UPRIGHT = photo(40, SIDE)
TIFFS = ("TIFF", "TIFF tiff_lzw")


def oriented(kind: str, orientation: int) -> bytes:
    """`UPRIGHT` as it is in a file that says it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind, _, compression = kind.partition(" ")
    if kind == "TIFF":
        options = {"compression": compression} if compression else {}
        return saved(UPRIGHT, kind, tiffinfo={0x0112: orientation}, **options)
    return saved(UPRIGHT, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", *TIFFS])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    """Each of the eight orientations is turned upright, in every format that has them."""
    plain = pixels(oriented(kind, 1), KEEP)
    expected = TURNED[orientation](plain)
    np.testing.assert_array_equal(pixels(oriented(kind, orientation), KEEP), expected)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", *TIFFS])
def test_exif_orientation_is_ignored_on_request(kind: str, orientation: int) -> None:
    """With exif ignore the pixels stay as they lie in the file, also where Pillow turns them."""
    plain = pixels(oriented(kind, 1), KEEP)
    np.testing.assert_array_equal(pixels(oriented(kind, orientation), IGNORE), plain)


def exif_with(orientation: tuple[int, int, int]) -> bytes:
    """EXIF with one entry, of the type, count and value given."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, *orientation) + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        exif_with((3, 1, 6))[:-12],
        exif_with((3, 1, 0)),
        exif_with((3, 1, 9)),
        exif_with((2, 4, 0x36363636)),
        exif_with((5, 1, 0xFFFF)),
        exif_with((99, 1, 6)),
        b"Exif\0\0",
    ],
)
def test_broken_exif_means_upright(exif: bytes) -> None:
    """EXIF that makes no sense neither turns an image nor fails it."""
    np.testing.assert_array_equal(
        pixels(saved(UPRIGHT, "JPEG", exif=exif), KEEP), pixels(saved(UPRIGHT, "JPEG"), KEEP)
    )


def test_exif_with_failing_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an exception in Pillow's EXIF reader costs only the orientation."""

    def broken(_: Image.Image) -> None:
        raise struct.error

    monkeypatch.setattr(Image.Image, "getexif", broken)
    data = oriented("JPEG", 6)
    np.testing.assert_array_equal(pixels(data, KEEP), pixels(data, IGNORE))


def test_broken_colour_profile_is_no_matter() -> None:
    """Colour profiles are not applied, so broken ones do not fail an image."""
    jpeg = saved(UPRIGHT, "JPEG", icc_profile=b"junk" * 9)
    np.testing.assert_array_equal(pixels(jpeg, KEEP), pixels(saved(UPRIGHT, "JPEG"), KEEP))
    rows = [row.tobytes() for row in NOISE]
    data = png((SIDE, SIDE, 8, 2), rows, chunk(b"iCCP", b"x\0\0not zlib"))
    np.testing.assert_array_equal(pixels(data), NOISE)


def torchvision_centre(image: Image.Image, resize: int, size: int) -> Pixels:
    resized = reference.resize(
        image, [resize], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return np.asarray(reference.center_crop(resized, [size]))


ODD_SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 9), (3, 2), (7, 5), (31, 33), (223, 225), (224, 224), (225, 224),
    (255, 256), (256, 256), (257, 256), (256, 383), (500, 375), (375, 500), (333, 500), (501, 334),
    (640, 427), (100, 99), (19, 1000), (1000, 17), (1023, 767), (641, 1280),
]  # fmt: skip


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (232, 224), (73, 64), (33, 32)])
@pytest.mark.parametrize(("width", "height"), ODD_SIZES)
def test_centre_is_torchvisions(width: int, height: int, resize: int, size: int) -> None:
    """Resize and centre crop equal torchvision's on the same Pillow image, byte for byte."""
    image = photo(width, height)
    array = pixels(saved(image, "PNG"), Preprocess(size=size, resize=resize))
    np.testing.assert_array_equal(array, torchvision_centre(image, resize, size))


@pytest.mark.parametrize("path", PHOTOS[::6], ids=lambda path: path.stem)
def test_real_photos_are_torchvisions(path: Path) -> None:
    """Real photographs come out as torchvision's transform sees them."""
    array = decode_file(os.fsencode(path), Preprocess(), LIMIT)
    with Image.open(path) as image:
        expected = torchvision_centre(image.convert("RGB"), 256, 224)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.skipif(not PHOTOS, reason="no photographs; set VGGFEAT_TEST_DATA")
def test_real_photos_were_there() -> None:
    """The photographs above are many enough to mean something."""
    assert len(PHOTOS[::6]) >= 5


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("imagenet", VGG19_Weights.IMAGENET1K_V1),
        ("features", VGG16_Weights.IMAGENET1K_FEATURES),
    ],
)
@pytest.mark.parametrize(("width", "height"), [(500, 375), (60, 91), (300, 1001)])
def test_with_normalisation_it_is_the_weights_transform(
    name: str, weights: Any, width: int, height: int
) -> None:
    """Pixels, mean and deviation together equal the transform torchvision gives the weights."""
    image = photo(width, height)
    own = NORMALISATIONS[name]
    preprocess = Preprocess(size=own.size, resize=own.resize, mean=own.mean, std=own.std)
    array = pixels(saved(image, "PNG"), preprocess).astype(np.float32) / np.float32(255)
    normalised = (array - np.array(own.mean, np.float32)) / np.array(own.std, np.float32)
    expected = weights.transforms()(image).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(normalised, expected)


@pytest.mark.parametrize(("width", "height"), [(30, 3000), (3000, 30), (700, 500), (3, 900)])
def test_window_equals_resize_and_crop(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computing only the window gives what computing everything gives, to within one level."""
    data = saved(photo(width, height), "PNG")
    whole = pixels(data, Preprocess()).astype(int)
    monkeypatch.setattr(geometry, "WINDOW_ABOVE", 0)
    with mock.patch.object(geometry, "_resized_window", wraps=geometry._resized_window) as windowed:
        window = pixels(data, Preprocess()).astype(int)
    windowed.assert_called_once()
    assert np.abs(whole - window).max() <= 1


@pytest.mark.parametrize("upright", [True, False])
def test_extreme_aspect_takes_no_memory(upright: bool) -> None:
    """A line of 60,000 pixels shows its middle, though resized whole it would take 16 GB."""
    line = np.zeros((60_000, 1, 3), np.uint8)
    line[29_990:30_010] = (10, 200, 30)
    image = Image.fromarray(line if upright else line.transpose(1, 0, 2))
    array = pixels(saved(image, "PNG"), Preprocess())
    np.testing.assert_array_equal(array, np.broadcast_to((10, 200, 30), (224, 224, 3)))


def test_largest_square_is_not_windowed() -> None:
    """Squares stay torchvision's to the byte up to the largest resize that settings allow."""
    assert geometry.WINDOW_ABOVE >= 8192 * 8192


LARGE = 9 * SIDE


@pytest.mark.parametrize("crop", ["center", "pad", "squash", "none"])
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("MPO", {"save_all": True})])
def test_fast_is_libjpegs_own_reduction(crop: Crop, kind: str, options: dict[str, Any]) -> None:
    """What is nine times too large is decoded at a quarter of its sides, twice what is needed."""
    data = saved(photo(LARGE * 4 // 3, LARGE), kind, **options)
    shape = Preprocess(size=SIDE, resize=SIDE if crop == "center" else None, crop=crop)
    fast = dataclasses.replace(shape, decode="fast")
    reduced: Any = Image.open(io.BytesIO(data))
    reduced.draft(None, (reduced.width // 4, reduced.height // 4))
    assert min(reduced.size) == -(-LARGE // 4)
    expected = pixels(saved(reduced.convert("RGB"), "PNG"), shape)
    np.testing.assert_array_equal(pixels(data, fast), expected)


@pytest.mark.parametrize(("side", "kind"), [(4 * SIDE - 1, "JPEG"), (LARGE, "PNG")])
def test_fast_is_exact_where_there_is_little_to_gain(side: int, kind: str) -> None:
    """JPEGs of less than four times the size needed, and other formats, are decoded whole."""
    data = saved(photo(side, side), kind)
    exact = Preprocess(size=SIDE, resize=SIDE)
    fast = dataclasses.replace(exact, decode="fast")
    np.testing.assert_array_equal(pixels(data, fast), pixels(data, exact))


def test_squash_ignores_the_aspect() -> None:
    """Crop squash is one resize to the square."""
    image = photo(90, 50)
    expected = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels(saved(image, "PNG")), expected)


@pytest.mark.parametrize(
    ("width", "height", "inner"),
    [
        (64, 32, (16, 32, 0, 8)),
        (33, 64, (32, 16, 8, 0)),
        (640, 1, (1, 32, 0, 15)),
        (1, 1, (32, 32, 0, 0)),
        (63, 64, (32, 32, 0, 0)),
    ],
)
def test_pad_shows_everything_on_the_mean(
    width: int, height: int, inner: tuple[int, int, int, int]
) -> None:
    """Crop pad fits the whole image in, centred on the mean's colour."""
    image = photo(width, height)
    rows, columns, left, top = inner
    expected = np.full((SIDE, SIDE, 3), (124, 116, 104), np.uint8)
    inside = image.resize((columns, rows), Image.Resampling.BILINEAR)
    expected[top : top + rows, left : left + columns] = np.asarray(inside)
    preprocess = Preprocess(size=SIDE, resize=None, crop="pad")
    np.testing.assert_array_equal(pixels(saved(image, "PNG"), preprocess), expected)


@pytest.mark.parametrize(("width", "height", "shape"), [(91, 50, (32, 58)), (50, 91, (58, 32))])
def test_none_keeps_everything(width: int, height: int, shape: tuple[int, int]) -> None:
    """Crop none resizes the shorter side and keeps the aspect."""
    image = photo(width, height)
    expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels(saved(image, "PNG"), KEEP), expected)


def test_none_has_a_limit_after_resizing() -> None:
    """Crop none fails where upscaling a thin image would exceed the limit."""
    data = saved(Image.new("RGB", (1, 1000)), "PNG")
    assert reason(data, KEEP, 1_000_000) == (
        "too large once resized for crop none: 32 x 32000 pixels, "
        "at most 1000000 allowed (--max-pixels)"
    )


def test_one_pixel() -> None:
    """A single pixel fills the whole input."""
    array = pixels(saved(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), Preprocess())
    np.testing.assert_array_equal(array, np.broadcast_to((9, 8, 7), (224, 224, 3)))


def test_bomb_is_refused_by_its_header() -> None:
    """A header that claims 4 gigapixels fails with its sides, the limit and the option."""
    data = png((65500, 65500, 8, 2), [])
    assert reason(data, limit=178_956_970) == (
        "decompression bomb: 65500 x 65500 pixels, at most 178956970 allowed (--max-pixels)"
    )


def test_limit_is_exact() -> None:
    """As many pixels as allowed pass, one more does not."""
    data = saved(photo(50, 40), "PNG")
    assert pixels(data, limit=2000).shape == (SIDE, SIDE, 3)
    assert "50 x 40 pixels, at most 1999 allowed" in reason(data, limit=1999)


@pytest.mark.parametrize("side", [150, 300])
def test_bomb_behind_a_small_header(side: int) -> None:
    """An image inside the file that is larger than the header says is refused too."""
    inner = saved(Image.new("RGB", (side, side)), "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    data = struct.pack("<HHH", 0, 1, 1) + entry + inner
    assert reason(data, limit=20_000) == (
        f"decompression bomb: {side * side} pixels, at most 20000 allowed (--max-pixels)"
    )


def test_a_bomb_of_absurd_size_has_a_short_reason() -> None:
    """Sides of thousands of digits do not reach the reason."""
    sides = b"2" * 500
    data = b'/* XPM */\nstatic char *a[] = {\n"%b %b 1 1",\n"a c #000000",\n' % (sides, sides)
    assert reason(data) == (
        "decompression bomb: too many pixels, at most 10000000 allowed (--max-pixels)"
    )


def test_larger_limit_than_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit above Pillow's own is honoured, and Pillow's is back afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = saved(Image.fromarray(NOISE), "PNG")
    np.testing.assert_array_equal(pixels(data), NOISE)
    assert Image.MAX_IMAGE_PIXELS == 10
    reason(b"nothing")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_warning_filters_are_given_back() -> None:
    """The process's own warning filters are untouched, also after a failure."""
    before = list(warnings.filters)
    pixels(saved(Image.fromarray(NOISE), "PNG"))
    reason(b"nothing")
    assert list(warnings.filters) == before


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_truncated_jpeg(tenths: int, progressive: bool) -> None:
    """A JPEG that ends early is a failure, never a half-grey image."""
    data = saved(photo(300, 200), "JPEG", quality=95, progressive=progressive)
    assert reason(data[: len(data) * tenths // 10]).startswith("truncated: ")


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "TGA", "PPM"])
def test_truncated_file(kind: str, tenths: int) -> None:
    """Other formats that end early fail as well."""
    data = saved(photo(300, 200), kind)
    assert reason(data[: len(data) * tenths // 10])


def test_truncated_png_says_so() -> None:
    """A PNG cut within its pixels is called truncated."""
    data = saved(photo(300, 200), "PNG")
    assert reason(data[: len(data) // 2]).startswith("truncated: ")


@pytest.mark.parametrize(
    "data",
    [b"plain text\n", b"<!DOCTYPE html><html><body>404</body></html>", b"\0" * 999, b"\xff\xd8"],
    ids=["text", "html", "zeros", "jpeg start"],
)
def test_not_an_image(data: bytes) -> None:
    """What no plugin knows is called so, in the words of a person."""
    assert reason(data) == "not an image Pillow can read"


def test_empty() -> None:
    """No bytes at all have a reason of their own."""
    assert reason(b"") == "empty file"


def test_postscript_is_not_run() -> None:
    """EPS, which Pillow hands to Ghostscript, is refused."""
    assert reason(saved(Image.fromarray(NOISE), "EPS")).startswith("EPS, a program")


def test_stream_is_read_from_its_start() -> None:
    """Where the stream stands does not matter."""
    stream = io.BytesIO(saved(Image.fromarray(NOISE), "PNG"))
    stream.seek(0, io.SEEK_END)
    np.testing.assert_array_equal(decode(stream, SQUASH, LIMIT), NOISE)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "MemoryError"),
        (struct.error("unpack\nrequires \x1b[31m 4 bytes"), "error: unpack requires ?[31m 4 bytes"),
        (OSError("image file is truncated (3 bytes)"), "truncated: image file is truncated"),
        (EOFError("no more"), "truncated: no more"),
        (
            Image.DecompressionBombError("Image size (22500 pixels) exceeds limit"),
            "decompression bomb: 22500 pixels, at most 10000000 allowed",
        ),
        (ValueError("x" * 500), "ValueError: xxx"),
        (SyntaxError("\udcff"), "SyntaxError: ?"),
    ],
)
def test_reasons_are_one_short_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a plugin raises becomes one printable line of at most 150 characters."""

    def fail(_: Image.Image) -> None:
        raise error

    data = saved(Image.fromarray(NOISE), "PNG")
    monkeypatch.setattr(loading, "rgb", fail)
    text = reason(data)
    assert text.startswith(expected)
    assert len(text) <= 150
    assert text.isprintable()


def file_reason(path: Path | str) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_file(os.fsencode(path), SQUASH, LIMIT)
    return str(caught.value)


def test_file_with_undecodable_name(tmp_path: Path) -> None:
    """A file is opened by the file system's own bytes."""
    path = os.fsencode(tmp_path) + b"/\xff\xfe\n.png"
    with open(path, "wb") as stream:
        stream.write(saved(Image.fromarray(NOISE), "PNG"))
    np.testing.assert_array_equal(decode_file(path, SQUASH, LIMIT), NOISE)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, empty, folder, device and endless link are told apart."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "file").touch()
    (tmp_path / "broken.jpg").symlink_to("no/where.jpg")
    (tmp_path / "away").symlink_to(tmp_path / "unmounted")
    broken = "a symbolic link to 'no/where.jpg', which does not exist"
    assert file_reason(tmp_path / "broken.jpg") == broken
    assert file_reason(tmp_path / "away/x/a.jpg").endswith("/unmounted', which does not exist")
    assert file_reason(tmp_path / "gone.jpg") == "no such file"
    assert file_reason(tmp_path / "file/a.jpg") == "no such file"
    assert file_reason(tmp_path / "empty.jpg") == "empty file"
    assert file_reason(tmp_path) == "not a regular file"
    assert file_reason(os.devnull) == "not a regular file"
    assert "symbolic links" in file_reason(tmp_path / "loop.jpg")


def in_child(path: Path, before: str = "") -> str:
    """The reason a child process finds, after running `before`."""
    code = (
        "import os, sys\n"
        "from vggfeat.core.preprocessing import Preprocess\n"
        "from vggfeat.images.decode import decode_file\n"
        f"{before}\n"
        "try:\n"
        "    decode_file(os.fsencode(sys.argv[1]), Preprocess(), 10**6)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return done.stdout.strip()


def test_fifo_does_not_block(tmp_path: Path) -> None:
    """A FIFO without a writer is refused at once, not waited for."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert in_child(tmp_path / "pipe.jpg") == "not a regular file"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_unreadable_file(open_folder: Path) -> None:
    """A file without read permission says so."""
    path = open_folder / "secret.png"
    path.write_bytes(saved(Image.fromarray(NOISE), "PNG"))
    path.chmod(0)
    drop = "os.setuid(65534)" if os.geteuid() == 0 else ""
    assert in_child(path, drop) == "permission denied"


def test_import_is_light() -> None:
    """The module loads without torch."""
    code = "import sys, vggfeat.images.decode; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert done.stdout == "False\n"


SAMPLES = [
    saved(photo(40, 30), "JPEG"),
    saved(photo(40, 30), "JPEG", progressive=True, exif=exif_with((3, 1, 6))),
    saved(photo(40, 30), "PNG"),
    saved(photo(40, 30), "GIF"),
    saved(photo(40, 30), "TIFF", compression="tiff_lzw"),
    saved(photo(40, 30), "WEBP"),
    saved(photo(40, 30), "BMP"),
]


def decodes_or_fails(data: bytes) -> None:
    try:
        array = pixels(data, limit=2**20)
    except DecodeError as error:
        text = str(error)
    else:
        text = str(array.shape)
        assert array.shape == (SIDE, SIDE, 3)
    assert text.isprintable()


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.binary(max_size=400), start=st.sampled_from([b"", *(s[:30] for s in SAMPLES)]))
def test_random_bytes_fail_in_one_way(data: bytes, start: bytes) -> None:
    """Random bytes, also behind a valid start, raise nothing but DecodeError."""
    decodes_or_fails(start + data)


@settings(
    max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    sample=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8),
    header=st.booleans(),
)
def test_changed_bytes_fail_in_one_way(
    sample: bytes, changes: list[tuple[int, int]], header: bool
) -> None:
    """A valid file with some bytes changed decodes or raises DecodeError, nothing else."""
    data = bytearray(sample)
    for position, value in changes:
        data[position % (min(len(data), 100) if header else len(data))] = value
    decodes_or_fails(bytes(data))
