"""Messages of HDF5's object headers, and what they say: links, attributes, types and places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vggfeat.storage.hdf5_metadata.blocks import (
    Fields,
    MetadataError,
    check_signature,
    check_version,
)
from vggfeat.storage.hdf5_metadata.heaps import FractalHeap, LocalHeap
from vggfeat.storage.hdf5_metadata.trees import old_leaves, records_of
from vggfeat.storage.hdf5_metadata.types import Datatype, read_dataspace, read_datatype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.storage.hdf5_metadata.blocks import BlockReader

DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT = 0x1, 0x2, 0x3, 0x6, 0x7, 0x8
FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 0xB, 0xC, 0x10, 0x11, 0x15

_SHARED = 2  # flag of a message that lies elsewhere
_UNKNOWN_IS_FATAL = 0x80
_MOST_KNOWN = 0x17
_LINK_TREE, _ATTRIBUTE_TREE = 5, 8
_HARD, _SOFT, _EXTERNAL = 0, 1, 64
_OLD_SOFT = 2
_IN_OTHER_HEADER = 2


class Message(NamedTuple):
    """One message of an object header: its type, flags and content."""

    kind: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """One member of a group.

    Attributes:
        address: of the object header; None of a link to a name.
        words: what it is, for messages.
    """

    address: int | None
    words: str = "a hard link"


@dataclass(frozen=True, slots=True)
class RawAttribute:
    """An attribute before its value is interpreted; its shape is None if it has no value."""

    datatype: Datatype
    shape: tuple[int, ...] | None
    data: bytes


def read_messages(blocks: BlockReader, address: int | None) -> list[Message]:
    """Return all messages of the object header at an address."""
    what = "an object header"
    begin = blocks.bytes_at(address, 4, what)
    first = _new_header if begin == b"OHDR" else _old_header
    messages, block = first(blocks, address or 0)
    seen = {address}
    at = 0
    while at < len(messages):
        one = messages[at]
        at += 1
        if one.kind > _MOST_KNOWN and one.flags & _UNKNOWN_IS_FATAL:
            raise MetadataError(f"an object header has a message of kind {one.kind}, not known")
        if one.kind != CONTINUATION:
            continue
        fields = Fields(one.data, blocks.offset_bytes, blocks.length_bytes)
        place, size = fields.address(), fields.length()
        if place in seen:
            raise MetadataError("an object header continues in a circle")
        seen.add(place)
        messages += block.continued(blocks, place, size)
    return messages


class _Style(NamedTuple):
    """How messages of a header are stored: version 1 or 2, and whether each has an order."""

    version: int
    ordered: bool = False

    def continued(self, blocks: BlockReader, address: int | None, size: int) -> list[Message]:
        """Return the messages of a continuation block."""
        what = "an object header's continuation"
        if self.version == 1:
            return self.split(blocks.fields(address, size, what))
        return self.split(blocks.checked(address, size, b"OCHK", what))

    def split(self, fields: Fields) -> list[Message]:
        """Return the messages in a block."""
        found = []
        while fields.left >= (8 if self.version == 1 else 4 + 2 * self.ordered):
            kind, size = fields.uint(2 if self.version == 1 else 1), fields.uint(2)
            flags = fields.uint(1)
            fields.take(3 if self.version == 1 else 2 * self.ordered)
            found.append(Message(kind, flags, fields.take(size)))
        return found


def _old_header(blocks: BlockReader, address: int) -> tuple[list[Message], _Style]:
    what = "an object header"
    head = blocks.fields(address, 16, what)
    check_version(head, what, 1)
    head.take(7)
    style = _Style(1)
    return style.split(blocks.fields(address + 16, head.uint(4), what)), style


def _new_header(blocks: BlockReader, address: int) -> tuple[list[Message], _Style]:
    what = "an object header"
    head = blocks.fields(address, 6, what)
    check_signature(head, b"OHDR", what)
    check_version(head, what, 2)
    flags = head.uint(1)
    skipped = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    start = blocks.fields(address, skipped + width, what)
    start.take(skipped)
    size = start.uint(width)
    fields = blocks.checked(address, skipped + width + size + 4, b"OHDR", what)
    fields.take(skipped + width - 4)
    style = _Style(2, ordered=bool(flags & 4))
    return style.split(fields), style


def shared(blocks: BlockReader, message: Message, kind: int) -> Fields:
    """Return the fields of a message, from another object's header if it is there."""
    fields = Fields(message.data, blocks.offset_bytes, blocks.length_bytes)
    return _resolve(blocks, fields, kind) if message.flags & _SHARED else fields


def _resolve(blocks: BlockReader, fields: Fields, kind: int) -> Fields:
    version, where = fields.uint(1), fields.uint(1)
    if version not in (2, 3) or (version == 3 and where != _IN_OTHER_HEADER):  # noqa: PLR2004 versions
        raise MetadataError("a message is shared in a way that is not read here")
    for one in read_messages(blocks, fields.address()):
        if one.kind == kind and not one.flags & _SHARED:
            return fields.rest(one.data)
    raise MetadataError("a message that objects share does not exist")


def read_links(blocks: BlockReader, messages: list[Message]) -> dict[bytes, Link]:
    """Return the members of a group by their names."""
    found: dict[bytes, Link] = {}
    for name, link in _all_links(blocks, messages):
        if name in found:
            raise MetadataError(f"a group has two members called {name!r}")
        found[name] = link
    return found


def _all_links(blocks: BlockReader, messages: list[Message]) -> Iterator[tuple[bytes, Link]]:
    for one in messages:
        fields = Fields(one.data, blocks.offset_bytes, blocks.length_bytes)
        if one.kind == LINK:
            yield _link(fields)
        elif one.kind == LINK_INFO:
            check_version(fields, "a group", 0)
            fields.take(8 if fields.uint(1) & 1 else 0)
            heap_at, tree_at = fields.address(), fields.address()
            if heap_at is not None:
                heap = FractalHeap(blocks, heap_at)
                for record in records_of(blocks, tree_at, _LINK_TREE):
                    yield _link(fields.rest(heap.object(record[4 : 4 + heap.id_bytes])))
        elif one.kind == SYMBOL_TABLE:
            tree_at, heap_at = fields.address(), fields.address()
            names = LocalHeap(blocks, heap_at)
            for place in old_leaves(blocks, tree_at):
                yield from _symbols(blocks, place, names)


def _link(fields: Fields) -> tuple[bytes, Link]:
    check_version(fields, "a link", 1)
    flags = fields.uint(1)
    kind = fields.uint(1) if flags & 8 else _HARD
    fields.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    name = fields.take(fields.uint(1 << (flags & 3)))
    if kind == _HARD:
        return name, Link(fields.some_address("a link"))
    value = fields.take(fields.uint(2))
    if kind == _SOFT:
        return name, Link(None, f"a soft link to {_text(value)!r}")
    if kind == _EXTERNAL:
        file, _, target = value[1:].rstrip(b"\0").partition(b"\0")
        return name, Link(None, f"an external link to {_text(target)!r} in {_text(file)!r}")
    return name, Link(None, "a link of a kind that is not known")


def _symbols(blocks: BlockReader, address: int, names: LocalHeap) -> Iterator[tuple[bytes, Link]]:
    what = "a table of a group"
    head = blocks.fields(address, 8, what)
    check_signature(head, b"SNOD", what)
    check_version(head, what, 1)
    head.take(1)
    count = head.uint(2)
    fields = blocks.fields(address + 8, count * (24 + 2 * blocks.offset_bytes), what)
    for _ in range(count):
        name = names.text(fields.uint(blocks.offset_bytes))
        place, kind = fields.address(), fields.uint(4)
        fields.take(4)
        scratch = fields.rest(fields.take(16))
        if kind == _OLD_SOFT:
            target = _text(names.text(scratch.uint(4)))
            yield name, Link(None, f"a soft link to {target!r}")
        else:
            yield name, Link(place)


def raw_attributes(blocks: BlockReader, messages: list[Message]) -> dict[bytes, RawAttribute]:
    """Return the attributes of an object by their names."""
    found: dict[bytes, RawAttribute] = {}
    for name, attribute in _all_attributes(blocks, messages):
        if name in found:
            raise MetadataError(f"an object has two attributes called {name!r}")
        found[name] = attribute
    return found


def _all_attributes(
    blocks: BlockReader, messages: list[Message]
) -> Iterator[tuple[bytes, RawAttribute]]:
    for one in messages:
        fields = Fields(one.data, blocks.offset_bytes, blocks.length_bytes)
        if one.kind == ATTRIBUTE:
            yield _attribute(blocks, shared(blocks, one, ATTRIBUTE))
        elif one.kind == ATTRIBUTE_INFO:
            check_version(fields, "attributes", 0)
            fields.take(2 if fields.uint(1) & 1 else 0)
            heap_at, tree_at = fields.address(), fields.address()
            if heap_at is not None:
                heap = FractalHeap(blocks, heap_at)
                for record in records_of(blocks, tree_at, _ATTRIBUTE_TREE):
                    if record[heap.id_bytes : heap.id_bytes + 1] != b"\0":
                        raise MetadataError("an attribute is shared, which is not read here")
                    yield _attribute(blocks, fields.rest(heap.object(record[: heap.id_bytes])))


def _attribute(blocks: BlockReader, fields: Fields) -> tuple[bytes, RawAttribute]:
    version = check_version(fields, "an attribute", 1, 2, 3)
    flags = fields.uint(1)
    sizes = [fields.uint(2) for _ in range(3)]
    if version == 3:  # noqa: PLR2004 with the character set of the name
        fields.take(1)
    parts = []
    for size in sizes:
        parts.append(fields.take(size))
        if version == 1:
            fields.take(-size % 8)
    name, type_data, space_data = parts
    kinds = fields.rest(type_data), fields.rest(space_data)
    if version > 1 and flags & 1:
        kinds = _resolve(blocks, kinds[0], DATATYPE), kinds[1]
    if version > 1 and flags & 2:
        kinds = kinds[0], _resolve(blocks, kinds[1], DATASPACE)
    attribute = RawAttribute(
        read_datatype(kinds[0]), read_dataspace(kinds[1]), fields.take(fields.left)
    )
    return name.split(b"\0", 1)[0], attribute


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
