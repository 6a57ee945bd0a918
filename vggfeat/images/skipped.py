"""Names of files and members of archives that are skipped: hidden, unsafe, not regular."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vggfeat.core.file_types import IMAGE_EXTENSIONS, extension
from vggfeat.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

NOT_REGULAR: Final = "not a regular file"
"""Key in `ImageList.skipped` for sockets, FIFOs and devices named like an image, and for links in
archives."""

UNSAFE_NAME: Final = "unsafe name"
"""Key in `ImageList.skipped` for members whose names lead out of the archive or nowhere."""

HIDDEN_IMAGE: Final = "hidden image"
"""Key in `ImageList.skipped` for files with an image's extension and a dot in front."""

HIDDEN_FOLDER: Final = "hidden folder"
"""Key for folders whose names begin with a dot, and `__MACOSX`, none of which is read."""


def member_name(name: bytes) -> bytes:
    """Return a member's name without `.` parts and doubled slashes.

    b'' for a name that is empty, absolute, leads upward, or holds a NUL byte.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        return b""
    return b"/".join(parts)


def is_hidden(name: bytes) -> bool:
    """Return whether a member's plain name has a part that is hidden, or macOS's metadata."""
    return name.startswith((b".", b"__MACOSX/")) or b"/." in name


def hidden_kind(name: bytes) -> tuple[str, bytes]:
    """Return what hides a member of plain name `name`: a key of `ImageList.skipped`, and its path.

    The path of a hidden folder is its own, so that all its members count once; `("", b"")` stands
    for a hidden file without an image's extension, such as `.DS_Store`.
    """
    parts = name.split(b"/")
    for depth, part in enumerate(parts[:-1], 1):
        if part.startswith(b".") or (depth == 1 and part == b"__MACOSX"):
            return HIDDEN_FOLDER, b"/".join(parts[:depth])
    return (HIDDEN_IMAGE, name) if extension(parts[-1]) in IMAGE_EXTENSIONS else ("", b"")


def hidden_text(skipped: Mapping[str, int]) -> str:
    """Return `2 hidden images and 1 hidden folder` from `ImageList.skipped`; '' for none."""
    counts = [(skipped.get(kind, 0), kind) for kind in (HIDDEN_IMAGE, HIDDEN_FOLDER)]
    shown = [counted(count, kind) for count, kind in counts if count]
    return " and ".join(shown) + " (names that begin with a dot)" if shown else ""
