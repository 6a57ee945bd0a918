"""Lists of paths: what separates them, in which encoding they are, and what is no list at all.

A path is bytes, and those of a file system need be no text. So a list is bytes too, and only a byte
order mark has it decoded.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from typing import TYPE_CHECKING, Final

from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Exists = Callable[[bytes], bool]

_log = logging.getLogger("vggfeat")

_LONGEST: Final = 4096  # bytes of a path on Linux (PATH_MAX), and of an object's key on S3 1024
_CONTROL: Final = bytes({*range(1, 32), 127} - set(b"\t\n\r\x1b"))  # ISO 2022 has escapes
_CONTROLS_AT_MOST: Final = (16, 0.04)  # of that many the share; random bytes have 0.11

LOOKED_AT: Final = 1 << 16
"""Bytes at the beginning of a list that tell text from other data."""

_KINDS: Final = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b\x08", "a file compressed by gzip"),
    (b"BZh91AY&SY", "a file compressed by bzip2"),
    (b"\xfd7zXZ\0", "a file compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89VGG\r\n\x1a\n", "a cache of vggfeat"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program"),
)
_KINDS_WITHIN: Final = (
    (257, b"ustar", "a tar archive"),
    (128, b"DICM", "a DICOM file"),
    (8, b"WEBP", "a WebP image"),
    (6, b"\0\0\0\0", "binary data"),  # among others a BMP image
)
_PNM = re.compile(rb"P[1-7]\s+(?:#[^\n]*\n)*(?:\d+\s+\d+|WIDTH)\s")


def read_paths(
    data: bytes, name: str, exists: Exists, resolve: Callable[[bytes], bytes] = bytes
) -> Iterator[bytes]:
    """Yield the paths in a list, as the file system's own bytes.

    Data with a NUL byte is separated by NULs, other data by line ends: line feeds, carriage
    returns, or both together. Empty entries, and lines of blanks, are skipped. A line with a
    carriage return that exists as a path is one path. A line that begins with `#` is a comment
    unless it exists as a path; a warning says how many there are. A byte order mark is removed;
    with one of UTF-16, as PowerShell's `>` writes it, the text is converted to UTF-8 first.

    Args:
        data: the whole list.
        name: what the list is to the user, for errors, e.g. "list 'a.txt'".
        exists: whether something exists at a path.
        resolve: gives the path that an entry stands for, e.g. that of an address.

    UTF-16 without a mark, UTF-32, an image, an archive and other data are refused, and so is an
    entry that ends in `..` or stands for the folder `.` or `/`.
    """
    data = _to_bytes(data, name)
    lines = b"\0" not in data
    separator, unit = (b"\n", "line") if lines else (b"\0", "entry")
    _check_is_list(data[:LOOKED_AT], separator, name, exists)
    comments, first = 0, ""
    for number, entry in enumerate(_lines(data, exists) if lines else pieces(data, b"\0"), 1):
        if not (entry.strip() if lines else entry):
            continue
        if lines and entry.startswith(b"#") and not exists(entry):
            comments, first = comments + 1, first or f"line {number}: {os.fsdecode(entry[:60])!r}"
            continue
        path = resolve(entry)
        _check_path(path, f"{unit} {number}", name)
        yield path
    if comments:
        _log.warning(
            "%s: lines skipped as comments, because they begin with '#' and no such file exists: "
            "%d (%s); write ./ before the # of a path",
            name,
            comments,
            first,
        )


def pieces(data: bytes, separator: bytes) -> Iterator[bytes]:
    """Yield what `data.split(separator)` gives, one piece at a time."""
    start = 0
    while (end := data.find(separator, start)) >= 0:
        yield data[start:end]
        start = end + 1
    yield data[start:]


def _to_bytes(data: bytes, name: str) -> bytes:
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UsageError(f"{name} is in UTF-32, as its byte order mark says; save it as UTF-8")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return os.fsencode(data.decode("utf-16"))
        except UnicodeError as error:
            raise UsageError(
                f"{name} begins with the byte order mark of UTF-16, and is not UTF-16 ({error}); "
                "save it as UTF-8, or write ./ before a path of such bytes"
            ) from error
    return data.removeprefix(codecs.BOM_UTF8)


def check_beginning(head: bytes, name: str, exists: Exists) -> None:
    """Refuse a list as `read_paths` would, as far as its first `LOOKED_AT` bytes show."""
    if not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        _check_is_list(head, b"\0" if b"\0" in head else b"\n", name, exists)


def _check_is_list(head: bytes, separator: bytes, name: str, exists: Exists) -> None:
    """Refuse UTF-16 without its mark, and what begins like other data than paths."""
    if separator == b"\0" and _is_utf16(head, exists):
        raise UsageError(
            f"{name} is UTF-16 without a byte order mark; save it as UTF-8, or with the mark"
        )
    kind = _kind_of(head)
    if kind and not exists(head[: _LONGEST + 1].partition(separator)[0]):
        raise UsageError(
            f"{name} is {kind} and no list of paths; to name a file itself, leave the @ out"
        )


def _kind_of(head: bytes) -> str:
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    for at, magic, kind in _KINDS_WITHIN:
        if head[at : at + len(magic)] == magic:
            return kind
    if _PNM.match(head):
        return "a PNM image"
    controls = len(head) - len(head.translate(None, _CONTROL))
    least, share = _CONTROLS_AT_MOST
    return "binary data" if controls >= least and controls > share * len(head) else ""


def _is_utf16(head: bytes, exists: Exists) -> bool:
    """Return whether NULs separate single letters, as in UTF-16, that are no names of files."""
    entries = [entry for entry in head.split(b"\0") if entry]
    letters = [entry for entry in entries if len(entry) == 1]
    if not letters or 2 * len(letters) < len(entries):
        return False
    names = set(letters)
    return not names.isdisjoint({b".", b"/", b"\r", b"\n"}) or not any(map(exists, names))


def _lines(data: bytes, exists: Exists) -> Iterator[bytes]:
    """Yield lines without their ends, `LF`, `CR LF` or, as on old Macs, `CR` alone.

    A carriage return may also belong to a name: to one that exists with it, and not without.
    """
    for line in pieces(data, b"\n"):
        plain = line.removesuffix(b"\r")
        if plain == line and b"\r" not in line:
            yield line
        elif plain != line and exists(plain):
            yield plain
        elif exists(line):
            yield line
        else:
            yield from pieces(plain, b"\r")


def _check_path(path: bytes, where: str, name: str) -> None:
    """Refuse an entry that would take in everything below a folder nobody named, or is no path."""
    if len(path) > _LONGEST:
        raise UsageError(
            f"{name} is no list of paths: {where} has {counted(len(path), 'byte')}, a path has at "
            f"most {_LONGEST}; to name a file itself, leave the @ out"
        )
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not parts or parts[-1] == b"..":
        raise UsageError(
            f"{name}, {where}: {os.fsdecode(path)!r} would take in everything below that folder; "
            "name the folder as a source, or its full path in the list"
        )
