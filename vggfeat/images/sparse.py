"""Read sparse files of GNU tar: data without their holes, and a map of where they belong.

GNU tar has written four forms: the old one in headers of their own, and in pax 0.0, 0.1 and 1.0
(www.gnu.org/software/tar/manual, "Storing Sparse Files").
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from vggfeat.images.archive_reader import DamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vggfeat.images.archive_reader import ArchiveReader, Place

    Pairs = Sequence[tuple[bytes, bytes]]
    Pieces = list[tuple[int, int]]

_BLOCK = 512
_ENTRY = 12  # bytes of a number in the old form
_MOST_PIECES = 2**20
_DIGITS = 20  # of the largest number


def end_of_map(source: ArchiveReader, header: bytes, offset: int) -> int:
    """Return the offset behind the headers that continue the map of the old form."""
    more = header[482] != 0
    while more:
        extension = source.read(offset, _BLOCK)
        offset += _BLOCK
        more = len(extension) == _BLOCK and extension[504] != 0
    return offset


def read_sparse(
    source: ArchiveReader, header: bytes, facts: Pairs, data: int, place: Place
) -> bytes:
    """Return the content of a sparse file, with zeros in its holes.

    Args:
        source: the archive.
        header: of the member.
        facts: its records `GNU.sparse.*` in their order; none in the old form.
        data: offset of what follows the header.
        place: with the sizes of the file, and of what is stored.
    """
    records = dict(facts)
    stored = place.packed
    if not facts:
        pieces, data = _old_map(source, header, data)
    elif b"GNU.sparse.major" in records:
        pieces, length = _map_in_data(source, data, stored)
        data, stored = data + length, stored - length
    elif b"GNU.sparse.map" in records:
        pieces = _paired(records[b"GNU.sparse.map"].split(b","))
    else:
        keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        pieces = _paired(value for key, value in facts if key in keys)
    _check(pieces, place.size, stored)
    packed = source.read(data, stored)
    if len(packed) < stored:
        raise DamagedError(f"{len(packed)} bytes of data, expected {stored}")
    whole, at = bytearray(place.size), 0
    for offset, length in pieces:
        whole[offset : offset + length] = packed[at : at + length]
        at += length
    return bytes(whole)


def _old_map(source: ArchiveReader, header: bytes, offset: int) -> tuple[Pieces, int]:
    """Return the pieces that the header and those that continue it name, and the next offset."""
    fields, more = header[386:482], header[482] != 0
    numbers: list[bytes] = []
    while True:
        entries = range(0, len(fields) - 2 * _ENTRY + 1, 2 * _ENTRY)
        for at in entries:
            if not fields[at : at + 2 * _ENTRY].strip(b"\0 "):
                break
            numbers += [fields[at : at + _ENTRY], fields[at + _ENTRY : at + 2 * _ENTRY]]
        if not more:
            break
        block = source.read(offset, _BLOCK)
        offset += _BLOCK
        if len(block) < _BLOCK or len(numbers) > 2 * _MOST_PIECES:
            raise DamagedError("its map of holes has no end")
        fields, more = block[:504], block[504] != 0
    values = [_binary_or_octal(text) for text in numbers]
    return list(zip(values[::2], values[1::2], strict=True)), offset


def _map_in_data(source: ArchiveReader, data: int, stored: int) -> tuple[Pieces, int]:
    """Return the pieces that lines of digits before the data name, and the bytes of these lines."""
    numbers: list[bytes] = []
    rest, length, count = b"", 0, 1
    while len(numbers) <= count:
        block = source.read(data + length, _BLOCK)
        length += _BLOCK
        if len(block) < _BLOCK or length > stored or len(rest) > _BLOCK:
            raise DamagedError("its map of holes has no end")
        *lines, rest = (rest + block).split(b"\n")
        numbers += [line for line in lines if not line.startswith(b"#")]  # libarchive's comments
        count = 2 * _number(numbers[0]) if numbers else count
        if count > 2 * _MOST_PIECES:
            raise DamagedError(f"its map of holes has {count // 2} pieces")
    return _paired(numbers[1 : count + 1]), length


def _paired(numbers: Iterable[bytes]) -> Pieces:
    values = [_number(text) for text in numbers if text]
    if len(values) % 2 or len(values) > 2 * _MOST_PIECES:
        raise DamagedError("its map of holes is not of pairs")
    return list(zip(values[::2], values[1::2], strict=True))


def _check(pieces: Pieces, size: int, stored: int) -> None:
    """Refuse pieces that overlap, lie outside of the file, or are not what is stored."""
    ends = [(offset, offset + length) for offset, length in pieces]
    if any(before[1] > after[0] for before, after in pairwise(ends)):
        raise DamagedError("pieces of its map of holes overlap")
    if ends and ends[-1][1] > size:
        raise DamagedError(f"its map of holes ends at byte {ends[-1][1]} of {size}")
    if sum(length for _, length in pieces) != stored:
        raise DamagedError("its map of holes does not fit what is stored")


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _DIGITS:
        raise DamagedError(f"{text[:_DIGITS]!r} in its map of holes")
    return int(text)


def _binary_or_octal(text: bytes) -> int:
    if text[0] == 0x80:  # noqa: PLR2004 a positive number, the rest of its bytes follow
        return int.from_bytes(text[1:], "big")
    digits = text.partition(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise DamagedError(f"{digits!r} in its map of holes") from None
