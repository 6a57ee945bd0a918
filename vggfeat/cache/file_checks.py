"""Check what of a cache belongs to no row: its index, HDF5's metadata, whole columns, the gaps."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggfeat.cache.column_records import COLUMNS, ColumnRecords
from vggfeat.cache.disk import read_all
from vggfeat.cache.foreign_objects import find_foreign_objects
from vggfeat.cache.format import IMAGES
from vggfeat.cache.hdf5_header import read_hdf5_header
from vggfeat.cache.index import LEAST_USER_BLOCK, RECORD_PAGES, metadata_checksum, read_cache_index
from vggfeat.core.text import counted, first_few
from vggfeat.errors import CacheError
from vggfeat.storage.descriptors import open_descriptor

if TYPE_CHECKING:
    from vggfeat.cache.format import Header
    from vggfeat.cache.index import Index

_READINGS = 3  # of columns that a run changes meanwhile
_BY_HDF5 = "so the cache is opened by HDF5, as files of version 1 are"


@dataclass(slots=True)
class FileFindings:
    """What is wrong with a file, and what is worth a note, a line each."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_file(path: str, header: Header) -> FileFindings:
    """Compare index, HDF5's metadata and columns of a cache with each other and their checksums.

    Files of version 1 have nothing to compare.
    """
    found = FileFindings()
    if header.version == 1:
        return found
    if header.user_block < LEAST_USER_BLOCK:
        found.notes.append(f"it has no index: another program has written it anew, {_BY_HDF5}")
        return found
    handle = open_descriptor(path, os.O_RDONLY)
    try:
        index = read_cache_index(handle)
        if index is None:
            found.problems.append(f"its index is not as it was written, {_BY_HDF5}")
        elif metadata_checksum(handle, index) == index.metadata_checksum:
            _check_trusted(path, header, index, handle, found)
        else:
            _check_changed(path, header, index, os.fstat(handle).st_size, found)
        _check_columns(handle, header, found)
    finally:
        os.close(handle)
    return found


def _check_trusted(
    path: str, header: Header, index: Index, handle: int, found: FileFindings
) -> None:
    """Check that HDF5 says what the index says, and that nothing is behind the rows."""
    try:
        other = read_hdf5_header(path)
    except CacheError as error:
        found.problems.append(f"its index is right, but HDF5 cannot read it: {error}")
    else:
        found.problems += [
            f"{what} not the same in its index and in HDF5's metadata"
            for what in _differences(header, other)
        ]
    more = os.fstat(handle).st_size - index.file_bytes
    if more:
        found.notes.append(f"{counted(more, 'byte')} behind its end belong to nothing")
    for name, one in index.datasets.items():
        rows_end = one.start + one.extent.row_bytes * one.extent.shape[0]
        if any(read_all(handle, one.stop - rows_end, rows_end)):
            found.problems.append(f"bytes behind the last row of /{name} are not zeros")


def _differences(one: Header, other: Header) -> list[str]:
    """Name what two readings of the same file differ in."""
    names = sorted({*one.runs, *other.runs})
    found = [f"/{name} is" for name in names if one.runs.get(name) != other.runs.get(name)]
    if one.identity != other.identity or one.provenance != other.provenance:
        found.append("attributes are")
    if (one.rows, one.version, one.user_block) != (other.rows, other.version, other.user_block):
        found.append("rows or version are")
    return found


def _check_changed(path: str, header: Header, index: Index, size: int, found: FileFindings) -> None:
    """Tell a file that another program has changed, rightly, from one with damaged bytes.

    HDF5 has read its metadata, most pieces of which have checksums of HDF5's own.
    """
    foreign = find_foreign_objects(path)
    moved = any(
        name in index.datasets and index.datasets[name].extent != run
        for name, run in header.runs.items()
    )
    if foreign:
        found.notes.append(f"other programs have added {first_few(foreign)}, {_BY_HDF5}")
    elif moved or size != index.file_bytes:
        found.notes.append(f"another program has written it anew, {_BY_HDF5}")
    else:
        found.problems.append(
            "bytes that belong to no dataset are not as they were written: HDF5's metadata, or "
            f"gaps between datasets, {_BY_HDF5}"
        )


def _check_columns(handle: int, header: Header, found: FileFindings) -> None:
    """Compare paths, sizes and times with the checksums of these columns."""
    for _ in range(_READINGS):
        records = ColumnRecords(handle, header)
        current = records.current
        if current is None or current.changing or current.unfilled:
            wrong = []
        else:
            wrong = [
                f"/{IMAGES}/{name} has checksum {sum_:08x}, expected {expected:08x}"
                for number, (name, expected) in enumerate(zip(COLUMNS, current.sums, strict=True))
                for sum_ in [records.sum_of(number)]
                if sum_ != expected
            ]
        # A run may have changed sizes and times while they were read.
        if not wrong or ColumnRecords(handle, header).current == current:
            break
    found.problems += wrong
    found.problems += [
        f"column record {number} (at byte {header.user_block - RECORD_PAGES * (2 - number) // 2}) "
        "is not as it was written"
        for number, record in enumerate(records.both)
        if record is None
    ]
    if current is not None and current.changing:
        found.notes.append("an update was interrupted; the next one finishes it")
    elif current is not None and current.unfilled:
        found.notes.append("its columns were not written by vggfeat, and have no checksums")
