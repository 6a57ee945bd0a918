"""Read the values of an image from NumPy's `.npy` files."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy

from vggfeat.core.preprocessing import MOST_CHANNELS
from vggfeat.errors import DecodeError
from vggfeat.images.intensity import BYTE, WORD, Range, Raster, in_native_order
from vggfeat.images.resize import too_large

if TYPE_CHECKING:
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
    described = f".npy of shape {shape}, type {dtype}"
    channels = shape[2] if len(shape) == 3 else 1  # noqa: PLR2004 (H, W, C)
    if len(shape) not in (2, 3) or dtype.kind not in "buif" or 0 in shape:
        raise DecodeError(f"{described}; expected numbers of shape (H, W) or (H, W, C)")
    if channels > MOST_CHANNELS:
        raise DecodeError(f"{described}; expected (H, W, C) of at most {MOST_CHANNELS} channels")
    if shape[0] * shape[1] > max_pixels:
        raise DecodeError(too_large(".npy", f"{shape[1]} x {shape[0]}", max_pixels))
    start = stream.tell()
    if stream.seek(0, 2) - start < dtype.itemsize * shape[0] * shape[1] * channels:
        raise DecodeError(f"truncated: {described}")
    stream.seek(0)
    values = npy.read_array(stream, allow_pickle=False).reshape(*shape[:2], channels)
    if dtype.kind == "b":
        values = values.astype(np.uint8) * BYTE
    whole = {1: Range(0, BYTE), 2: Range(0, WORD)} if dtype.kind in "bu" else {}
    return Raster(
        in_native_order(values), whole.get(dtype.itemsize), f".npy {dtype.name}", 8 * dtype.itemsize
    )
