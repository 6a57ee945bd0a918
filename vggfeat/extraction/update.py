"""Update of a cache to its images: those that are new, changed, removed or to be retried.

`find_changes` compares and writes nothing; `apply_changes` then writes: in place where no row is
added, else a new file with the old rows, which is renamed over the old file. Rows that need work
are then pending, as in any run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.column_records import is_update_interrupted
from vggfeat.cache.disk import write_all
from vggfeat.cache.format import IMAGES, RowState
from vggfeat.cache.row_copy import copy_rows
from vggfeat.cache.writer import CacheWriter, create_cache
from vggfeat.core.file_types import MEMBER_MARK
from vggfeat.core.records import Images
from vggfeat.core.resources import usable_cores
from vggfeat.errors import CacheMismatchError, DecodeError
from vggfeat.images.decode import read_digest
from vggfeat.storage.object_store import is_there
from vggfeat.storage.paths import remote_scheme

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.format import Header
    from vggfeat.cache.reader import FeatureCache
    from vggfeat.cache.rows import Match
    from vggfeat.images.image_list import ImageList

_HASHED_AT_ONCE = 4096
_LOOKED_FOR_AT_ONCE = 16  # files that are not listed; a network's delay is what it takes


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """What a run may do to existing rows of a cache.

    Attributes:
        update: bring in new, changed and removed images.
        by_digest: detect changed images by the contents of their files, not by size and time.
        retry_failed: retry images that failed.
    """

    update: bool = False
    by_digest: bool = False
    retry_failed: bool = False

    @property
    def retries_shards(self) -> bool:
        """Whether each shard retries failed images; where the plan is updated, that does it."""
        return self.retry_failed and not self.update


@dataclass(frozen=True, slots=True)
class Changes:
    """How the images differ from the rows of a cache: all but `added` are rows, ascending."""

    added: NDArray[np.int64]  # positions in the image list of images that the cache does not have
    changed: NDArray[np.int64]  # whose file has changed
    touched: NDArray[np.int64]  # whose file has another size or time, but the same content
    returned: NDArray[np.int64]  # that were removed, and whose file exists again
    retried: NDArray[np.int64]  # that failed and are to be retried
    removed: NDArray[np.int64]  # whose file is gone

    @property
    def pending(self) -> NDArray[np.int64]:
        """Cache rows that are to be extracted again."""
        return np.concatenate([self.changed, self.returned, self.retried])

    @property
    def makes_work(self) -> bool:
        """Whether images have to be decoded."""
        return bool(len(self.added) or len(self.pending))

    @property
    def is_empty(self) -> bool:
        """Whether nothing has changed."""
        return not (self.makes_work or len(self.touched) or len(self.removed))


def join_changes(changes: Sequence[Changes]) -> Changes:
    """Join the changes of several shards; only the lengths of the result mean anything."""
    names = [item.name for item in dataclasses.fields(Changes)]
    return Changes(
        **{name: np.concatenate([getattr(one, name) for one in changes]) for name in names}
    )


def find_changes(
    cache: FeatureCache, images: ImageList, match: Match, policy: UpdatePolicy
) -> Changes:
    """Return what `policy` would change; write nothing.

    An image of the cache that is not listed counts as removed only if its file is gone: a run over
    one folder of several removes nothing.
    """
    nothing = np.empty(0, dtype=np.int64)
    state = cache.state[match.rows]
    failed = state == RowState.FAILED
    retried = failed if policy.retry_failed else np.zeros(len(state), dtype=bool)
    if not policy.update:
        return Changes(nothing, nothing, nothing, nothing, match.rows[retried], nothing)
    root = cache.header.provenance.root
    if root != images.root and not len(match.rows):
        raise other_root(f"cache {cache.path!r}", root, images.root)
    differs = files_differ(cache, images, match)
    settled = failed | (state == RowState.DONE)
    changed = settled & differs
    if policy.by_digest:
        changed = settled & _contents_differ(cache, images, match, settled)
    return Changes(
        added=match.unknown,
        changed=match.rows[changed],
        touched=match.rows[settled & differs & ~changed],
        returned=match.rows[has_returned(cache, images, match)],
        retried=match.rows[retried & ~changed],
        removed=_gone(cache, images, match.unlisted),
    )


def files_differ(cache: FeatureCache, images: ImageList, match: Match) -> NDArray[np.bool_]:
    """Return for each image in both whether the size or time of its file has changed."""
    sizes = images.sizes[match.listed] != cache.sizes[match.rows]
    return np.asarray(sizes | (images.mtimes[match.listed] != cache.mtimes[match.rows]))


def has_returned(cache: FeatureCache, images: ImageList, match: Match) -> NDArray[np.bool_]:
    """Return for each image in both whether its row was removed and its file exists again.

    A list may name a file that is gone for good; its row stays removed.
    """
    there = (images.sizes[match.listed] != 0) | (images.mtimes[match.listed] != 0)
    return np.asarray(there & (cache.state[match.rows] == RowState.REMOVED))


def other_root(cache: str, root: bytes, requested: bytes) -> CacheMismatchError:
    """Return the error of a cache that has no requested image, and is of another root."""
    return CacheMismatchError(
        f"{cache} is of images below {os.fsdecode(root)!r}, and none of those requested, below "
        f"{os.fsdecode(requested)!r}, is in it; name the same folder, set --root, or choose "
        "another --out"
    )


def _contents_differ(
    cache: FeatureCache, images: ImageList, match: Match, looked_at: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return for each image in both whether its bytes have changed since its row was made.

    Where the size differs, or the cache has no digest, size and time decide and nothing is read.
    """
    differs = files_differ(cache, images, match)
    had = np.asarray(cache.digests[match.rows])
    same_size = images.sizes[match.listed] == cache.sizes[match.rows]
    to_read = np.flatnonzero(looked_at & same_size & had.any(axis=1))
    ranks = images.reading_ranks()
    if ranks is not None:
        to_read = to_read[np.argsort(ranks[match.listed[to_read]])]
    # An archive is read by one thread at a time anyway, and a data set may not allow more.
    threads = usable_cores() if images.places is None and images.on_disk else 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(to_read), _HASHED_AT_ONCE):
            part = to_read[start : start + _HASHED_AT_ONCE].tolist()
            places = match.listed[part].tolist()
            digests = pool.map(_digest, itertools.repeat(images), places)
            for index, digest in zip(part, digests, strict=False):
                differs[index] = digest != had[index].tobytes()
    return differs


def _digest(images: ImageList, position: int) -> bytes:
    """Return the SHA-256 of an image's bytes; empty, which no image has, if it cannot be read."""
    try:
        with images.open(position) as stream:
            return read_digest(stream)[0]
    except DecodeError:
        return b""


def _gone(cache: FeatureCache, images: ImageList, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of `rows`, not removed yet, whose file is gone."""
    rows = rows[cache.state[rows] != RowState.REMOVED]
    paths = cache.paths
    archives = {path.partition(MEMBER_MARK)[0] for path in images.paths if MEMBER_MARK in path}
    with ThreadPoolExecutor(_LOOKED_FOR_AT_ONCE) as pool:
        gone = pool.map(lambda row: _is_gone(images.root, bytes(paths[row]), archives), rows)
        return np.array(list(itertools.compress(rows.tolist(), gone)), dtype=np.int64)


def _is_gone(root: bytes, path: bytes, archives: Collection[bytes]) -> bool:
    """Return whether an unlisted image is gone: its file, its archive, or its member there."""
    if _is_file(os.path.join(root, path)):
        return False
    archive, mark, _ = path.partition(MEMBER_MARK)
    return not mark or archive in archives or not _is_file(os.path.join(root, archive))


def _is_file(path: bytes) -> bool:
    if remote_scheme(path):
        return is_there(os.fsdecode(path))
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:
        return True  # cannot be told; a row is not given up for that
    except OSError:
        return False


def apply_changes(
    cache: FeatureCache,
    images: ImageList,
    match: Match,
    changes: Changes,
    *,
    out: str | None = None,
) -> None:
    """Update the rows of a cache; those that need work become pending.

    A kill at any instant leaves each row as it was or as it is to be, and the same call again does
    the rest. Where images are added, a new file replaces the old one, or is written to `out`.
    """
    if len(changes.added):
        _rewrite(cache, images, match, changes, out or cache.path)
        return
    listed = np.concatenate([changes.changed, changes.returned, changes.touched])
    rows = len(listed) + len(changes.retried) + len(changes.removed)
    interrupted = is_update_interrupted(cache.path, cache.header)
    if not rows and not (interrupted and os.access(cache.path, os.W_OK)):
        return
    positions = np.full(len(cache), -1, dtype=np.int64)
    positions[match.rows] = match.listed
    listed.sort()
    with contextlib.closing(CacheWriter(cache.path, cache.header)) as writer:
        # States first and synced: a row whose new size and time are recorded while it still counts
        # as done would never be done again.
        writer.set_states(np.sort(changes.pending), RowState.PENDING)
        writer.set_states(changes.removed, RowState.REMOVED)
        writer.sync()
        at = positions[listed]
        writer.update_files(listed, images.sizes[at], images.mtimes[at])
        writer.sync()


def _rewrite(
    cache: FeatureCache, images: ImageList, match: Match, changes: Changes, out: str
) -> None:
    """Write a new file with the added images and without the removed ones, over the old one."""
    joined, origin = _join(cache, images, match, changes)
    state = cache.state.copy()
    state[changes.pending] = RowState.PENDING
    states = np.where(origin >= 0, state[origin], RowState.PENDING).astype(np.uint8)
    header = cache.header

    def take_over(handle: int, new: Header) -> None:
        copy_rows(cache.path, header, handle, new, origin, states=states)
        write_all(handle, states, new.runs[f"{IMAGES}/state"].offset)

    provenance = dataclasses.replace(header.provenance, root=images.root)
    create_cache(out, joined, dataclasses.replace(header, provenance=provenance), fill=take_over)


def _join(
    cache: FeatureCache, images: ImageList, match: Match, changes: Changes
) -> tuple[Images, NDArray[np.int64]]:
    """Return all images of the new file in their order, and the old row of each, or -1."""
    state = cache.state.copy()
    state[changes.returned] = RowState.PENDING
    state[changes.removed] = RowState.REMOVED
    kept = np.flatnonzero(state != RowState.REMOVED)
    sizes, mtimes = cache.sizes.copy(), cache.mtimes.copy()
    sizes[match.rows] = images.sizes[match.listed]
    mtimes[match.rows] = images.mtimes[match.listed]
    added = changes.added
    fresh = np.asarray([images.paths[position] for position in added.tolist()], dtype=np.bytes_)
    paths = np.concatenate([np.asarray(cache.paths[kept]), fresh])
    order = np.argsort(paths, kind="stable")
    origin = np.concatenate([kept, np.full(len(added), -1, dtype=np.int64)])[order]
    joined = Images(
        paths[order],
        np.concatenate([sizes[kept], images.sizes[added]])[order],
        np.concatenate([mtimes[kept], images.mtimes[added]])[order],
    )
    return joined, origin
