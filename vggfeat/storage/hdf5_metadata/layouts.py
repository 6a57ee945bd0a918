"""Where the bytes of a dataset lie in an HDF5 file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.storage.hdf5_metadata.blocks import Fields, MetadataError, check_version
from vggfeat.storage.hdf5_metadata.heaps import LocalHeap
from vggfeat.storage.hdf5_metadata.trees import old_node, records_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.storage.hdf5_metadata.blocks import BlockReader
    from vggfeat.storage.hdf5_metadata.heaps import GlobalHeaps

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)
_SINGLE, _IMPLICIT, _FIXED_ARRAY, _EXTENSIBLE_ARRAY, _TREE = range(1, 6)
_CHUNK_RECORD = 10
_PARAMETER_BYTES = {_SINGLE: 0, _IMPLICIT: 0, _FIXED_ARRAY: 1, _EXTENSIBLE_ARRAY: 5, _TREE: 6}
_CHUNKS_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the bytes of a dataset lie.

    Attributes:
        address: of the bytes, or of the index of chunks; None if nothing was stored yet.
        chunks: shape of a chunk, its last number the size of an element; None without chunks.
        index: kind of the index of chunks; 0 is the B-tree of version 1.
        parameters: of the index.
        data: the bytes themselves, where they lie in the metadata.
        virtual: of a dataset that only refers to others, where in the global heap it says so.
    """

    address: int | None = None
    chunks: tuple[int, ...] | None = None
    index: int = 0
    parameters: bytes = b""
    data: bytes | None = None
    virtual: tuple[int, int] | None = None


def read_layout(fields: Fields) -> Layout:
    """Return the layout that a message describes."""
    version = check_version(fields, "a layout", 3, 4, 5)
    kind = fields.uint(1)
    if kind == _COMPACT:
        return Layout(data=fields.take(fields.uint(2)))
    if kind == _CONTIGUOUS:
        return Layout(fields.address())
    if kind == _VIRTUAL:
        return Layout(virtual=(fields.some_address("a virtual dataset"), fields.uint(4)))
    if kind != _CHUNKED:
        raise MetadataError(f"a layout is of class {kind}, which is not known")
    if version == 3:  # noqa: PLR2004 before HDF5 1.10
        axes, address = fields.uint(1), fields.address()
        return Layout(address, tuple(fields.uint(4) for _ in range(axes)))
    return _newer_chunks(fields)


def first_raw_file(blocks: BlockReader, fields: Fields) -> str:
    """Return the name of the first of the raw files that a message lists."""
    check_version(fields, "a list of raw files", 1)
    fields.take(7)
    names = LocalHeap(blocks, fields.address())
    return names.text(fields.length()).decode("utf-8", "surrogateescape")


def virtual_source(heaps: GlobalHeaps, address: int, number: int) -> str:
    """Return the name of the first file that a virtual dataset refers to."""
    entries = heaps.object(address, number)[9:]  # behind a version and a number of entries
    return entries.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _newer_chunks(fields: Fields) -> Layout:
    flags, axes, size = fields.uint(1), fields.uint(1), fields.uint(1)
    chunks = tuple(fields.uint(size) for _ in range(axes))
    index = fields.uint(1)
    if index not in _PARAMETER_BYTES:
        raise MetadataError(f"chunks are found by an index of kind {index}, which is not known")
    filtered = index == _SINGLE and flags & 2
    parameters = fields.take(fields.length_bytes + 4 if filtered else _PARAMETER_BYTES[index])
    return Layout(fields.address(), chunks, index, parameters)


def chunked_address(blocks: BlockReader, layout: Layout, shape: tuple[int, ...]) -> int | None:
    """Return the address of the first chunk, if all follow one another in whole rows.

    A few chunks stand for all: looking up each one of a large file takes too long.
    """
    chunks = layout.chunks or ()
    if len(chunks) != len(shape) + 1 or not all(chunks) or chunks[1:-1] != shape[1:]:
        return None
    size, count = math.prod(chunks), -(-shape[0] // chunks[0])
    if layout.index == _IMPLICIT:
        return layout.address
    if layout.index == _SINGLE:
        return layout.address if count == 1 and not layout.parameters else None
    look = _look_up(blocks, layout, count)
    first = look(0)
    steps = {number * (count - 1) // (_CHUNKS_LOOKED_AT - 1) for number in range(_CHUNKS_LOOKED_AT)}
    follow = first is not None and all(look(one) == first + one * size for one in sorted(steps))
    return first if follow else None


def _look_up(blocks: BlockReader, layout: Layout, count: int) -> Callable[[int], int | None]:
    """Return what finds a chunk's address by its number along the first axis."""
    chunks = layout.chunks or ()
    if layout.index == 0:
        return lambda number: _in_old_tree(blocks, layout.address, chunks, number)
    if layout.index == _FIXED_ARRAY:
        array = _FixedArray(blocks, layout.address, count)
        return array.address
    if layout.index == _TREE:
        return _tree_chunks(blocks, layout.address, len(chunks) - 1).get
    raise MetadataError(
        "chunks are found by an extensible array, which is not read here; `h5repack -f NONE -l "
        "CONTI` makes a file without"
    )


def _in_old_tree(
    blocks: BlockReader, address: int | None, chunks: tuple[int, ...], number: int
) -> int | None:
    """Find a chunk in a B-tree of version 1, whose keys are the offsets of chunks in elements."""
    key_bytes, wanted = 8 + 8 * len(chunks), number * chunks[0]
    level: int | None = None
    while address is not None:
        level, fields, count = old_node(blocks, address, 1, key_bytes, level)
        found, address = None, None
        for _ in range(count):
            fields.take(8)
            offset = fields.uint(8)
            fields.take(key_bytes - 16)
            child = fields.address()
            if offset <= wanted:
                found, address = offset, child
        if level == 0:
            return address if found == wanted else None
        level -= 1
    return None


def _tree_chunks(blocks: BlockReader, address: int | None, axes: int) -> dict[int, int | None]:
    """Return the addresses of chunks by their numbers, of a B-tree of version 2."""
    found = {}
    for record in records_of(blocks, address, _CHUNK_RECORD):
        fields = Fields(record, blocks.offset_bytes, blocks.length_bytes)
        place, number = fields.address(), fields.uint(8)
        fields.take(8 * (axes - 1))
        found[number] = place
    return found


class _FixedArray:
    """Addresses of a known number of chunks, in pages where they are many."""

    def __init__(self, blocks: BlockReader, address: int | None, count: int) -> None:
        what = "an array of chunks"
        size = 12 + blocks.length_bytes + blocks.offset_bytes
        head = blocks.checked(address, size, b"FAHD", what)
        check_version(head, what, 0)
        client, entry, page_bits = head.uint(1), head.uint(1), head.uint(1)
        most, self._at = head.length(), head.some_address(what)
        if client or entry != blocks.offset_bytes or most < count:
            raise MetadataError("an array of chunks has entries of another kind or number")
        self._blocks, self._count = blocks, most
        self._page = 1 << page_bits if page_bits < 64 and most > 1 << page_bits else 0  # noqa: PLR2004 bits
        pages = -(-most // self._page) if self._page else 0
        self._head = 6 + blocks.offset_bytes + -(-pages // 8)
        self._kept: dict[int, Fields] = {}
        if not self._page:
            data = blocks.checked(self._at, self._head + most * entry + 4, b"FADB", what)
            data.take(self._head - 4)
            self._kept[0] = data
        else:
            blocks.checked(self._at, self._head + 4, b"FADB", what)

    def address(self, number: int) -> int | None:
        """Return the address of a chunk."""
        width = self._blocks.offset_bytes
        page, entry = divmod(number, self._page) if self._page else (0, number)
        if page not in self._kept:
            entries = min(self._page, self._count - page * self._page)
            start = self._at + self._head + 4 + page * (self._page * width + 4)
            self._kept[page] = self._blocks.checked(
                start, entries * width + 4, b"", "a page of an array of chunks"
            )
        data = self._kept[page].data
        begin = len(data) - (len(data) // width * width) if self._page else self._head
        return self._blocks_address(data[begin + entry * width : begin + (entry + 1) * width])

    def _blocks_address(self, data: bytes) -> int | None:
        fields = Fields(data, self._blocks.offset_bytes, self._blocks.length_bytes)
        return fields.address()
