"""Bytes onto the disk: written whole at their offsets, and synced, or an error that says so."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.errors import CacheError, SpaceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.cache.format import Header

_EARLY_BYTES = 1 << 20  # the disk is asked to write: fewer would cost it a seek each
_PAGE = 4096
_WRITE = 2  # SYNC_FILE_RANGE_WRITE, from linux/fs.h: begin, and wait for nothing
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ESPIPE)


def write_bytes_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; a full disk is an error, not a SIGBUS as with a map."""
    view = memoryview(data)
    while view:
        try:
            written = os.pwrite(handle, view, offset)
        except OSError as error:
            raise SpaceError(
                error.errno,
                f"writing failed: {error.strerror}; the file is intact up to the last checkpoint, "
                "run again once the disk has room",
            ) from error
        view, offset = view[written:], offset + written


def write_all(handle: int, values: NDArray[np.generic], offset: int) -> None:
    """Write all of `values` at `offset`, as `write_bytes_at` does."""
    write_bytes_at(handle, values.reshape(-1).view("u1").data, offset)


def read_all(handle: int, count: int, offset: int) -> bytes:
    """Read `count` bytes at `offset`; a file that ends before is an error."""
    parts = []
    while count:
        part = os.pread(handle, count, offset)
        if not part:
            raise CacheError("the cache is cut short: rows it should hold lie behind its end")
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def row_features(handle: int, header: Header, row: int) -> list[NDArray[Any]]:
    """Read the features of one row, (1, …) for each layer in the order of their names."""
    runs = [header.feature(spec) for spec in header.identity.layers]
    return [
        np.frombuffer(read_all(handle, run.row_bytes, run.offset + row * run.row_bytes), run.dtype)[
            None
        ]
        for run in runs
    ]


class WriteBack:
    """Have the disk begin with what was written, so that a later sync finds little left to do.

    A hint: what was noted is on the disk only after a sync. Does nothing where the system or the
    file system has no such thing.

    Args:
        handle: descriptor of the file.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._begin = _sync_file_range()
        self._ranges: dict[str, tuple[int, int]] = {}

    def note(self, name: str, offset: int, size: int) -> None:
        """Note bytes written to a dataset; begin with them once they are many in a row."""
        start, stop = self._ranges.get(name, (offset, offset))
        if stop != offset:
            start = offset  # rows are scattered; what lies before waits for the sync
        stop = offset + size
        whole = stop // _PAGE * _PAGE  # the next row is on the last page too, and would rewrite it
        if whole - start >= _EARLY_BYTES:
            self._start(start, whole - start)
            start = whole
        self._ranges[name] = start, stop

    def _start(self, offset: int, size: int) -> None:
        if self._begin is None or self._begin(self._handle, offset, size, _WRITE) == 0:
            return
        number = ctypes.get_errno()
        if number in _NOT_HERE:
            self._begin = None
        elif number != errno.EINTR:  # the disk has refused it, as it may refuse a sync
            raise _not_kept(number)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's `sync_file_range`; None elsewhere."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


def sync_file(handle: int, sync: Callable[[int], None] | None = None) -> None:
    """Return once the disk has what was written, by `sync` or else `os.fdatasync`."""
    try:
        (sync or os.fdatasync)(handle)
    except OSError as error:  # the kernel may have dropped the pages: nothing later can be trusted
        raise _not_kept(error.errno or errno.EIO) from error


def _not_kept(number: int) -> SpaceError:
    return SpaceError(
        number,
        f"the disk did not keep what was written: {os.strerror(number)}; rows up to the last "
        "checkpoint are safe",
    )
