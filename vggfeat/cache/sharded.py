"""Read a sharded cache: its files as one, each mapped on first use."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.format import IMAGES, DatasetExtent, Header
from vggfeat.cache.header import read_header
from vggfeat.cache.mapped_rows import map_rows
from vggfeat.cache.reader import FeatureCache, Part
from vggfeat.cache.shard_manifest import Shard, ShardManifest, read_manifest
from vggfeat.cache.sharded_array import ShardedArray
from vggfeat.cache.sharding import Share, parse_share
from vggfeat.core.text import counted
from vggfeat.errors import CacheError, UsageError
from vggfeat.storage.local_copies import local_copy
from vggfeat.storage.paths import local_path, remote_scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAPS_KEPT = 256
"""Each map keeps a file descriptor, of which a process often has 1024."""

_NOWHERE = -1  # `DatasetExtent.offset` of rows that lie in several files


class ShardedCache(FeatureCache):
    """A folder of shards opened for reading, with all that a `FeatureCache` has.

        cache = vggfeat.open("feats/")
        cache["fc7"]         # (N, 4096) float16, a `ShardedArray`
        cache["fc7"][10:20]  # a view of one shard's map, or a copy where it needs two

    Rows are those of all shards, one after the other. A missing shard counts as pending rows with
    empty paths and zeros for features; `missing` names such shards.

    Args:
        path: the folder.
        share: `3/64`: only the shards whose number mod 64 is 3, rows counted over these alone;
            there may be none.

    Raises:
        CacheError: no sharded cache of ours, damaged, or with not one shard there.
        UsageError: `share` is not of the form I/N.
    """

    def __init__(self, path: str | os.PathLike[str], share: str = "") -> None:
        self.path = os.fspath(path).rstrip("/") or "/"
        self.manifest: ShardManifest = read_manifest(self.path)
        self.share = share
        self.shards: tuple[Shard, ...] = self._shards_of(parse_share(share))
        self._headers: dict[int, Header | None] = {}
        self._maps: OrderedDict[tuple[str, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._columns: dict[str, ShardedArray] = {}
        self.header: Header = self._joined_header()
        self.layers: tuple[str, ...] = self.header.identity.layers
        self._arrays = {}

    def _shards_of(self, share: Share | None) -> tuple[Shard, ...]:
        """Return the shards of a share, their rows counted over these alone."""
        if share is None:
            return self.manifest.shards
        chosen = [one for at, one in enumerate(self.manifest.shards) if share.has(at)]
        firsts = itertools.accumulate((one.rows for one in chosen), initial=0)
        return tuple(
            dataclasses.replace(one, first=first)
            for one, first in zip(chosen, firsts, strict=False)
        )

    def __repr__(self) -> str:
        layers = ", ".join(self.layers)
        return (
            f"ShardedCache({self.path!r}, {counted(len(self), 'row')} in "
            f"{counted(len(self.shards), 'shard')}, "
            f"layers {layers})"
        )

    def __reduce__(self) -> tuple[type[ShardedCache], tuple[str, str]]:  # type: ignore[override] # other arguments than the base
        return ShardedCache, (self.path, self.share)

    def __getitem__(self, layer: str) -> ShardedArray:  # type: ignore[override] # indexed like the map of one file
        """Return all rows of a layer as stored, (N, D) or (N, C, H, W): see `FeatureCache`."""
        return super().__getitem__(layer)  # type: ignore[return-value] # from `_array` below

    @property
    def missing(self) -> list[str]:
        """File names of missing shards; looks at every shard."""
        return [
            shard.name
            for number, shard in enumerate(self.shards)
            if shard.rows and self.shard_header(number) is None
        ]

    def parts(self) -> list[Part]:
        """Return the shards that exist."""
        return [
            Part(self.shard_path(number), header, shard.first)
            for number, shard in enumerate(self.shards)
            for header in [self.shard_header(number)]
            if header is not None
        ]

    def release(self) -> None:
        """Drop all memory maps; they are opened again on use."""
        with self._lock:
            self._maps.clear()

    def shard_path(self, number: int) -> str:
        """Return the path of a shard, by its index in `shards`."""
        return os.path.join(self.path, self.shards[number].name)

    def shard_header(self, number: int) -> Header | None:
        """Return the metadata of a shard, read once; None if it has no file or no rows."""
        if number not in self._headers:
            self._headers[number] = self._read_header(self.shards[number])
        return self._headers[number]

    def _read_header(self, shard: Shard) -> Header | None:
        path = os.path.join(self.path, shard.name)
        if not shard.rows or not os.path.exists(path):
            return None
        header = read_header(path)
        found, expected = header.identity.fingerprint(), self.manifest.fingerprint
        if header.rows != shard.rows or found != expected:
            raise CacheError(
                f"shard {path!r} is not the one of the manifest: {counted(header.rows, 'row')} and "
                f"fingerprint {found[:8]}, expected {shard.rows} and {expected[:8]}; take it from "
                "a backup, or extract again with --fresh"
            )
        return header

    def _joined_header(self) -> Header:
        """Return the first shard's metadata with the rows of all; offsets mean nothing."""
        own = (self.shard_header(number) for number in range(len(self.shards)))
        others = (self._read_header(shard) for shard in self.manifest.shards)  # for an empty share
        found = (header for header in itertools.chain(own, others) if header is not None)
        first = next(found, None)
        if first is None:
            raise CacheError(
                f"sharded cache {self.path!r} has none of its "
                f"{counted(len(self.shards), 'shard')}; restore "
                "them from a backup, or `vggfeat extract --update` lists the images anew"
            )
        rows = sum(shard.rows for shard in self.shards)
        runs = {
            name: DatasetExtent(run.dtype, (rows, *run.shape[1:]), _NOWHERE)
            for name, run in first.runs.items()
        }
        path = f"{IMAGES}/path"
        runs[path] = dataclasses.replace(runs[path], dtype=f"|S{self.manifest.path_bytes}")
        provenance = dataclasses.replace(first.provenance, root=self.manifest.root)
        return dataclasses.replace(first, rows=rows, runs=runs, provenance=provenance)

    def _array(self, name: str) -> ShardedArray:  # type: ignore[override] # as `__getitem__`
        if name not in self._columns:
            run = self.header.runs[name]
            firsts = [*(shard.first for shard in self.shards), len(self)]
            self._columns[name] = ShardedArray(
                firsts, run.shape[1:], run.dtype, lambda number: self._map(name, number)
            )
        return self._columns[name]

    def _map(self, name: str, number: int) -> NDArray[Any]:
        with self._lock:
            key = (name, number)
            if key not in self._maps:
                self._maps[key] = self._open_map(name, number)
                if len(self._maps) > _MAPS_KEPT:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(key)
            return self._maps[key]

    def _open_map(self, name: str, number: int) -> NDArray[Any]:
        header = self.shard_header(number)
        run = None if header is None else header.runs.get(name)
        if run is None:
            joined = self.header.runs[name]
            shape = (self.shards[number].rows, *joined.shape[1:])
            return np.broadcast_to(np.zeros((), joined.dtype), shape)
        return map_rows(self.shard_path(number), run)

    def row(self, path: str | bytes) -> int:
        """Row of the image with that path; looks at a few shards only.

        Raises:
            KeyError: no such image in the cache.
        """
        key = os.fsencode(path)
        there = [number for number, shard in enumerate(self.shards) if shard.rows]
        behind = bisect.bisect_right(there, key, key=self._first_path)
        if behind:
            number = there[behind - 1]
            paths = self._map(f"{IMAGES}/path", number)
            row = int(np.searchsorted(paths, np.bytes_(key)))
            if row < len(paths) and bytes(paths[row]) == key:
                return self.shards[number].first + row
        raise KeyError(path)

    def _first_path(self, number: int) -> bytes:
        """Return the first path of a shard, or of the next existing one where it is missing."""
        for later in range(number, len(self.shards)):
            if self.shard_header(later) is not None:
                return bytes(self._map(f"{IMAGES}/path", later)[0])
        return b"\xff" * (self.manifest.path_bytes + 1)


def open_cache(path: str | os.PathLike[str], share: str = "") -> FeatureCache:
    """Open a cache for reading, in about a millisecond however many rows it has: `vggfeat.open`.

    Args:
        path: the file, or the folder of a sharded cache, which gives a `ShardedCache`. Either may
            be in an object store, `s3://bucket/feats.h5`: it is downloaded unless the local copy
            is still current.
        share: of a folder, `3/64`: only the shards whose number mod 64 is 3.

    Raises:
        CacheError: it is no cache of ours, or damaged.
        UsageError: a share of a file, which has no shards.
        InputError: it is in an object store and could not be downloaded.
    """
    if isinstance(path, str):
        path = local_path(path)
    if isinstance(path, str) and remote_scheme(path):
        path = local_copy(path)
    if os.path.isdir(path):
        return ShardedCache(path, share)
    if share:
        raise UsageError(f"cache {os.fspath(path)!r} is one file; it has no share {share}")
    return FeatureCache(path)
