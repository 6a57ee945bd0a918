"""Read the values of an image as its file stores them: all bits and bands of any type of file.

Another type of file is a module with a function that recognizes it and one that reads it, and a
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
    """Return whether a seekable stream is a file of values, such as DICOM, not a picture."""
    return any(sniff(stream) for sniff, _ in _TYPES)


def read_raster(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> Raster:
    """Read the values of the first image in a seekable stream, upright.

    Args:
        stream: a picture, DICOM or NumPy file.
        preprocess: number of channels, bits, and how JPEGs are decoded.
        max_pixels: larger images are refused; for pictures, the caller sets Pillow's own limit.

    Returns:
        As many channels as `preprocess` has if the file can give them, else one or three.
    """
    for sniff, read in _TYPES:
        if sniff(stream):
            return read(stream, preprocess, max_pixels)
    return read_picture(stream, preprocess)
