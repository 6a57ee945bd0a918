"""Read the metadata of a cache by HDF5: what it holds, and where the bytes of each dataset lie."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import h5py
import numpy as np
from h5py import h5d

from vggfeat.cache.attributes import attribute_text, read_attributes
from vggfeat.cache.format import (
    FEATURES,
    FORMAT,
    FORMAT_VERSION,
    IMAGES,
    OFFSETS,
    SCALES,
    VIEW_FORMAT,
    DatasetExtent,
    Header,
    image_fields,
)
from vggfeat.core.quantization import Scales
from vggfeat.core.settings import DTYPES
from vggfeat.core.text import counted
from vggfeat.errors import CacheError
from vggfeat.storage.foreign_files import ForeignFileError
from vggfeat.storage.hdf5_file import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_IMAGE_FIELDS = tuple(image_fields(1))
_OPTIONAL = ("digest",)  # the first files had none
_CHUNKS_LOOKED_AT = 16
_PROBE_BLOCK = 1 << 16  # more than a file of one number has in front of it


def read_hdf5_header(file_name: str) -> Header:
    """Read and check the metadata of a cache by its HDF5 objects; no index is looked at.

    Raises:
        CacheError: it does not exist, is not a cache of ours, or is damaged; nothing else is
            raised, whatever the file holds.
    """
    try:
        with open_hdf5(file_name) as file:
            return _read(file_name, file)
    except FileNotFoundError:
        raise CacheError(f"cache {file_name!r} does not exist") from None
    except (IsADirectoryError, PermissionError, ForeignFileError) as error:
        raise CacheError(f"cache {file_name!r} cannot be read: {error.strerror}") from error
    except (OSError, KeyError, RuntimeError) as error:  # h5py's words for damaged metadata
        raise CacheError(
            f"cache {file_name!r} is not an HDF5 file, or was cut short: {error}"
        ) from error


def _read(file_name: str, file: h5py.File) -> Header:
    _check_format(file_name, file)
    linked = _elsewhere(file, (IMAGES, FEATURES, SCALES, OFFSETS))
    if linked:
        raise CacheError(
            f"cache {file_name!r} does not hold its own data: {'; '.join(linked)}; name the file "
            "that holds them, or copy them into one (h5py: copy with expand_external=True)"
        )
    wrong: list[str] = []
    runs = dict(_runs(file, wrong))
    rows = runs[f"{IMAGES}/state"].shape[0] if f"{IMAGES}/state" in runs else -1
    wrong += [
        f"/{name} has {counted(run.shape[0], 'row')}, /{IMAGES}/state {rows}"
        for name, run in runs.items()
        if rows >= 0 and run.shape[0] != rows
    ]
    scales = dict(_scales(file, runs, wrong))
    found = read_attributes(file.attrs, runs, scales, wrong)
    if wrong or found is None:
        raise CacheError(f"cache {file_name!r} is damaged: {'; '.join(wrong)}")
    return Header(*found, rows, runs, scales)


def _check_format(file_name: str, file: h5py.File) -> None:
    value = file.attrs.get("format")
    found = attribute_text(value)
    if found == VIEW_FORMAT:
        raise CacheError(
            f"{file_name!r} is a view of shards for other tools; name the folder of the shards"
        )
    if found != FORMAT:
        shown = repr(value if found is None else found)
        raise CacheError(
            f"{file_name!r} is an HDF5 file but no cache of ours: attribute format is {shown}, "
            f"expected {FORMAT!r}"
        )
    version = file.attrs.get("format_version")
    if not isinstance(version, int | np.integer) or version != FORMAT_VERSION:
        newer = isinstance(version, int | np.integer) and version > FORMAT_VERSION
        raise CacheError(
            f"cache {file_name!r} has format version {version}, this vggfeat reads "
            f"{FORMAT_VERSION}; {'upgrade it' if newer else 'it is damaged'}"
        )


def _runs(file: h5py.File, wrong: list[str]) -> Iterator[tuple[str, DatasetExtent]]:
    """Yield the extent of each dataset; append what is missing or cannot be mapped to `wrong`."""
    fields = image_fields(1)
    for column in _IMAGE_FIELDS:
        name = f"{IMAGES}/{column}"
        dataset = file.get(name)
        expected, shape = np.dtype(fields[column][0]), fields[column][1]
        if column in _OPTIONAL and file.get(name, getlink=True) is None:
            continue
        if not isinstance(dataset, h5py.Dataset) or dataset.shape[1:] != shape:
            values = counted(shape[0], "value") if shape else "one value"
            wrong.append(f"/{name} is missing or not {values} a row")
        elif dataset.dtype.kind != expected.kind or (
            expected.kind != "S" and dataset.dtype != expected
        ):
            wrong.append(f"/{name} has type {dataset.dtype}, expected {expected}")
        else:
            yield from _mappable(name, dataset, wrong)
    features = file.get(FEATURES)
    if not isinstance(features, h5py.Group) or not len(features):
        wrong.append(f"/{FEATURES} holds no layer")
        return
    for spec, dataset in features.items():
        name = f"{FEATURES}/{spec}"
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 2:  # noqa: PLR2004 (N, D)
            wrong.append(f"/{name} is no array of rows")
        elif dataset.dtype.name not in DTYPES:
            wrong.append(f"/{name} has type {dataset.dtype}, expected {' or '.join(DTYPES)}")
        else:
            yield from _mappable(name, dataset, wrong)


def _scales(
    file: h5py.File, runs: Mapping[str, DatasetExtent], wrong: list[str]
) -> Iterator[tuple[str, Scales]]:
    """Scale and offset of each layer of codes; what is missing or of another shape is wrong."""
    for name, run in runs.items():
        group, _, spec = name.partition("/")
        if group != FEATURES or np.dtype(run.dtype) != np.int8:
            continue
        found = [file.get(f"{kind}/{spec}") for kind in (SCALES, OFFSETS)]
        if not all(isinstance(one, h5py.Dataset) and one.shape == run.shape[1:2] for one in found):
            wrong.append(
                f"/{SCALES}/{spec} or /{OFFSETS}/{spec} is missing or not of shape {run.shape[1:2]}"
            )
            continue
        yield spec, Scales(*(one[()].astype(np.float32) for one in found))


def _elsewhere(file: h5py.File, groups: tuple[str, ...]) -> list[str]:
    """Name each link, virtual dataset and dataset in a raw file in some groups below `/`.

    The offsets of what they refer to mean nothing in this file.
    """
    found = []
    for group in groups:
        link = file.get(group, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            found.append(f"/{group} is {_link_words(link)}")
        elif link is not None and isinstance(file[group], h5py.Group):
            found += _members_elsewhere(file[group])
    return found


def _members_elsewhere(group: h5py.Group) -> Iterator[str]:
    for name in group:
        path = f"{group.name}/{name}"
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            yield f"{path} is {_link_words(link)}"
        elif isinstance(group[name], h5py.Dataset):
            dataset = group[name]
            if dataset.is_virtual:
                yield f"{path} is a virtual dataset of {dataset.virtual_sources()[0].file_name!r}"
            elif dataset.external:
                yield f"{path} lies in the raw file {dataset.external[0][0]!r}"


def _link_words(link: object) -> str:
    if isinstance(link, h5py.ExternalLink):
        return f"an external link to {link.path!r} in {link.filename!r}"
    if isinstance(link, h5py.SoftLink):
        return f"a soft link to {link.path!r}"
    return "a link of a kind that is not known"


def _mappable(
    name: str, dataset: h5py.Dataset, wrong: list[str]
) -> Iterator[tuple[str, DatasetExtent]]:
    """Yield the name and extent of a dataset, or append to `wrong` why it cannot be mapped."""
    offset = find_offset(dataset)
    if offset is None:
        wrong.append(
            f"/{name} does not lie in one run (compressed or repacked?), so it cannot be memory "
            "mapped; `h5repack -f NONE -l CONTI` makes it so"
        )
        return
    # Little-endian in the file, whatever this machine is.
    dtype = dataset.dtype.newbyteorder("<").str
    yield name, DatasetExtent(dtype, tuple(dataset.shape), offset)


def find_offset(dataset: h5py.Dataset) -> int | None:
    """Return where the bytes of a dataset begin; None unless they are one little-endian range.

    Counted from the start of the file, in front of which HDF5 may have a user block.
    """
    layout = dataset.id.get_create_plist()
    big_endian = dataset.dtype.byteorder == ">"
    if big_endian or layout.get_nfilters() or layout.get_external_count():
        return None
    if layout.get_layout() == h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else int(offset)
    if layout.get_layout() != h5d.CHUNKED or dataset.chunks[1:] != dataset.shape[1:]:
        return None
    return _chunked_offset(dataset)


def _chunked_offset(dataset: h5py.Dataset) -> int | None:
    rows = dataset.chunks[0]
    size = rows * dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    count = -(-dataset.shape[0] // rows)
    # A few chunks stand for all: looking up each one of a large file takes too long.
    zeros = (0,) * (dataset.ndim - 1)
    places = {
        chunk: dataset.id.get_chunk_info_by_coord((chunk * rows, *zeros)).byte_offset
        for chunk in np.unique(np.linspace(0, count - 1, _CHUNKS_LOOKED_AT).astype(int)).tolist()
    }
    first = places[0]
    if first is None or any(place != first + chunk * size for chunk, place in places.items()):
        return None
    user_block = int(dataset.file.userblock_size)
    return int(first) + (user_block if user_block and _chunk_offsets_leave_out_user_block() else 0)


@functools.cache
def _chunk_offsets_leave_out_user_block() -> bool:
    """Return whether this HDF5 counts the offsets of chunks from the end of the user block.

    Versions before 1.14.4 do, for chunks alone; distributions patch it, so a file in memory tells.
    """
    place = {"driver": "core", "backing_store": False, "userblock_size": _PROBE_BLOCK}
    with h5py.File("probe", "w", **place) as file:
        probe = file.create_dataset("probe", data=np.zeros(1), chunks=(1,))
        return int(probe.id.get_chunk_info_by_coord((0,)).byte_offset) < _PROBE_BLOCK
