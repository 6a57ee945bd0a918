"""Read single members of tar and zip archives, each by its `Place`.

Each process keeps the archives it used last open, so that one member after the other can be read. A
forked process closes those it inherits and opens its own.
"""

from __future__ import annotations

import atexit
import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import numpy as np

from vggfeat.core.text import counted
from vggfeat.errors import DecodeError, VggfeatError
from vggfeat.images.decompression import (
    MAGIC_BYTES,
    SUPPORTED,
    LzipFile,
    check_supported,
    compression_of,
    is_damage,
    method_name,
    unpack_member,
    zstd_module,
)
from vggfeat.images.streams import NO_FILE, open_regular, reason_for

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_MEMBER: Final = 2**30
"""Bytes of the largest member that is read; it is held in memory while it is decoded."""

TAR_MEMBER: Final = -1
"""`Place.method` of a tar's members; those of a zip have the number of their compression."""

TAR_SPARSE: Final = -2
"""`Place.method` of a sparse file in a tar, whose place is that of its first header."""

MISSING: Final = -1
"""`Place.offset` of a member that a list names and the archive lacks."""

_KEPT_OPEN = 8  # archives in each process
_UNPACKED_AT_MOST = (2**30, 200)  # bytes, and times the file's own size on top
_BLOCK = 2**20  # bytes that are unpacked at once on the way forward

_CHANGED = "archive gone or changed since it was listed"

_ENCRYPTED = 1  # bit of a zip member's flags
_LOCAL_HEADER = 30  # bytes, without the name and the extra fields that follow


class DamagedError(Exception):
    """An archive breaks the rules of its format; the text says how."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """An archive that has changed has another one: bytes, and nanoseconds since 1970."""

    size: int
    mtime_ns: int


class Place(NamedTuple):
    """Where the bytes of an archive's member lie.

    Attributes:
        offset: of the data in an unpacked tar, of the first header of a sparse file there, of the
            local header in a zip; or `MISSING`.
        size: bytes, unpacked.
        packed: bytes in the archive.
        crc: CRC-32 of the unpacked bytes; 0 in a tar, which has none.
        method: `TAR_MEMBER`, `TAR_SPARSE`, or the number of the compression in a zip.
        flags: of a zip's member; 0 in a tar.
        archive: position in a list of archives.
    """

    offset: int
    size: int
    packed: int
    crc: int = 0
    method: int = TAR_MEMBER
    flags: int = 0
    archive: int = 0


_TYPES = (np.int64, np.int64, np.int64, np.uint32, np.int32, np.uint16, np.int32)
PLACE: Final = np.dtype(list(zip(Place._fields, _TYPES, strict=True)))
"""A `Place` as an array's row: a list of millions of members needs 38 bytes for each."""


@contextlib.contextmanager
def open_member(archive: bytes, stamp: Stamp, place: Place) -> Iterator[BinaryIO]:
    """Open one member of an archive, held in memory.

    Raises DecodeError if the archive's stamp is not the given one, or if the member is missing,
    encrypted, damaged, too large, or compressed by an unknown method.
    """
    if place.offset == MISSING:
        raise DecodeError("no such member in the archive")
    if place.flags & _ENCRYPTED:
        raise DecodeError("encrypted archive member")
    if max(place.size, place.packed) > LARGEST_MEMBER:
        raise DecodeError(f"larger than {LARGEST_MEMBER} bytes once unpacked: {place.size}")
    try:
        source = _kept_open(archive, stamp, packed=place.method in (TAR_MEMBER, TAR_SPARSE))
        data = _tar_member(source, place) if source.is_tar else _zip_member(source, place)
    except DamagedError as error:
        raise DecodeError(f"damaged in the archive: {error}") from error
    except OSError as error:
        reason = reason_for(error)
        raise DecodeError(_CHANGED if reason == NO_FILE else reason) from error
    yield io.BytesIO(data)


class ArchiveReader:
    """An archive opened for reading at any offset.

    Offsets are those of the unpacked tar. A compressed tar is read forward only: an offset before
    the last one read means unpacking from the beginning again.

    Args:
        path: raises DecodeError if it is no regular file.
        tar: the archive as a whole may be compressed; raises InputError if it is compressed by zstd
            and no package for zstd is installed, or if it is of a kind that is not supported.
    """

    def __init__(self, path: bytes, *, tar: bool) -> None:
        self.is_tar = tar
        self.file: io.FileIO = open_regular(path, buffering=0)
        self._stream: Any = None
        self._position = 0
        try:
            status = os.fstat(self.file.fileno())
            self.stamp = Stamp(status.st_size, status.st_mtime_ns)
            beginning = os.pread(self.file.fileno(), MAGIC_BYTES, 0)
            check_supported(path, beginning)
            self.compression = compression_of(beginning) if tar else ""
            self._module: Any = zstd_module(path) if self.compression == "zstd" else None
        except BaseException:
            self.file.close()
            raise

    def changed(self) -> bool:
        """Return whether the file has been written to since it was opened."""
        status = os.fstat(self.file.fileno())
        return Stamp(status.st_size, status.st_mtime_ns) != self.stamp

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, or fewer where the archive ends.

        Raises DamagedError if they cannot be unpacked, OSError if they cannot be read.
        """
        if not self.compression:
            return self._read_plain(offset, count)
        try:
            return self._read_through(offset, count)
        except BaseException as error:
            self._rewind()
            if isinstance(error, self._unpacking_errors()) and not getattr(error, "errno", None):
                raise DamagedError(str(error) or type(error).__name__) from error
            raise

    def close(self) -> None:
        """Close the file."""
        self._rewind()
        self.file.close()

    def _read_plain(self, offset: int, count: int) -> bytes:
        left = min(count, self.stamp.size - offset)  # no memory for bytes beyond the file's end
        parts = []
        while left > 0:
            part = os.pread(self.file.fileno(), left, offset)
            if not part:
                break
            parts.append(part)
            left, offset = left - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_through(self, offset: int, count: int) -> bytes:
        if self._stream is None or offset < self._position:
            self._rewind()
            self.file.seek(0)
            self._stream = self._unpacking()
        while self._position < offset:
            if not self._advance(min(_BLOCK, offset - self._position)):
                return b""
        parts = []
        end = offset + count
        while self._position < end:
            part = self._advance(min(_BLOCK, end - self._position))
            if not part:
                break
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _advance(self, count: int) -> bytes:
        part: bytes = self._stream.read(count)
        self._position += len(part)
        base, factor = _UNPACKED_AT_MOST
        if self._position > base + factor * self.stamp.size:
            raise DamagedError(f"a bomb: {self.stamp.size} bytes become {self._position} and more")
        return part

    def _rewind(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(*self._unpacking_errors()):
                self._stream.close()
        self._stream, self._position = None, 0

    def _unpacking(self) -> Any:
        """Return the unpacked bytes as a stream; closing it leaves the file open."""
        if self.compression == "gzip":
            return gzip.GzipFile(fileobj=self.file)
        if self.compression == "bzip2":
            return bz2.BZ2File(self.file)
        if self.compression in ("xz", "lzma"):
            return lzma.LZMAFile(self.file)
        if self.compression == "lzip":
            return io.BufferedReader(LzipFile(self.file), _BLOCK)
        if hasattr(self._module, "ZstdFile"):
            return self._module.ZstdFile(self.file)
        return self._module.ZstdDecompressor().stream_reader(
            self.file, read_across_frames=True, closefd=False
        )

    def _unpacking_errors(self) -> tuple[type[Exception], ...]:
        errors: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, EOFError, OSError)
        return errors if self._module is None else (*errors, self._module.ZstdError)


_open_archives: OrderedDict[bytes, ArchiveReader] = OrderedDict()


def _kept_open(path: bytes, stamp: Stamp, *, packed: bool) -> ArchiveReader:
    source = _open_archives.get(path)
    if source is None or source.stamp != stamp or source.changed():
        _forget(path)
        while len(_open_archives) >= _KEPT_OPEN:
            _forget(next(iter(_open_archives)))
        source = _open_archives[path] = ArchiveReader(path, tar=packed)
    _open_archives.move_to_end(path)
    if source.stamp != stamp:
        _forget(path)
        raise DecodeError(_CHANGED)
    return source


def _forget(path: bytes) -> None:
    if path in _open_archives:
        _open_archives.pop(path).close()


def close_archives() -> None:
    """Close the archives that `open_member` keeps open in this process."""
    for path in list(_open_archives):
        _forget(path)


# A file opened before a fork has one position for both processes.
os.register_at_fork(after_in_child=close_archives)
atexit.register(close_archives)


def _tar_member(source: ArchiveReader, place: Place) -> bytes:
    if place.method == TAR_SPARSE:
        from vggfeat.images.tar import sparse_member  # which imports this module

        return sparse_member(source, place)
    data = source.read(place.offset, place.size)
    if len(data) < place.size:
        raise DamagedError(f"{counted(len(data), 'byte')}, expected {place.size}")
    return data


def _zip_member(source: ArchiveReader, place: Place) -> bytes:
    header = source.read(place.offset, _LOCAL_HEADER) if place.offset >= 0 else b""
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
        raise DamagedError(f"no member at byte {place.offset}")
    name_and_extra = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    packed = source.read(place.offset + _LOCAL_HEADER + name_and_extra, place.packed)
    if len(packed) < place.packed:
        raise DamagedError(f"{counted(len(packed), 'packed byte')}, expected {place.packed}")
    data = _unpacked(packed, place)
    if len(data) != place.size:
        found = "more bytes" if len(data) > place.size else counted(len(data), "byte")
        raise DamagedError(f"{found}, expected {place.size}")
    if zlib.crc32(data) != place.crc:
        raise DamagedError("CRC differs")
    return data


def _unpacked(packed: bytes, place: Place) -> bytes:
    """Unpack the bytes of a zip's member, at most one more than the zip states."""
    if place.method not in SUPPORTED:
        name = method_name(place.method)
        raise DecodeError(f"compressed by a method that is not supported ({name})")
    try:
        return unpack_member(packed, place.method, place.size)
    except VggfeatError:
        raise
    except Exception as error:
        if not is_damage(error):
            raise
        raise DamagedError(str(error) or type(error).__name__) from error
