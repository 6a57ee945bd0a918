"""Write HDF5 files so that no failed write goes unnoticed; `hdf5_metadata` reads them.

HDF5 buffers what it is given and writes much of it on closing, h5py drops errors of closing, and
libhdf5 itself may crash when a write fails there. So HDF5 does not write to the disk here: it hands
its bytes to a file object of ours, which never fails towards HDF5 and keeps its first error. For
the same reason signals wait while HDF5 runs: no exception may pass through it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import h5py

from vggfeat.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ERRNO = re.compile(r"errno = (\d+)")  # in the texts of libhdf5
_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Hdf5Output:
    """A file for h5py's `fileobj` driver that remembers the first error instead of raising it.

    Args:
        handle: descriptor of the file, open for reading and writing.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._at = 0
        self._error: OSError | None = None
        self._signals: list[int] = []
        self._handlers: dict[int, Callable[..., Any]] = {}

    def check(self) -> None:
        """Raise the first error that any call met, and let the handlers of signals run."""
        while self._signals:
            number = self._signals.pop()
            self._handlers[number](number, None)
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def defer_signals(self) -> Iterator[None]:
        """Let signals that have a handler wait for `check` until the block ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in _DEFERRED:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, lambda number, _frame: self._signals.append(number))
        try:
            yield
        finally:
            for caught, handler in self._handlers.items():
                signal.signal(caught, handler)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset; HDF5 asks for the size by the end."""
        size = os.fstat(self._handle).st_size
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the offset."""
        return self._at

    def write(self, data: memoryview) -> int:
        """Write all bytes at the offset; report all as written whatever came of it."""
        left, at = memoryview(data).cast("B"), self._at
        self._at += len(left)
        size = len(left)
        try:
            while left and self._error is None:
                written = os.pwrite(self._handle, left, at)
                left, at = left[written:], at + written
        except OSError as error:
            self._error = error
        return size

    def readinto(self, buffer: memoryview) -> int:
        """Read as many bytes as the buffer has room for; zeros where there are none."""
        view, at = memoryview(buffer).cast("B"), self._at
        size = len(view)
        self._at += size
        try:
            while view:
                data = os.pread(self._handle, len(view), at)
                if not data:
                    view[:] = bytes(len(view))
                    break
                view[: len(data)] = data
                view, at = view[len(data) :], at + len(data)
        except OSError as error:
            self._error = self._error or error
        return size

    def read(self, size: int) -> bytes:
        """Read as `readinto` does; h5py tells a file object by this method."""
        data = bytearray(size)
        self.readinto(memoryview(data))
        return bytes(data)

    def truncate(self, size: int) -> int:
        """Give the file a size."""
        try:
            os.ftruncate(self._handle, size)
        except OSError as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer, and whoever publishes the file syncs it."""


def reason_of(error: Exception) -> str:
    """Return why HDF5, or the system, could not write, in the system's words, as one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    found = _ERRNO.search(text)  # h5py puts the whole text of libhdf5 into `strerror`
    return os.strerror(int(found[1])) if found else text


@contextlib.contextmanager
def checked_hdf5(target: BinaryIO, **options: Any) -> Iterator[tuple[h5py.File, Hdf5Output]]:
    """Write an HDF5 file into `target`, and raise OSError if any byte could not be written.

    Args:
        target: an empty file, open for reading and writing.
        **options: of `h5py.File`, such as `libver`.

    Yields:
        the HDF5 file, and its `Hdf5Output`, whose `check` a long loop calls to end early.
    """
    checked = Hdf5Output(target.fileno())
    try:
        with checked.defer_signals(), h5py.File(checked, "w", **options) as file:
            yield file, checked
            file.flush()
    # HDF5 fails on reading bytes that could not be written.
    except (RuntimeError, KeyError, OSError):
        checked.check()
        raise
    checked.check()


def refuse_if_open_elsewhere(handle: int, path: str) -> None:
    """Refuse to write to a file that an HDF5 program has open for writing, by HDF5's own lock.

    That program would write back the rows that it has in memory.

    Args:
        handle: of the file, open.
        path: for the message.
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
    # A decoding process inherits the handle, and would keep the lock.
    fcntl.flock(handle, fcntl.LOCK_UN)
