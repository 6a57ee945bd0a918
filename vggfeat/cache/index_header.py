"""Read the metadata of a cache by its index alone; bounds are checked before anything is mapped."""

from __future__ import annotations

import math
import os
import stat
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.attributes import read_attributes
from vggfeat.cache.format import (
    FEATURES,
    FORMAT,
    FORMAT_VERSION,
    IMAGES,
    OFFSETS,
    SCALES,
    DatasetExtent,
    Header,
    image_fields,
)
from vggfeat.cache.index import FLAGS_AT, SUPERBLOCK_BYTES, metadata_checksum, read_cache_index
from vggfeat.core.quantization import Scales
from vggfeat.core.text import counted
from vggfeat.errors import CacheError
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.hdf5_metadata.reader import OPEN_MARKS, tell_of_mark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.cache.index import Index, StoredDataset

_FEATURE_TYPES = ("<f2", "<f4", "|i1")
_COLUMNS = image_fields(1)
_NDIMS = range(2, 5)  # (N, D) to (N, C, H, W)


def read_index_header(file_name: str) -> Header | None:
    """Return the metadata of a cache by its index; None if it has none that may be trusted.

    Raises:
        CacheError: its checksums are right, but what it says cannot be true of this file.
    """
    try:
        handle = open_descriptor(file_name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None  # HDF5 will say why
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        index = read_cache_index(handle)
        if index is None:
            return None
        wrong = _untrue_datasets(index, os.fstat(handle).st_size)
        if wrong is None:
            return None
        if not wrong and metadata_checksum(handle, index) != index.metadata_checksum:
            return None
        if os.pread(handle, 1, index.user_block + FLAGS_AT)[0] & OPEN_MARKS:
            tell_of_mark(file_name)
        return _header(handle, index, wrong)
    except ValueError as error:
        raise CacheError(f"cache {file_name!r} is damaged: its index: {error}") from error
    finally:
        os.close(handle)


def _untrue_datasets(index: Index, size: int) -> list[str] | None:
    """Return what the index says of datasets that cannot be; None if the file is shorter."""
    if index.file_bytes > size:
        return None
    wrong = _unknown_datasets(index.datasets)
    if wrong:
        return wrong
    at, before = index.user_block + SUPERBLOCK_BYTES, "HDF5's superblock"
    for name, one in sorted(index.datasets.items(), key=lambda item: item[1].start):
        rows = one.extent
        if one.start < at:
            wrong.append(f"/{name} begins inside {before}")
        if one.allocated < rows.row_bytes * rows.shape[0] or one.stop > index.file_bytes:
            wrong.append(f"/{name} does not fit into the file")
        at, before = one.stop, f"/{name}"
    return wrong


def _unknown_datasets(datasets: Mapping[str, StoredDataset]) -> list[str]:
    """Return which datasets are missing, unknown, or of another type or shape than they may be."""
    columns = [f"{IMAGES}/{name}" for name in _COLUMNS]
    wrong = [f"/{name} is missing" for name in columns if name not in datasets]
    features = {name for name in datasets if name.startswith(f"{FEATURES}/")}
    state = datasets.get(f"{IMAGES}/state")
    rows = (state.extent.shape[:1] if state is not None else ()) or (0,)
    for name, one in datasets.items():
        if not _is_known(name, one.extent, datasets, rows) or 0 in one.extent.shape:
            wrong.append(f"/{name} has type {one.extent.dtype} and shape {one.extent.shape}")
    types = {datasets[name].extent.dtype for name in features}
    if len(types) != 1:
        wrong.append(f"{counted(len(types), 'type')} of features, expected one")
    return wrong


def _is_known(
    name: str, one: DatasetExtent, datasets: Mapping[str, StoredDataset], rows: tuple[int, ...]
) -> bool:
    """Return whether a cache of `rows` may have a dataset of that name, type and shape."""
    group, _, member = name.partition("/")
    if not member or "/" in member or "\0" in member:
        return False
    if group == IMAGES and member in _COLUMNS:
        dtype, shape = _COLUMNS[member]
        fits = _is_text(one.dtype) if member == "path" else one.dtype == dtype
        return fits and one.shape == (*rows, *shape)
    if group == FEATURES:
        return one.dtype in _FEATURE_TYPES and len(one.shape) in _NDIMS and one.shape[:1] == rows
    layer = datasets.get(f"{FEATURES}/{member}") if group in (SCALES, OFFSETS) else None
    return layer is not None and (one.dtype, one.shape) == ("<f4", layer.extent.shape[1:2])


def _is_text(dtype: str) -> bool:
    digits = dtype.removeprefix("|S")
    return dtype.startswith("|S") and digits.isdecimal() and 0 < int(digits) < 1 << 31


def _header(handle: int, index: Index, wrong: list[str]) -> Header:
    attributes = index.attributes
    known = (attributes.get("format"), attributes.get("format_version"))
    if known != (FORMAT, FORMAT_VERSION):
        wrong.append(f"attributes format and format_version are {known!r:.80}")
    if wrong:
        raise ValueError("; ".join(wrong))
    runs = {
        name: one.extent
        for name, one in index.datasets.items()
        if name.startswith((f"{IMAGES}/", f"{FEATURES}/"))
    }
    scales = _scales(handle, index, wrong)
    found = read_attributes(attributes, runs, scales, wrong)
    if wrong or found is None:
        raise ValueError("; ".join(wrong))
    rows = runs[f"{IMAGES}/state"].shape[0]
    return Header(*found, rows, runs, scales, FORMAT_VERSION, index.user_block)


def _scales(handle: int, index: Index, wrong: list[str]) -> dict[str, Scales]:
    """Return scale and offset of each layer of codes."""
    found = {}
    for name, one in index.datasets.items():
        group, _, spec = name.partition("/")
        if group != FEATURES or np.dtype(one.extent.dtype) != np.int8:
            continue
        parts = [index.datasets.get(f"{kind}/{spec}") for kind in (SCALES, OFFSETS)]
        if None in parts:
            wrong.append(f"/{SCALES}/{spec} or /{OFFSETS}/{spec} is missing")
            continue
        scale, offset = (_read(handle, part.extent) for part in parts if part is not None)
        found[spec] = Scales(scale, offset)
    return found


def _read(handle: int, extent: DatasetExtent) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    data = os.pread(handle, math.prod(extent.shape) * 4, extent.offset)
    return np.frombuffer(data, extent.dtype).reshape(extent.shape).astype(np.float32)
