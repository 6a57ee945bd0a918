"""Create the HDF5 file of a cache: all metadata at once, every dataset one run of bytes."""

from __future__ import annotations

import math
import os
from types import MappingProxyType
from typing import TYPE_CHECKING

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t

from vggfeat.cache.format import (
    FEATURES,
    IMAGES,
    OFFSETS,
    SCALES,
    TEXT_ENCODING,
    attributes_of,
    image_fields,
)

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
    access = h5p.create(h5p.FILE_ACCESS)
    # 1.10 is the first version with chunks that need no index; fixed, so that files do not depend
    # on the installed HDF5.
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_alignment(_ALIGNMENT, _ALIGNMENT)
    empty = os.path.exists(file_name) and not os.path.getsize(file_name)
    how = h5f.ACC_TRUNC if empty else h5f.ACC_EXCL
    with h5py.File(h5f.create(os.fsencode(file_name), how, fapl=access)) as file:
        images = file.create_group(IMAGES)
        for name, (dtype, shape) in image_fields(longest_path).items():
            _create_dataset(images, name, dtype, (rows, *shape))
        features = file.create_group(FEATURES)
        for spec, shape in shapes.items():
            _create_dataset(features, spec, _STORED_TYPES[identity.dtype], (rows, *shape))
        for spec, one in scales.items():
            file.create_dataset(f"{SCALES}/{spec}", data=one.scale.astype("<f4"))
            file.create_dataset(f"{OFFSETS}/{spec}", data=one.offset.astype("<f4"))
        file.attrs.update(attributes_of(identity, provenance))


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
