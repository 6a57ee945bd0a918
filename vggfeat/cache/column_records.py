"""Checksums of the columns that belong to no row's checksum: paths, sizes and times.

Sizes and times change in place, so each of two records is written in turn, one of which is right at
every instant: *changing*, sync, the columns, sync, their new checksums, sync. The checksums of rows
that are removed follow their states in the same way.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vggfeat.cache.disk import sync_file, write_bytes_at
from vggfeat.cache.format import IMAGES
from vggfeat.cache.index import LEAST_USER_BLOCK, RECORD_PAGES
from vggfeat.storage.descriptors import open_descriptor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.cache.format import DatasetExtent, Header

COLUMNS = ("path", "size", "mtime_ns")
"""Of `/images`, those that records are about, in their order there."""

_MAGIC = b"\x89VGC\r\n\x1a\n"
_FIELDS = struct.Struct("<8sQIIII")  # magic, generation, flags, a checksum each
_PAGE = RECORD_PAGES // 2
_CHANGING, _UNFILLED = 1, 2
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ColumnRecord:
    """What one record says.

    Attributes:
        generation: of two records the one with the higher counts.
        sums: CRC-32 of the columns in the order of `COLUMNS`.
        changing: an update is under way: the checksums of sizes and times are not known, nor are
            all of those of rows that are removed.
        unfilled: no column was written yet.
    """

    generation: int
    sums: tuple[int, int, int]
    changing: bool = False
    unfilled: bool = False

    def pack(self) -> bytes:
        """Return the page that holds it."""
        flags = _CHANGING * self.changing | _UNFILLED * self.unfilled
        fields = _FIELDS.pack(_MAGIC, self.generation, flags, *self.sums)
        return (fields + zlib.crc32(fields).to_bytes(4, "little")).ljust(_PAGE, b"\0")


def _parse(page: bytes) -> ColumnRecord | None:
    """Return what a page says; None if a single byte of it is not as it was written."""
    if len(page) < _PAGE or not page.startswith(_MAGIC):
        return None
    _, generation, flags, *sums = _FIELDS.unpack_from(page)
    first, second, third = sums
    found = ColumnRecord(
        generation, (first, second, third), bool(flags & _CHANGING), bool(flags & _UNFILLED)
    )
    return found if found.pack() == page else None


class ColumnRecords:
    """The two column records of an open file.

    Args:
        handle: descriptor of the file.
        header: its metadata; of version 2, with a user block.
    """

    def __init__(self, handle: int, header: Header) -> None:
        self._handle = handle
        self._runs = [header.runs[f"{IMAGES}/{name}"] for name in COLUMNS]
        self._start = header.user_block - RECORD_PAGES
        pages = os.pread(handle, RECORD_PAGES, self._start)
        self.both: list[ColumnRecord | None] = [_parse(pages[:_PAGE]), _parse(pages[_PAGE:])]

    @property
    def current(self) -> ColumnRecord | None:
        """The record that counts; None if none is whole."""
        whole = [record for record in self.both if record is not None]
        return max(whole, key=lambda record: record.generation, default=None)

    def begin(self) -> None:
        """Record that an update is about to begin; return once the disk has it."""
        current = self.current
        if current is not None and not current.unfilled and not current.changing:
            sums = (current.sums[0], 0, 0)
            self._write(ColumnRecord(current.generation + 1, sums, changing=True))
            sync_file(self._handle)

    def end(self) -> None:
        """Record the checksums of sizes and times as the file has them now: the update is done."""
        current = self.current
        if current is not None:
            sync_file(self._handle)  # the columns first
            path = self.sum_of(0) if current.unfilled else current.sums[0]
            sums = (path, self.sum_of(1), self.sum_of(2))
            self._write(ColumnRecord(current.generation + 1, sums))
            sync_file(self._handle)

    @property
    def interrupted(self) -> bool:
        """Whether an update is under way, or was when the last writer ended."""
        return self.current is not None and self.current.changing

    def settle(self) -> None:
        """Finish an update that was interrupted: what the columns hold now is what counts."""
        current = self.current
        if current is None:
            return
        if current.changing or current.unfilled:
            self.end()
        elif None in self.both:  # of two records one was torn before anything had changed
            self._write(replace(current, generation=current.generation + 1))
            sync_file(self._handle)

    def fill(self, sums: Mapping[str, int]) -> None:
        """Write both records of a new file, whose columns have these checksums; sync nothing."""
        first, second, third = (sums[name] for name in COLUMNS)
        for page in range(2):
            self.both[page] = ColumnRecord(page + 1, (first, second, third))
            self._put(page)

    def sum_of(self, number: int) -> int:
        """Return the CRC-32 of a column, by its number in `COLUMNS`, as the file has it now."""
        return _sum_of(self._handle, self._runs[number])

    def _write(self, record: ColumnRecord) -> None:
        """Write a record over the older one, or over one that is not whole."""
        ages = [-1 if one is None else one.generation for one in self.both]
        page = ages.index(min(ages))
        self.both[page] = record
        self._put(page)

    def _put(self, page: int) -> None:
        record = self.both[page]
        data = b"" if record is None else record.pack()
        write_bytes_at(self._handle, data, self._start + page * _PAGE)


def is_update_interrupted(path: str, header: Header) -> bool:
    """Return whether an update was interrupted, which opening a `CacheWriter` finishes."""
    if header.user_block < LEAST_USER_BLOCK:
        return False
    handle = open_descriptor(path, os.O_RDONLY)
    try:
        return ColumnRecords(handle, header).interrupted
    finally:
        os.close(handle)


def unfilled_records() -> bytes:
    """Return both records of a file whose columns are still to be written."""
    return b"".join(ColumnRecord(age, (0, 0, 0), unfilled=True).pack() for age in (1, 2))


def _sum_of(handle: int, run: DatasetExtent) -> int:
    at, stop, value = run.offset, run.offset + run.row_bytes * run.shape[0], 0
    while at < stop:
        data = os.pread(handle, min(_READ_BYTES, stop - at), at)
        if not data:
            break  # cut short: no checksum is that of what is left
        value = zlib.crc32(data, value)
        at += len(data)
    return value
