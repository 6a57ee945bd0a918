"""One run per output: locks that die with their process.

`<out>.lock` is created beside the output, or `.<out>.lock` where programs read whole folders. Its
last holder removes it where the file system is a local one; see `storage.lock_file`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from vggfeat.errors import LockedError, SpaceError, UsageError
from vggfeat.storage.lock_file import EXCLUSIVE, SHARED, LockFile, is_held_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Self

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: set[str] = set()
_mutex = threading.Lock()
os.register_at_fork(after_in_child=_held.clear)  # a child holds nothing of its parent's


@contextlib.contextmanager
def hold(out: str, *, hidden: bool = False) -> Iterator[None]:
    """Hold the lock of the output `out` while the block runs.

    The lock dies with this process, even if a forked worker outlives it, and is not lost when the
    process opens and closes the lock file in another way. On leaving, the lock file is removed,
    except on file systems that other machines may share.

    Args:
        out: the output; raises LockedError, with the holder, if another run holds it, SpaceError if
            the lock file cannot be created or locked, and UsageError if something else has its
            name.
        hidden: whether the name of the lock file begins with a dot.
    """
    path = lock_path(out, hidden=hidden)
    with _once(path, f"output {out!r}"):
        lock = _open_lock(path)
        try:
            if not _acquire(lock, EXCLUSIVE, wait=False):
                raise LockedError(
                    f"output {out!r} is held by another run ({lock.holder()}); wait for it, or "
                    "choose another --out"
                )
            started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            _write(lock, f"pid {os.getpid()} on {socket.gethostname()} since {started}\n")
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def unless_read_only(lock: AbstractContextManager[object]) -> Iterator[SpaceError | None]:
    """Enter a lock of this module, or run the block without it where its file may not be created.

    A block that is given the error may read, and raises that error if it has anything to write.

    Yields:
        None if the lock is held; else the error that says why its file cannot be created.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        try:
            stack.enter_context(lock)
        except SpaceError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            refusal = error
        yield refusal


def refuse_if_held(out: str, *, hidden: bool = False) -> None:
    """Raise LockedError at once if another run holds `out`, without locking or creating a file."""
    path = lock_path(out, hidden=hidden)
    if path in _held or is_held_elsewhere(path):
        with hold(out, hidden=hidden):  # which says who, or finds that it has just been given back
            pass


def remove_left_lock(out: str) -> None:
    """Remove the lock file of `out` that a killed run left; a held or foreign one stays."""
    if os.path.exists(lock_path(out)):
        with contextlib.suppress(LockedError, SpaceError, UsageError), hold(out):
            pass


def lock_path(out: str, *, hidden: bool = False) -> str:
    """Return the path of the lock file of an output; links to the output have the same."""
    folder, name = os.path.split(os.path.realpath(out))
    return os.path.join(folder, f".{name}.lock" if hidden else f"{name}.lock")


@contextlib.contextmanager
def wait_for_lock(path: str, notice: Callable[[], None]) -> Iterator[None]:
    """Hold `<path>.lock` while the block runs; wait while another process holds it.

    Args:
        path: of anything; the lock file is created and removed as by `hold`.
        notice: called once if the lock has to be waited for.
    """
    lock = LockFile(path + ".lock")
    try:
        if not lock.acquire(EXCLUSIVE, wait=False):
            notice()
            lock.acquire(EXCLUSIVE, wait=True)
        yield
    finally:
        lock.release()


class SharedLock:
    """The lock of a folder in which many processes work at once, and which one alone may change.

    Used as a context. It holds nothing until `acquire_shared` or `acquire_exclusive` is called,
    either as often as needed, and releases all at its end. A process may enter only one for a path.

    Args:
        path: `<path>.lock` is created beside it, and removed as by `hold`.
    """

    def __init__(self, path: str) -> None:
        self._path = lock_path(path)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_once(self._path, repr(self._path)))
            self._lock = _open_lock(self._path)
            stack.callback(self._lock.release)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def acquire_shared(self, notice: Callable[[], None]) -> None:
        """Hold the lock beside others; wait for an exclusive holder after calling `notice`."""
        self._take(SHARED, notice)

    def acquire_exclusive(self, notice: Callable[[], None] | None = None) -> None:
        """Hold the lock alone; wait for all others after calling `notice`, or without one raise.

        A shared lock is released first: two that both waited for the other would wait forever.
        """
        self._lock.unlock()
        self._take(EXCLUSIVE, notice)

    def _take(self, how: int, notice: Callable[[], None] | None) -> None:
        if _acquire(self._lock, how, wait=False):
            return
        if notice is None:
            raise LockedError(
                f"{self._path!r} is held by runs at work; wait for them, or choose another --out"
            )
        notice()
        _acquire(self._lock, how, wait=True)


@contextlib.contextmanager
def _once(path: str, what: str) -> Iterator[None]:
    """Refuse a lock that this process holds already."""
    with _mutex:
        if path in _held:
            raise LockedError(f"{what} is held by another run of this process")
        _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)


def _open_lock(path: str) -> LockFile:
    try:
        return LockFile(path)
    except OSError as error:
        raise _cannot_create(path, error) from error


def _acquire(lock: LockFile, how: int, *, wait: bool) -> bool:
    try:
        return lock.acquire(how, wait=wait)
    except OSError as error:
        if error.filename is not None:  # it had to be created again
            raise _cannot_create(lock.path, error) from error
        raise SpaceError(
            error.errno,
            f"file system of {lock.path} has no locks ({error.strerror}), without which two runs "
            "could spoil one file; put the output elsewhere",
        ) from error


def _write(lock: LockFile, text: str) -> None:
    try:
        lock.write(text)
    except OSError as error:
        raise _cannot_create(lock.path, error) from error


def _cannot_create(path: str, error: OSError) -> SpaceError:
    return SpaceError(error.errno, f"lock file {path} cannot be created: {error.strerror}")
