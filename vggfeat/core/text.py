"""Text: how that of a file is decoded, and how counts, names and figures are shown."""

from __future__ import annotations

import codecs
import os
from typing import TYPE_CHECKING

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


def decode_text(data: bytes, name: str, *, with_paths: bool = False) -> str:
    """Decode the bytes of a text file.

    UTF-8 with or without a byte order mark, or UTF-16 (as PowerShell's `>` writes it) with one. The
    mark is removed.

    Args:
        data: the whole file.
        name: what the file is to the user, for the error message, e.g. "labels 'classes.csv'".
        with_paths: whether some of it is paths, whose bytes need be no text: those that are not
            UTF-8 become surrogate escapes, and are to be refused where something else is meant.

    Raises:
        UsageError: the text is in another encoding, or holds a NUL character.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"
    try:
        text = data.decode(encoding, "surrogateescape" if with_paths and not utf16 else "strict")
    except UnicodeDecodeError as error:
        found = f"byte {data[error.start]:#04x} at offset {error.start}"
        expected = "UTF-16, as its byte order mark says" if utf16 else "UTF-8"
        raise UsageError(f"{name} is not {expected}: {found}; save it as UTF-8") from error
    if "\0" in text:
        raise UsageError(f"{name} holds NUL characters, so it is no text; save it as UTF-8")
    return text


def is_text(text: str) -> bool:
    """Return whether decoded text is free of surrogate escapes, the bytes that were not UTF-8."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in the right number: `1 image`, `0 images`, `2 classes`."""
    if count == 1:
        return f"{count} {noun}"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{count} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{count} {noun[:-1]}ies"
    return f"{count} {noun}s"


def agree(count: int, verb: str) -> str:
    """Return the verb as it goes with a count: `is` or `are` of "is", `hold` of "holds"."""
    if count == 1:
        return verb
    odd = {"is": "are", "was": "were", "has": "have", "does": "do", "matches": "match"}
    return odd.get(verb, verb.removesuffix("s"))


def byte_count(count: float) -> str:
    """Return `1.2 MB`, in powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 the step between units
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return `9.3 s`, `4 min 10 s` or `2 h 05 min`."""
    if seconds < 60:  # noqa: PLR2004 a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004 an hour
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: str) -> str:
    """Escape control characters and undecodable bytes, so that text can be shown and encoded."""
    try:
        safe = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON may have it
        safe = text.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)


_SHOWN = 5  # offenders that an error message names; it counts the others


def quoted(path: bytes) -> str:
    """Return a path as an error message shows it."""
    return repr(os.fsdecode(path))


def first_few(offenders: Iterable[str], separator: str = ", ") -> str:
    """Return the first five, and how many more there are: `a, b, c, d, e and 7 more`."""
    names = list(offenders)
    more = f"{separator.rstrip(', ')} and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)
    return separator.join(names[:_SHOWN]) + more
