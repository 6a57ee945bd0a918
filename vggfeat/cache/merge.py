"""Merge several caches made with the same settings into one."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.disk import write_all
from vggfeat.cache.format import IMAGES, RowState, count_rows
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.row_copy import copy_rows
from vggfeat.cache.sharded import ShardedCache, open_cache
from vggfeat.cache.sharded_array import ShardedArray
from vggfeat.cache.writer import create_cache
from vggfeat.core.file_types import other_format
from vggfeat.core.isolation import isolated
from vggfeat.core.records import HasRowCounts, Images, RowCounts
from vggfeat.core.sequences import as_tuple
from vggfeat.core.text import agree, counted, first_few, quoted
from vggfeat.errors import CacheError, CacheMismatchError, InputError, UsageError
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import check_place, path_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.format import Header

_BEST_FIRST = (RowState.DONE, RowState.FAILED, RowState.PENDING)


@dataclass(frozen=True, slots=True)
class MergeReport(HasRowCounts):
    """Result of a merge.

    Attributes:
        out: the new cache.
        sources: number of caches merged.
        row_counts: `rows`, `done`, `failed` and `pending`, also attributes of the report.
        shared: rows that more than one source has.
    """

    out: str
    sources: int
    row_counts: RowCounts
    shared: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """Every row of every source that is kept or competes, in the order of the new file."""

    paths: NDArray[np.bytes_]  # (n,), relative to the new root, ascending
    source: NDArray[np.int64]  # (n,), which cache
    row: NDArray[np.int64]  # (n,), where in it
    state: NDArray[np.uint8]  # (n,)

    def take(self, which: NDArray[np.generic]) -> _Rows:
        """Return some of the rows, or all in another order."""
        return _Rows(self.paths[which], self.source[which], self.row[which], self.state[which])


@isolated()
def merge(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    keep_paths: bool = False,
) -> MergeReport:
    """Merge several caches into one that holds every image once.

    An image in several caches is taken from one where it is done, else failed, else pending, and
    among equals from the first. The new file appears whole or not at all; the sources stay as they
    are, and a run may write to them meanwhile.

    Args:
        sources: caches with the same fingerprint; a folder of shards counts as one. A single such
            folder becomes one file shard by shard, in memory that does not grow with it.
        out: the new cache; must not exist yet.
        keep_paths: take paths as they are recorded, though they are relative to different folders:
            the same images, seen at another place. Else such paths are made relative to what the
            folders have in common.

    Raises:
        UsageError: `out` exists, or no sources are given.
        InputError: all rows of the sources are removed.
        CacheError: a source is not a cache of ours, or damaged.
        CacheMismatchError: the sources differ in settings, or have different images under one path.
        LockedError: another run holds `out`.
        SpaceError: not enough room; nothing is left behind.
    """
    out = path_text(out)
    given = as_tuple(sources)
    if not given:
        raise UsageError("no caches to merge; name two or more")
    check_place(out)
    caches = [open_cache(source) for source in given]
    check_whole(caches)
    any(cache.warn() for cache in caches)  # the first that has something to tell
    if len(caches) == 1 and isinstance(caches[0], ShardedCache):
        with hold(out):
            refuse_replacing(out)
            return MergeReport(out, 1, _join_shards(caches[0], out), shared=0)
    _check_settings(caches)
    with hold(out):
        refuse_replacing(out)
        root, prefixes = _common_root(caches, keep_paths=keep_paths)
        rows = _all_rows(caches, prefixes)
        if not len(rows.paths):
            raise _all_removed(caches)
        first = np.ones(len(rows.paths), dtype=bool)
        first[1:] = rows.paths[1:] != rows.paths[:-1]
        kept = rows.take(first)
        _check_images(caches, rows)
        _write(caches, kept, root, out)
    shared = len(np.unique(rows.paths[~first]))
    return MergeReport(out, len(caches), count_rows(kept.state), shared)


def _check_settings(caches: Sequence[FeatureCache]) -> None:
    first = caches[0]
    for other in caches[1:]:
        one, two = first.header.identity, other.header.identity
        differences = one.differences(two)
        if one.layers != two.layers:
            differences.append(f"layers: {','.join(one.layers)} and {','.join(two.layers)}")
        if differences:
            raise CacheMismatchError(
                f"caches {first.path!r} and {other.path!r} (requested) differ in settings: "
                f"{'; '.join(dict.fromkeys(differences))}. Only caches made with the same ones can "
                "be merged"
            )


def _common_root(caches: Sequence[FeatureCache], *, keep_paths: bool) -> tuple[bytes, list[bytes]]:
    """Return the root of the new paths, and the prefix of the paths of each cache."""
    roots = [cache.header.provenance.root for cache in caches]
    if keep_paths or len(set(roots)) == 1:
        return roots[0], [b""] * len(roots)
    common = os.path.commonpath(roots)
    inner = [os.path.relpath(root, common) for root in roots]
    return common, [b"" if part == b"." else part + b"/" for part in inner]


def _all_rows(caches: Sequence[FeatureCache], prefixes: Sequence[bytes]) -> _Rows:
    """Return the rows of all caches, sorted by path and, for one path, best first."""
    parts = []
    for number, (cache, prefix) in enumerate(zip(caches, prefixes, strict=True)):
        state = np.array(cache.state)  # before any feature: what is done by now is whole
        row = np.flatnonzero(state != RowState.REMOVED)
        paths = np.char.add(prefix, cache.paths[row]) if prefix else np.asarray(cache.paths[row])
        parts.append(_Rows(paths, np.full(len(row), number), row, state[row]))
    rows = _Rows(
        np.concatenate([part.paths for part in parts]),
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.state for part in parts]),
    )
    rank = np.zeros(len(RowState), dtype=np.int64)
    rank[list(_BEST_FIRST)] = np.arange(len(_BEST_FIRST))
    return rows.take(np.lexsort((rows.source, rank[rows.state], rows.paths)))


def _check_images(caches: Sequence[FeatureCache], rows: _Rows) -> None:
    """Two done rows of one path must be of the same image, as far as their digests tell."""
    same = (rows.paths[1:] == rows.paths[:-1]) & (rows.state[1:] == RowState.DONE)
    digests = [cache.digests for cache in caches]
    unlike = []
    for at in (np.flatnonzero(same) + 1).tolist():
        one, other = (digests[rows.source[i]][rows.row[i]] for i in (at - 1, at))
        if one.any() and other.any() and (one != other).any():
            unlike.append(at)
    if unlike:
        names = first_few(quoted(bytes(rows.paths[at])) for at in unlike)
        raise CacheMismatchError(
            f"{counted(len(unlike), 'path')} {agree(len(unlike), 'stands')} for different images "
            f"in the caches: {names}; bring "
            "the older cache up to date (extract --update), or merge others"
        )


def _write(caches: Sequence[FeatureCache], kept: _Rows, root: bytes, out: str) -> None:
    sizes, mtimes = (np.empty(len(kept.row), dtype=np.int64) for _ in range(2))
    for number, cache in enumerate(caches):
        mine = kept.source == number
        sizes[mine] = cache.sizes[kept.row[mine]]
        mtimes[mine] = cache.mtimes[kept.row[mine]]

    def take_over(handle: int, new: Header) -> None:
        for number, cache in enumerate(caches):
            settled = (kept.source == number) & (kept.state != RowState.PENDING)
            _copy_settled(cache, np.flatnonzero(settled), kept, handle, new)
        write_all(handle, kept.state, new.runs[f"{IMAGES}/state"].offset)

    header = caches[0].header
    create_cache(
        out,
        Images(kept.paths, sizes, mtimes),
        dataclasses.replace(header, provenance=dataclasses.replace(header.provenance, root=root)),
        fill=take_over,
    )


def _copy_settled(
    cache: FeatureCache, rows: NDArray[np.int64], kept: _Rows, handle: int, new: Header
) -> None:
    """Copy those of the `kept` rows that are of one cache, from each of its files.

    Args:
        cache: whose they are.
        rows: int64 (n,), ascending, their numbers among the kept ones.
        kept: all rows of the new file.
        handle: descriptor of that file.
        new: its header.
    """
    olds = kept.row[rows]
    for part in cache.parts():
        start, stop = np.searchsorted(olds, [part.first, part.first + part.header.rows]).tolist()
        if start < stop:
            first, end = int(rows[start]), int(rows[stop - 1]) + 1
            origin = np.full(end - first, -1, dtype=np.int64)
            origin[rows[start:stop] - first] = olds[start:stop] - part.first
            states = kept.state[first:end]
            copy_rows(part.path, part.header, handle, new, origin, states=states, first=first)


def refuse_replacing(out: str) -> None:
    """Refuse an output that exists, cannot be created, or has the suffix of another format."""
    if wrong := other_format(out):
        raise UsageError(wrong)
    check_place(out)
    if os.path.lexists(out):
        raise UsageError(f"output {out!r} exists already; choose another --out or delete it")


def check_whole(caches: Sequence[FeatureCache]) -> None:
    """Refuse sharded caches with missing shards, whose rows would be lost without a word."""
    lacking = [cache for cache in caches if isinstance(cache, ShardedCache) and cache.missing]
    if lacking:
        each = "; ".join(
            f"{len(cache.missing)} of {cache.path!r}: {first_few(cache.missing)}"
            for cache in lacking
        )
        raise CacheError(
            f"shards are missing, {each}; restore them from a backup, or `vggfeat extract "
            "--update` takes their images into the shards beside"
        )


def _all_removed(caches: Sequence[FeatureCache]) -> InputError:
    """Return the error of caches that have no image left to merge."""
    names = ", ".join(repr(cache.path) for cache in caches)
    return InputError(
        f"nothing to merge: the images of all rows of {names} are gone, and so given up; `vggfeat "
        "extract --update` takes in those that exist again"
    )


def _join_shards(source: ShardedCache, out: str) -> RowCounts:
    """Copy all shards into one file, inside the kernel where possible; the caller holds its lock.

    Rows of images that are gone are left out. In memory are columns of one shard at a time, and 9
    bytes a row. No shard may be missing. Rows are counted as they were when this began.
    """
    parts = source.parts()
    # Opened again for each column, since a process has fewer file descriptors than we have maps.
    # States come before any feature: what is done by then is whole.
    states = [np.array(FeatureCache(part.path).state) for part in parts]
    kept = [np.flatnonzero(state != RowState.REMOVED) for state in states]
    firsts = np.cumsum([0, *map(len, kept)]).tolist()
    if not firsts[-1]:
        raise _all_removed([source])

    def take_over(handle: int, new: Header) -> None:
        run = new.runs[f"{IMAGES}/state"]
        for part, state, rows, first in zip(parts, states, kept, firsts[:-1], strict=True):
            copy_rows(part.path, part.header, handle, new, rows, states=state[rows], first=first)
            write_all(handle, state[rows], run.offset + first * run.row_bytes)

    def column(name: str) -> Any:
        run = source.header.runs[f"{IMAGES}/{name}"]
        return ShardedArray(
            firsts,
            run.shape[1:],
            run.dtype,
            lambda at: FeatureCache(parts[at].path).column(name)[kept[at]],
        )

    images = Images(column("path"), column("size"), column("mtime_ns"))
    create_cache(out, images, source.header, fill=take_over)
    return functools.reduce(
        operator.add,
        (count_rows(state[rows]) for state, rows in zip(states, kept, strict=True)),
    )
