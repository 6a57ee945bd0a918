"""How DICOM files are told from others by their first bytes."""

from __future__ import annotations

from typing import Final, Literal

HEAD_BYTES: Final = 132
"""That tell whether a file is DICOM."""

_PREAMBLE, _MARK = 128, b"DICM"
_FIRST_KINDS = frozenset((b"UL", b"CS", b"UI", b"DA", b"TM", b"SH", b"LO", b"OB", b"DT"))
_FIRST_NUMBERS = 0x100  # of elements in a group; more than come first
# Without the kind of the value, the lengths that these first elements may have tell them from
# other data: group length, length to end, character set, image type, dates, and UIDs.
_IMPLICIT_LENGTHS: Final = {
    0x00: (4,),
    0x01: (4,),
    0x05: range(2, 130, 2),
    0x08: range(2, 258, 2),
    0x12: (8,),
    0x16: range(10, 66, 2),
    0x18: range(10, 66, 2),
}


def is_dicom_head(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` of a file are those of DICOM.

    That is 128 bytes of anything and the mark; or, as old archives and some exports have it, the
    first element at once.
    """
    return head[_PREAMBLE:HEAD_BYTES] == _MARK or _is_first_element(head)


def _is_first_element(head: bytes) -> bool:
    """Return whether data begins with an element of group 0002 or 0008, DICOM PS3.5 section 7.1."""
    if len(head) < 8 or head[:2] not in (b"\2\0", b"\x08\0", b"\0\x08"):  # noqa: PLR2004 bytes of it
        return False
    order: Literal["little", "big"] = "big" if head[0] == 0 else "little"
    number = int.from_bytes(head[2:4], order)
    if head[4:6] in _FIRST_KINDS:  # explicit: the kind of the value follows
        return number < _FIRST_NUMBERS
    length = int.from_bytes(head[4:8], "little")
    lengths = _IMPLICIT_LENGTHS.get(number, ())
    return order == "little" and length in lengths
