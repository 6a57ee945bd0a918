"""Resize and crop as torchvision does, Pillow images and arrays of any number of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from vggfeat.core.preprocessing import RGB
from vggfeat.errors import DecodeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess

WINDOW_ABOVE: Final = 2**26
"""Resized pixels beyond which only the part that is kept is computed (256 MiB in Pillow).

Up to here a resize is torchvision's to the byte; beyond, to within one grey level.
"""


def fit_pixels(pixels: NDArray[Any], preprocess: Preprocess, max_pixels: int) -> NDArray[Any]:
    """Resize and crop an array, uint8 or uint16 (H, W, C), as `fit_inside` does an image.

    Eight bits of one channel or of RGB are resized as integers, as torchvision does; all others as
    floats, each channel by itself, and then rounded. The result is C-contiguous and writable.
    """
    channels = pixels.shape[2]
    if pixels.dtype == np.uint8 and channels in (1, RGB):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels))
        fill = preprocess.fill[0] if channels == 1 else preprocess.fill
        fitted = fit_inside(image, preprocess, max_pixels, fill)
        return np.array(fitted).reshape(fitted.height, fitted.width, channels)
    levels = np.moveaxis(pixels, 2, 0).astype(np.float32)  # (C, H, W)
    planes = [
        np.asarray(fit_inside(Image.fromarray(plane), preprocess, max_pixels, fill))
        for plane, fill in zip(levels, preprocess.fill, strict=True)
    ]
    rounded = np.rint(np.stack(planes, axis=2)).clip(0, preprocess.white)
    return np.asarray(rounded, pixels.dtype)


def fit_inside(
    image: Image.Image, preprocess: Preprocess, max_pixels: int, fill: int | tuple[int, ...]
) -> Image.Image:
    """Resize and crop an image in mode RGB, L or F, and pad it with `fill`.

    Raises DecodeError for a result of more than `max_pixels`, which only crop none can have.
    """
    size = preprocess.size
    if preprocess.crop == "center":
        return _centre(image, preprocess.resize or size, size)
    if preprocess.crop == "squash":
        return _resized(image, (size, size))
    if preprocess.crop == "pad":
        return _padded(image, size, fill)
    width, height = with_shorter_side(image.size, size)
    if width * height > max_pixels:
        what = "too large once resized for crop none"
        raise DecodeError(too_large(what, f"{width} x {height}", max_pixels))
    return _resized(image, (width, height))


def with_shorter_side(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return width and height in the proportion of `size`, rounded down as torchvision does."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _centre(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Resize the shorter side to `resize`, then crop the centre, as torchvision does."""
    whole = with_shorter_side(image.size, resize)
    left, top = (round((side - size) / 2.0) for side in whole)
    window = (left, top, left + size, top + size)
    if whole[0] * whole[1] > WINDOW_ABOVE:
        return _resized_window(image, whole, window)
    return _resized(image, whole).crop(window)


def _resized_window(
    image: Image.Image, whole: tuple[int, int], window: tuple[int, int, int, int]
) -> Image.Image:
    """Return `image.resize(whole).crop(window)` without computing the rest."""
    across, down = image.width / whole[0], image.height / whole[1]
    left, top, right, bottom = window
    box = (
        left * across,
        top * down,
        min(right * across, image.width),  # rounding must not lead beyond the edge
        min(bottom * down, image.height),
    )
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)


def _padded(image: Image.Image, size: int, fill: int | tuple[int, ...]) -> Image.Image:
    """Resize the longer side to `size`, and pad equally on both sides."""
    longer = max(image.size)
    width, height = (max(1, round(size * side / longer)) for side in image.size)
    square = Image.new(image.mode, (size, size), fill)
    square.paste(_resized(image, (width, height)), ((size - width) // 2, (size - height) // 2))
    return square


def too_large(what: str, pixels: str, max_pixels: int) -> str:
    """Return the reason for an image of too many pixels."""
    return f"{what}: {pixels} pixels, at most {max_pixels} allowed (--max-pixels)"
