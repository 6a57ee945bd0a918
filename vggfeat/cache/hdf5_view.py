"""All shards of a folder as one HDF5 file of virtual datasets, for other tools: no copy is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from vggfeat.cache.format import OFFSETS, SCALES, TEXT_ENCODING, VIEW_FORMAT, attributes_of
from vggfeat.cache.hdf5_header import text_charset
from vggfeat.cache.layout import write_attributes
from vggfeat.cache.merge import refuse_replacing
from vggfeat.cache.sharded import ShardedCache, open_cache
from vggfeat.errors import SpaceError, UsageError
from vggfeat.storage.atomic import atomic_file
from vggfeat.storage.hdf5_file import checked_hdf5
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import check_place, path_text

if TYPE_CHECKING:
    from vggfeat.cache.format import DatasetExtent


def view_shards(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Create a file in which HDF5 tools see all shards as one: virtual datasets, no copy.

    The file `out`, which must not exist yet, names the shards by their place relative to it, and
    must be created again after an update. Missing shards show as zeros. Return the rows.
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
    attributes = attributes_of(header.identity, header.provenance)
    write_attributes(file, {**attributes, "format": VIEW_FORMAT})
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
    """Return the character set that all shards declare for their texts, `ascii` or `utf-8`."""
    found = set()
    for number in range(len(cache.shards)):
        if cache.shard_header(number) is not None:
            found.add(text_charset(cache.shard_path(number)))
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
