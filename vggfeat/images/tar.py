"""Read the headers of tar archives of every kind: ustar, GNU, pax, and the tar before them.

The standard library's `tarfile` takes a broken header for the end of the archive, keeps all members
in memory, trusts the sizes it reads, and is several times slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggfeat.core.text import counted
from vggfeat.images.archive_reader import TAR_SPARSE, DamagedError, Place
from vggfeat.images.sparse import end_of_map, read_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.images.archive_reader import ArchiveReader

_BLOCK = 512
_LARGEST_HEADER = 2**22  # bytes of a long name or of pax records
_LARGEST = 2**62  # bytes of a member; a larger size would not fit in `PLACE`
_DIGITS = 20  # of the largest size
_STRETCH = 2**20  # bytes of zeros that are skipped at once

_FILES = (b"0", b"\0", b"7")
_FOLDER = b"5"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, FIFOs
_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK = (b"x", b"X"), b"g", b"L", b"K"
_SPARSE = b"S"
_HOLES_OF_SOLARIS = b"SUN.holesdata"


@dataclass(slots=True)
class _Overrides:
    """What extension headers state about the next member; `for_all`, about all that follow."""

    name: bytes = b""
    records: dict[bytes, bytes] = field(default_factory=dict)
    for_all: dict[bytes, bytes] = field(default_factory=dict)
    pairs: list[tuple[bytes, bytes]] = field(default_factory=list)

    def get(self, key: bytes) -> bytes:
        return self.records.get(key, self.for_all.get(key, b""))

    def is_sparse(self) -> bool:
        return any(key.startswith(b"GNU.sparse.") for key in self.records)

    def sparse_facts(self) -> list[tuple[bytes, bytes]]:
        return [pair for pair in self.pairs if pair[0].startswith(b"GNU.sparse.")]


def read_tar(source: ArchiveReader) -> Iterator[tuple[bytes, Place | None]]:
    """Yield the name and place of all members but folders, also of concatenated archives.

    A name has the bytes of the file system that the archive was made from. Links and devices have
    no place. A sparse file has that of its first header, see `sparse_member`.

    Raises DamagedError, after the members before it, if the archive is truncated or a header is
    broken.
    """
    for member in _members(source, 0):
        yield member.name, member.place


def sparse_member(source: ArchiveReader, place: Place) -> bytes:
    """Return the content of a sparse file, holes as zeros; raise DamagedError if it has none."""
    member = next(_members(source, place.offset), None)
    if member is None or member.place != place._replace(archive=0):
        raise DamagedError(f"no sparse file at byte {place.offset}")
    return read_sparse(source, member.header, member.said.sparse_facts(), member.data, place)


@dataclass(frozen=True, slots=True)
class _Member:
    """A member: its header, the offset of its data, and what extensions state about it."""

    name: bytes
    place: Place | None
    header: bytes
    data: int
    said: _Overrides


def _members(source: ArchiveReader, offset: int) -> Iterator[_Member]:
    said, ended, first = _Overrides(), False, offset
    while True:
        block = source.read(offset, _BLOCK)
        if len(block) == _BLOCK and not any(block):
            ended, offset = True, _behind_zeros(source, offset + _BLOCK)
            first = offset
            continue
        if not block and ended:
            return
        kind = _checked(block, offset)
        ended = False
        if kind in (*_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK):
            offset = _read_extension(source, block, offset, said)
            continue
        member, offset = _member(source, block, offset, said, first)
        said, first = _Overrides(for_all=said.for_all), offset
        if member is not None:
            yield member


def _behind_zeros(source: ArchiveReader, offset: int) -> int:
    """Return the offset of the first block from `offset` on that is not zero, or the end."""
    while stretch := source.read(offset, _STRETCH):
        rest = stretch.lstrip(b"\0")
        if rest:
            return offset + (len(stretch) - len(rest)) // _BLOCK * _BLOCK
        offset += len(stretch)
    return offset


def _checked(block: bytes, offset: int) -> bytes:
    """Check the checksum of a header, and return the header's type."""
    if len(block) < _BLOCK:
        raise DamagedError(f"cut short: it ends at byte {offset + len(block)}")
    stated = _octal(block[148:156])
    blanked = block[:148] + b" " * 8 + block[156:]
    total = sum(blanked)
    # Some old programs write the sum of signed bytes.
    if stated != total and stated != total - 256 * sum(byte >> 7 for byte in blanked):
        raise DamagedError(f"no tar header at byte {offset}")
    return block[156:157]


def _read_extension(source: ArchiveReader, block: bytes, offset: int, said: _Overrides) -> int:
    """Note in `said` what the header at `offset` states; return the offset of the next header."""
    size = _number(block[124:136], offset)
    data = source.read(offset + _BLOCK, size) if size <= _LARGEST_HEADER else b""
    if len(data) < size:
        raise DamagedError(
            f"header of {counted(size, 'byte')} at byte {offset}, which is cut or no header"
        )
    kind = block[156:157]
    if kind == _LONG_NAME:
        said.name = _text(data)
    elif kind == _PAX_FOR_ALL:
        said.for_all.update(_pax_records(data, offset))
    elif kind in _PAX:
        said.pairs += _pax_records(data, offset)
        said.records.update(said.pairs)
    return offset + _BLOCK + _padded(size)


def _member(
    source: ArchiveReader, block: bytes, offset: int, said: _Overrides, first: int
) -> tuple[_Member | None, int]:
    """Return the member whose header is at `offset`, None for a folder, and the next offset."""
    kind, data = block[156:157], offset + _BLOCK
    size = _number(said.get(b"size") or block[124:136], offset, decimal=bool(said.get(b"size")))
    name = said.get(b"GNU.sparse.name") or said.get(b"path") or said.name or _own_name(block)
    if kind == _FOLDER or (kind == _FILES[1] and name.endswith(b"/")):
        return None, data
    place: Place | None = None
    if kind == _SPARSE or said.is_sparse():
        place = Place(first, _real_size(block, said, offset), size, method=TAR_SPARSE)
    elif kind in _FILES and not said.get(_HOLES_OF_SOLARIS):
        place = Place(data, size, size)
    found = _Member(name, place, block, data, said)
    if kind in _WITHOUT_DATA:
        return found, data
    if kind == _SPARSE:
        data = end_of_map(source, block, data)
    return found, data + _padded(size)


def _real_size(block: bytes, said: _Overrides, offset: int) -> int:
    """Return the size of a sparse file with its holes."""
    stated = said.get(b"GNU.sparse.realsize") or said.get(b"GNU.sparse.size")
    if said.is_sparse():
        return _number(stated or b"-", offset, decimal=True)
    return _number(block[483:495], offset)


def _own_name(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU tar writes other fields where POSIX has the beginning of a long name.
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _pax_records(data: bytes, offset: int) -> list[tuple[bytes, bytes]]:
    """Parse the records of a pax header, each `LENGTH KEY=VALUE` with the length of all of it."""
    records, at = [], 0
    while at < len(data) and data[at]:
        length, _, _ = data[at : at + 20].partition(b" ")
        end = at + (int(length) if length.isdigit() else 0)
        key, equals, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        if not equals or not at < end <= len(data):  # a length of 0 would never end
            raise DamagedError(f"invalid pax header at byte {offset}")
        records.append((key, value))
        at = end
    return records


def _number(text: bytes, offset: int, *, decimal: bool = False) -> int:
    """Parse a size: octal digits, or binary if the first bit is set; in pax, decimal digits."""
    if decimal:
        value = int(text) if text.isdigit() and len(text) <= _DIGITS else -1
    elif text[0] == 0x80:  # noqa: PLR2004 a positive number, the rest of its bytes follow
        value = int.from_bytes(text[1:], "big")
    else:
        value = _octal(text)
    if not 0 <= value <= _LARGEST:
        raise DamagedError(f"invalid size {text!r} of the member at byte {offset}")
    return value


def _octal(text: bytes) -> int:
    """Parse octal digits with blanks around and a NUL behind; return -1 for anything else."""
    digits = _text(text).strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return -1


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
