"""Bytes of an HDF5 file: read within its bounds, checked by their checksums, taken apart."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MASK = 0xFFFFFFFF
_CHECKSUM_BYTES = 4
_MOST_BYTES = 1 << 26
"""Of metadata that one file may make us read; caches and models have some kilobytes."""
_CHECKED_COST = 8  # a checksum in Python takes 0.2 s a megabyte


class MetadataError(ValueError):
    """HDF5 metadata that is damaged or lies, or of a kind that is not read here."""


class NotHdf5Error(MetadataError):
    """A file without HDF5's signature, or shorter than its superblock says."""


class Fields:
    """Little-endian fields of one block, taken from its front to its back.

    Args:
        data: of the block.
        offset_bytes: size of an address, as the superblock says.
        length_bytes: size of a length, likewise.
    """

    __slots__ = ("at", "data", "length_bytes", "offset_bytes")

    def __init__(self, data: bytes, offset_bytes: int, length_bytes: int) -> None:
        self.data, self.at = data, 0
        self.offset_bytes, self.length_bytes = offset_bytes, length_bytes

    @property
    def left(self) -> int:
        """Number of bytes that are not taken yet."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.at + count
        if end > len(self.data):
            raise MetadataError("a block ends before what it holds does")
        part = self.data[self.at : end]
        self.at = end
        return part

    def uint(self, count: int) -> int:
        """Return the next bytes as an unsigned number."""
        return int.from_bytes(self.take(count), "little")

    def length(self) -> int:
        """Return a length, or a number of things."""
        return self.uint(self.length_bytes)

    def address(self) -> int | None:
        """Return an address, None where it is undefined."""
        value = self.uint(self.offset_bytes)
        return None if value + 1 == 1 << 8 * self.offset_bytes else value

    def some_address(self, what: str) -> int:
        """Return an address that must not be undefined."""
        address = self.address()
        if address is None:
            raise MetadataError(f"{what} has no address")
        return address

    def rest(self, data: bytes) -> Fields:
        """Return fields of other bytes, with addresses and lengths of the same size."""
        return Fields(data, self.offset_bytes, self.length_bytes)


class BlockReader:
    """BlockReader of metadata by their addresses; no more is read than a sound file needs.

    Args:
        read_into: fills a buffer from an offset in the file; returns the bytes read, fewer at its
            end.
        size: of the file.
        base: offset of address 0.
        offset_bytes: size of an address.
        length_bytes: size of a length.
    """

    def __init__(
        self,
        read_into: Callable[[int, memoryview], int],
        size: int,
        *,
        base: int = 0,
        offset_bytes: int = 8,
        length_bytes: int = 8,
    ) -> None:
        self._read_into, self.size, self.base = read_into, size, base
        self.offset_bytes, self.length_bytes = offset_bytes, length_bytes
        self._budget = _MOST_BYTES

    def bytes_at(self, address: int | None, count: int, what: str) -> bytes:
        """Return bytes at an address; `what` names the block in errors."""
        if address is None:
            raise MetadataError(f"{what} has no address")
        start = self.base + address
        if start + count > self.size:
            raise MetadataError(f"{what} lies beyond the end of the file, at byte {start}")
        self._budget -= count
        if self._budget < 0:
            raise MetadataError(f"its metadata is larger than {_MOST_BYTES >> 20} MiB")
        data = bytearray(count)
        self.fill(address, memoryview(data), what)
        return bytes(data)

    def fill(self, address: int, view: memoryview, what: str) -> None:
        """Fill a buffer from an address on."""
        start = self.base + address
        if start + len(view) > self.size or self._read_into(start, view) < len(view):
            raise MetadataError(f"{what} lies beyond the end of the file, at byte {start}")

    def fields(self, address: int | None, count: int, what: str) -> Fields:
        """Return the fields of a block without a checksum."""
        data = self.bytes_at(address, count, what)
        return Fields(data, self.offset_bytes, self.length_bytes)

    def checked(self, address: int | None, count: int, signature: bytes, what: str) -> Fields:
        """Return the fields behind the signature of a block that ends in its checksum."""
        self._budget -= count * _CHECKED_COST
        data = self.bytes_at(address, count, what)
        check(data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:], what)
        fields = Fields(data[:-_CHECKSUM_BYTES], self.offset_bytes, self.length_bytes)
        check_signature(fields, signature, what)
        return fields


def check_signature(fields: Fields, signature: bytes, what: str) -> None:
    """Take the signature, which must be this one."""
    if fields.take(len(signature)) != signature:
        raise MetadataError(f"{what} has the wrong signature")


def check_version(fields: Fields, what: str, *known: int) -> int:
    """Take a version, which must be a known one, and return it."""
    version = fields.uint(1)
    if version not in known:
        expected = " or ".join(map(str, known))
        raise MetadataError(f"{what} has version {version}, expected {expected}")
    return version


def check(data: bytes, expected: bytes, what: str) -> None:
    """Refuse data of another checksum."""
    if lookup3(data) != int.from_bytes(expected, "little"):
        raise MetadataError(f"{what} has the wrong checksum")


def lookup3(data: bytes) -> int:
    """Return Bob Jenkins's hash `lookup3` with start value 0, the checksum of HDF5's metadata."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    padded = data + bytes(-len(data) % 12)
    words: tuple[int, ...] = struct.unpack(f"<{len(padded) // 4}I", padded)
    last = len(words) - 3
    for at in range(0, last, 3):
        a, b, c = a + words[at], b + words[at + 1], c + words[at + 2] & _MASK
        a = (a - c ^ (c << 4 | c >> 28)) & _MASK
        c += b
        b = (b - a ^ (a << 6 | a >> 26)) & _MASK
        a += c
        c = (c - b ^ (b << 8 | b >> 24)) & _MASK
        b += a
        a = (a - c ^ (c << 16 | c >> 16)) & _MASK
        c += b
        b = (b - a ^ (a << 19 | a >> 13)) & _MASK
        a += c
        c = (c - b ^ (b << 4 | b >> 28)) & _MASK
        b += a
    a, b, c = a + words[last] & _MASK, b + words[last + 1] & _MASK, c + words[last + 2] & _MASK
    c = (c ^ b) - (b << 14 | b >> 18) & _MASK
    a = (a ^ c) - (c << 11 | c >> 21) & _MASK
    b = (b ^ a) - (a << 25 | a >> 7) & _MASK
    c = (c ^ b) - (b << 16 | b >> 16) & _MASK
    a = (a ^ c) - (c << 4 | c >> 28) & _MASK
    b = (b ^ a) - (a << 14 | a >> 18) & _MASK
    return (c ^ b) - (b << 24 | b >> 8) & _MASK
