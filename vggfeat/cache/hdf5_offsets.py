"""Where HDF5 itself says that the bytes of a dataset lie, for files that we have just made."""

from __future__ import annotations

import functools
import math

import h5py
import numpy as np
from h5py import h5d

_CHUNKS_LOOKED_AT = 16
_PROBE_BLOCK = 1 << 16  # more than a file of one number has in front of it


def find_offset(dataset: h5py.Dataset) -> int | None:
    """Return where the bytes of a dataset begin; None unless they are one little-endian range.

    Counted from the start of the file, in front of which HDF5 may have a user block.
    """
    layout = dataset.id.get_create_plist()
    big_endian = dataset.dtype.byteorder == ">"
    if big_endian or layout.get_nfilters() or layout.get_external_count():
        return None
    # Of one that was never written HDF5 gives an offset too, if the file has a user block.
    if not dataset.id.get_storage_size():
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
    # A few chunks stand for all: looking up each one of a large file takes too long.
    zeros = (0,) * (dataset.ndim - 1)
    places = {
        chunk: dataset.id.get_chunk_info_by_coord((chunk * rows, *zeros)).byte_offset
        for chunk in np.unique(np.linspace(0, count - 1, _CHUNKS_LOOKED_AT).astype(int)).tolist()
    }
    first = places[0]
    if first is None or any(place != first + chunk * size for chunk, place in places.items()):
        return None
    user_block = int(dataset.file.userblock_size)
    return int(first) + (user_block if user_block and _chunk_offsets_leave_out_user_block() else 0)


@functools.cache
def _chunk_offsets_leave_out_user_block() -> bool:
    """Return whether this HDF5 counts the offsets of chunks from the end of the user block.

    Versions before 1.14.4 do, for chunks alone; distributions patch it, so a file in memory tells.
    """
    place = {"driver": "core", "backing_store": False, "userblock_size": _PROBE_BLOCK}
    with h5py.File("probe", "w", **place) as file:
        probe = file.create_dataset("probe", data=np.zeros(1), chunks=(1,))
        return int(probe.id.get_chunk_info_by_coord((0,)).byte_offset) < _PROBE_BLOCK
