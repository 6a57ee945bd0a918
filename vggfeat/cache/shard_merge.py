"""A folder of shards as one file: copied shard by shard, or as a view that copies nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from vggfeat.cache.format import (
    IMAGES,
    OFFSETS,
    SCALES,
    TEXT_ENCODING,
    VIEW_FORMAT,
    RowState,
    attributes_of,
)
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.row_copy import copy_rows
from vggfeat.cache.sharded import ShardedCache, open_cache
from vggfeat.cache.sharded_array import ShardedArray
from vggfeat.cache.writer import create_cache, write_all
from vggfeat.core.file_names import other_format, path_text
from vggfeat.core.records import Images
from vggfeat.errors import CacheError, InputError, SpaceError, UsageError
from vggfeat.storage.atomic import atomic_file
from vggfeat.storage.hdf5_file import checked_hdf5
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import check_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.cache.extent import DatasetExtent
    from vggfeat.cache.format import Header

_SHOWN = 3


def refuse_replacing(out: str) -> None:
    """Raises if there is anything at `out`, nothing can be, or it has another format's name.

    Raises:
        UsageError: says which.
    """
    if wrong := other_format(out):
        raise UsageError(wrong)
    check_place(out)
    if os.path.lexists(out):
        raise UsageError(f"output {out!r} is there already; choose another --out or delete it")


def check_whole(caches: Sequence[FeatureCache]) -> None:
    """Refuses sharded caches of which a shard is not there: its rows would be lost in silence.

    Raises:
        CacheError: names the shards.
    """
    lacking = [cache for cache in caches if isinstance(cache, ShardedCache) and cache.missing]
    if lacking:
        each = "; ".join(
            f"{len(cache.missing)} of {cache.path!r}: {', '.join(cache.missing[:_SHOWN])}"
            for cache in lacking
        )
        raise CacheError(
            f"shards are not there, {each}; restore them from a backup, or `vggfeat extract "
            "--update` takes their images into the shards beside"
        )


def all_removed(caches: Sequence[FeatureCache]) -> InputError:
    """Return the error of caches that have no image left to merge."""
    names = ", ".join(repr(cache.path) for cache in caches)
    return InputError(
        f"nothing to merge: the images of all rows of {names} are gone, and so given up; `vggfeat "
        "extract --update` takes in those that are there again"
    )


def join_shards(source: ShardedCache, out: str) -> list[int]:
    """Makes one file of all shards, within the kernel where it can; the caller holds its lock.

    Rows of images that are gone are left out. In memory are columns of one shard at a time, and 9
    bytes a row.

    Args:
        source: all of whose shards are there.
        out: the new file; whole or not at all.

    Returns:
        rows in each `RowState`, by number; states as they were when this began.

    Raises:
        InputError: no row is left.
        SpaceError: no room; nothing is left.
    """
    parts = source.parts()
    # Opened again for each column, since a process has fewer file descriptors than we have maps.
    # States come before any feature: what is done by then is whole.
    states = [np.array(FeatureCache(part.path).state) for part in parts]
    kept = [np.flatnonzero(state != RowState.REMOVED) for state in states]
    firsts = np.cumsum([0, *map(len, kept)]).tolist()
    if not firsts[-1]:
        raise all_removed([source])

    def take_over(handle: int, new: Header) -> None:
        run = new.runs[f"{IMAGES}/state"]
        for part, state, rows, first in zip(parts, states, kept, firsts[:-1], strict=True):
            origin = np.where(state[rows] == RowState.PENDING, -1, rows)
            copy_rows(part.path, part.header, handle, new, origin, first=first)
            write_all(handle, state[rows], run.offset + first * run.row_bytes)

    def column(name: str) -> Any:
        run = source.header.runs[f"{IMAGES}/{name}"]
        return ShardedArray(
            firsts,
            run.shape[1:],
            run.dtype,
            lambda at: FeatureCache(parts[at].path).column(name)[kept[at]],
        )

    header = source.header
    create_cache(
        out,
        Images(column("path"), column("size"), column("mtime_ns")),
        header.shapes,
        header.identity,
        header.provenance,
        scales=header.scales,
        fill=take_over,
    )
    counts: list[int] = sum(
        np.bincount(state, minlength=len(RowState)) for state in states
    ).tolist()  # type: ignore[union-attr] # there is at least one shard
    return counts


def view_shards(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Makes a file in which HDF5 tools see all shards as one: virtual datasets, no copy.

    It names the shards by their place relative to it, and must be made anew after an update. Shards
    that are not there show as zeros.

    Args:
        source: a folder of shards.
        out: the new file; must not be there yet.

    Returns:
        rows.

    Raises:
        UsageError: `source` is a file, or `out` is there.
        CacheError: `source` is no sharded cache.
        LockedError: another run holds `out`.
        SpaceError: it cannot be written.
    """
    cache, out = open_cache(source), path_text(out)
    if not isinstance(cache, ShardedCache):
        raise UsageError(f"cache {cache.path!r} is one file already; --virtual is for shards")
    check_place(out)
    with hold(out):
        refuse_replacing(out)
        try:
            with atomic_file(out) as target, checked_hdf5(target, libver="v110") as (file, _):
                _fill_view(file, cache, os.path.dirname(os.path.realpath(out)))
        except OSError as error:
            reason = " ".join(str(error.strerror or error).split())
            raise SpaceError(error.errno, f"{out!r} cannot be written: {reason}") from error
    return len(cache)


def _fill_view(file: h5py.File, cache: ShardedCache, folder: str) -> None:
    header = cache.header
    file.attrs.update(attributes_of(header.identity, header.provenance))
    file.attrs["format"] = VIEW_FORMAT
    encoding = _text_encoding(cache)
    for name, run in header.runs.items():
        layout = h5py.VirtualLayout(run.shape, _stored_type(run, encoding))
        for number, shard in enumerate(cache.shards):
            own = cache.shard_header(number)
            if own is not None and name in own.runs:
                place = os.path.relpath(cache.shard_path(number), folder)
                dtype = _stored_type(own.runs[name], encoding)
                part = h5py.VirtualSource(place, name, own.runs[name].shape, dtype)
                layout[shard.first : shard.first + shard.rows] = part
        file.create_virtual_dataset(name, layout)
    for layer, one in header.scales.items():
        file[f"{SCALES}/{layer}"] = one.scale.astype("<f4")
        file[f"{OFFSETS}/{layer}"] = one.offset.astype("<f4")


def _text_encoding(cache: ShardedCache) -> str:
    """Return the character set that all shards declare for their texts, `ascii` or `utf-8`.

    Raises:
        UsageError: it differs between shards, and HDF5 converts none into the other.
    """
    found = set()
    for number in range(len(cache.shards)):
        if cache.shard_header(number) is not None:
            with h5py.File(cache.shard_path(number), "r", locking=False) as file:
                found.add(h5py.check_string_dtype(file[f"{IMAGES}/path"].dtype).encoding)
    if len(found) > 1:
        raise UsageError(
            f"shards of {cache.path!r} were made by different versions of vggfeat, which declare "
            "paths as ASCII and as UTF-8, and HDF5 cannot show these as one dataset; merge "
            "without --virtual"
        )
    return found.pop() if found else TEXT_ENCODING


def _stored_type(run: DatasetExtent, encoding: str) -> Any:
    kind: np.dtype[Any] = np.dtype(run.dtype)
    return h5py.string_dtype(encoding, kind.itemsize) if kind.kind == "S" else kind
