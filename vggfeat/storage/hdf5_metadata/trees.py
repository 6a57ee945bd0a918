"""HDF5's B-trees: version 1 (members of old groups, chunks) and version 2 (many of anything)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.storage.hdf5_metadata.blocks import (
    MetadataError,
    check_signature,
    check_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.storage.hdf5_metadata.blocks import BlockReader, Fields

_MOST_LEVELS = 16
_NODE_OVERHEAD = 10  # signature, version, type, checksum
_OLD_HEAD = 8  # and two addresses


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of the nodes of a tree of version 2.

    Attributes:
        kind: type of the tree.
        record: bytes of a record.
        count: bytes of the number of records in a child.
        totals: for each level, bytes of the number of records below a node of it.
    """

    kind: int
    record: int
    count: int
    totals: tuple[int, ...]


def records_of(blocks: BlockReader, address: int | None, kind: int) -> Iterator[bytes]:
    """Yield all records of a B-tree of version 2.

    Args:
        blocks: of the file.
        address: of the tree's header; without one there are no records.
        kind: type that the tree must have.
    """
    if address is None:
        return
    what = "a B-tree"
    head_bytes = 22 + blocks.offset_bytes + blocks.length_bytes
    head = blocks.checked(address, head_bytes, b"BTHD", what)
    check_version(head, what, 0)
    found, node_bytes, record_bytes, depth = (head.uint(size) for size in (1, 4, 2, 2))
    head.take(2)
    root, count, total = head.address(), head.uint(2), head.length()
    if found != kind or depth > _MOST_LEVELS or node_bytes <= _NODE_OVERHEAD or not record_bytes:
        raise MetadataError(f"a B-tree has type {found}, depth {depth}; expected type {kind}")
    shape = _shape(blocks, kind, node_bytes, record_bytes, depth)
    seen, left = set[int](), total
    todo = [(root, count, depth)] if count else []
    while todo:
        node, count, level = todo.pop()
        if node is None or node in seen:
            raise MetadataError("a B-tree refers to a node twice, or to none")
        seen.add(node)
        left -= count
        if left < 0:
            break
        records, children = _node(blocks, node, count, level, shape)
        yield from records
        todo += children
    if left:
        raise MetadataError(f"a B-tree has other than the {total} records it claims")


def _shape(blocks: BlockReader, kind: int, node: int, record: int, depth: int) -> _Shape:
    most = (node - _NODE_OVERHEAD) // record
    count = _bytes_for(most)
    total, totals = most, [0]
    for _ in range(depth):
        pointer = blocks.offset_bytes + count + totals[-1]
        most = (node - _NODE_OVERHEAD - pointer) // (record + pointer)
        total = (most + 1) * total + most
        if most < 1:
            raise MetadataError("a B-tree has nodes too small for a record")
        totals.append(_bytes_for(total))
    return _Shape(kind, record, count, tuple(totals))


def _bytes_for(most: int) -> int:
    return (max(most, 1).bit_length() - 1) // 8 + 1


def _node(
    blocks: BlockReader, address: int, count: int, level: int, shape: _Shape
) -> tuple[list[bytes], list[tuple[int | None, int, int]]]:
    """Return the records of a node; address, records and level of each of its children."""
    pointer = blocks.offset_bytes + shape.count + shape.totals[level - 1] if level else 0
    size = _NODE_OVERHEAD + count * shape.record + (count + 1) * pointer
    signature = b"BTIN" if level else b"BTLF"
    fields = blocks.checked(address, size, signature, "a node of a B-tree")
    check_version(fields, "a node of a B-tree", 0)
    if fields.uint(1) != shape.kind:
        raise MetadataError("a node of a B-tree is of another type than the tree")
    records = [fields.take(shape.record) for _ in range(count)]
    children = []
    for _ in range(count + 1 if level else 0):
        child, below = fields.address(), fields.uint(shape.count)
        fields.take(shape.totals[level - 1])
        children.append((child, below, level - 1))
    return records, children


def old_leaves(blocks: BlockReader, address: int | None) -> Iterator[int]:
    """Yield the addresses that the leaves of a group's B-tree of version 1 refer to."""
    seen = set[int]()
    todo: list[tuple[int | None, int | None]] = [(address, None)]
    while todo:
        node, expected = todo.pop()
        if node is None or node in seen:
            raise MetadataError("a B-tree refers to a node twice, or to none")
        level, fields, count = old_node(blocks, node, 0, blocks.length_bytes, expected)
        seen.add(node)
        for _ in range(count):
            fields.length()
            child = fields.some_address("a node of a B-tree")
            if level:
                todo.append((child, level - 1))
            else:
                yield child


def old_node(
    blocks: BlockReader, address: int | None, kind: int, key_bytes: int, level: int | None
) -> tuple[int, Fields, int]:
    """Return level, keys and children, and number of children of a node of version 1.

    Args:
        blocks: of the file.
        address: of the node.
        kind: 0 for groups, 1 for chunks.
        key_bytes: size of a key.
        level: which it must be; any if None.
    """
    what = "a node of a B-tree"
    head_bytes = _OLD_HEAD + 2 * blocks.offset_bytes
    head = blocks.fields(address, head_bytes, what)
    check_signature(head, b"TREE", what)
    found, at, count = head.uint(1), head.uint(1), head.uint(2)
    if found != kind or (level is not None and at != level) or at > _MOST_LEVELS:
        raise MetadataError(f"a node of a B-tree has type {found} and level {at}")
    size = count * (key_bytes + blocks.offset_bytes) + key_bytes
    fields = blocks.fields(address, head_bytes + size, what)
    fields.take(head_bytes)
    return at, fields, count
