"""One run an output: a lock that dies with its process.

`<out>.lock` is made beside the output, or `.<out>.lock` where programs read whole folders. Its last
holder removes it where the file system is a local one; see `storage.lock_file`.
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
    """Hold the lock of `out` for as long as the block runs.

    The lock dies with this process, also where a forked worker outlives it. It is not lost when
    the process opens and closes the lock file by another way. On leaving, the lock file is
    removed, except on file systems that other machines may share.

    Args:
        out: the output.
        hidden: whether the name of the lock file begins with a dot.

    Raises:
        LockedError: another run holds it; says which.
        SpaceError: the lock file cannot be made, or its file system has no locks.
        UsageError: what has the name of the lock file is something else, and is not touched.
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
    """Enter a lock of this module, or run the block without it where its file may not be made.

    A block that is given the error may read, and raises that error if it has anything to write.

    Yields:
        None if the lock is entered; else the error that says why its file cannot be made.

    Raises:
        see the lock.
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
    """Raise at once if another run holds `out`; make no lock file and take no lock.

    Raises:
        LockedError: see `hold`.
    """
    path = lock_path(out, hidden=hidden)
    if path in _held or is_held_elsewhere(path):
        with hold(out, hidden=hidden):  # which says who, or finds that it has just been given back
            pass


def remove_left_lock(out: str) -> None:
    """Remove the lock file of `out` that a killed run left; one that is held or foreign stays."""
    if os.path.exists(lock_path(out)):
        with contextlib.suppress(LockedError, SpaceError, UsageError), hold(out):
            pass


def lock_path(out: str, *, hidden: bool = False) -> str:
    """Return the lock file of an output, whichever name of it is given."""
    folder, name = os.path.split(os.path.realpath(out))
    return os.path.join(folder, f".{name}.lock" if hidden else f"{name}.lock")


@contextlib.contextmanager
def wait_for_lock(path: str, notice: Callable[[], None]) -> Iterator[None]:
    """Run the block while no other process is in one for the same `path`; wait for its turn.

    Args:
        path: its `.lock` file is made beside it, and removed as that of `hold`.
        notice: called once if there is somebody to wait for.

    Raises:
        OSError: the lock file cannot be made, or its file system has no locks.
        UsageError: what has the name of the lock file is something else, and is not touched.
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
    """The lock of a place that many work in at once, and that one alone may change.

    Used as a context; it holds nothing until `share` or `own` is called, either as often as needed,
    and gives all back at its end. Of one process only one may be entered for one path.

    Args:
        path: `<path>.lock` is made beside it. The last to leave removes it as `hold` does.

    Raises:
        LockedError: on entering, another run of this process has entered it.
        SpaceError: on entering, the lock file cannot be made.
        UsageError: on entering, what has the name of the lock file is something else.
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
        """Hold it beside others who share; wait for one who owns it, and say so once.

        Raises:
            SpaceError: the file system has no locks.
        """
        self._take(SHARED, notice)

    def acquire_exclusive(self, notice: Callable[[], None] | None = None) -> None:
        """Hold it alone; wait for all others, having said so, where there is a `notice`.

        What was shared before is given back first: two that both wait to own would wait forever.

        Raises:
            LockedError: others hold it, and there is no `notice`.
            SpaceError: the file system has no locks.
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
    """Keep this process from a lock that it holds already."""
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
        raise _cannot_make(path, error) from error


def _acquire(lock: LockFile, how: int, *, wait: bool) -> bool:
    try:
        return lock.acquire(how, wait=wait)
    except OSError as error:
        if error.filename is not None:  # it had to be created again
            raise _cannot_make(lock.path, error) from error
        raise SpaceError(
            error.errno,
            f"file system of {lock.path} has no locks ({error.strerror}), without which two runs "
            "could spoil one file; put the output elsewhere",
        ) from error


def _write(lock: LockFile, text: str) -> None:
    try:
        lock.write(text)
    except OSError as error:
        raise _cannot_make(lock.path, error) from error


def _cannot_make(path: str, error: OSError) -> SpaceError:
    return SpaceError(error.errno, f"lock file {path} cannot be made: {error.strerror}")
