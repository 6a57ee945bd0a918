"""Open an image as a seekable stream: a file, or an object in an object store.

`archive_reader.py` opens members of archives.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from vggfeat.core.exhaustion import exhaustion_of
from vggfeat.errors import DecodeError
from vggfeat.storage.foreign_files import ForeignFileError, open_foreign
from vggfeat.storage.object_store import read_object
from vggfeat.storage.paths import dangling_link, local_path, remote_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_FILE: Final = "no such file"

_REASONS = {
    errno.ENOENT: NO_FILE,
    errno.ENOTDIR: NO_FILE,
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


@contextlib.contextmanager
def open_file(path: bytes, size: int = 0, mtime_ns: int = 0) -> Iterator[BinaryIO]:
    """Open a file or an object for reading.

    Args:
        path: on this machine, or an address in an object store.
        size: bytes when it was listed.
        mtime_ns: time of its last change when it was listed; 0 if it was not found then.

    Raises:
        DecodeError: no regular file, no permission, or a failed read.
        InputError: the object store does not answer, or another one answers for it.
    """
    path = local_path(path)
    if remote_scheme(path):
        yield io.BytesIO(read_object(os.fsdecode(path), size, mtime_ns))
        return
    try:
        with open_regular(path, buffering=-1) as stream:
            yield stream
    except OSError as error:
        reason = dangling_link(path, error) or reason_for(error)
        if reason == NO_FILE and (size or mtime_ns):
            reason += " (gone since it was listed)"
        raise DecodeError(reason) from error


def open_regular(path: bytes, buffering: int) -> Any:
    """Open a regular file; raise DecodeError for anything else, and OSError as `open` does."""
    try:
        return open_foreign(path, buffering=buffering)
    except (ForeignFileError, IsADirectoryError) as error:
        lock = error.errno == errno.EBUSY
        raise DecodeError("the lock file of this run" if lock else "not a regular file") from error


def reason_for(error: OSError) -> str:
    """Return why a file cannot be read; raise if the machine ran out of something."""
    exhausted = exhaustion_of(error)
    if exhausted is not None:  # no fault of the file
        raise exhausted from error
    return _REASONS.get(error.errno or 0) or error.strerror or type(error).__name__
