"""HDF5 files that a program holds open for writing, or was killed over: still whole, still read.

A program that opens a file for writing marks it so in its superblock, and takes the mark away when
it closes it. HDF5 refuses marked files. We read metadata alone through HDF5, each piece of which
has a checksum, and rows by a memory map; so a mark is a reason to say so, and none to refuse.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
from typing import TYPE_CHECKING

import h5py

from vggfeat.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("vggfeat")

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSION_AT, _FLAGS_AT = 8, 11
_FIRST_MARKED = 3  # version of the superblock
_MARKS = 0x01 | 0x04  # open for writing, and for several readers beside a writer


@contextlib.contextmanager
def open_hdf5(file_name: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, without a lock, also if it is marked as open for writing.

    Raises:
        OSError: there is no such file, or it is no HDF5 file.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = h5py.File(file_name, "r", locking=False)
        except OSError:
            if not is_marked(file_name):
                raise
            _tell(file_name)
            # HDF5 looks for the mark only where it reads files by itself.
            stream = stack.enter_context(open(file_name, "rb"))
            file = h5py.File(stream, "r")
        yield stack.enter_context(file)


def is_marked(file_name: str) -> bool:
    """Whether a file says that a program has it open for writing; that may have been killed."""
    try:
        with open(file_name, "rb") as file:
            start = file.read(_FLAGS_AT + 1)
    except OSError:
        return False
    return (
        start.startswith(_SIGNATURE)
        and len(start) > _FLAGS_AT
        and start[_VERSION_AT] >= _FIRST_MARKED
        and bool(start[_FLAGS_AT] & _MARKS)
    )


def refuse_if_open_elsewhere(handle: int, path: str) -> None:
    """Refuse to write to a file that an HDF5 program has open for writing just now.

    It would write back what it remembers of the rows. It is known by HDF5's own lock.

    Args:
        handle: of the file, open.
        path: for the message.

    Raises:
        LockedError: a program holds HDF5's lock for writing.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"cache {path!r} is open for writing in another program, which uses HDF5; close it "
            "there and run again"
        ) from error
    except OSError:  # a file system without such locks
        return
    fcntl.flock(handle, fcntl.LOCK_UN)  # decoding processes inherit the handle, and would keep it


@functools.cache
def _tell(file_name: str) -> None:
    log.warning(
        "%r is marked as open for writing: another program has it open, or was killed. It is read "
        "all the same; `h5clear -s %s` takes the mark away, which other HDF5 programs need",
        file_name,
        file_name,
    )
