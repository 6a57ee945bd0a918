"""Copy rows from one cache file into another, inside the kernel where possible."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.checksums import row_checksums, seal_rows
from vggfeat.cache.disk import read_all, row_features, write_all
from vggfeat.cache.format import IMAGES, RowState
from vggfeat.core.arrays import consecutive
from vggfeat.errors import CacheError, SpaceError
from vggfeat.storage.descriptors import open_descriptor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.cache.format import Header

_LISTED_ANEW = ("path", "size", "mtime_ns", "state")  # columns that are written, not copied
_NOT_COPIED_BY_KERNEL = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_COPY_BYTES = 1 << 24
_SEALED_AT_ONCE = 1 << 16


def copy_rows(
    path: str,
    old: Header,
    target: int,
    new: Header,
    origin: NDArray[np.int64],
    *,
    states: NDArray[np.uint8],
    first: int = 0,
) -> None:
    """Copy features, checksums, digests and reasons of old rows to their rows in a new file.

    Of rows that are pending there nothing is copied. Checksums become those of the new version.

    Args:
        path: the cache they come from.
        old: its header.
        target: descriptor of the file they go to.
        new: header of that file; a column that only one of the two has is left alone.
        origin: int64 (n,), for n rows of the new file the old row of each, or -1.
        states: uint8 (n,), their states in the new file, which the caller writes: pending, or those
            that the rows have in the old one.
        first: row of the new file that `origin` begins with.
    """
    rows = np.flatnonzero((origin >= 0) & (states != RowState.PENDING))
    ranges = consecutive(rows, origin[rows])
    source = open_descriptor(path, os.O_RDONLY)
    try:
        for name, run in new.runs.items():
            had = old.runs.get(name)
            if had is None or name.removeprefix(f"{IMAGES}/") in _LISTED_ANEW:
                continue
            for start, stop in ranges:
                _copy_range(
                    source,
                    had.offset + int(origin[rows[start]]) * run.row_bytes,
                    target,
                    run.offset + (first + int(rows[start])) * run.row_bytes,
                    (stop - start) * run.row_bytes,
                )
    finally:
        os.close(source)
    if old.version < new.version:
        for start in range(0, len(rows), _SEALED_AT_ONCE):
            some = rows[start : start + _SEALED_AT_ONCE]
            _seal(target, new, first + some, states[some])


def _seal(handle: int, header: Header, rows: NDArray[np.int64], states: NDArray[np.uint8]) -> None:
    """Replace the checksums of rows copied from a file of version 1 by those of version 2."""

    def columns(name: str) -> NDArray[Any]:
        run = header.runs[f"{IMAGES}/{name}"]
        low, high = int(rows[0]), int(rows[-1]) + 1
        data = read_all(handle, (high - low) * run.row_bytes, run.offset + low * run.row_bytes)
        return np.frombuffer(data, run.dtype).reshape(high - low, *run.shape[1:])[rows - low]

    sums = columns("checksum")
    # Version 1 has none for rows that are given up.
    for at in np.flatnonzero(states == RowState.REMOVED).tolist():
        sums[at] = row_checksums(row_features(handle, header, int(rows[at])), 1)[0]
    sums = seal_rows(sums, columns("digest"), columns("error"), states)
    run = header.runs[f"{IMAGES}/checksum"]
    for start, stop in consecutive(rows):
        write_all(handle, sums[start:stop], run.offset + int(rows[start]) * run.row_bytes)


def _copy_range(source: int, start: int, target: int, place: int, count: int) -> None:
    """Copy bytes inside the kernel, which may share the blocks; else with read and write."""
    by_kernel = hasattr(os, "copy_file_range")
    while count:
        try:
            if by_kernel:
                copied = os.copy_file_range(source, target, count, start, place)
            else:
                block = os.pread(source, min(count, _COPY_BYTES), start)
                copied = os.pwrite(target, block, place) if block else 0
        except OSError as error:
            if by_kernel and error.errno in _NOT_COPIED_BY_KERNEL:
                by_kernel = False
                continue
            raise SpaceError(
                error.errno,
                f"taking over the rows that are done failed: {error.strerror}; the cache is as it "
                "was, run again once the disk has room",
            ) from error
        if not copied:
            raise CacheError("the cache is cut short: rows it should hold lie behind its end")
        count, start, place = count - copied, start + copied, place + copied
