"""Fixed corruptions of images, each a deterministic function of the pixels.

They show which layers still find an image that was cropped, turned, recoloured or degraded. Noise,
blur and JPEG are among the corruptions of Hendrycks & Dietterich 2019, "Benchmarking neural network
robustness to common corruptions and perturbations"; shuffled tiles are as in Zhang & Zhu 2019,
"Interpreting adversarially trained convolutional neural networks". None enlarges an image.
"""

from __future__ import annotations

import functools
import io
import math
import zlib
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageFilter

from vggfeat.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Corruption

_ANGLE = math.radians(15)
_QUALITY = 10
_LONGEST_JPEG = 65_500  # libjpeg's own limit
_DEVIATION = 25  # grey levels
_AT_ONCE = 1 << 22  # values; a multiple of 4, which 64 bits give, so that it changes no noise
_GREY = (128, 128, 128)

_TILES = 4
_SHUFFLED = (14, 12, 4, 13, 3, 11, 1, 8, 6, 0, 15, 2, 9, 7, 5, 10)
"""For each place, by rows, the tile it shows: of another row and column, and beside no tile that it
was beside before."""

_RECOLOURED: Final = [
    min(255, (level * tenths + 5) // 10) for tenths in (12, 9, 7) for level in range(256)
]
_INVERTED: Final = [255 - level for level in range(256)] * 3
_DARKENED: Final = [level // 2 for level in range(256)] * 3


def corrupt(image: Image.Image, names: tuple[Corruption, ...]) -> Image.Image:
    """Apply each corruption in turn to an image in mode RGB, which is left unchanged.

    Returns an image in mode RGB, at least 1 x 1 and at most as large; `image` itself without names.
    With the same version of Pillow, the same pixels give the same result on any machine.
    """
    for name in names:
        image = _CORRUPTIONS[name](image)
    return image


def _trimmed(image: Image.Image, across: int, down: int) -> Image.Image:
    """Remove `across` columns on the left and on the right, `down` rows above and below."""
    return image.crop((across, down, image.width - across, image.height - down))


def _rotate(image: Image.Image) -> Image.Image:
    """Turn about the centre, then crop the empty corners off.

    At least one or two pixels of either side stay; a strip that narrow may show an empty corner.
    """
    turned = image.rotate(math.degrees(_ANGLE), Image.Resampling.BILINEAR)
    width, height = image.size
    cos, sin = math.cos(_ANGLE), math.sin(_ANGLE)
    # A rectangle of this share of both sides just fits into the turned image.
    share = min(width / (width * cos + height * sin), height / (width * sin + height * cos))
    across, down = (
        min(math.ceil(side * (1 - share) / 2), (side - 1) // 2) for side in (width, height)
    )
    return _trimmed(turned, across, down)


def _noise(image: Image.Image) -> Image.Image:
    """Add Gaussian noise seeded by the pixels themselves: no two images get the same noise."""
    pixels = np.array(image)  # (H, W, 3) uint8
    bits = np.random.PCG64(zlib.crc32(pixels.data))
    values = pixels.reshape(-1)  # (H * W * 3,), a view
    for start in range(0, values.size, _AT_ONCE):
        some = values[start : start + _AT_ONCE]
        # NumPy promises the same bits from a seed for ever, but not the same normal numbers.
        raw = bits.random_raw(-(-some.size // 4)).astype("<u8").view("<u2")  # 4 x 16 bits each
        some[:] = (some + _quantiles().take(raw[: some.size])).clip(0, 255)
    return Image.fromarray(pixels)


@functools.cache
def _quantiles() -> NDArray[np.int16]:
    """Return the normal distribution's 65,536 quantiles in grey levels, (65536,)."""
    normal, count = NormalDist(sigma=_DEVIATION), 1 << 16
    return np.array([round(normal.inv_cdf((i + 0.5) / count)) for i in range(count)], np.int16)


def _jpeg(image: Image.Image) -> Image.Image:
    if max(image.size) > _LONGEST_JPEG:
        raise DecodeError(
            f"corruption jpeg: {image.width} x {image.height} pixels; "
            f"at most {_LONGEST_JPEG} a side make a JPEG"
        )
    bare = image.copy()
    bare.info = {}  # else Pillow would write comments too, and fail on long ones
    stream = io.BytesIO()
    bare.save(stream, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    decoded = Image.open(stream)
    decoded.load()
    return decoded


def _shuffle(image: Image.Image) -> Image.Image:
    """Permute 4 x 4 tiles of equal size; columns and rows left over on the right and below stay."""
    width, height = image.width // _TILES, image.height // _TILES
    shuffled = image.copy()
    for place, tile in enumerate(_SHUFFLED):
        left, top = tile % _TILES * width, tile // _TILES * height
        piece = image.crop((left, top, left + width, top + height))
        shuffled.paste(piece, (place % _TILES * width, place // _TILES * height))
    return shuffled


def _occlude(image: Image.Image) -> Image.Image:
    hidden = image.copy()
    across, down = image.width // 4, image.height // 4
    hidden.paste(_GREY, (across, down, image.width - across, image.height - down))
    return hidden


_CORRUPTIONS: Mapping[Corruption, Callable[[Image.Image], Image.Image]] = {
    "mirror": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "flip": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "crop": lambda image: _trimmed(image, image.width * 15 // 100, image.height * 15 // 100),
    "zoom": lambda image: _trimmed(image, image.width // 3, image.height // 3),
    "rotate": _rotate,
    "grey": lambda image: image.convert("L").convert("RGB"),  # L is the luma of ITU-R 601
    "recolour": lambda image: image.point(_RECOLOURED),
    "invert": lambda image: image.point(_INVERTED),
    "darken": lambda image: image.point(_DARKENED),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(max(1.0, min(image.size) / 100))),
    "noise": _noise,
    "jpeg": _jpeg,
    "shuffle": _shuffle,
    "occlude": _occlude,
}
