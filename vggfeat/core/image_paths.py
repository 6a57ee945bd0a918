"""Paths of images as other tools write them, found among those of a cache or a run."""

from __future__ import annotations

import itertools
import os
import posixpath
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FILE_ADDRESS = b"file://"


class PathIndex:
    r"""Find images by path, as it stands before any other way of writing it.

    Other ways are `./` in front and `//` within, backslashes, an absolute path or `file://` address
    below the root, `%20` for a blank, and another Unicode form than the file system has.

    Args:
        paths: relative to the root, `/` as separator, as bytes.
        root: absolute folder or address that they are relative to; empty if it is not known.
    """

    def __init__(self, paths: Sequence[bytes], root: bytes = b"") -> None:
        self._paths = paths
        self._places = {path: place for place, path in enumerate(paths)}
        self._above = root.rstrip(b"/") + b"/" if root else b""
        self._by_form: dict[bytes, int] | None = None

    def find(self, path: bytes) -> int | None:
        """Return the place of an image among the paths; None where it is not one of them."""
        for one in itertools.chain((path,), self._ways(path)):
            place = self._places.get(one)
            if place is not None:
                return place
        return self._of_another_form(path)

    def _ways(self, path: bytes) -> Iterator[bytes]:
        stripped = path.strip()
        yield from self._relative(stripped)
        yield from self._relative(stripped.replace(b"\\", b"/"))
        if b"%" in stripped:
            yield from self._relative(unquote_to_bytes(stripped))

    def _relative(self, path: bytes) -> Iterator[bytes]:
        if self._above and path.startswith(self._above):
            yield posixpath.normpath(path[len(self._above) :])
        if path[: len(_FILE_ADDRESS)].lower() == _FILE_ADDRESS:
            path = path[len(_FILE_ADDRESS) :]
        plain = posixpath.normpath(path) if path else path
        yield plain
        if self._above and plain.startswith(self._above):
            yield plain[len(self._above) :]

    def _of_another_form(self, path: bytes) -> int | None:
        """Files that a Mac made have decomposed letters, lists that people type have not."""
        if path.isascii():
            return None
        if self._by_form is None:
            self._by_form = {}
            for place, known in enumerate(self._paths):
                if not known.isascii():
                    self._by_form.setdefault(_composed(known), place)
        ways = (path, *self._ways(path))
        found = (self._by_form.get(_composed(one)) for one in ways)
        return next((place for place in found if place is not None), None)


def _composed(path: bytes) -> bytes:
    return os.fsencode(unicodedata.normalize("NFC", os.fsdecode(path)))
