"""Text files that somebody gives us, read whole."""

from __future__ import annotations

from pathlib import Path

from vggfeat.core.text import decode_text
from vggfeat.errors import InputError
from vggfeat.storage.lock_file import refuse_open_lock


def read_text(path: str, what: str, *, with_paths: bool = False) -> str:
    """Return the text of a file: UTF-8, or UTF-16 where a byte order mark says so.

    Args:
        path: the file.
        what: it is to the user, for errors, e.g. "labels".
        with_paths: see `decode_text`.

    Raises:
        InputError: it cannot be read, or is the lock file of this run.
        UsageError: it is in another encoding.
    """
    refuse_open_lock(path, what)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{what} {path!r} cannot be read: {error.strerror or error}") from error
    return decode_text(data, f"{what} {path!r}", with_paths=with_paths)
