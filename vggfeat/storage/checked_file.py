"""Read a file whose digest is known, and refuse bytes that have changed since.

A weight file may be overwritten in place while a run starts. SHA-256 is of the whole file, of which
a truncated network needs a seventh; so the CRC-32 of each piece is computed too. Later reads fetch
only the pieces that they need, and each must still have its CRC, which takes half the time of
SHA-256. It guards against accidents, not against forgery: a change within 32 consecutive bits is
always found, any other with probability 1 - 2**-32 in each piece.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.text import counted
from vggfeat.storage.foreign_files import open_foreign

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing import Any as Buffer

PIECE_BYTES = 1 << 22
_THREADS = 4
_SMALL = 1 << 16  # reads of headers and directories, for which a piece is kept


class FileChangedError(OSError):
    """A file that no longer holds the bytes its digest was taken of."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What identifies the bytes of a file.

    Attributes:
        sha256: of the whole file, hexadecimal.
        size: bytes.
        pieces: CRC-32 of every `PIECE_BYTES`, the last piece may be shorter.
    """

    sha256: str
    size: int
    pieces: tuple[int, ...]


def digest_file(path: str) -> FileDigest:
    """Read a file once, in pieces, and return its digests."""
    whole, pieces, size = hashlib.sha256(), [], 0
    buffer = memoryview(bytearray(PIECE_BYTES))
    beside = concurrent.futures.ThreadPoolExecutor(1)  # hashing releases the GIL
    with open_foreign(path, buffering=0) as file, beside:
        while count := _read_fully(file.fileno(), buffer, size):
            piece = buffer[:count]
            checksum = beside.submit(zlib.crc32, piece)
            whole.update(piece)
            pieces.append(checksum.result())
            size += count
    return FileDigest(whole.hexdigest(), size, tuple(pieces))


def _read_fully(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on, as far as the file reaches; return the bytes read."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


class _Region(io.RawIOBase):
    """A seekable file of `size` bytes, read by the `_read_at` of its subclass."""

    size: int
    _at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, as any file does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} lies before the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        """Read from the position on; return the bytes read, 0 at the end."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        done = self._read_at(self._at, view[:count])
        self._at += done
        return done

    def _read_at(self, offset: int, view: memoryview) -> int:
        """Fill a view that ends before the file does; return the bytes read."""
        raise NotImplementedError


class CheckedFile(_Region):
    """A file open for reading, whose bytes are checked against digests before they are returned.

    Nothing is mapped, so that a file truncated while it is read is an error and no SIGBUS.

    Args:
        path: of the file.
        digest: of the bytes expected, else `FileChangedError` is raised; None reads them unchecked,
            where only names and shapes are needed.
    """

    def __init__(self, path: str, digest: FileDigest | None = None) -> None:
        super().__init__()
        self.path = path
        self._digest = digest
        self._file = open_foreign(path, buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size if digest is None else digest.size
        self.failure: FileChangedError | None = None
        """Set for those who read through a library that hides exceptions, as HDF5 does."""
        self._kept: tuple[int, memoryview] | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _read_at(self, offset: int, view: memoryview) -> int:
        if len(view) <= _SMALL:
            self._read_small(offset, view)
        else:
            self.copy_into([(offset, view)])
        return len(view)

    def _read_small(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            number, skip = divmod(offset + done, PIECE_BYTES)
            if self._kept is None or self._kept[0] != number:
                self._kept = (number, self._piece(number))
            part = self._kept[1][skip : skip + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)

    def copy_into(self, targets: Iterable[tuple[int, memoryview]]) -> None:
        """Fill several buffers, each from its own offset, reading every piece once.

        Args:
            targets: offset in the file, and a writable view of bytes to fill from there.
        """
        ordered = sorted((one for one in targets if len(one[1])), key=lambda one: one[0])
        jobs: dict[int, list[tuple[int, memoryview]]] = {}
        for offset, view in ordered:
            if offset < 0 or offset + len(view) > self.size:
                raise ValueError(f"bytes {offset} to {offset + len(view)} of {self.size}")
            last = (offset + len(view) - 1) // PIECE_BYTES
            for number in range(offset // PIECE_BYTES, last + 1):
                jobs.setdefault(number, []).append((offset, view))
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            # Pieces write to disjoint parts of the targets, and hashing lets go of the GIL.
            for _ in pool.map(self._fill, jobs, jobs.values()):
                pass

    def _fill(self, number: int, targets: Sequence[tuple[int, memoryview]]) -> None:
        begin, size = number * PIECE_BYTES, self._piece_size(number)
        offset, view = targets[0]
        if offset <= begin and begin + size <= offset + len(view):
            # The whole piece belongs to one tensor: read it to its final place, without a copy.
            self._load(number, view[begin - offset : begin - offset + size])
            targets = targets[1:]
        if not targets:
            return
        piece = self._piece(number)
        for offset, view in targets:
            start, stop = max(offset, begin), min(offset + len(view), begin + size)
            view[start - offset : stop - offset] = piece[start - begin : stop - begin]

    def _piece_size(self, number: int) -> int:
        return max(0, min(PIECE_BYTES, self.size - number * PIECE_BYTES))

    def _piece(self, number: int) -> memoryview:
        buffer = memoryview(bytearray(self._piece_size(number)))
        self._load(number, buffer)
        return buffer

    def _load(self, number: int, buffer: memoryview) -> None:
        """Fill a buffer of its size with a piece, or raise."""
        begin = number * PIECE_BYTES
        count = _read_fully(self._file.fileno(), buffer, begin)
        if count < len(buffer):
            raise self._failed(
                f"it ends at byte {begin + count}, expected {counted(self.size, 'byte')}: it was "
                "cut short"
            )
        if self._digest is not None and zlib.crc32(buffer) != self._digest.pieces[number]:
            raise self._failed(
                f"bytes {begin} to {begin + count} differ from those of SHA-256 "
                f"{self._digest.sha256[:8]}…"
            )

    def _failed(self, what: str) -> FileChangedError:
        self.failure = FileChangedError(what)
        return self.failure


class FileWindow(_Region):
    """A part of a file as a file: a member of an archive that is stored without compression.

    Args:
        file: the whole file.
        begin: first byte of the part.
        size: bytes of the part.
    """

    def __init__(self, file: CheckedFile, begin: int, size: int) -> None:
        super().__init__()
        self._file, self._begin, self.size = file, begin, size

    def _read_at(self, offset: int, view: memoryview) -> int:
        self._file.seek(self._begin + offset)
        return self._file.readinto(view)
