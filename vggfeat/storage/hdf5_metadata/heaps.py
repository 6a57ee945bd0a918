"""HDF5's heaps: local (names of old groups), global (texts), fractal (many links or attributes)."""

from __future__ import annotations

from vggfeat.storage.hdf5_metadata.blocks import (
    BlockReader,
    Fields,
    MetadataError,
    check,
    check_signature,
    check_version,
)
from vggfeat.storage.hdf5_metadata.trees import records_of

_GLOBAL_HEAD, _OBJECT_HEAD = 8, 8  # and a length each
_CHECKSUMMED = 2
_MANAGED, _HUGE, _TINY = 0, 1, 2
_HUGE_TREE = 1
_MOST_LEVELS = 16


class LocalHeap:
    """Names of a group of the old kind, by their offsets."""

    def __init__(self, blocks: BlockReader, address: int | None) -> None:
        head = blocks.fields(address, 8 + 2 * blocks.length_bytes + blocks.offset_bytes, "a heap")
        check_signature(head, b"HEAP", "a local heap")
        check_version(head, "a local heap", 0)
        head.take(3)
        size, _ = head.length(), head.length()
        self._data = blocks.bytes_at(head.address(), size, "a local heap")

    def text(self, offset: int) -> bytes:
        """Return the bytes up to the next NUL."""
        end = self._data.find(b"\0", offset)
        if offset >= len(self._data) or end < 0:
            raise MetadataError("a name lies outside of its local heap")
        return self._data[offset:end]


class GlobalHeaps:
    """Objects of the global heap, which has no checksums: every size in it may lie."""

    def __init__(self, blocks: BlockReader) -> None:
        self._blocks, self.offset_bytes = blocks, blocks.offset_bytes
        self._collections: dict[int, dict[int, bytes]] = {}

    def object(self, address: int, number: int) -> bytes:
        """Return an object of the collection at an address."""
        if address not in self._collections:
            self._collections[address] = self._read(address)
        if number not in self._collections[address]:
            raise MetadataError(f"the global heap has no object {number}")
        return self._collections[address][number]

    def _read(self, address: int) -> dict[int, bytes]:
        blocks, what = self._blocks, "the global heap"
        head = blocks.fields(address, _GLOBAL_HEAD + blocks.length_bytes, what)
        check_signature(head, b"GCOL", what)
        check_version(head, what, 1)
        head.take(3)
        size = head.length()
        fields = blocks.fields(address, size, what)
        fields.take(min(size, _GLOBAL_HEAD + blocks.length_bytes))
        found: dict[int, bytes] = {}
        while fields.left >= _OBJECT_HEAD + blocks.length_bytes:
            number = fields.uint(2)
            if not number:  # the free space, which is the last
                break
            fields.take(6)
            length = fields.length()
            if number in found:
                raise MetadataError(f"the global heap has object {number} twice")
            found[number] = fields.take(length)
            fields.take(min(-length % 8, fields.left))
        return found


class FractalHeap:
    """Links or attributes of an object that has many, by their identifiers."""

    def __init__(self, blocks: BlockReader, address: int | None) -> None:
        self._blocks, self._address = blocks, address
        size = 26 + 12 * blocks.length_bytes + 3 * blocks.offset_bytes
        head = blocks.checked(address, size, b"FRHP", "a fractal heap")
        check_version(head, "a fractal heap", 0)
        self.id_bytes, filters = head.uint(2), head.uint(2)
        self._flags, most_managed = head.uint(1), head.uint(4)
        head.length()
        self._huge = head.address()
        head.length()
        head.address()
        head.take(8 * blocks.length_bytes)
        self._width, self._start, most_direct = head.uint(2), head.length(), head.length()
        self._bits = head.uint(2)
        head.uint(2)
        self._root, self._rows = head.address(), head.uint(2)
        sizes = (self._width, self._start, most_direct)
        if filters or any(not one or one & one - 1 for one in sizes) or self._bits > 64:  # noqa: PLR2004 bits of an offset
            raise MetadataError("a fractal heap is compressed, or its sizes are no powers of two")
        self._direct_rows = most_direct.bit_length() - self._start.bit_length() + 2
        self._offset_bytes = -(-self._bits // 8)
        self._length_bytes = min(
            (most_direct.bit_length() + 6) // 8, (most_managed.bit_length() + 6) // 8
        )
        self._direct: dict[tuple[int | None, int], bytes] = {}
        self._indirect: dict[tuple[int | None, int], list[int | None]] = {}

    def object(self, identifier: bytes) -> bytes:
        """Return an object."""
        fields = Fields(identifier, self._blocks.offset_bytes, self._blocks.length_bytes)
        first = fields.uint(1)
        kind = first >> 4
        if kind == _MANAGED:
            offset, length = fields.uint(self._offset_bytes), fields.uint(self._length_bytes)
            return self._managed(offset, length)
        if kind == _HUGE:
            return self._find_huge(fields.uint(min(fields.left, self._blocks.length_bytes)))
        if kind == _TINY:
            return fields.take((first & 0xF) + 1)
        raise MetadataError("an object of a fractal heap is of a kind that is not known")

    def _find_huge(self, number: int) -> bytes:
        """Return an object that lies in the file by itself."""
        for record in records_of(self._blocks, self._huge, _HUGE_TREE):
            fields = Fields(record, self._blocks.offset_bytes, self._blocks.length_bytes)
            address, length = fields.address(), fields.length()
            if fields.length() == number:
                return self._blocks.bytes_at(address, length, "a large object")
        raise MetadataError(f"a fractal heap has no large object {number}")

    def _managed(self, offset: int, length: int) -> bytes:
        address, start, size = self._root, 0, self._start
        if self._rows:
            address, start, size = self._direct_at(offset)
        data = self._block(address, size)
        at = offset - start
        if at < 0 or at + length > size:
            raise MetadataError("an object lies outside of its fractal heap")
        return data[at : at + length]

    def _row(self, offset: int) -> tuple[int, int, int]:
        """Return row, size of a block in it, and offset of the row, of an indirect block."""
        first = self._width * self._start
        row = (offset // first).bit_length()
        size = self._start << max(row - 1, 0)
        return row, size, first << row - 1 if row else 0

    def _direct_at(self, offset: int) -> tuple[int | None, int, int]:
        """Return address, offset in the heap and size of the direct block that holds an offset."""
        address, rows, start = self._root, self._rows, 0
        for _ in range(_MOST_LEVELS):
            row, size, row_start = self._row(offset - start)
            if row >= rows:
                break
            column = (offset - start - row_start) // size
            child = self._children(address, rows)[row * self._width + column]
            start += row_start + column * size
            if row < self._direct_rows:
                return child, start, size
            address = child
            rows = size.bit_length() - (self._start * self._width).bit_length() + 1
        raise MetadataError("an object lies outside of its fractal heap")

    def _children(self, address: int | None, rows: int) -> list[int | None]:
        """Return the addresses of the children of an indirect block."""
        if (address, rows) in self._indirect:
            return self._indirect[address, rows]
        blocks, count = self._blocks, rows * self._width
        size = 9 + blocks.offset_bytes * (1 + count) + self._offset_bytes
        fields = blocks.checked(address, size, b"FHIB", "a block of a fractal heap")
        self._check_head(fields)
        children = [fields.address() for _ in range(count)]
        self._indirect[address, rows] = children
        return children

    def _block(self, address: int | None, size: int) -> bytes:
        """Return a direct block, its head included, which offsets count too."""
        if (address, size) in self._direct:
            return self._direct[address, size]
        what = "a block of a fractal heap"
        data = self._blocks.bytes_at(address, size, what)
        fields = Fields(data, self._blocks.offset_bytes, self._blocks.length_bytes)
        check_signature(fields, b"FHDB", what)
        self._check_head(fields)
        if self._flags & _CHECKSUMMED:
            at = fields.at
            check(data[:at] + bytes(4) + data[at + 4 :], fields.take(4), what)
        self._direct[address, size] = data
        return data

    def _check_head(self, fields: Fields) -> None:
        """Take what follows the signature of a block: version, heap, offset in it."""
        check_version(fields, "a block of a fractal heap", 0)
        if fields.address() != self._address:
            raise MetadataError("a block belongs to another fractal heap")
        fields.take(self._offset_bytes)
