"""Images of other domains: one channel or many, 16 bits, windows, percentiles, CLAHE."""

from __future__ import annotations

import io
import json
import signal
import struct
import zlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import cv2
import killing
import numpy as np
import pytest
import tifffile
import torch
from command_line import assert_one_line, vggfeat
from corpus import modes, png, sound
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as reference

import vggfeat as library
from vggfeat import Extractor
from vggfeat.config import load_config, make_settings
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError, UsageError
from vggfeat.images.clahe import equalise
from vggfeat.images.dataset import ImageDataset
from vggfeat.images.decode import as_decode_errors, decode, finish
from vggfeat.images.loader import load_batches
from vggfeat.images.pillow import _TURNS
from vggfeat.images.raw_values import read_raster
from vggfeat.images.sources import discover
from vggfeat.visualization.contact_sheet import results_of_rows
from vggfeat.visualization.thumbnails import load_picture, picture_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 32
LIMIT = 10**8
WHITE = 65535
rng = np.random.default_rng(5)
GREY = rng.integers(0, WHITE + 1, (SIDE, SIDE), np.uint16)
COLOURS = rng.integers(0, WHITE + 1, (SIDE, SIDE, 3), np.uint16)
LAYER = rng.integers(0, WHITE + 1, (SIDE, SIDE, 4), np.uint16)


def ask(**how: Any) -> Settings:
    return Settings(**{"layers": "conv1_1", "model": "vgg11", "weights": "random:0",
                       "device": "cpu", "precision": "float32", **how})  # fmt: skip


def pixels(data: bytes, **how: Any) -> NDArray[Any]:
    preprocess = ask(**{"size": SIDE, "crop": "squash", **how}).preprocess()
    return decode(io.BytesIO(data), preprocess, LIMIT)


def reason(data: bytes, **how: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        pixels(data, **how)
    return str(caught.value)


def png16(values: NDArray[Any]) -> bytes:
    """By OpenCV, whose channels are the other way round."""
    if values.ndim == 3:
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    done, data = cv2.imencode(".png", np.ascontiguousarray(values))
    assert done
    return data.tobytes()


def tiff(values: NDArray[Any], **how: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **how)
    return stream.getvalue()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def smooth(height: int, width: int, channels: int = 1) -> NDArray[np.uint8]:
    """Something with bright and dark parts, and noise on it, (h, w, c)."""
    own = np.random.default_rng([height, width])
    coarse = own.integers(0, 256, (4, 5, channels), np.uint8)
    large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    large = large.reshape(height, width, channels)
    return (large // 2 + own.integers(0, 60, large.shape)).clip(0, 255).astype(np.uint8)


# --- settings


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"channels": 0}, "channels is 0; expected a whole number from 1 to 64"),
        ({"channels": True}, "channels is True; expected a whole number"),
        ({"depth": 12}, "depth is 12; expected 8 or 16"),
        ({"depth": 16.0}, "depth is 16.0; expected 8 or 16"),
        ({"window": "40"}, "window is '40'; expected level and width"),
        ({"window": "40,0"}, "window is '40,0'; expected level and width"),
        ({"window": "a,b"}, "window is 'a,b'; expected level and width"),
        ({"window": "nan,1"}, "window is 'nan,1'; expected level and width"),
        ({"clip": "99,1"}, "clip is '99,1'; expected two percentiles from 0 to 100"),
        ({"clip": "0,101"}, "clip is '0,101'; expected two percentiles"),
        ({"clip": 3}, "clip is '3'; expected two percentiles"),
        ({"clahe": "0"}, "clahe is '0'; expected a limit above 0"),
        ({"clahe": "2,8.5"}, "clahe is '2,8.5'; expected a limit above 0"),
        ({"clahe": "2,8,8"}, "clahe is '2,8,8'; expected a limit above 0"),
        ({"mean": "123.7"}, "mean is '123.7'; expected one number, or 3 separated by commas"),
        ({"mean": "0.1,0.2"}, "mean is '0.1,0.2'; expected one number, or 3"),
        ({"std": "0"}, "std is '0'; expected one number, or 3 separated by commas, above 0"),
        ({"channels": 1, "std": "0.1,0.1,0.1"}, "std is '0.1,0.1,0.1'; expected one number, above"),
        ({"window": "1,2", "clip": "1,99"}, "window and clip both say what becomes black"),
        ({"channels": 1, "augment": "crop"}, "augment takes 8-bit RGB alone, not channels 1"),
        ({"depth": 16, "channels": 4, "precision": "int8"}, "not channels 4 with depth 16"),
    ],
)
def test_settings_that_make_no_sense(how: dict[str, Any], message: str) -> None:
    """Each setting of other domains is refused with what was expected and what was found."""
    with pytest.raises(UsageError) as caught:
        ask(**how)
    assert message in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Several wrong settings are one error."""
    with pytest.raises(UsageError) as caught:
        ask(depth=9, window="x", clahe="-1", std="2")
    assert all(word in str(caught.value) for word in ("depth is 9", "window is", "clahe", "std"))


def test_a_cache_records_what_is_set() -> None:
    """New fields are recorded where they are set, and nowhere else, so old fingerprints stay."""
    new = {"channels", "depth", "window", "clip", "clahe"}
    assert not new & set(ask().preprocess().recorded())
    one = ask(channels=1, depth=16, window="40,400", clahe="2").preprocess()
    assert new - set(one.recorded()) == {"clip"}
    assert {item.name for item in fields(Preprocess)} - {
        "clip", "decode", "augment", "icc",
    } == set(one.recorded())  # fmt: skip
    assert json.loads(json.dumps(one.recorded()))["window"] == [40.0, 400.0]


def test_mean_and_deviation_of_grey() -> None:
    """By default grey has the average of the weights' three, and of what is given its own."""
    assert ask(channels=1).preprocess().mean == pytest.approx((0.449,))
    assert ask(channels=1).preprocess().std == pytest.approx((0.226,))
    assert ask(channels=1, transform="features").preprocess().std == pytest.approx((1 / 255,), 1e-3)
    assert ask(channels=5).preprocess().mean == pytest.approx((0.449,) * 5)
    assert ask(mean="0.3", std="0.1,0.2,0.3").preprocess().mean == (0.3, 0.3, 0.3)
    assert ask(mean="0.3", std="0.1,0.2,0.3").preprocess().std == (0.1, 0.2, 0.3)


def test_numbers_and_lists_in_a_config(tmp_path: Path) -> None:
    """A TOML file may write numbers and lists where the command line has text."""
    path = tmp_path / "c.toml"
    path.write_text("window = [-600, 1500]\nclahe = 2\nmean = 0.2\nstd = [0.25]\nchannels = 1\n")
    found = make_settings(str(path), {"layers": "fc7"}).preprocess()
    assert found.window == (-600.0, 1500.0)
    assert found.clahe == (2.0, 8)
    assert (found.mean, found.std) == ((0.2,), (0.25,))
    assert load_config(str(path))["std"] == "0.25"


# --- 16 bits


@pytest.mark.parametrize("values", [GREY, COLOURS], ids=["grey", "colour"])
def test_16_bit_png_keeps_every_bit(values: NDArray[np.uint16]) -> None:
    """What OpenCV writes arrives as it was, grey in one channel and colours in three."""
    found = pixels(png16(values), depth=16, channels=1 if values.ndim == 2 else 3)
    assert found.dtype == np.uint16
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, values.reshape(SIDE, SIDE, -1))


LAYOUTS: list[dict[str, Any]] = [
    {}, {"byteorder": ">"}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True},
    {"compression": "zlib", "byteorder": ">"}, {"tile": (16, 16)}, {"rowsperstrip": 7},
]  # fmt: skip


@pytest.mark.parametrize("how", LAYOUTS, ids=str)
@pytest.mark.parametrize("values", [GREY, COLOURS], ids=["grey", "colour"])
def test_16_bit_tiff_keeps_every_bit(values: NDArray[np.uint16], how: dict[str, Any]) -> None:
    """Whatever the order of bytes, the compression and the layout."""
    kind = "minisblack" if values.ndim == 2 else "rgb"
    data = tiff(values, photometric=kind, **how)
    found = pixels(data, depth=16, channels=1 if values.ndim == 2 else 3)
    np.testing.assert_array_equal(found, values.reshape(SIDE, SIDE, -1))


def test_white_as_zero_is_turned_round() -> None:
    """A 16-bit TIFF whose white is zero is the negative of its values, in 8 bits as well."""
    data = tiff(GREY, photometric="miniswhite")
    np.testing.assert_array_equal(pixels(data, depth=16, channels=1)[..., 0], WHITE - GREY)
    np.testing.assert_array_equal(pixels(data)[..., 1], 255 - np.rint(GREY / 257))


def test_12_bit_tiff_goes_to_white() -> None:
    """Twelve bits have 4095 as white, in 16 bits too."""
    values = np.resize(np.arange(0, 4096, 4, dtype=np.uint16), (SIDE, SIDE))
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]])
    rows = packed.T.astype(np.uint8).tobytes()
    tags = [
        (256, 4, SIDE), (257, 4, SIDE), (258, 3, 12), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 4, SIDE), (279, 4, len(rows)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    data = b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + directory + bytes(4)
    found = pixels(data, depth=16, channels=1)[..., 0]
    np.testing.assert_array_equal(found, np.rint(values / 4095 * WHITE))


def test_16_bit_transparency_shows_white() -> None:
    """Half transparent 16-bit colours and greys are laid onto white without losing bits."""
    share = LAYER[..., 3:] / WHITE
    expected = np.rint(LAYER[..., :3] * share + WHITE * (1 - share))
    np.testing.assert_array_equal(pixels(png16(LAYER), depth=16), expected)
    both = LAYER[..., [0, 3]]
    data = png(SIDE, SIDE, 16, 4, [row.astype(">u2").tobytes() for row in both])
    found = pixels(data, depth=16, channels=1)
    np.testing.assert_array_equal(found, expected[..., :1])
    np.testing.assert_array_equal(pixels(data, depth=16, channels=2), both)


def test_a_transparent_16_bit_colour_is_white() -> None:
    """The one colour that a PNG names transparent is white, told by all of its bits."""
    key = struct.pack(">3H", *COLOURS[3, 4].tolist())
    body = b"tRNS" + key
    chunk = struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))
    data = png(SIDE, SIDE, 16, 2, [row.astype(">u2").tobytes() for row in COLOURS], chunk)
    expected = COLOURS.copy()
    expected[3, 4] = WHITE
    np.testing.assert_array_equal(pixels(data, depth=16), expected)


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}], ids=str)
def test_16_bits_in_separate_planes_fail(how: dict[str, Any]) -> None:
    """What Pillow cannot give whole fails and says so, and is no garbage."""
    data = tiff(np.moveaxis(COLOURS, 2, 0), photometric="rgb", planarconfig="separate", **how)
    assert "16-bit channels in separate planes" in reason(data, depth=16)
    if not how:
        assert "16-bit channels in separate planes" in reason(data)


@pytest.mark.parametrize("crop", ["center", "pad", "squash", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_resized_as_torchvision_does(crop: str, channels: int) -> None:
    """Resized pixels are torchvision's own of floats, rounded, to less than one of 65,535."""
    values = rng.integers(0, WHITE + 1, (120, 90, 3)[: 3 if channels == 3 else 2], np.uint16)
    planes = torch.from_numpy(values.astype(np.float32).reshape(120, 90, channels)).permute(2, 0, 1)
    found = pixels(png16(values), depth=16, channels=channels, crop=crop, mean="0.25")
    sides = {"center": [49, 37], "pad": [32, 24], "squash": [32, 32], "none": [42, 32]}[crop]
    expected = reference.resize(planes, sides, antialias=True)
    if crop == "center":
        expected = reference.center_crop(expected, [SIDE, SIDE])
    if crop == "pad":
        expected = reference.pad(expected, [4, 0], fill=round(0.25 * WHITE))
    assert found.shape == (*expected.shape[1:], channels)
    assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() < 1


def test_grey_of_8_bits_is_padded_by_its_mean() -> None:
    """One channel of 8 bits is resized as Pillow does it, and filled up with its own mean."""
    image = Image.fromarray(smooth(64, 48)[..., 0])
    found = pixels(saved(image, "PNG"), channels=1, crop="pad", mean="0.25")[..., 0]
    assert (found[:, [0, 3, 28, 31]] == round(0.25 * 255)).all()
    resized = np.asarray(image.resize((24, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[:, 4:28], resized)


# --- values to levels


def test_a_window_is_linear_between_its_ends() -> None:
    """Level minus half the width is black, level plus half is white, in the file's own units."""
    values = rng.integers(-1024, 3072, (SIDE, SIDE), np.int16)
    expected = np.rint((np.clip(values, -160.0, 240.0) + 160) / 400 * WHITE)
    for data in (npy(values), tiff(values), npy(values.astype(np.float32))):
        found = pixels(data, channels=1, depth=16, window="40,400")
        np.testing.assert_array_equal(found[..., 0], expected)
    eight = pixels(npy(values), window="40.5,401")  # a width that leaves nothing halfway
    expected = np.rint((np.clip(values, -160.0, 241.0) + 160) / 401 * 255)
    np.testing.assert_array_equal(eight, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "values", [GREY, COLOURS, (COLOURS >> 8).astype(np.uint8)], ids=["grey", "colour", "bytes"]
)
def test_percentiles_of_each_image(values: NDArray[Any]) -> None:
    """The two percentiles of all channels together, as NumPy finds them, are black and white."""
    low, high = np.percentile(values, [2, 90])
    expected = np.rint((values.clip(low, high) - low) * (255 / (high - low)))
    found = pixels(png16(values), clip="2,90", channels=1 if values.ndim == 2 else 3)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_percentiles_of_an_even_image() -> None:
    """An image that is the same everywhere is black, and no division by nothing."""
    flat = np.full((SIDE, SIDE), 1234, np.uint16)
    assert pixels(png16(flat), clip="1,99", channels=1, depth=16).max() == 0


# --- channels


def test_grey_of_colours_is_pillows_luma() -> None:
    """Colours of 8 bits become the luma that Pillow has, those of 16 bits BT.601's to one unit."""
    eight = (COLOURS >> 8).astype(np.uint8)
    found = pixels(saved(Image.fromarray(eight), "PNG"), channels=1)
    np.testing.assert_array_equal(found[..., 0], np.asarray(Image.fromarray(eight).convert("L")))
    deep = pixels(png16(COLOURS), channels=1, depth=16)[..., 0]
    assert np.abs(deep - COLOURS @ np.array([0.299, 0.587, 0.114])).max() < 1


def test_grey_of_a_jpeg_is_its_own_luma() -> None:
    """Of a JPEG the luma it holds is taken, without a way through RGB and back."""
    data = saved(Image.fromarray(smooth(SIDE, SIDE, 3)), "JPEG", quality=80)
    image = Image.open(io.BytesIO(data))
    image.draft("YCbCr", image.size)
    luma = np.asarray(image)[..., 0]
    np.testing.assert_array_equal(pixels(data, channels=1)[..., 0], luma)


def test_fast_grey_of_a_large_jpeg() -> None:
    """With `fast` a large JPEG's luma is decoded at a fraction of its sides: nearly the same."""
    data = saved(Image.fromarray(smooth(600, 800, 3)), "JPEG", quality=90)
    exact, fast = (pixels(data, channels=1, decode=how).astype(int) for how in ("exact", "fast"))
    assert 0 < np.abs(exact - fast).mean() < 2
    slow, whole = (pixels(data, channels=1, clip="1,99", decode=how) for how in ("exact", "fast"))
    np.testing.assert_array_equal(slow, whole)  # percentiles need every pixel


def test_grey_in_three_channels() -> None:
    """A file of one channel is repeated where three are wanted, in 16 bits too."""
    found = pixels(png16(GREY), depth=16)
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12])
def test_arrays_of_any_channels(channels: int) -> None:
    """An .npy array (H, W, C) gives its C channels; (H, W) is one."""
    values = rng.integers(0, WHITE + 1, (SIDE, SIDE, channels), np.uint16)
    found = pixels(npy(values), channels=channels, depth=16)
    np.testing.assert_array_equal(found, values)
    eight = pixels(npy((values >> 8).astype(np.uint8)), channels=channels)
    np.testing.assert_array_equal(eight, values >> 8)
    if channels == 1:
        np.testing.assert_array_equal(pixels(npy(values[..., 0]), channels=1, depth=16), values)


def test_bands_and_pages() -> None:
    """Four channels are RGBA or CMYK as they are; pages of a TIFF are channels too."""
    eight = (LAYER >> 8).astype(np.uint8)
    np.testing.assert_array_equal(pixels(png16(eight), channels=4), eight)
    np.testing.assert_array_equal(pixels(png16(LAYER), channels=4, depth=16), LAYER)
    ink = saved(Image.fromarray(eight, "RGBA").convert("CMYK"), "TIFF")
    ink_values = np.asarray(Image.open(io.BytesIO(ink)))
    np.testing.assert_array_equal(pixels(ink, channels=4), ink_values)
    pages = rng.integers(0, WHITE + 1, (6, SIDE, SIDE), np.uint16)
    data = tiff(pages, photometric="minisblack")
    np.testing.assert_array_equal(pixels(data, channels=6, depth=16), np.moveaxis(pages, 0, 2))
    np.testing.assert_array_equal(pixels(data, channels=1, depth=16)[..., 0], pages[0])


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (png16(COLOURS), 4, r"PNG RGB of 3 channels in 1 page; expected 4 channels (--channels)"),
        (npy(np.zeros((4, 4, 5))), 3, ".npy float64 of 5 channels; expected 3 (--channels)"),
        (npy(np.zeros((4, 4, 5))), 1, ".npy float64 of 5 channels; expected 1 (--channels)"),
        (npy(np.zeros(7)), 1, "expected numbers of shape (H, W) or (H, W, C)"),
        (npy(np.zeros((0, 4))), 1, "expected numbers of shape (H, W) or (H, W, C)"),
        (npy(np.zeros((4, 4), "c8")), 1, "type complex64; expected numbers"),
        (npy(np.zeros((4, 4, 65))), 64, "of at most 64 channels"),
        (npy(np.zeros((99, 99)))[:5000], 1, "truncated: .npy of shape (99, 99), type float64"),
        (npy(np.array([[None]])), 1, "type object; expected numbers"),
    ],
)
def test_other_channels_fail(data: bytes, channels: int, message: str) -> None:
    """A file that has other channels than asked for fails, with what it has."""
    assert message in reason(data, channels=channels)


def test_an_array_beyond_the_limit_is_not_read() -> None:
    """A header that claims too many pixels fails by `max_pixels`, whatever follows."""
    preprocess = ask(channels=1).preprocess()
    data = npy(np.zeros((100, 100), np.uint8))
    with pytest.raises(DecodeError, match="100 x 100 pixels, at most 99 allowed"):
        decode(io.BytesIO(data), preprocess, 99)


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_as_the_usual_images_are(turn: int) -> None:
    """The EXIF orientation turns values as it turns pictures, and `ignore` leaves them."""
    image = Image.fromarray(smooth(40, 52)[..., 0])
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = image if turn == 1 else image.transpose(_TURNS[turn])
    for kind in ("PNG", "TIFF"):
        data = saved(image, kind, exif=exif)
        for choice, expected in (("apply", turned), ("ignore", image)):
            found = pixels(data, channels=1, exif=choice, crop="none", size=40)
            np.testing.assert_array_equal(found[..., 0], np.asarray(expected))


@pytest.mark.parametrize("item", [*sound(), *modes()], ids=lambda item: item.name.decode())
def test_values_come_to_what_pillow_shows(item: Any) -> None:
    """By the way of values usual images become the same bytes as by the way of Pillow alone."""
    preprocess = ask(size=SIDE).preprocess()
    try:
        expected = decode(io.BytesIO(item.data), preprocess, LIMIT)
    except DecodeError:
        return
    with as_decode_errors(io.BytesIO(item.data), LIMIT):
        found = finish(read_raster(io.BytesIO(item.data), preprocess, LIMIT), preprocess, LIMIT)
    np.testing.assert_array_equal(found, expected)


# --- CLAHE


@pytest.mark.parametrize("shape", [(64, 64), (100, 131), (64, 70), (7, 5), (300, 257)], ids=str)
@pytest.mark.parametrize(("limit", "tiles"), [(2.0, 8), (4.0, 4), (40.0, 8), (0.5, 3), (1.0, 1)])
def test_equalised_as_opencv_does(shape: tuple[int, int], limit: float, tiles: int) -> None:
    """Eight bits come out as of OpenCV's CLAHE, to one level where floats are rounded."""
    image = smooth(*shape)
    expected = cv2.createCLAHE(limit, (tiles, tiles)).apply(image[..., 0])
    found = equalise(image, limit, tiles)[..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 0.01
    deep = equalise(image.astype(np.uint16) * 257, limit, tiles)[..., 0]
    assert np.abs(deep / 257 - expected).max() <= 1


def test_equalising_16_bits_is_smooth() -> None:
    """Levels between those of 8 bits come out between theirs: more than 256 of them."""
    ramp = np.linspace(0, WHITE, 128 * 128).astype(np.uint16).reshape(128, 128, 1)
    found = equalise(ramp, 2.0, 1)
    assert len(np.unique(found)) > 4000
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_colours_keep_their_differences() -> None:
    """Of colours the luma is equalised as OpenCV does it, and differences of channels stay."""
    image = (smooth(96, 80, 3) // 2 + 60).astype(np.uint8)
    luma = np.rint(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))
    expected = cv2.createCLAHE(1.5, (8, 8)).apply(luma.astype(np.uint8)).astype(int) - luma
    found = equalise(image, 1.5, 8).astype(int)
    inside = ((found > 0) & (found < 255)).all(axis=2)
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(np.diff(found)[inside], np.diff(image.astype(int))[inside])
    assert np.abs(found - image - expected[..., None])[inside].max() <= 1


def test_equalised_before_resizing() -> None:
    """The setting equalises the whole image, and then it is resized."""
    image = smooth(100, 90)
    expected = Image.fromarray(cv2.createCLAHE(3, (4, 4)).apply(image[..., 0]))
    found = pixels(saved(Image.fromarray(image[..., 0]), "PNG"), channels=1, clahe="3,4")
    resized = np.asarray(expected.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert np.abs(found[..., 0].astype(int) - resized).max() <= 1


@effort(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from([8, 16]))
def test_any_sides_can_be_equalised(height: int, width: int, tiles: int, bits: int) -> None:
    """Images smaller than their tiles keep their shape and type."""
    image = rng.integers(0, 1 << bits, (height, width, 1)).astype(f"u{bits // 8}")
    found = equalise(image, 2.0, tiles)
    assert (found.shape, found.dtype) == (image.shape, image.dtype)


# --- through the whole of it


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen-bit PNGs, one of them broken."""
    folder = tmp_path_factory.mktemp("domain")
    (folder / "scans").mkdir()
    for number in range(9):
        values = np.random.default_rng(number).integers(0, WHITE + 1, (40, 44), np.uint16)
        (folder / "scans" / f"{number}.png").write_bytes(png16(values))
    (folder / "scans" / "4b.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("crop", ["center", "none"])
def test_workers_change_nothing(scans: Path, crop: str) -> None:
    """Batches of 16 bits are the same from this process and from workers."""
    manifest = discover([scans / "scans"])
    plan = np.arange(10).reshape(2, 5) if crop == "center" else np.arange(10).reshape(10, 1)
    settings = ask(size=32, depth=16, channels=1, crop=crop)
    here, there = (
        list(
            load_batches(
                ImageDataset(manifest, settings), plan, settings, workers=workers, pin=False
            )
        )
        for workers in (0, 2)
    )
    for one, other in zip(here, there, strict=True):
        assert one.images.dtype == torch.uint16
        assert one.images.shape[3] == 1
        assert torch.equal(one.images.int(), other.images.int())
        assert [failure.row for failure in one.failures] == [f.row for f in other.failures]
    assert sum(len(batch.failures) for batch in here) == 1


def test_the_network_gets_16_bits() -> None:
    """Features of uint16 are those of the same pixels normalised in floats by torchvision."""
    extractor = Extractor(ask(depth=16, size=SIDE))
    images = torch.from_numpy(COLOURS).permute(2, 0, 1)[None]
    scaled = torch.from_numpy(COLOURS.astype(np.float64) / WHITE).permute(2, 0, 1)[None]
    floats = reference.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).float()
    found, expected = extractor(images)["conv1_1"], extractor(floats)["conv1_1"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_16_bits_tell_apart_what_8_do_not() -> None:
    """Images that differ by less than an 8-bit level have features that differ."""
    dark = np.full((SIDE, SIDE, 3), 1030, np.uint16)
    other = dark + np.uint16(60)
    extractor = Extractor(ask(depth=16, size=SIDE, mean="0.015", std="0.001"))
    one, two = (
        extractor(torch.from_numpy(pixels(png16(values), depth=16)).permute(2, 0, 1)[None])
        for values in (dark, other)
    )
    assert not torch.allclose(one["conv1_1"], two["conv1_1"], rtol=1e-2)
    np.testing.assert_array_equal(pixels(png16(dark)), pixels(png16(other)))


def test_a_killed_run_of_16_bits_goes_on_to_the_same_bytes(scans: Path, tmp_path: Path) -> None:
    """Killed before and within writes, with workers and without, the file is that of one run."""
    how: dict[str, Any] = {"depth": 16, "channels": 1, "clip": "1,99", "batch_size": 2}
    images, whole = scans / "scans", tmp_path / "whole.h5"
    with killing.KillServer() as server:
        status, calls = server.run(images, whole, **how)
        assert status == 0
        for at, workers in ((calls // 3, 0), (calls // 2, 2), (calls - 3, 1)):
            out = tmp_path / f"{at}.h5"
            killed, _ = server.run(
                images, out, kill_at=at, torn=True, **{**how, "workers": workers}
            )
            assert killed == -signal.SIGKILL
            killing.check_done_rows(out, whole)
            assert server.run(images, out, **{**how, "workers": workers})[0] == 0
            assert killing.contents(out) == killing.contents(whole)


FAST = ("--model", "vgg11", "--weights", "random:0", "--layers", "conv1_1:max", "--size", "32")


def test_from_the_command_line(scans: Path) -> None:
    """Extract, inspect and search take the settings, and search takes them from the file."""
    words = ["extract", "scans", *FAST, "--depth", "16", "--window", "30000,40000", "-o", "w.h5"]
    assert vggfeat(*words, "--channels", "1", cwd=scans).returncode == 0
    shown = vggfeat("inspect", "w.h5", cwd=scans).stdout
    assert "channels 1, depth 16" in " ".join(shown.split())
    assert "window 30000/40000" in " ".join(shown.split())
    found = vggfeat("search", "w.h5", "scans/3.png", "--top", "1", "--json", cwd=scans)
    assert '"3.png"' in found.stdout, found.stderr


def test_another_window_is_another_cache(scans: Path, tmp_path: Path) -> None:
    """Going on with other settings is refused with both values, and the file stays as it is."""
    out = tmp_path / "w.h5"
    words = ["extract", str(scans / "scans"), *FAST, "-o", str(out)]
    assert vggfeat(*words, "--window", "30000,40000", cwd=tmp_path).returncode == 0
    before = out.read_bytes()
    done = vggfeat(*words, "--window", "30000,50000", "--depth", "16", cwd=tmp_path)
    assert_one_line(done, 5, "preprocess.depth: file 8, requested 16")
    assert "preprocess.window: file (30000.0, 40000.0), requested (30000.0, 50000.0)" in done.stderr
    assert out.read_bytes() == before


def test_thumbnails_by_the_window_of_the_cache(tmp_path: Path) -> None:
    """A sheet shows dark 12-bit values as bright as the cache's window makes them."""
    values = np.full((64, 64), 3000, np.uint16)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.png").write_bytes(png16(values))
    settings = ask(size=32, window="2047.5,4095", workers=0)
    library.extract([tmp_path / "scans"], tmp_path / "t.h5", settings)
    (result,) = results_of_rows(library.open(tmp_path / "t.h5"), "*")
    with picture_of(result.path, 100, result.preprocess) as picture:
        assert isinstance(picture, Image.Image)
        assert picture.getpixel((30, 30)) == (round(3000 / 4095 * 255),) * 3
    with Image.fromarray(np.asarray(load_picture(str(tmp_path / "scans" / "a.png"), 100))) as plain:
        assert plain.getpixel((30, 30)) == (round(3000 / 257),) * 3


def test_int8_features_of_16_bits(scans: Path, tmp_path: Path) -> None:
    """Features can be stored in 8 bits though pixels have 16."""
    out = tmp_path / "i.h5"
    library.extract([scans / "scans"], out, ask(size=32, depth=16, dtype="int8", workers=0))
    assert library.open(out).values("conv1_1", np.arange(3)).shape == (3, 64)


def test_wrong_usage_is_one_line(scans: Path) -> None:
    """The command line names the setting, what was expected and what was found."""
    done = vggfeat("extract", "scans", *FAST, "--window", "40", "-o", "no.h5", cwd=scans)
    assert_one_line(done, 2, "window is '40'; expected level and width")
    done = vggfeat("extract", "scans", *FAST, "--depth", "12", "-o", "no.h5", cwd=scans)
    assert_one_line(done, 2, "depth is 12; expected 8 or 16")
    assert not (scans / "no.h5").exists()
