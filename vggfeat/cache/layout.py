"""Create the HDF5 file of a cache: all metadata at once, every dataset one run of bytes."""

from __future__ import annotations

import dataclasses
import math
import os
from types import MappingProxyType
from typing import TYPE_CHECKING

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t

from vggfeat.cache.column_records import unfilled_records
from vggfeat.cache.disk import write_bytes_at
from vggfeat.cache.format import (
    FEATURES,
    IMAGES,
    OFFSETS,
    SCALES,
    TEXT_ENCODING,
    DatasetExtent,
    attributes_of,
    image_fields,
)
from vggfeat.cache.hdf5_offsets import find_offset
from vggfeat.cache.index import (
    Index,
    StoredDataset,
    metadata_checksum,
    pack_index,
    user_block_for,
)
from vggfeat.storage.descriptors import open_descriptor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.cache.format import Provenance
    from vggfeat.cache.identity import Identity
    from vggfeat.core.quantization import Scales

_ALIGNMENT = 4096
_CHUNK_BYTES = 1 << 20
_STORED_TYPES: Mapping[str, str] = {"float16": "<f2", "float32": "<f4", "int8": "|i1"}


def lay_out(
    file_name: str,
    rows: int,
    longest_path: int,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    identity: Identity,
    provenance: Provenance,
    scales: Mapping[str, Scales] = MappingProxyType({}),
) -> None:
    """Create a file with all metadata and every dataset allocated, rows unwritten.

    An existing file must be empty. `longest_path` is in bytes; for the others see `CacheMetadata`.
    """
    attributes = attributes_of(identity, provenance)
    columns = {f"{IMAGES}/{name}": one for name, one in image_fields(longest_path).items()}
    stored = {**columns, **{
        f"{FEATURES}/{spec}": (_STORED_TYPES[identity.dtype], shape)
        for spec, shape in sorted(shapes.items())
    }}  # fmt: skip
    ndims = {name: 1 + len(shape) for name, (_, shape) in stored.items()}
    parts = {
        f"{group}/{spec}": values.astype("<f4")
        for spec, one in scales.items()
        for group, values in ((SCALES, one.scale), (OFFSETS, one.offset))
    }
    user_block = user_block_for(attributes, {**ndims, **dict.fromkeys(parts, 1)})
    with h5py.File(_create_file(file_name, user_block)) as file:
        for name, (dtype, shape) in stored.items():
            group, _, member = name.partition("/")
            _create_dataset(file.require_group(group), member, dtype, (rows, *shape))
        for name, values in parts.items():
            file.create_dataset(name, data=values)
        write_attributes(file, attributes)
        datasets = {name: _find(file[name]) for name in (*stored, *parts)}
    _write_index(file_name, Index(user_block, 0, 0, datasets, attributes))


def _create_file(file_name: str, user_block: int) -> h5f.FileID:
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_userblock(user_block)
    access = h5p.create(h5p.FILE_ACCESS)
    # 1.10 is the first version with chunks that need no index; fixed, so that files do not depend
    # on the installed HDF5.
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_alignment(_ALIGNMENT, _ALIGNMENT)
    empty = os.path.exists(file_name) and not os.path.getsize(file_name)
    how = h5f.ACC_TRUNC if empty else h5f.ACC_EXCL
    return h5f.create(os.fsencode(file_name), how, creation, access)


def write_attributes(file: h5py.File, attributes: Mapping[str, str | int]) -> None:
    """Write the attributes of `/`, texts of fixed length.

    Those of variable length would be on the global heap, which has no checksum.
    """
    for name, value in attributes.items():
        if isinstance(value, int):
            file.attrs[name] = value
            continue
        data = value.encode("utf-8", "surrogateescape")
        encoding = "ascii" if data.isascii() else "utf-8"
        kind = h5py.string_dtype(encoding, max(1, len(data)))
        file.attrs.create(name, np.array(data, dtype=kind), dtype=kind)


def _find(dataset: h5py.Dataset) -> StoredDataset:
    offset = find_offset(dataset)
    if offset is None:
        raise RuntimeError(f"{dataset.name} does not lie in one run")
    extent = DatasetExtent(dataset.dtype.newbyteorder("<").str, dataset.shape, offset)
    return StoredDataset(extent, int(dataset.id.get_storage_size()))


def _write_index(file_name: str, index: Index) -> None:
    """Write the user block of a file that HDF5 has closed."""
    handle = open_descriptor(file_name, os.O_RDWR)
    try:
        index = dataclasses.replace(index, file_bytes=os.fstat(handle).st_size)
        whole = dataclasses.replace(index, metadata_checksum=metadata_checksum(handle, index))
        write_bytes_at(handle, pack_index(whole) + unfilled_records(), 0)
    finally:
        os.close(handle)


def _create_dataset(group: h5py.Group, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Create a dataset in chunks of whole rows that follow one another, so HDF5 needs no index."""
    row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_chunk((max(1, min(shape[0], _CHUNK_BYTES // row_bytes)), *shape[1:]))
    # Allocated at once, and never filled: offsets are then known before the first row, and HDF5
    # writes no zeros over a file whose blocks are about to be reserved.
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    kind = np.dtype(dtype)
    if kind.kind == "S":
        kind = h5py.string_dtype(TEXT_ENCODING, kind.itemsize)
    stored = h5t.py_create(kind, logical=True)
    h5d.create(group.id, name.encode(), stored, h5s.create_simple(shape, shape), dcpl=layout)
