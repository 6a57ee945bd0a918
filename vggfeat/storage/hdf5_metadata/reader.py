"""HDF5 files as groups, datasets and attributes, read by `pread` and checked at every step.

A program that opens a file for writing marks it so in its superblock, and removes the mark when it
closes the file. HDF5 refuses marked files, also after that program was killed. Metadata has
checksums, and rows are read by a memory map; so a mark is reported and is no reason to refuse.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.text import counted
from vggfeat.storage.foreign_files import open_foreign
from vggfeat.storage.hdf5_metadata import objects
from vggfeat.storage.hdf5_metadata.blocks import (
    BlockReader,
    Fields,
    MetadataError,
    NotHdf5Error,
    check,
    check_version,
)
from vggfeat.storage.hdf5_metadata.heaps import GlobalHeaps
from vggfeat.storage.hdf5_metadata.layouts import (
    chunked_address,
    first_raw_file,
    read_layout,
    virtual_source,
)
from vggfeat.storage.hdf5_metadata.types import array_bytes, read_dataspace, read_datatype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from vggfeat.storage.hdf5_metadata.objects import Link, Message, RawAttribute
    from vggfeat.storage.hdf5_metadata.types import Datatype

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIRST_USER_BLOCK = 512
OPEN_MARKS = 0x01 | 0x04  # open for writing, and for several readers beside a writer
_MOST_HEAD_BYTES = 100

log = logging.getLogger("vggfeat")


@contextlib.contextmanager
def open_metadata(path: str) -> Iterator[Hdf5File]:
    """Open an HDF5 file; take no lock and change nothing.

    A file that is marked as open for writing is read too, after a warning.

    Raises:
        OSError: it does not exist, or cannot be read.
        MetadataError: it is no HDF5 file, is damaged, or lies.
    """
    with open_foreign(path, buffering=0) as stream:
        file = metadata_of(stream.fileno())
        if file.is_marked:
            tell_of_mark(path)
        yield file


def metadata_of(handle: int) -> Hdf5File:
    """Return the HDF5 file behind a descriptor, which must stay open; see `open_metadata`."""
    return Hdf5File(functools.partial(_read_fully, handle), os.fstat(handle).st_size)


def has_signature(path: str) -> bool:
    """Return whether a file has HDF5's signature, at its begin or behind a user block."""
    try:
        with open(path, "rb") as file:
            size, at = os.fstat(file.fileno()).st_size, 0
            while at < size:
                if os.pread(file.fileno(), len(SIGNATURE), at) == SIGNATURE:
                    return True
                at = max(_FIRST_USER_BLOCK, 2 * at)
    except OSError:
        pass
    return False


@functools.cache
def tell_of_mark(path: str) -> None:
    """Log a warning that a file is marked as open for writing, once for each name."""
    log.warning(
        "%r is marked as open for writing: another program has it open, or was killed. It is read "
        "all the same; `h5clear -s %s` takes the mark away, which other HDF5 programs need",
        path,
        path,
    )


def _read_fully(handle: int, offset: int, view: memoryview) -> int:
    done = 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done


class Hdf5File:
    """An HDF5 file.

    Args:
        read_into: fills a buffer from an offset in the file; returns the bytes read, fewer at its
            end.
        size: of the file in bytes.

    Attributes:
        is_marked: whether it is marked as open for writing, perhaps by a program that was killed.
        user_block: bytes in front of HDF5's first one.
        root: the group `/`.
    """

    def __init__(self, read_into: Callable[[int, memoryview], int], size: int) -> None:
        whole = BlockReader(read_into, size)
        self.user_block = self._base = base = _find_superblock(whole)
        head = whole.bytes_at(base, min(_MOST_HEAD_BYTES, size - base), "the superblock")
        self.is_marked = False
        version = head[len(SIGNATURE)]
        if version in (0, 1):
            root, end = self._old(head, version)
        elif version in (2, 3):
            root, end = self._new(head, version)
        else:
            raise MetadataError(f"its superblock has version {version}, expected 0 to 3")
        if end > size:
            raise NotHdf5Error(f"{counted(size, 'byte')}, expected {end} at least")
        offset_bytes, length_bytes = self._sizes
        if offset_bytes not in (2, 4, 8) or length_bytes not in (2, 4, 8):
            raise MetadataError(f"its addresses have {offset_bytes} bytes, lengths {length_bytes}")
        self.blocks = BlockReader(
            read_into, size, base=base, offset_bytes=offset_bytes, length_bytes=length_bytes
        )
        self.texts = GlobalHeaps(self.blocks)
        self.root = Group(self, objects.read_messages(self.blocks, root), "")

    def _old(self, head: bytes, version: int) -> tuple[int | None, int]:
        """Read a superblock of before HDF5 1.8; return the root's address, and the file's end."""
        self._sizes = head[13], head[14]
        fields = Fields(head, *self._sizes)
        fields.take(24 + (4 if version else 0))
        base = fields.address() or 0
        fields.address()
        end = fields.address() or 0
        fields.address()
        fields.uint(self._sizes[0])
        return fields.address(), end - base + self._base

    def _new(self, head: bytes, version: int) -> tuple[int | None, int]:
        self._sizes = head[9], head[10]
        fields = Fields(head, *self._sizes)
        fields.take(12)
        base = fields.address() or 0
        fields.address()
        end, root = fields.address() or 0, fields.address()
        check(head[: fields.at], fields.take(4), "the superblock")
        self.is_marked = version == 3 and bool(head[11] & OPEN_MARKS)  # noqa: PLR2004 the first with marks
        return root, end - base + self._base


def _find_superblock(blocks: BlockReader) -> int:
    """Return where the superblock begins: at 0, or behind a user block of a power of two bytes."""
    at = 0
    while at + _MOST_HEAD_BYTES // 2 <= blocks.size:
        if blocks.bytes_at(at, len(SIGNATURE), "the superblock") == SIGNATURE:
            return at
        at = max(_FIRST_USER_BLOCK, 2 * at)
    raise NotHdf5Error("it has no superblock of HDF5")


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a group or dataset; which kind of value is expected, the caller knows."""

    name: str
    _raw: RawAttribute
    _texts: GlobalHeaps

    def bytes(self) -> bytes:
        """Return one text as the bytes that it is stored as, without what fills it up.

        Raises:
            MetadataError: it is something else than one text.
        """
        kind = self._raw.datatype
        if kind.charset is None or self._raw.shape not in ((), (1,)):
            raise self._unexpected("one text")
        data = self._raw.data
        if not kind.variable_text:
            text = data[: kind.size]
            if kind.padding == 0:
                return text.split(b"\0", 1)[0]
            return text.rstrip(b"\0" if kind.padding == 1 else b" ")
        fields = Fields(data, self._texts.offset_bytes, 8)
        length, address, number = fields.uint(4), fields.address(), fields.uint(4)
        if not length or not address:
            return b""
        text = self._texts.object(address, number)
        if length > len(text):
            raise MetadataError(f"attribute {self.name} is longer than what the file holds of it")
        return text[:length]

    def text(self) -> str:
        """Return one text; bytes that are not UTF-8 become lone surrogates."""
        return self.bytes().decode("utf-8", "surrogateescape")

    def integer(self) -> int:
        """Return one whole number.

        Raises:
            MetadataError: it is something else.
        """
        kind = self._raw.datatype.numpy
        if kind is None or kind.kind not in "iu" or self._raw.shape not in ((), (1,)):
            raise self._unexpected("one whole number")
        if len(self._raw.data) < kind.itemsize:
            raise self._unexpected("one whole number")
        return int(np.frombuffer(self._raw.data, kind, 1)[0])

    def value(self) -> str | int | MetadataError:
        """Return a text or a whole number; for anything else the error that says what it is.

        Opaque bytes are a text too: h5py writes them of `numpy.void`.
        """
        if self._raw.datatype.is_opaque and self._raw.shape in ((), (1,)):
            return self._raw.data[: self._raw.datatype.size].decode("utf-8", "surrogateescape")
        if self._raw.datatype.charset is not None:
            return self.text() if self._raw.shape in ((), (1,)) else self._unexpected("one text")
        try:
            return self.integer()
        except MetadataError as error:
            return error

    def _unexpected(self, expected: str) -> MetadataError:
        return MetadataError(
            f"attribute {self.name} holds {_described(self._raw.datatype, self._raw.shape)}, "
            f"expected {expected}"
        )


def _described(kind: Datatype, shape: tuple[int, ...] | None) -> str:
    return f"{kind.words}, {'no value' if shape is None else f'shape {shape}'}"


class _Object:
    """What groups and datasets have in common."""

    def __init__(self, file: Hdf5File, messages: list[Message], name: str) -> None:
        self.name = name
        self._file, self._messages = file, messages

    @functools.cached_property
    def attributes(self) -> Mapping[str, Attribute]:
        """Attributes by name."""
        raw = objects.raw_attributes(self._file.blocks, self._messages)
        names = {name.decode("utf-8", "surrogateescape"): one for name, one in raw.items()}
        return {name: Attribute(name, one, self._file.texts) for name, one in names.items()}

    def _first(self, kind: int) -> Fields | None:
        for one in self._messages:
            if one.kind == kind:
                return objects.shared(self._file.blocks, one, kind)
        return None


class Group(_Object):
    """A group."""

    @functools.cached_property
    def links(self) -> Mapping[str, Link]:
        """Members by name."""
        found = objects.read_links(self._file.blocks, self._messages)
        return {name.decode("utf-8", "surrogateescape"): link for name, link in found.items()}

    def get(self, name: str) -> Group | Dataset | None:
        """Return a member; None if there is none, or it is only a link or a type."""
        link = self.links.get(name)
        if link is None or link.address is None:
            return None
        return self._open(f"{self.name}/{name}", link.address)

    def _open(self, path: str, address: int) -> Group | Dataset | None:
        messages = objects.read_messages(self._file.blocks, address)
        kinds = {one.kind for one in messages}
        if objects.LAYOUT in kinds:
            return Dataset(self._file, messages, path)
        if kinds & {objects.LINK, objects.LINK_INFO, objects.SYMBOL_TABLE}:
            return Group(self._file, messages, path)
        return None

    def datasets(self) -> Iterator[tuple[str, Dataset]]:
        """Yield all datasets below the group with their paths; each object once."""
        seen, todo = set[int](), [self]
        while todo:
            group = todo.pop()
            for name, link in sorted(group.links.items(), reverse=True):
                if link.address is None or link.address in seen:
                    continue
                seen.add(link.address)
                found = group.get(name)
                if isinstance(found, Dataset):
                    yield found.name[len(self.name) + 1 :], found
                elif found is not None:
                    todo.append(found)


class Dataset(_Object):
    """A dataset.

    Attributes:
        datatype: of its elements.
        shape: () for a scalar, None if it holds no value at all.
        filters: number of filters that its bytes have passed, such as compression.
        elsewhere: words for where its elements are, if not in this file; else empty.
    """

    def __init__(self, file: Hdf5File, messages: list[Message], name: str) -> None:
        super().__init__(file, messages, name)
        parts = [self._first(kind) for kind in (objects.DATATYPE, objects.DATASPACE)]
        if parts[0] is None or parts[1] is None:
            raise MetadataError(f"dataset {name} has no type or no shape")
        try:
            self.datatype = read_datatype(parts[0])
            self.shape = read_dataspace(parts[1])
            filters, layout = self._first(objects.FILTERS), self._first(objects.LAYOUT)
            self.filters = 0
            if filters is not None:
                check_version(filters, "filters", 1, 2)
                self.filters = filters.uint(1)
            self._layout = read_layout(layout or file.blocks.fields(None, 0, "a layout"))
            raw = self._first(objects.EXTERNAL_FILES)
            self.elsewhere = ""
            if raw is not None:
                self.elsewhere = f"lies in the raw file {first_raw_file(file.blocks, raw)!r}"
            elif self._layout.virtual is not None:
                source = virtual_source(file.texts, *self._layout.virtual)
                self.elsewhere = f"is a virtual dataset of {source!r}"
        except MetadataError as error:
            raise MetadataError(f"dataset {name}: {error}") from error

    @property
    def words(self) -> str:
        """Its type and shape, for messages."""
        return _described(self.datatype, self.shape)

    @property
    def is_chunked(self) -> bool:
        """Whether it is stored in chunks."""
        return self._layout.chunks is not None

    def offset(self) -> int | None:
        """Return where its bytes begin in the file; None unless they are one unfiltered run.

        Raises:
            MetadataError: they reach beyond the end of the file.
        """
        layout, blocks, shape = self._layout, self._file.blocks, self.shape
        if shape is None or self.filters or self.elsewhere:
            return None
        try:
            address = layout.address
            if layout.chunks is not None:
                if not shape or not all(shape) or layout.chunks[-1] != self.datatype.size:
                    return None
                address = chunked_address(blocks, layout, shape)
        except MetadataError as error:
            raise MetadataError(f"dataset {self.name}: {error}") from error
        if address is None:
            return None
        end = blocks.base + address + array_bytes(self.datatype, shape)
        if end > blocks.size:
            raise MetadataError(
                f"dataset {self.name} ({self.words}) reaches byte {end} of a file of "
                f"{blocks.size} bytes"
            )
        return blocks.base + address

    def read(self) -> NDArray[Any]:
        """Return all elements, a copy.

        Raises:
            MetadataError: they are compressed, of no type of NumPy, or not all in the file.
        """
        kind, shape = self.datatype.numpy, self.shape
        if kind is None or shape is None:
            raise MetadataError(f"dataset {self.name} holds {self.words}, expected numbers")
        stored = np.dtype(np.uint8) if kind == np.bool_ else kind
        data, count = self._layout.data, array_bytes(self.datatype, shape)
        offset = self.offset() if count and data is None else None
        if count and data is None and offset is None:
            raise MetadataError(
                f"dataset {self.name} does not lie in one run (compressed, or never written?); "
                "`h5repack -f NONE -l CONTI` makes it so"
            )
        if data is not None and len(data) < count:
            raise MetadataError(f"dataset {self.name} holds less than its shape {shape}")
        values = np.empty(shape, stored)
        view: memoryview = values.reshape(-1).data.cast("B")
        if data is not None:
            view[:] = data[:count]
        elif offset is not None:
            self._file.blocks.fill(offset - self._file.blocks.base, view, f"dataset {self.name}")
        return values != 0 if kind == np.bool_ else values
