"""Bytes onto the disk: written whole at their offsets, and synced, or an error that says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.errors import CacheError, SpaceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.cache.format import Header


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


def sync_file(handle: int, sync: Callable[[int], None] | None = None) -> None:
    """Return once the disk has what was written, by `sync` or else `os.fdatasync`."""
    try:
        (sync or os.fdatasync)(handle)
    except OSError as error:  # the kernel may have dropped the pages: nothing later can be trusted
        raise SpaceError(
            error.errno,
            f"the disk did not keep what was written: {error.strerror}; rows up to the last "
            "checkpoint are safe",
        ) from error
