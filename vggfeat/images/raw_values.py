"""The values of an image as its file has them: all bits, all bands, from any type of file.

A further type of file is a module with a function that recognizes it and one that reads it, and a
line in `_TYPES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from vggfeat.images.dicom import is_dicom, read_dicom
from vggfeat.images.numpy_file import is_array, read_array
from vggfeat.images.pillow_values import read_picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.images.intensity import Raster

    Sniff = Callable[[BinaryIO], bool]
    Read = Callable[[BinaryIO, Preprocess, int], Raster]

_TYPES: tuple[tuple[Sniff, Read], ...] = (
    (is_array, read_array),
    (is_dicom, read_dicom),
)


def is_of_values(stream: BinaryIO) -> bool:
    """Return whether a seekable stream is a file of values, as DICOM is, and no picture."""
    return any(sniff(stream) for sniff, _ in _TYPES)


def read_raster(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> Raster:
    """Read the values of the first image in a seekable stream, upright.

    Args:
        stream: of any type of file that is read.
        preprocess: how many channels are wanted, and whether in more than 8 bits; how JPEGs are
            decoded.
        max_pixels: larger images are not read; of pictures, Pillow's own limit is the caller's.

    Returns:
        As many channels as are wanted where a file can give them, else one or three.
    """
    for sniff, read in _TYPES:
        if sniff(stream):
            return read(stream, preprocess, max_pixels)
    return read_picture(stream, preprocess)
