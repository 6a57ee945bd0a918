"""Create a cache and write rows into it, so that done rows are whole at every instant.

HDF5 creates the file once, under a temporary name. After that rows are written at fixed offsets
with `pwrite`, and a checkpoint orders them on the disk: features and checksums, sync, states, sync.
"""

from __future__ import annotations

import ctypes
import errno
import os
import zlib
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.foreign_objects import warn_of_losses
from vggfeat.cache.format import DIGEST_BYTES, ERROR_BYTES, FEATURES, IMAGES, Header, RowState
from vggfeat.cache.header import read_header
from vggfeat.cache.layout import lay_out
from vggfeat.core.arrays import consecutive
from vggfeat.core.quantization import NAN_CODE
from vggfeat.core.text import byte_count
from vggfeat.errors import SpaceError, VggfeatError
from vggfeat.storage.atomic import atomic_path
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.hdf5_file import reason_of, refuse_if_open_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.format import CacheMetadata, DatasetExtent
    from vggfeat.core.records import Failure, FeatureBatch, ImageColumns


_IMAGES_AT_ONCE = 1 << 16  # written: as an array paths take several times what they do as a tuple


def create_cache(
    out: str,
    images: ImageColumns,
    metadata: CacheMetadata | Header,
    *,
    fill: Callable[[int, Header], None] | None = None,
    reserve: bool = True,
) -> Header:
    """Create the cache `out` with every row pending; replace an older file of that name.

    The file appears whole or not at all: made beside its place, room reserved, synced, renamed,
    directory synced. `fill` may write rows into it before, given a descriptor and the header.
    Without `reserve` the file takes its room on the disk only as it is filled.
    """
    longest = _longest(images.paths)
    if os.path.exists(out):
        warn_of_losses(out)
    try:
        with atomic_path(out) as temporary:
            lay_out(
                temporary,
                len(images.paths),
                longest,
                shapes=metadata.shapes,
                identity=metadata.identity,
                provenance=metadata.provenance,
                scales=metadata.scales,
            )
            header = read_header(temporary)
            handle = open_descriptor(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if reserve:
                    _reserve(handle, out)
                _write_images(handle, header, images)
                if fill is not None:
                    fill(handle, header)
                _sync(handle, os.fsync)
            finally:
                os.close(handle)
    except VggfeatError:
        raise
    except (OSError, RuntimeError) as error:  # the latter when HDF5 cannot close its file
        raise SpaceError(f"cache {out!r} cannot be made: {reason_of(error)}") from error
    return header


def _reserve(handle: int, out: str) -> None:
    """Reserve the disk blocks now, so that a full disk is noticed before the first image."""
    needed = os.fstat(handle).st_size
    # Not os.posix_fallocate: where the file system cannot reserve, it writes a byte to each block.
    libc = ctypes.CDLL(None, use_errno=True)
    allocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    code = errno.EOPNOTSUPP
    if allocate is not None:
        allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        code = ctypes.get_errno() if allocate(handle, 0, 0, needed) else 0
    status = os.fstatvfs(handle)
    free = status.f_bavail * status.f_frsize
    if code == errno.EFBIG:
        raise SpaceError(
            errno.EFBIG,
            f"cache {out!r} needs {byte_count(needed)}, and a file may not be so large here (its "
            "file system, or `ulimit -f`); use --shards, ask for fewer or smaller layers, or "
            "choose another --out",
        )
    if code in (errno.ENOSPC, errno.EDQUOT) or (code and needed > free):
        raise SpaceError(
            errno.ENOSPC,
            f"cache {out!r} needs {byte_count(needed)}, the disk has {byte_count(free)} free; "
            "make room, ask for fewer or smaller layers, or choose another --out",
        )


def _longest(paths: Sequence[bytes] | NDArray[np.bytes_]) -> int:
    """Return the length of the longest path in bytes."""
    if isinstance(paths, tuple):
        return max(map(len, paths))
    blocks = range(0, len(paths), _IMAGES_AT_ONCE)
    return max(int(np.char.str_len(paths[at : at + _IMAGES_AT_ONCE]).max()) for at in blocks)


def _write_images(handle: int, header: Header, images: ImageColumns) -> None:
    columns: Mapping[str, Sequence[bytes] | NDArray[np.generic]] = {
        "path": images.paths,
        "size": images.sizes,
        "mtime_ns": images.mtimes,
    }
    for name, values in columns.items():
        run = header.runs[f"{IMAGES}/{name}"]
        for start in range(0, header.rows, _IMAGES_AT_ONCE):
            block = np.asarray(values[start : start + _IMAGES_AT_ONCE], dtype=run.dtype)
            write_all(handle, np.ascontiguousarray(block), run.offset + start * run.row_bytes)


def write_all(handle: int, values: NDArray[np.generic], offset: int) -> None:
    """Write all of `values` at `offset`; a full disk is an error, not a SIGBUS as with a map."""
    view = values.reshape(-1).view(np.uint8).data
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


def _sync(handle: int, sync: Callable[[int], None]) -> None:
    try:
        sync(handle)
    except OSError as error:  # the kernel may have dropped the pages: nothing later can be trusted
        raise SpaceError(
            error.errno,
            f"the disk did not keep what was written: {error.strerror}; rows up to the last "
            "checkpoint are safe",
        ) from error


class CacheWriter:
    """Write rows of an existing cache; their states follow at the next checkpoint."""

    def __init__(self, path: str, header: Header) -> None:
        self._header = header
        self._specs = header.identity.layers
        self._states: dict[int, RowState] = {}
        try:
            self._handle = open_descriptor(path, os.O_RDWR)
        except OSError as error:
            raise SpaceError(
                error.errno, f"cache {path!r} cannot be written: {error.strerror}"
            ) from error
        try:
            refuse_if_open_elsewhere(self._handle, path)
        except BaseException:
            self.close()
            raise

    def reserve(self, path: str) -> None:
        """Reserve room on the disk for every row, as for a new file."""
        _reserve(self._handle, path)

    def close(self) -> None:
        """Close the file without a checkpoint: rows since the last one stay pending."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @property
    def unsaved(self) -> int:
        """Rows written since the last checkpoint."""
        return len(self._states)

    def write(self, batch: FeatureBatch) -> None:
        """Write the features of a batch, or NaN and the reason where an image failed."""
        rows = batch.rows
        if len(rows):
            for spec in self._specs:
                self._put(f"{FEATURES}/{spec}", rows, batch.features[spec])
            self._put_digests(rows, batch.digests)
            sums = row_checksums([batch.features[spec] for spec in self._specs], len(rows))
            self._put(f"{IMAGES}/checksum", rows, sums)
        # States are only noted here: they are written by the next checkpoint, after a sync.
        for failure in batch.failures:
            self._write_failure(failure)
        self._states.update(dict.fromkeys(rows.tolist(), RowState.DONE))
        self._states.update(dict.fromkeys((f.row for f in batch.failures), RowState.FAILED))

    def _write_failure(self, failure: Failure) -> None:
        at = np.array([failure.row])
        hollow = {}
        for spec in self._specs:
            run = self._header.feature(spec)
            nothing = NAN_CODE if np.dtype(run.dtype) == np.int8 else np.nan
            hollow[spec] = np.full((1, *run.shape[1:]), nothing, dtype=run.dtype)
            self._put(f"{FEATURES}/{spec}", at, hollow[spec])
        self._put(f"{IMAGES}/checksum", at, row_checksums([*hollow.values()], 1))
        # As UTF-8, cut between characters to the bytes that a row has for it.
        reason = failure.reason.encode(errors="backslashreplace")[:ERROR_BYTES]
        text = reason.decode(errors="ignore").encode()
        self._put(f"{IMAGES}/error", at, np.array([text], dtype=f"|S{ERROR_BYTES}"))
        digest = np.frombuffer(failure.digest.ljust(DIGEST_BYTES, b"\0"), dtype=np.uint8)
        self._put_digests(at, digest[None])

    def _put_digests(self, rows: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
        name = f"{IMAGES}/digest"
        if name in self._header.runs:
            self._put(name, rows, digests)

    def update_files(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], mtimes: NDArray[np.int64]
    ) -> None:
        """Update size and time of pending rows whose files have changed."""
        self._put(f"{IMAGES}/size", rows, sizes)
        self._put(f"{IMAGES}/mtime_ns", rows, mtimes)

    def clear_reasons(self, rows: NDArray[np.int64]) -> None:
        """Clear the reasons of failed rows that are tried again."""
        self._put(f"{IMAGES}/error", rows, np.zeros(len(rows), dtype=f"|S{ERROR_BYTES}"))

    def set_states(self, rows: NDArray[np.int64], state: RowState) -> None:
        """Set the state of rows at once, without a checkpoint; `sync` makes it durable."""
        self._put(f"{IMAGES}/state", rows, np.full(len(rows), state, dtype=np.uint8))

    def sync(self) -> None:
        """Return once the disk has all that was written."""
        _sync(self._handle, os.fdatasync)

    def checkpoint(self) -> None:
        """Mark all rows written so far as done or failed, safely against a power cut."""
        if not self._states:
            return
        # Features first: without this sync the kernel may write a state before the row it vouches
        # for, and after a power cut a done row would hold whatever the disk held.
        _sync(self._handle, os.fdatasync)
        rows = np.array(sorted(self._states))
        states = np.array([self._states[row] for row in rows.tolist()], dtype=np.uint8)
        self._put(f"{IMAGES}/state", rows, states)
        # Only now may callers tell a user that these rows are safe.
        _sync(self._handle, os.fdatasync)
        self._states.clear()

    def _put(self, name: str, rows: NDArray[np.int64], values: NDArray[np.generic]) -> None:
        run: DatasetExtent = self._header.runs[name]
        values = np.ascontiguousarray(values, dtype=run.dtype)
        for start, stop in consecutive(rows):  # one write for each
            offset = run.offset + int(rows[start]) * run.row_bytes
            write_all(self._handle, values[start:stop], offset)


def row_checksums(features: Sequence[NDArray[np.generic]], count: int) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row's feature bytes, of one (count, …) array a layer.

    The layers are in the order of their names.
    """
    plain = [np.ascontiguousarray(array).reshape(count, -1).view(np.uint8) for array in features]
    sums = np.empty(count, dtype=np.uint32)
    for row in range(count):
        value = 0
        for array in plain:
            value = zlib.crc32(array[row], value)
        sums[row] = value
    return sums
