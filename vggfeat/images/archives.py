"""List the images in tar and zip archives, with place and size, without unpacking them."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from vggfeat.core.file_types import (
    IMAGE_EXTENSIONS,
    MEMBER_MARK,
    ZIP_SUFFIX,
    archive_suffix,
    extension,
)
from vggfeat.core.timestamps import clamp_ns
from vggfeat.images.archive_reader import (
    MISSING,
    PLACE,
    ArchiveMember,
    ArchiveReader,
    DamagedError,
    Place,
    Stamp,
    open_member,
)
from vggfeat.images.skipped import NOT_REGULAR, UNSAFE_NAME, hidden_kind, is_hidden, member_name
from vggfeat.images.tar import read_tar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

NO_ARCHIVE: Final = -1
"""Value of `archive` in a row of places that is a file of its own."""

_UTF8_NAME = 0x800  # bit of a zip member's flags
_MADE_ON_UNIX = (3, 19)  # systems that give names as bytes of their own: Unix and macOS
_LARGEST = 2**62  # bytes; a zip may claim more, which would not fit in an int64


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The chosen members of one archive.

    Attributes:
        archive: absolute path of the archive.
        stamp: its size and time when it was read.
        names: (n,) plain names, each once.
        table: (n,) of `PLACE`, where each lies, with 0 for `archive`.
        skipped: members skipped, by extension or reason.
        damage: what is wrong with the archive, '' for nothing.
        forward_only: whether reading an earlier member means unpacking from the beginning.
    """

    archive: bytes
    stamp: Stamp
    names: tuple[bytes, ...]
    table: NDArray[np.void]
    skipped: Counter[str]
    damage: str
    forward_only: bool


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where the rows of a list lie, for those that are members of archives.

    Attributes:
        archives: absolute paths.
        stamps: of each archive when it was listed.
        table: (N,) of `PLACE`; `archive` is a position in `archives`, or `NO_ARCHIVE`.
        forward_only: whether any archive can be read forward only.
    """

    archives: tuple[bytes, ...]
    stamps: tuple[Stamp, ...]
    table: NDArray[np.void]
    forward_only: bool

    def is_member(self, row: int) -> bool:
        """Return whether `row` is a member of an archive."""
        return int(self.table["archive"][row]) != NO_ARCHIVE

    def open(self, row: int) -> AbstractContextManager[BinaryIO]:
        """Open the member that is `row`; see `open_member`."""
        place = Place(*self.table[row].item())
        return open_member(self.archives[place.archive], self.stamps[place.archive], place)

    def reading_ranks(self) -> NDArray[np.int64]:
        """Return each row's position, int64 (N,), in an order that reads every archive forward."""
        order = np.lexsort((self.table["offset"], self.table["archive"]))
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        return ranks


def _nowhere(rows: int) -> NDArray[np.void]:
    """Return the places of rows that are files of their own, (rows,) of `PLACE`."""
    table = np.zeros(rows, PLACE)
    table["archive"] = NO_ARCHIVE
    return table


def with_members(
    paths: list[bytes], facts: NDArray[np.int64], listings: Sequence[Listing]
) -> tuple[list[bytes], NDArray[np.int64], Places]:
    """Append members to files, as one set of rows.

    Args:
        paths: absolute, of files.
        facts: int64 (files, 2), their sizes and times.
        listings: of archives.

    Returns:
        Paths, sizes and times of all, members as `ARCHIVE!MEMBER` with their own size and the
        archive's time, and the place of each row.
    """
    taken = frozenset(paths)  # a file may well be called like a member
    tables = [_nowhere(len(paths))]
    all_facts = [facts]
    all_paths = list(paths)
    for number, listing in enumerate(listings):
        members = [listing.archive + MEMBER_MARK + name for name in listing.names]
        kept = [at for at, path in enumerate(members) if path not in taken]
        table = listing.table[kept]
        table["archive"] = number
        times = np.full(len(kept), clamp_ns(listing.stamp.mtime_ns), np.int64)
        all_paths += [members[at] for at in kept]
        all_facts.append(np.stack([table["size"], times], axis=1))
        tables.append(table)
    places = Places(
        tuple(listing.archive for listing in listings),
        tuple(listing.stamp for listing in listings),
        np.concatenate(tables),
        any(listing.forward_only for listing in listings),
    )
    return all_paths, np.concatenate(all_facts), places


def list_archive(path: bytes, *, whole: bool, wanted: Collection[bytes]) -> Listing:
    """List the images in an archive without unpacking it.

    A name that occurs twice stands for the last member that has it, as if all were unpacked.

    Args:
        path: absolute; raises OSError if it cannot be read.
        whole: whether to take all members with the extension of an image.
        wanted: plain names of members to take whatever their extension; those that do not exist get
            a place all the same, which is `MISSING`.
    """
    chosen = _Chosen(whole, wanted)
    damage = ""
    is_zip = archive_suffix(path) == ZIP_SUFFIX
    source = ArchiveReader(path, tar=not is_zip)
    try:
        for member in _zip_members(source) if is_zip else read_tar(source):
            chosen.look_at(member)
    except DamagedError as error:
        damage = str(error)
    finally:
        source.close()
    for name in wanted:
        chosen.places.setdefault(name, Place(MISSING, 0, 0))
    table = np.array(list(chosen.places.values()), PLACE)
    return Listing(
        path,
        source.stamp,
        tuple(chosen.places),
        table,
        chosen.skipped,
        damage,
        forward_only=bool(source.compression),
    )


@dataclass(slots=True)
class _Chosen:
    """The members that are taken, by plain name, and counts of those that are not, by reason."""

    whole: bool
    wanted: Collection[bytes]
    places: dict[bytes, Place] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    _hidden: set[bytes] = field(default_factory=set)

    def look_at(self, found: ArchiveMember) -> None:
        """Take `found`, or count it."""
        name = member_name(found.name)
        if not (found.regular and name and name in self.wanted):
            if not self.whole:
                return
            if name and is_hidden(name):
                self._count_hidden(name)
                return
            reason = _why_not(found, name)
            if reason is not None:
                self.skipped[reason] += 1
                return
        self.places[name] = found.place

    def _count_hidden(self, name: bytes) -> None:
        kind, what = hidden_kind(name)
        if kind and what not in self._hidden:
            self._hidden.add(what)
            self.skipped[kind] += 1


def _why_not(found: ArchiveMember, name: bytes) -> str | None:
    """Return why a member is not taken, as a key of `ImageList.skipped`; None for an image."""
    kind = extension(found.name.rpartition(b"/")[2])
    if kind not in IMAGE_EXTENSIONS:
        return os.fsdecode(kind)
    if not name:
        return UNSAFE_NAME
    return None if found.regular else NOT_REGULAR


def _zip_members(source: ArchiveReader) -> Iterator[ArchiveMember]:
    """Yield the members of a zip from its central directory, without folders."""
    try:
        with zipfile.ZipFile(source.file) as archive:
            entries = archive.infolist()
    # What zipfile makes of broken central directories; NotImplementedError is one from the future.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise DamagedError(str(error) or type(error).__name__) from error
    for entry in entries:
        if entry.filename.endswith("/"):  # a folder; its own `is_dir` stumbles over no name
            continue
        place = Place(
            entry.header_offset,
            min(entry.file_size, _LARGEST),
            min(entry.compress_size, _LARGEST),
            entry.CRC,
            entry.compress_type,
            entry.flag_bits,
        )
        kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system in _MADE_ON_UNIX else 0
        yield ArchiveMember(_zip_name(entry), kind in (0, stat.S_IFREG), place)


def _zip_name(entry: zipfile.ZipInfo) -> bytes:
    """Return a member's name: UTF-8 where the zip says so, else the bytes its maker's system had.

    Without that flag `zipfile` takes all names for the DOS code page, but those that Unix programs
    wrote are the file system's own bytes.
    """
    name = entry.orig_filename
    if entry.flag_bits & _UTF8_NAME:
        return name.encode("utf-8", "surrogateescape")
    return name.encode("cp437" if entry.create_system in _MADE_ON_UNIX else "utf-8")
