"""Decompress tars and members of zips, and name what is not supported."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from vggfeat.core.optional import require
from vggfeat.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

STORED: Final = 0
"""Number of a zip's members that are not compressed."""

_DEFLATED, _BZIPPED, _LZMA, _ZSTD, _XZ = 8, 12, 14, 93, 95
SUPPORTED: Final = (STORED, _DEFLATED, _BZIPPED, _LZMA, _ZSTD, _XZ)
"""Numbers of a zip's compression methods that `unpack_member` knows."""

_METHODS: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "shrink",
        6: "implode",
        9: "deflate64",
        94: "MP3",
        96: "JPEG",
        97: "WavPack",
        98: "PPMd",
        99: "AES",
    }
)
_MAGICS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x50\x2a\x4d\x18", "zstd"),  # a frame to skip, with which pzstd begins
    (b"LZIP", "lzip"),
)
_NOT_SUPPORTED: Final = (
    (b"\x1f\x9d", "compressed by compress (.Z)"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"\x02\x21\x4c\x18", "compressed by lz4"),
    (b"\x89LZO", "compressed by lzop"),
    (b"LRZI", "compressed by lrzip"),
    (b"GRZip", "compressed by grzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"MSCF", "a cabinet"),
    (b"070701", "a cpio archive"),
    (b"070702", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"xar!", "a xar archive"),
    (b"!<arch>\n", "an ar archive"),
)
MAGIC_BYTES: Final = 13
"""Bytes at the beginning of an archive that tell how it is compressed."""

_UNKNOWN_SIZE, _LARGEST_LZMA = 2**64 - 1, 2**38  # bytes, as xz expects them in a .lzma file
_MOST_MEMORY = 1 << 30  # bytes that LZMA may take; xz itself uses a dictionary of 64 MiB at most
_BLOCK = 1 << 16
_LEAST_DICTIONARY = 1 << 12  # bytes
_LZMA_HEAD = 4  # bytes in a zip's member: version, and size of the properties
_LZIP_HEAD, _LZIP_END = 6, 20


def compression_of(beginning: bytes) -> str:
    """Return what an archive is compressed by, by its first bytes; '' for nothing that is known."""
    # By the first bytes, since names are often wrong.
    known = (name for magic, name in _MAGICS if beginning.startswith(magic))
    return next(known, "lzma" if _is_lzma(beginning) else "")


def check_supported(path: bytes, beginning: bytes) -> None:
    """Raise InputError for an archive that begins as those of a kind that is not read."""
    for magic, what in _NOT_SUPPORTED:
        if beginning.startswith(magic):
            raise InputError(
                f"{os.fsdecode(path)!r} is {what}, which is not supported; unpack it, or pack it "
                "as zip, tar, tar.xz or tar.zst"
            )


def _is_lzma(beginning: bytes) -> bool:
    # A .lzma file has no magic: properties, size of the dictionary, size of the data or -1.
    if len(beginning) < MAGIC_BYTES or beginning[0] >= 9 * 5 * 5:  # lc, lp, pb
        return False
    dictionary = int.from_bytes(beginning[1:5], "little")
    size = int.from_bytes(beginning[5:13], "little")
    power = 1 << dictionary.bit_length() >> 1
    usual = _LEAST_DICTIONARY <= dictionary <= _MOST_MEMORY and dictionary in (
        power,
        power + power // 2,
    )
    sized = size < _LARGEST_LZMA and beginning[0] == 0x5D  # noqa: PLR2004 lc 3, lp 0, pb 2
    return usual and (sized or size == _UNKNOWN_SIZE)


def method_name(method: int) -> str:
    """Return the name of a zip's compression method, with its number."""
    return f"{method}, {_METHODS[method]}" if method in _METHODS else str(method)


def zstd_module(path: bytes) -> Any:
    """Return the standard library's module for zstd, or the package `zstandard`."""
    try:
        import compression.zstd as module  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        what = f"{os.fsdecode(path)!r}, which is compressed by zstd,"
        module = require("zstandard", "", what, error=InputError)
    return module


def needs_zstd(method: int) -> bool:
    """Return whether members compressed by a method are unpacked by `zstd_module`."""
    return method == _ZSTD


def unpack_member(packed: bytes, method: int, size: int) -> bytes:
    """Unpack a zip's member, at most one byte more than `size`; raise as its library does."""
    at_most = size + 1
    if method == STORED:
        return packed
    if method == _DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, at_most)
    if method == _BZIPPED:
        return bz2.BZ2Decompressor().decompress(packed, at_most)
    if method == _XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, _MOST_MEMORY).decompress(packed, at_most)
    if method == _ZSTD:
        return _unpack_zstd(packed, at_most)
    length = int.from_bytes(packed[2:_LZMA_HEAD], "little")
    start = _LZMA_HEAD + length
    unpacker = _raw_lzma(packed[_LZMA_HEAD:start], size)
    return unpacker.decompress(packed[start:], at_most)


def is_damage(error: Exception) -> bool:
    """Return whether an error says that packed bytes are damaged, whichever library found it."""
    # ZstdError has no base class but Exception, and belongs to a package that may be missing.
    known = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
    return isinstance(error, known) or type(error).__name__ == "ZstdError"


def _unpack_zstd(packed: bytes, at_most: int) -> bytes:
    module = zstd_module(b"")
    if hasattr(module, "ZstdFile"):
        return cast("bytes", module.ZstdDecompressor().decompress(packed, at_most))
    with module.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as stream:
        return cast("bytes", stream.read(at_most))


def _raw_lzma(properties: bytes, size: int) -> lzma.LZMADecompressor:
    """Return what unpacks a stream of LZMA without a header, given its five bytes of properties."""
    if len(properties) < 5:  # noqa: PLR2004
        raise lzma.LZMAError("properties are cut short")
    rest, lc = divmod(properties[0], 9)
    pb, lp = divmod(rest, 5)
    # No match reaches back further than there is data, whatever the dictionary is said to be.
    dictionary = min(int.from_bytes(properties[1:5], "little"), size)
    how = {
        "id": lzma.FILTER_LZMA1,
        "dict_size": max(dictionary, _LEAST_DICTIONARY),
        "lc": lc,
        "lp": lp,
        "pb": pb,
    }
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[how])


class LzipFile(io.RawIOBase):
    """The unpacked bytes of a lzip file, also of several members in a row.

    Its format is that of www.nongnu.org/lzip/manual: `LZIP`, version 1, a byte for the size of the
    dictionary, LZMA with an end mark, then the CRC-32, the sizes of the data and of the member.

    Raises EOFError if it is cut short, and LZMAError if it is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""
        self._unpacker: lzma.LZMADecompressor | None = None
        self._begun = False
        self._crc = self._size = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Unpack the next bytes; return their number, 0 at the end."""
        view = memoryview(buffer).cast("B")
        while len(view):
            unpacker = self._unpacker or self._begin()
            if unpacker is None:
                break
            data = self._advance(unpacker, len(view))
            if data:
                view[: len(data)] = data
                return len(data)
        return 0

    def _begin(self) -> lzma.LZMADecompressor | None:
        """Begin the next member and return what unpacks it; None where no other follows."""
        head = self._take(_LZIP_HEAD)
        if not head.startswith(b"LZIP"):
            if not self._begun:
                raise lzma.LZMAError("not a lzip file")
            return None  # lzip itself ignores what follows the last member
        if len(head) < _LZIP_HEAD:
            raise EOFError("cut short in the header of a lzip member")
        power, fraction = head[5] & 31, head[5] >> 5
        if head[4] != 1 or not 12 <= power <= 29:  # noqa: PLR2004 4 KiB to 512 MiB
            raise lzma.LZMAError(f"lzip version {head[4]}, dictionary code {head[5]}")
        dictionary = (1 << power) - ((1 << power) // 16) * fraction
        properties = b"\x5d" + dictionary.to_bytes(4, "little")
        self._unpacker = _raw_lzma(properties, dictionary)
        self._begun, self._crc, self._size = True, 0, 0
        return self._unpacker

    def _advance(self, unpacker: lzma.LZMADecompressor, count: int) -> bytes:
        given, self._rest = self._rest, b""
        if unpacker.needs_input and not given:
            given = self._file.read(_BLOCK)
            if not given:
                raise EOFError("cut short in a lzip member")
        data = unpacker.decompress(given, count)
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        if unpacker.eof:
            self._rest, self._unpacker = unpacker.unused_data, None
            self._check_end(self._take(_LZIP_END))
        return data

    def _check_end(self, end: bytes) -> None:
        if len(end) < _LZIP_END:
            raise EOFError("cut short at the end of a lzip member")
        crc, size = int.from_bytes(end[:4], "little"), int.from_bytes(end[4:12], "little")
        if crc != self._crc or size != self._size:
            raise lzma.LZMAError("CRC or size of a lzip member differs")

    def _take(self, count: int) -> bytes:
        """Return the next packed bytes, fewer at the end."""
        while len(self._rest) < count and (more := self._file.read(_BLOCK)):
            self._rest += more
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken
