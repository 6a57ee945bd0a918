"""One dataset as one run of bytes in its file, which can be mapped and written by offset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from h5py import h5d

if TYPE_CHECKING:
    import h5py

_CHUNKS_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Run:
    """One dataset as one run of bytes in the file.

    Attributes:
        dtype: NumPy's name of the element type, little-endian.
        shape: rows first.
        offset: of the first row, in bytes from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape[1:])


def find_offset(dataset: h5py.Dataset) -> int | None:
    """Where the dataset's bytes begin, if they lie in one unfiltered, little-endian run."""
    layout = dataset.id.get_create_plist()
    big_endian = dataset.dtype.byteorder == ">"
    if big_endian or layout.get_nfilters() or layout.get_external_count():
        return None
    if layout.get_layout() == h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else int(offset)
    if layout.get_layout() != h5d.CHUNKED or dataset.chunks[1:] != dataset.shape[1:]:
        return None
    return _chunked_offset(dataset)


def _chunked_offset(dataset: h5py.Dataset) -> int | None:
    rows = dataset.chunks[0]
    size = rows * dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    count = -(-dataset.shape[0] // rows)
    zeros = (0,) * (dataset.ndim - 1)
    places = {
        chunk: dataset.id.get_chunk_info_by_coord((chunk * rows, *zeros)).byte_offset
        for chunk in np.unique(np.linspace(0, count - 1, _CHUNKS_LOOKED_AT).astype(int)).tolist()
    }
    first = places[0]
    if first is None or any(place != first + chunk * size for chunk, place in places.items()):
        return None
    return int(first)
