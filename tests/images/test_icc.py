"""Colour profiles: the colours of Adobe RGB (1998) are computed from its own definition."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import SMALL, assert_one_line, vggfeat
from PIL import Image, ImageCms

from vggfeat.core.preprocessing import Preprocess
from vggfeat.images.decode import decode

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 8
CONVERT = Preprocess(size=SIDE, resize=None, crop="squash", icc="convert")
GAMMA = 563 / 256
# Columns: red, green and blue of Adobe RGB (1998) in XYZ, adapted to D50, as its profile has them.
ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
# XYZ under D50 to linear sRGB (Lindbloom, Bradford-adapted).
TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def profile(space: bytes, gamma: float, primaries: NDArray[Any]) -> bytes:
    """Write a profile of ICC version 2 with one curve, and columns of a matrix for colours."""

    def xyz(values: NDArray[Any]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    names = (b"rTRC", b"gTRC", b"bTRC") if len(primaries.T) else (b"kTRC",)
    tags = {
        b"wtpt": xyz(np.array([0.9642, 1.0, 0.8249])),
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries.T), strict=False)),
        **dict.fromkeys(names, curve),
    }
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value
    header = bytearray(128)
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntr" + space + b"XYZ "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    header[:4] = struct.pack(">I", 128 + len(table) + len(data))
    return bytes(header) + table + data


def adobe_profile() -> bytes:
    return profile(b"RGB ", GAMMA, ADOBE)


def in_srgb(adobe: NDArray[np.uint8]) -> NDArray[np.float64]:
    linear = (adobe / 255.0) ** GAMMA @ ADOBE.T @ TO_SRGB.T
    return encoded(linear.clip(0, 1))


def encoded(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, curved))


COLOURS = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def decoded(image: Image.Image, preprocess: Preprocess = CONVERT, **options: Any) -> NDArray[Any]:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    stream.seek(0)
    return decode(stream, preprocess, 10_000)


def test_colours_of_adobe_rgb() -> None:
    found = decoded(Image.fromarray(COLOURS), icc_profile=adobe_profile())
    assert np.abs(found - in_srgb(COLOURS)).max() <= 2  # lcms works in 8 bits between matrices
    assert np.abs(COLOURS - in_srgb(COLOURS)).max() > 30


def test_numbers_are_taken_as_they_are_by_default() -> None:
    ignore = Preprocess(size=SIDE, resize=None, crop="squash")
    found = decoded(Image.fromarray(COLOURS), ignore, icc_profile=adobe_profile())
    np.testing.assert_array_equal(found, COLOURS)


@pytest.mark.parametrize("kind", ["missing", "damaged", "of other colours", "cut short"])
def test_a_profile_that_does_not_fit_counts_as_none(kind: str) -> None:
    profile = {
        "missing": None,
        "damaged": b"no profile at all" * 20,
        "of other colours": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        "cut short": adobe_profile()[:200],
    }[kind]
    found = decoded(Image.fromarray(COLOURS), icc_profile=profile)
    np.testing.assert_array_equal(found, COLOURS)


def test_palettes_and_transparency() -> None:
    """Colours of a palette are converted; transparent pixels lie on white, which stays white."""
    image = Image.fromarray(COLOURS).quantize(16)
    solid = np.asarray(image.convert("RGB"))
    found = decoded(image, icc_profile=adobe_profile())
    assert np.abs(found - in_srgb(solid)).max() <= 2
    alpha = np.where(np.arange(SIDE) < 4, 0, 255)[None].repeat(SIDE, 0).astype(np.uint8)
    see_through = Image.fromarray(np.dstack([COLOURS, alpha]))
    found = decoded(see_through, icc_profile=adobe_profile())
    assert (found[:, :4] == 255).all()
    assert np.abs(found - in_srgb(COLOURS))[:, 4:].max() <= 2


def test_grey() -> None:
    levels = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) * 4
    data = profile(b"GRAY", 1.8, np.empty((3, 0)))  # as on Macs before 2009
    found = decoded(Image.fromarray(levels), icc_profile=data)
    expected = encoded((levels / 255.0) ** 1.8)
    assert np.abs(found - expected[..., None]).max() <= 2
    assert np.abs(levels - expected).max() > 10


def test_from_the_command_line(tmp_path: Path) -> None:
    """The file records it, only where it is set, and a run with another choice is refused."""
    (tmp_path / "images").mkdir()
    image = Image.fromarray(COLOURS).resize((64, 64))
    image.save(tmp_path / "images" / "a.png", icc_profile=adobe_profile())
    for choice in ("ignore", "convert"):
        run = ("extract", "images", *SMALL, "--icc", choice, "--out", f"{choice}.h5")
        assert vggfeat(*run, cwd=tmp_path).returncode == 0
    with h5py.File(tmp_path / "ignore.h5") as before, h5py.File(tmp_path / "convert.h5") as after:
        assert b"icc" not in before.attrs["preprocess"]
        assert b'"icc": "convert"' in after.attrs["preprocess"]
        for spec in before["features"]:
            assert not np.array_equal(before[f"features/{spec}"], after[f"features/{spec}"])
    again = vggfeat("extract", "images", *SMALL, "--out", "convert.h5", cwd=tmp_path)
    assert again.returncode == 5
    assert "icc" in again.stderr
    wrong = vggfeat(
        "extract", "images", *SMALL, "--icc", "convert", "--clip", "1,99", "--out", "x.h5",
        cwd=tmp_path,
    )  # fmt: skip
    assert_one_line(wrong, 2, "icc convert is for 8-bit RGB")
