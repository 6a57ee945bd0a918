"""List the images in tar and zip archives, with place and size, without unpacking them."""

from __future__ import annotations

import logging
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
from vggfeat.core.text import counted, printable
from vggfeat.core.timestamps import clamp_ns
from vggfeat.images.archive_reader import (
    MISSING,
    PLACE,
    ArchiveReader,
    DamagedError,
    Place,
    Stamp,
    open_member,
)
from vggfeat.images.decompression import (
    STORED,
    SUPPORTED,
    method_name,
    needs_zstd,
    zstd_module,
)
from vggfeat.images.skipped import NOT_REGULAR, UNSAFE_NAME, hidden_kind, is_hidden, member_name
from vggfeat.images.tar import read_tar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

NO_ARCHIVE: Final = -1
"""Value of `archive` in the row of a file, which is no member."""

_log = logging.getLogger("vggfeat")

_UTF8_NAME = 0x800  # bit of a zip member's flags
_MADE_ON_UNIX = (3, 19)  # systems that write the file system's bytes as names: Unix and macOS
_LARGEST = 2**62  # bytes; a zip may claim more, which would not fit in an int64


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The chosen members of one archive.

    Attributes:
        archive: absolute path.
        stamp: its size and time when it was read.
        names: plain names, each once.
        table: (n,) of `PLACE`, with 0 for `archive`.
        skipped: counts of members skipped, by extension or reason.
        damage: what is wrong with the archive, '' for nothing.
        forward_only: to read an earlier member, unpack from the beginning.
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
    """The places of all rows of a list, whose images are members of archives or files.

    Attributes:
        archives: absolute paths.
        stamps: of each archive when it was listed.
        table: (N,) of `PLACE`; `archive` is a position in `archives`, or `NO_ARCHIVE`.
        forward_only: at least one archive can be read forward only.
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


def with_members(
    paths: list[bytes], facts: NDArray[np.int64], listings: Sequence[Listing]
) -> tuple[list[bytes], NDArray[np.int64], Places]:
    """Append members to files: return paths, sizes and times, and places of all rows.

    Args:
        paths: absolute.
        facts: int64 (files, 2), sizes and times. A member has its own size and its archive's time.
        listings: their members get the path `ARCHIVE!MEMBER`.
    """
    taken = frozenset(paths)  # a file may well be called like a member
    files = np.zeros(len(paths), PLACE)
    files["archive"] = NO_ARCHIVE
    tables = [files]
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
        whole: take all members with the extension of an image.
        wanted: plain names of members to take whatever their extension; the place of those that do
            not exist is `MISSING`.
    """
    chosen = _Chosen(whole, wanted)
    damage = ""
    is_zip = archive_suffix(path) == ZIP_SUFFIX
    source = ArchiveReader(path, tar=not is_zip)
    try:
        for name, place in _zip_members(source) if is_zip else read_tar(source):
            chosen.look_at(name, place)
    except DamagedError as error:
        damage = str(error)
    finally:
        source.close()
    _check_methods(path, chosen.places.values())
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


def _check_methods(path: bytes, places: Iterable[Place]) -> None:
    """Warn once of members that will fail, and refuse those that need a package."""
    methods = Counter(place.method for place in places if place.method >= STORED)
    for method, count in methods.items():
        if needs_zstd(method):
            zstd_module(path)
        elif method not in SUPPORTED:
            _log.warning(
                "%s: %s compressed by a method that is not supported (%s) will fail; pack it anew "
                "by deflate, bzip2, xz or zstd",
                printable(os.fsdecode(path)),
                counted(count, "member"),
                method_name(method),
            )


@dataclass(slots=True)
class _Chosen:
    """The places of members that are taken, by plain name, and counts of others, by reason."""

    whole: bool
    wanted: Collection[bytes]
    places: dict[bytes, Place] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    _hidden: set[bytes] = field(default_factory=set)

    def look_at(self, given: bytes, place: Place | None) -> None:
        """Take the member that the archive calls `given`, or count it."""
        name = member_name(given)
        if place is not None and name and name in self.wanted:
            self.places[name] = place
            return
        if not self.whole:
            return
        kind = extension(given.rpartition(b"/")[2])
        if name and is_hidden(name):
            self._count_hidden(name)
        elif kind not in IMAGE_EXTENSIONS:
            self.skipped[os.fsdecode(kind)] += 1
        elif not name:
            self.skipped[UNSAFE_NAME] += 1
        elif place is None:
            self.skipped[NOT_REGULAR] += 1
        else:
            self.places[name] = place

    def _count_hidden(self, name: bytes) -> None:
        kind, what = hidden_kind(name)
        if kind and what not in self._hidden:
            self._hidden.add(what)
            self.skipped[kind] += 1


def _zip_members(source: ArchiveReader) -> Iterator[tuple[bytes, Place | None]]:
    """Yield what `read_tar` yields, from the central directory of a zip."""
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
        yield _zip_name(entry), place if kind in (0, stat.S_IFREG) else None


def _zip_name(entry: zipfile.ZipInfo) -> bytes:
    """Return a member's name: UTF-8 where the zip says so, else as the file system spelt it.

    Without that flag `zipfile` decodes every name by the DOS code page, but Unix programs write the
    bytes of the file system.
    """
    name = entry.orig_filename
    if entry.flag_bits & _UTF8_NAME:
        return name.encode("utf-8", "surrogateescape")
    return name.encode("cp437" if entry.create_system in _MADE_ON_UNIX else "utf-8")
