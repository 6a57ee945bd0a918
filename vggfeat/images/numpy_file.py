"""Read the values of an image from NumPy arrays, in memory or in `.npy` files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy

from vggfeat.core.preprocessing import MOST_CHANNELS
from vggfeat.errors import DecodeError
from vggfeat.images.intensity import BYTE, WORD, Range, Raster, in_native_order
from vggfeat.images.resize import too_large

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess

_MAGIC: Final = b"\x93NUMPY"


def is_array(stream: BinaryIO) -> bool:
    """Return whether a seekable stream begins as `.npy` files do."""
    stream.seek(0)
    return stream.read(len(_MAGIC)) == _MAGIC


def read_array(stream: BinaryIO, _preprocess: Preprocess, max_pixels: int) -> Raster:
    """Read an array of shape (H, W) or (H, W, C), of booleans, integers or floats.

    The values have the byte order of this machine. The scale of 8 and 16 bits is the full range of
    their type.
    """
    stream.seek(0)
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    _check(".npy", shape, dtype, max_pixels)
    start = stream.tell()
    if stream.seek(0, 2) - start < dtype.itemsize * math.prod(shape):
        raise DecodeError(f"truncated: {_described('.npy', shape, dtype)}")
    stream.seek(0)
    return _raster(".npy", npy.read_array(stream, allow_pickle=False))


def raster_of(values: NDArray[Any], max_pixels: int) -> Raster:
    """Return an array in memory as `read_array` does one in a file."""
    _check("array", values.shape, values.dtype, max_pixels)
    return _raster("array", values)


def _check(what: str, shape: tuple[int, ...], dtype: np.dtype[Any], max_pixels: int) -> None:
    described = _described(what, shape, dtype)
    if len(shape) not in (2, 3) or dtype.kind not in "buif" or 0 in shape:
        raise DecodeError(f"{described}; expected numbers of shape (H, W) or (H, W, C)")
    if len(shape) == 3 and shape[2] > MOST_CHANNELS:  # noqa: PLR2004 (H, W, C)
        raise DecodeError(f"{described}; expected (H, W, C) of at most {MOST_CHANNELS} channels")
    if shape[0] * shape[1] > max_pixels:
        raise DecodeError(too_large(what, f"{shape[1]} x {shape[0]}", max_pixels))


def _described(what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{what} of shape {shape}, type {dtype}"


def _raster(what: str, values: NDArray[Any]) -> Raster:
    dtype = values.dtype
    if dtype.kind == "b":
        values = values.astype(np.uint8) * BYTE
    values = in_native_order(values).reshape(*values.shape[:2], -1)
    whole = {1: Range(0, BYTE), 2: Range(0, WORD)} if dtype.kind in "bu" else {}
    return Raster(values, whole.get(dtype.itemsize), f"{what} {dtype.name}", 8 * dtype.itemsize)
