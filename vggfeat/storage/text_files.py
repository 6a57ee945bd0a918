"""Text files that the user names: read whole, or as a stream of UTF-8 if they are large."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from vggfeat.core.text import decode_text
from vggfeat.errors import InputError
from vggfeat.storage.foreign_files import MOST_BYTES, read_foreign
from vggfeat.storage.locks import refuse_open_lock

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MARKS: Final = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_BLOCK = 1 << 18


def read_text(path: str, what: str, *, with_paths: bool = False) -> str:
    """Return the text of a file: UTF-8, or UTF-16 if a byte order mark says so.

    Args:
        path: the file, or a pipe that a shell has opened; raises InputError if it cannot be read,
            is too large or the lock file of this run, and UsageError if it is in another encoding.
        what: its name in errors, e.g. "labels", and its kind in `MOST_BYTES`.
        with_paths: see `decode_text`.
    """
    refuse_open_lock(path, what)
    try:
        data = read_foreign(path, MOST_BYTES[what], pipes="shell")
    except OSError as error:
        raise InputError(f"{what} {path!r} cannot be read: {error.strerror or error}") from error
    return decode_text(data, f"{what} {path!r}", with_paths=with_paths)


def as_utf8(stream: BinaryIO) -> BinaryIO:
    """Return a stream of the same text in UTF-8 without its byte order mark.

    A stream without a mark is returned as it is, whatever its bytes. Reading raises
    UnicodeDecodeError if it is not the UTF-16 that its mark says.

    Args:
        stream: at its beginning; it can seek.
    """
    beginning = stream.read(len(codecs.BOM_UTF8))
    stream.seek(0)
    for mark, encoding in _MARKS.items():
        if beginning.startswith(mark):
            return cast(
                "BinaryIO", io.BufferedReader(_Recoded(stream, encoding, len(mark)), _BLOCK)
            )
    return stream


class _Recoded(io.RawIOBase):
    """UTF-8 of a stream after its mark. It seeks by reading on, or again from the beginning."""

    def __init__(self, stream: BinaryIO, encoding: str, start: int) -> None:
        self._stream, self._encoding, self._start = stream, encoding, start
        self._rewind()

    def _rewind(self) -> None:
        self._stream.seek(self._start)
        self._decoder = codecs.getincrementaldecoder(self._encoding)("strict")
        self._waiting, self._position = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only seeks from the beginning")
        if offset < self._position:
            self._rewind()
        while self._position < offset and self._take(offset - self._position):
            pass
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        taken = self._take(len(view))
        view[: len(taken)] = taken
        return len(taken)

    def _take(self, count: int) -> bytes:
        while not self._waiting:
            read = self._stream.read(_BLOCK)
            # Text of UTF-8 is not decoded: some of these files hold words that are none.
            if self._encoding == "utf-8":
                self._waiting = read
            else:
                self._waiting = self._decoder.decode(read, final=not read).encode()
            if not read:
                break
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._position += len(taken)
        return taken
