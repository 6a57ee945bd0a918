"""Create a cache and write rows into it, so that done rows are whole at every instant.

HDF5 creates the file once, under a temporary name. After that rows are written at fixed offsets
with `pwrite`, and a checkpoint orders them on the disk: features and checksums, sync, states, sync.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.checksums import row_checksums, seal_rows, with_state
from vggfeat.cache.column_records import COLUMNS, ColumnRecords
from vggfeat.cache.disk import WriteBack, read_all, row_features, sync_file, write_all
from vggfeat.cache.foreign_objects import warn_of_losses
from vggfeat.cache.format import DIGEST_BYTES, ERROR_BYTES, FEATURES, IMAGES, Header, RowState
from vggfeat.cache.header import read_header
from vggfeat.cache.index import LEAST_USER_BLOCK
from vggfeat.cache.layout import lay_out
from vggfeat.core.arrays import consecutive
from vggfeat.core.quantization import NAN_CODE
from vggfeat.core.text import byte_count
from vggfeat.errors import SpaceError, VggfeatError
from vggfeat.storage.atomic import atomic_path
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.hdf5_file import reason_of, refuse_if_open_elsewhere
from vggfeat.storage.locks import hold_replaced

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
                sync_file(handle, os.fsync)
            finally:
                os.close(handle)
        hold_replaced(out)
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
    """Write the columns of a new file, and their checksums into its column records."""
    columns: Mapping[str, Sequence[bytes] | NDArray[np.generic]] = {
        "path": images.paths,
        "size": images.sizes,
        "mtime_ns": images.mtimes,
    }
    sums = dict.fromkeys(COLUMNS, 0)
    for name, values in columns.items():
        run = header.runs[f"{IMAGES}/{name}"]
        for start in range(0, header.rows, _IMAGES_AT_ONCE):
            block = np.asarray(values[start : start + _IMAGES_AT_ONCE], dtype=run.dtype)
            block = np.ascontiguousarray(block)
            sums[name] = zlib.crc32(block.view(np.uint8).data, sums[name])
            write_all(handle, block, run.offset + start * run.row_bytes)
    ColumnRecords(handle, header).fill(sums)


class CacheWriter:
    """Write rows of an existing cache; their states follow at the next checkpoint.

    One thread may `write` while another is in `checkpoint`; all else is for one thread at a time.
    """

    def __init__(self, path: str, header: Header) -> None:
        self._header = header
        self._specs = header.identity.layers
        self._taking = threading.Lock()
        self._states: dict[int, RowState] = {}  # of rows that the next checkpoint marks
        self._marking: dict[int, RowState] = {}  # of rows that one under way marks
        self._records: ColumnRecords | None = None
        # Rows whose state was set at once, with their states before: their checksums follow.
        self._unsealed: list[tuple[NDArray[np.int64], NDArray[np.uint8]]] = []
        try:
            self._handle = open_descriptor(path, os.O_RDWR)
        except OSError as error:
            raise SpaceError(
                error.errno, f"cache {path!r} cannot be written: {error.strerror}"
            ) from error
        self._write_back = WriteBack(self._handle)
        try:
            refuse_if_open_elsewhere(self._handle, path)
            if header.user_block >= LEAST_USER_BLOCK:
                self._records = ColumnRecords(self._handle, header)
                self._settle(self._records)
        except BaseException:
            self.close()
            raise

    def _settle(self, records: ColumnRecords) -> None:
        """Finish an update that was interrupted."""
        if records.interrupted:
            removed = np.flatnonzero(self._get(f"{IMAGES}/state") == RowState.REMOVED)
            # As if they had been pending: nothing else tells which of them have their checksum.
            self._seal(removed, np.zeros(len(removed), dtype=np.uint8))
        records.settle()

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
        """Rows written that no checkpoint has marked yet."""
        with self._taking:
            return len(self._states) + len(self._marking)

    def write(self, batch: FeatureBatch) -> None:
        """Write the features of a batch, or NaN and the reason where an image failed."""
        rows = batch.rows
        if len(rows):
            for spec in self._specs:
                self._put(f"{FEATURES}/{spec}", rows, batch.features[spec], early=True)
            self._put_digests(rows, batch.digests)
            self._put_checksums(
                rows,
                row_checksums([batch.features[spec] for spec in self._specs], len(rows)),
                batch.digests,
                np.zeros(len(rows), f"|S{ERROR_BYTES}"),
                RowState.DONE,
            )
        # States are only noted here: they are written by the next checkpoint, after a sync.
        for failure in batch.failures:
            self._write_failure(failure)
        states = dict.fromkeys(rows.tolist(), RowState.DONE)
        states.update(dict.fromkeys((f.row for f in batch.failures), RowState.FAILED))
        with self._taking:
            self._states.update(states)

    def _write_failure(self, failure: Failure) -> None:
        at = np.array([failure.row])
        hollow = {}
        for spec in self._specs:
            run = self._header.feature(spec)
            nothing = NAN_CODE if np.dtype(run.dtype) == np.int8 else np.nan
            hollow[spec] = np.full((1, *run.shape[1:]), nothing, dtype=run.dtype)
            self._put(f"{FEATURES}/{spec}", at, hollow[spec])
        # As UTF-8, cut between characters to the bytes that a row has for it.
        reason = failure.reason.encode(errors="backslashreplace")[:ERROR_BYTES]
        text = reason.decode(errors="ignore").encode()
        texts = np.array([text], dtype=f"|S{ERROR_BYTES}")
        self._put(f"{IMAGES}/error", at, texts)
        digest = np.frombuffer(failure.digest.ljust(DIGEST_BYTES, b"\0"), dtype=np.uint8)[None]
        self._put_digests(at, digest)
        sums = row_checksums([*hollow.values()], 1)
        self._put_checksums(at, sums, digest, texts, RowState.FAILED)

    def _put_checksums(
        self,
        rows: NDArray[np.int64],
        sums: NDArray[np.uint32],
        digests: NDArray[np.uint8],
        reasons: NDArray[np.bytes_],
        state: RowState,
    ) -> None:
        """Write the checksums of rows whose features have `sums`."""
        if self._header.version > 1:
            states = np.full(len(rows), state, dtype=np.uint8)
            sums = seal_rows(sums, digests, reasons, states)
        self._put(f"{IMAGES}/checksum", rows, sums)

    def _put_digests(self, rows: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
        name = f"{IMAGES}/digest"
        if name in self._header.runs:
            self._put(name, rows, digests)

    def update_files(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], mtimes: NDArray[np.int64]
    ) -> None:
        """Update size and time of rows whose files have changed."""
        if not len(rows):
            return
        if self._records is not None:
            self._records.begin()
        self._put(f"{IMAGES}/size", rows, sizes)
        self._put(f"{IMAGES}/mtime_ns", rows, mtimes)
        if self._records is not None:
            self._records.end()

    def accept_files(self) -> None:
        """Take sizes and times as the file has them, whatever their checksums were."""
        if self._records is not None:
            self._records.end()

    def clear_reasons(self, rows: NDArray[np.int64]) -> None:
        """Clear the reasons of pending rows that failed before."""
        self._put(f"{IMAGES}/error", rows, np.zeros(len(rows), dtype=f"|S{ERROR_BYTES}"))

    def set_states(self, rows: NDArray[np.int64], state: RowState) -> None:
        """Set the state of rows at once, without a checkpoint; `sync` makes it durable.

        The rows, ascending, become pending or removed.
        """
        name = f"{IMAGES}/state"
        if self._header.version > 1:
            old = self._get(name)
            rows = rows[old[rows] != state]
            self._unsealed.append((rows, old[rows]))
            if self._records is not None and len(rows) and state == RowState.REMOVED:
                self._records.begin()  # nobody would write their checksums after a kill
        self._put(name, rows, np.full(len(rows), state, dtype=np.uint8))

    def sync(self) -> None:
        """Return once the disk has all that was written."""
        sync_file(self._handle)
        if any(len(rows) for rows, _ in self._unsealed):
            # Behind the states: a row that counts as done has its checksum at every instant.
            for rows, old in self._unsealed:
                self._seal(rows, old)
            sync_file(self._handle)
            if self._records is not None and self._records.interrupted:
                self._records.end()
        self._unsealed.clear()

    def _seal(self, rows: NDArray[np.int64], old: NDArray[np.uint8]) -> None:
        """Write the checksums of rows that were given another state than `old`."""
        states, sums = self._get(f"{IMAGES}/state")[rows], self._get(f"{IMAGES}/checksum")[rows]
        known = (old == RowState.DONE) | (old == RowState.FAILED)
        sums = with_state(sums, old, states)
        for at in np.flatnonzero(~known & (states != RowState.PENDING)).tolist():
            # Removed before anything vouched for what the row holds.
            sums[at] = self._sum_of(int(rows[at]), int(states[at]))
        sums[states == RowState.PENDING] = 0
        self._put(f"{IMAGES}/checksum", rows, sums)

    def _sum_of(self, row: int, state: int) -> int:
        """Return the checksum of a row as the file holds it, in that state."""
        sealed = seal_rows(
            row_checksums(row_features(self._handle, self._header, row), 1),
            self._get(f"{IMAGES}/digest", row),
            self._get(f"{IMAGES}/error", row),
            np.array([state], dtype=np.uint8),
        )
        return int(sealed[0])

    def _get(self, name: str, row: int | None = None) -> NDArray[Any]:
        """Return a column as the file has it now, or one row of a dataset, (1, …)."""
        run = self._header.runs[name]
        first, count = (0, run.shape[0]) if row is None else (row, 1)
        data = read_all(self._handle, count * run.row_bytes, run.offset + first * run.row_bytes)
        return np.frombuffer(data, run.dtype).reshape(count, *run.shape[1:])

    def checkpoint(self) -> None:
        """Mark all rows written so far as done or failed, safely against a power cut.

        Rows that another thread writes meanwhile belong to the next checkpoint.
        """
        with self._taking:
            # Before the sync, which vouches for no row that is written while it is under way.
            self._marking, self._states = {**self._marking, **self._states}, {}
            states = self._marking
        if not states:
            return
        # Features first: without this sync the kernel may write a state before the row it vouches
        # for, and after a power cut a done row would hold whatever the disk held.
        sync_file(self._handle)
        rows = np.array(sorted(states))
        values = np.array([states[row] for row in rows.tolist()], dtype=np.uint8)
        self._put(f"{IMAGES}/state", rows, values)
        # Only now may callers tell a user that these rows are safe.
        sync_file(self._handle)
        with self._taking:
            self._marking = {}

    def _put(
        self,
        name: str,
        rows: NDArray[np.int64],
        values: NDArray[np.generic],
        *,
        early: bool = False,
    ) -> None:
        """Write rows of a dataset; with `early` the disk begins with them before a checkpoint."""
        run: DatasetExtent = self._header.runs[name]
        values = np.ascontiguousarray(values, dtype=run.dtype)
        for start, stop in consecutive(rows):  # one write for each
            offset = run.offset + int(rows[start]) * run.row_bytes
            write_all(self._handle, values[start:stop], offset)
            if early:
                self._write_back.note(name, offset, (stop - start) * run.row_bytes)
