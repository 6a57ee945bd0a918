"""Decoding of text that somebody gives us: UTF-8, or UTF-16 where a byte order mark says so."""

from __future__ import annotations

import codecs

from vggfeat.errors import UsageError


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
    """Return a count with its noun in the right number: `1 image`, `0 images`, `2 classes`.

    Args:
        count: of the things.
        noun: one of them, e.g. "class" or "hidden folder".
    """
    if count == 1:
        return f"{count} {noun}"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{count} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{count} {noun[:-1]}ies"
    return f"{count} {noun}s"


def agree(count: int, verb: str) -> str:
    """Return a verb that agrees with a count: of "is" `is` or `are`, of "holds" `holds` or `hold`.

    Args:
        count: of the things that are the subject.
        verb: in the third person singular.
    """
    if count == 1:
        return verb
    odd = {"is": "are", "was": "were", "has": "have", "does": "do", "matches": "match"}
    return odd.get(verb, verb.removesuffix("s"))
