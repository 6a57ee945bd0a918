"""One dataset as one run of bytes in its file, which can be mapped and written by offset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py
import numpy as np
from h5py import h5d

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNKS_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class DatasetExtent:
    """One dataset as one run of bytes in the file.

    Attributes:
        dtype: NumPy's name of the element type, little-endian.
        shape: rows first.
        offset: of the first row, in bytes from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape[1:])


def elsewhere(file: h5py.File, groups: tuple[str, ...]) -> list[str]:
    """Name what a cache only refers to: offsets in other files mean nothing in this one.

    Args:
        file: the cache.
        groups: names below `/` whose members are looked at.

    Returns:
        a phrase for each soft or external link, virtual dataset, and dataset in a raw file.
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


def mappable(
    name: str, dataset: h5py.Dataset, wrong: list[str]
) -> Iterator[tuple[str, DatasetExtent]]:
    """Yield a dataset's name and run; one that cannot be mapped goes to `wrong` instead."""
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
    """Where the dataset's bytes begin, if they lie in one unfiltered, little-endian run."""
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
    zeros = (0,) * (dataset.ndim - 1)
    places = {
        chunk: dataset.id.get_chunk_info_by_coord((chunk * rows, *zeros)).byte_offset
        for chunk in np.unique(np.linspace(0, count - 1, _CHUNKS_LOOKED_AT).astype(int)).tolist()
    }
    first = places[0]
    if first is None or any(place != first + chunk * size for chunk, place in places.items()):
        return None
    return int(first)
