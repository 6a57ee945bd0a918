"""Check every row of a cache against its checksum, and set bad rows to pending for repair."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.checksums import row_checksums, seal_rows
from vggfeat.cache.file_checks import check_file
from vggfeat.cache.format import IMAGES, Header, RowState, count_rows
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.sharded import ShardedCache
from vggfeat.cache.writer import CacheWriter
from vggfeat.core.isolation import isolated
from vggfeat.core.quantization import NAN_CODE
from vggfeat.core.records import HasRowCounts, RowCounts
from vggfeat.core.resources import usable_cores
from vggfeat.core.text import counted
from vggfeat.errors import CacheError, UsageError
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.local_copies import local_copy
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import path_text, remote_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.format import DatasetExtent

_BLOCK_BYTES = 1 << 24  # of features that a thread holds at once
_SETTLED = (RowState.DONE, RowState.FAILED)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that differs from what was written, by number and path, and what is wrong with it."""

    row: int
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport(HasRowCounts):
    """Result of verifying a cache.

    Attributes:
        path: the cache.
        row_counts: `rows`, `done`, `failed` and `pending`, also attributes of the report.
        removed: rows whose image is gone.
        bad: rows that are not as they were written, ascending.
        repaired: how many of them are pending now.
        bytes: of features that were read.
        seconds: how long it took.
        missing: of a sharded cache, names of missing shards; their rows count as pending.
        problems: what of the file is not as it was written and belongs to no row: index, HDF5's
            metadata, paths, sizes, times, bytes in between. Version 1 has no checksums of these.
        notes: what is worth knowing and loses nothing, such as rows of an interrupted checkpoint.
    """

    path: str
    row_counts: RowCounts
    removed: int
    bad: tuple[BadRow, ...]
    repaired: int
    bytes: int
    seconds: float
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@isolated()
def verify(path: str | os.PathLike[str], *, repair: bool = False) -> VerifyReport:
    """Read a whole cache and compare each row, and the file around the rows, with its checksums.

    It may run beside an extraction into the same file. Memory stays flat, whatever the size.

    Args:
        path: the cache, a file or a folder of shards.
        repair: set bad rows to pending, so that the next run does them again, and take sizes and
            times as they are: an update does rows again whose files differ.

    Raises:
        CacheError: not a cache of ours, cut short, or its paths are out of order: no row can then
            be trusted.
        LockedError: with `repair`, a run writes to the cache.
        UsageError: with `repair`, it is in an object store.
    """
    started = time.perf_counter()
    path = path_text(path)
    if remote_scheme(path):
        if repair:
            raise UsageError(
                f"{path!r} is in an object store; repair the file it was put there from"
            )
        path = local_copy(path)
    look = _verify_shards if os.path.isdir(path) else _verify_file
    found = look(path, repair=repair)
    return replace(found, seconds=time.perf_counter() - started)


def _verify_shards(path: str, *, repair: bool) -> VerifyReport:
    """Verify the shards that exist, one after the other; rows are numbered over all shards."""
    cache = ShardedCache(path)
    found = VerifyReport(path, RowCounts(0, 0, 0, 0), 0, (), 0, 0, 0.0, tuple(cache.missing))
    last = b""
    for number, shard in enumerate(cache.shards):
        header = cache.shard_header(number)
        if header is None:
            lost = RowCounts(shard.rows, 0, 0, shard.rows)
            found = replace(found, row_counts=found.row_counts + lost)
            continue
        one = FeatureCache(cache.shard_path(number), header)
        if bytes(one.paths[0]) <= last:
            raise CacheError(
                f"sharded cache {path!r} is damaged: the first path of shard {one.path!r} is out "
                "of order; take the manifest and the shards from one backup, or extract them "
                "again with --fresh"
            )
        last = bytes(one.paths[-1])
        part = _verify_file(one.path, header, repair=repair)
        found = replace(
            found,
            row_counts=found.row_counts + part.row_counts,
            removed=found.removed + part.removed,
            bad=(*found.bad, *(replace(bad, row=shard.first + bad.row) for bad in part.bad)),
            repaired=found.repaired + part.repaired,
            bytes=found.bytes + part.bytes,
            problems=(*found.problems, *(f"{shard.name}: {line}" for line in part.problems)),
            notes=(*found.notes, *(f"{shard.name}: {line}" for line in part.notes)),
        )
    return found


def _verify_file(path: str, header: Header | None = None, *, repair: bool) -> VerifyReport:
    if not repair or not os.path.isfile(path):
        return _look(FeatureCache(path, header))
    with hold(path):  # first, for an update may put another file in the place of an opened one
        cache = FeatureCache(path, header)
        found = _look(cache)
        if not found.bad and not found.problems:
            return found
        rows = np.array([bad.row for bad in found.bad], dtype=np.int64)
        with contextlib.closing(CacheWriter(path, cache.header)) as writer:
            writer.set_states(rows, RowState.PENDING)
            writer.sync()
            writer.accept_files()
        problems = tuple(check_file(path, cache.header).problems)
        return replace(found, repaired=len(found.bad), problems=problems)


def _look(cache: FeatureCache) -> VerifyReport:
    rows = _Rows(cache)
    around = check_file(cache.path, cache.header)
    states = rows.read(f"{IMAGES}/state", 0, len(cache))
    settled = int(np.isin(states, _SETTLED).sum())
    with ThreadPoolExecutor(usable_cores()) as pool:
        suspects = np.concatenate([*pool.map(rows.suspects, rows.blocks())])
    # Looked at once more by itself: a run may have begun it anew between two readings.
    bad = []
    for row in suspects.tolist():
        problem, remark = rows.problem(row)
        if problem:
            bad.append(BadRow(row, cache.name(row), problem))
        elif remark:
            around.notes.append(f"row {row}, {cache.name(row)}: {remark}")
    return VerifyReport(
        path=cache.path,
        row_counts=count_rows(states),
        removed=int((states == RowState.REMOVED).sum()),
        bad=tuple(bad),
        repaired=0,
        bytes=settled * rows.row_bytes,
        seconds=0.0,
        problems=tuple(around.problems),
        notes=tuple(around.notes),
    )


class _Rows:
    """Rows of a cache read by offset: reading a map of a truncated file would end the process."""

    def __init__(self, cache: FeatureCache) -> None:
        self._header: Header = cache.header
        self._features = [cache.header.feature(spec) for spec in cache.layers]
        self.row_bytes = sum(run.row_bytes for run in self._features)
        self._path = cache.path
        self._handle = open_descriptor(cache.path, os.O_RDONLY)
        size = os.fstat(self._handle).st_size
        runs = cache.header.runs.values()
        end = max(run.offset + run.row_bytes * cache.header.rows for run in runs)
        if size < end:
            raise CacheError(
                f"cache {cache.path!r} is cut short: {counted(size, 'byte')}, expected {end} at "
                "least; take it from a backup, or extract it again with --fresh"
            )
        self._check_order()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def _check_order(self) -> None:
        last = b""
        for start, stop in self.blocks():
            paths = self.read(f"{IMAGES}/path", start, stop).astype(np.bytes_)
            sorted_ = paths[1:] > paths[:-1]
            if not (bytes(paths[0]) > last and sorted_.all()):
                row = start + (0 if bytes(paths[0]) <= last else int(np.argmin(sorted_)) + 1)
                raise CacheError(
                    f"cache {self._path!r} is damaged: the path of row {row} is out of order, so "
                    "no row can be told by its path; take it from a backup, or extract it again "
                    "with --fresh"
                )
            last = bytes(paths[-1])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Return ranges of rows, each as many as fit into a block."""
        rows = self._header.rows
        size = max(1, _BLOCK_BYTES // self.row_bytes)
        return ((start, min(start + size, rows)) for start in range(0, rows, size))

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows `start` to `stop` of a dataset, (stop - start, …)."""
        return self._read(self._header.runs[name], start, stop)

    def _read(self, run: DatasetExtent, start: int, stop: int) -> NDArray[np.generic]:
        wanted, at, parts = (stop - start) * run.row_bytes, run.offset + start * run.row_bytes, []
        while wanted:
            part = os.pread(self._handle, wanted, at)
            if not part:
                raise CacheError(f"cache {self._path!r} became shorter while it was read")
            parts.append(part)
            wanted, at = wanted - len(part), at + len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(data, run.dtype).reshape(stop - start, *run.shape[1:])

    def suspects(self, block: tuple[int, int]) -> NDArray[np.int64]:
        """Return the rows of a block whose state, reason, values or checksum may be wrong."""
        start, stop = block
        # States first: what is done when they are read is whole when the features are.
        states = self.read(f"{IMAGES}/state", start, stop)
        reasons = self.read(f"{IMAGES}/error", start, stop)
        settled = np.isin(states, _SETTLED)
        wrong = ~np.isin(states, [int(state) for state in RowState])
        wrong |= settled & ((reasons != b"") != (states == RowState.FAILED))
        stored = self.read(f"{IMAGES}/checksum", start, stop)
        vouched = settled
        if self._header.version > 1:
            # Of rows done before their state changed to pending, or a checkpoint away from done.
            vouched = vouched | (states == RowState.REMOVED) | (stored != 0)
        if vouched.any():
            features = [self._read(run, start, stop) for run in self._features]
            sums = self._sums(start, features, reasons, states)
            wrong |= vouched & (sums != stored)
            done = states == RowState.DONE
            for values in features:
                wrong |= _not_finite(values, done)
        return np.flatnonzero(wrong).astype(np.int64) + start

    def _sums(
        self,
        start: int,
        features: Sequence[NDArray[np.generic]],
        reasons: NDArray[Any],
        states: NDArray[Any],
    ) -> NDArray[np.uint32]:
        """Return the checksums of rows from `start` on, were they in these states."""
        sums = row_checksums(features, len(states))
        if self._header.version == 1:
            return sums
        digests = self.read(f"{IMAGES}/digest", start, start + len(states))
        return seal_rows(sums, np.asarray(digests, np.uint8), reasons, states)

    def problem(self, row: int) -> tuple[str, str]:
        """Return what is wrong with one row, or what is remarkable; both empty if nothing is."""
        state = int(self.read(f"{IMAGES}/state", row, row + 1)[0])
        if state not in tuple(RowState):
            return f"state {state}, expected 0 to {max(RowState)}", ""
        features = [self._read(run, row, row + 1) for run in self._features]
        reasons = self.read(f"{IMAGES}/error", row, row + 1)
        stored = int(self.read(f"{IMAGES}/checksum", row, row + 1)[0])
        sums = {
            other: int(self._sums(row, features, reasons, np.array([other], np.uint8))[0])
            for other in RowState
        }
        if state in _SETTLED:
            finite = not any(_not_finite(values, np.ones(1, bool)).any() for values in features)
            found = sums[RowState(state)]
            return _settled_problem(state, bytes(reasons[0]), found, stored, finite=finite), ""
        if self._header.version == 1:
            return "", ""
        return _other_problem(state, sums, stored)


def _not_finite(values: NDArray[np.generic], done: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which done rows hold infinity or NaN, bool (n,), for features as they are stored."""
    if values.dtype.itemsize == 1:
        found = values == NAN_CODE
    else:
        # By their bits, which is several times as fast as arithmetic in half precision.
        bits = values.view(f"<u{values.dtype.itemsize}")
        infinity = np.array(np.inf, values.dtype).view(bits.dtype)
        found = (bits & infinity) == infinity
    if not found.any():
        return np.zeros(len(done), dtype=bool)
    rows: NDArray[np.bool_] = done & found.reshape(len(done), -1).any(1)
    return rows


def _settled_problem(state: int, reason: bytes, found: int, expected: int, *, finite: bool) -> str:
    if state == RowState.FAILED and not reason:
        return "failed without a reason"
    if state == RowState.DONE and reason:
        return "done, but with a reason of failure"
    if found != expected:
        return f"what it holds has checksum {found:08x}, expected {expected:08x}"
    if state == RowState.DONE and not finite:
        return "done, but it holds infinity or NaN"
    return ""


def _other_problem(state: int, sums: Mapping[RowState, int], stored: int) -> tuple[str, str]:
    """Return problem and remark of a row that is pending or removed."""
    was = [other.name.lower() for other in RowState if other != state and sums[other] == stored]
    if sums[RowState(state)] == stored or (state == RowState.PENDING and not (stored and was)):
        return "", ""
    if not was:
        found = sums[RowState.REMOVED]
        return f"removed; what it holds has checksum {found:08x}, expected {stored:08x}", ""
    if state == RowState.PENDING:
        return "", (
            f"pending, but whole as a row {was[0]} is: a checkpoint was interrupted, or a byte "
            "changed; the next run does it again"
        )
    return "", (
        f"removed, but its checksum is that of a row {was[0]}: an update was interrupted, or a "
        "byte changed; `vggfeat extract --update` takes it in again if its image exists"
    )
