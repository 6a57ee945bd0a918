"""Read the values of images that Pillow opens: 16 bits where it gives 8, all bands and pages."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vggfeat.core.preprocessing import RGB
from vggfeat.core.text import counted
from vggfeat.errors import DecodeError
from vggfeat.images.intensity import BYTE, WORD, Range, Raster, in_native_order
from vggfeat.images.pillow import (
    UPRIGHT,
    bits_of,
    has_planes,
    is_inverted,
    load,
    match_key_to_pixels,
    open_image,
    rgb,
    scale_of,
)
from vggfeat.images.pillow_tiles import raw_mode, set_raw_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from PIL import Image

    from vggfeat.core.preprocessing import Preprocess

_MANY_BITS = ("RGB", "RGBA", "RGBX", "CMYK")  # before `;16` in Pillow's names of raw modes
_GREY_AND_ALPHA = "LA;16B"

_UPRIGHT_BY: Mapping[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def read_picture(stream: BinaryIO, preprocess: Preprocess) -> Raster:
    """Read the values of the first image in a seekable stream, upright; see `read_raster`."""
    return values_of(open_image(stream), stream, preprocess)


def values_of(image: Image.Image, stream: BinaryIO, preprocess: Preprocess) -> Raster:
    """Return the values of an opened image, upright; `stream` is read again for its lower bytes."""
    if preprocess.channels not in (1, RGB):
        return _read_bands(stream, image, preprocess)
    if _is_deep(image) and not preprocess.usual and not image.mode.startswith("CMYK"):
        return _read_deep(stream, image, preprocess)
    if image.mode[0] in "IF":
        return _read_grey(image, preprocess)
    return _read_bytes(image, preprocess)


def _turned(values: NDArray[Any], turn: int) -> NDArray[Any]:
    return values if turn == UPRIGHT else np.ascontiguousarray(_UPRIGHT_BY[turn](values))


def _kind(image: Image.Image) -> str:
    return f"{image.format or 'image'} {image.mode}"


def _read_bytes(image: Image.Image, preprocess: Preprocess) -> Raster:
    """Read eight bits, of one channel or of RGB."""
    kind, bits = _kind(image), bits_of(image)
    match_key_to_pixels(image)
    loaded = load(image, preprocess)
    shown = loaded.image
    if shown.mode != "L" or shown.has_transparency_data:
        shown = rgb(shown)
        shown = shown.convert("L") if preprocess.channels == 1 else shown
    values = np.asarray(shown)
    values = values.reshape(*values.shape[:2], -1)
    return Raster(_turned(values, loaded.turn), Range(0, BYTE), kind, bits)


def _read_grey(image: Image.Image, preprocess: Preprocess) -> Raster:
    """Read more than eight bits of one channel; a transparent value becomes white."""
    kind, bits, scale, inverted = _kind(image), bits_of(image), scale_of(image), is_inverted(image)
    loaded = load(image, preprocess)
    values = in_native_order(np.asarray(loaded.image))[..., None]
    key = loaded.image.info.get("transparency")
    if key is not None and scale is not None:
        values = np.where(values == key, values.dtype.type(scale.white), values)
    return Raster(_turned(values, loaded.turn), scale, kind, bits, inverted)


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image has several channels of 16 bits, of which Pillow decodes only 8."""
    kind, deep, _ = raw_mode(image).partition(";16")
    return bool(deep) and (kind in _MANY_BITS or raw_mode(image) == _GREY_AND_ALPHA)


def _read_deep(stream: BinaryIO, image: Image.Image, preprocess: Preprocess) -> Raster:
    """Read all bits of 16-bit colours or grey, on white where the image is transparent."""
    kind = _kind(image)
    values, turn = _words(stream, image, preprocess)
    key = image.info.get("transparency")
    if key is not None:
        hidden = (values == np.array(key)).all(axis=2, keepdims=True)
        values = np.where(hidden, np.uint16(WORD), values)
    if values.shape[2] in (2, 4):
        share = values[..., -1:].astype(np.float64) / WORD
        shown = np.rint(values[..., :-1] * share + WORD * (1 - share))
        values = shown.astype(np.uint16)
    return Raster(_turned(values, turn), Range(0, WORD), kind, 16)


def _words(
    stream: BinaryIO, image: Image.Image, preprocess: Preprocess
) -> tuple[NDArray[np.uint16], int]:
    """Read every channel of 16 bits, uint16 (H, W, C); return it with the turn to undo.

    Pillow's unpackers keep one byte of two: the upper one in the file's byte order, the lower one
    when the file is read again in the other order.
    """
    raw = raw_mode(image)
    if has_planes(image):
        raise DecodeError("TIFF with 16-bit channels in separate planes; expected interleaved ones")
    if raw == _GREY_AND_ALPHA:  # four bytes a pixel, like RGBA
        set_raw_mode(image, "RGBA")
        loaded = load(image, preprocess)
        pairs = np.asarray(loaded.image).astype(np.uint16)
        return _join_bytes(pairs[..., ::2], pairs[..., 1::2]), loaded.turn
    upper = load(image, preprocess)
    again = open_image(stream)
    set_raw_mode(again, _in_other_order(raw))
    lower = load(again, preprocess)
    return _join_bytes(np.asarray(upper.image), np.asarray(lower.image)), upper.turn


def _join_bytes(upper: NDArray[Any], lower: NDArray[Any]) -> NDArray[np.uint16]:
    return np.asarray(upper.astype(np.uint16) * 256 + lower, np.uint16)


def _in_other_order(raw: str) -> str:
    kind, _, order = raw.partition(";16")
    native = "L" if sys.byteorder == "little" else "B"
    return f"{kind};16{'B' if (native if order == 'N' else order) == 'L' else 'L'}"


def _read_bands(stream: BinaryIO, image: Image.Image, preprocess: Preprocess) -> Raster:
    """Read `preprocess.channels` bands, or pages of one band each, without blending them."""
    deep = _is_deep(image)
    bands = 2 if raw_mode(image) == _GREY_AND_ALPHA else len(image.getbands())
    if bands != preprocess.channels:
        return _read_pages(image, preprocess)
    kind, bits = _kind(image), bits_of(image)
    if deep:
        values, turn = _words(stream, image, preprocess)
        return Raster(_turned(values, turn), Range(0, WORD), kind, bits)
    loaded = load(image, preprocess)
    shown = loaded.image.convert("RGBA") if loaded.image.mode == "RGBa" else loaded.image
    return Raster(_turned(np.asarray(shown), loaded.turn), Range(0, BYTE), kind, bits)


def _read_pages(image: Image.Image, preprocess: Preprocess) -> Raster:
    wanted, pages = preprocess.channels, getattr(image, "n_frames", 1)
    found = (
        f"{_kind(image)} of {counted(len(image.getbands()), 'channel')} in {counted(pages, 'page')}"
    )
    if pages != wanted or len(image.getbands()) != 1:
        raise DecodeError(f"{found}; expected {counted(wanted, 'channel')} (--channels)")
    first, *others = [_read_page(image, page, preprocess) for page in range(pages)]
    unlike = [page for page in others if page.values.shape != first.values.shape]
    if unlike:
        raise DecodeError(f"{found}, of different sides; expected one size for all")
    values = np.concatenate([first.values, *(page.values for page in others)], axis=2)
    return dataclasses.replace(first, values=values)


def _read_page(image: Image.Image, page: int, preprocess: Preprocess) -> Raster:
    image.seek(page)
    if image.mode[0] in "IF":
        return _read_grey(image, preprocess)
    return _read_bytes(image, dataclasses.replace(preprocess, channels=1))
