"""One run an output: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from typing import TYPE_CHECKING

from vggfeat.errors import LockedError, SpaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

_held: set[str] = set()
_TAKEN = (errno.EACCES, errno.EAGAIN)  # what POSIX lets a refused lock say


@contextlib.contextmanager
def hold(out: str) -> Iterator[None]:
    """Holds `<out>.lock`, which nobody deletes, for as long as the block runs.

    A POSIX record lock: unlike `flock` it stays with this process and not with a forked worker
    that outlives it. Such locks do not keep a process from itself, so a set does.

    Raises:
        LockedError: another run holds it; says which.
        SpaceError: the lock file cannot be made, or its file system has no locks.
    """
    path = os.path.realpath(out) + ".lock"
    if path in _held:
        raise LockedError(f"output {out!r} is held by another run of this process")
    handle = _open_lock(path)
    try:
        _lock(handle, path, out)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
    finally:
        os.close(handle)  # which gives the lock back


@contextlib.contextmanager
def take_turns(path: str, notice: Callable[[], None]) -> Iterator[None]:
    """Runs the block while no other process is in one for the same `path`; waits for its turn.

    Args:
        path: its `.lock` file, which nobody deletes, is made beside it.
        notice: called once if there is somebody to wait for.

    Raises:
        OSError: the lock file cannot be made, or its file system has no locks.
    """
    handle = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            notice()
            fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class SharedLock:
    """The lock of a place that many work in at once, and that one alone may change.

    Used as a context; it holds nothing until `share` or `own` is called, either as often as needed,
    and gives all back at its end. Of one process only one may be entered for one path.

    Args:
        path: `<path>.lock`, which nobody deletes, is made beside it.

    Raises:
        LockedError: on entering, another run of this process has entered it.
        SpaceError: on entering, the lock file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path) + ".lock"
        self._handle = -1

    def __enter__(self) -> Self:
        if self._path in _held:  # one's own locks do not keep one out, and closing gives back all
            raise LockedError(f"{self._path!r} is held by another run of this process")
        self._handle = _open_lock(self._path)
        _held.add(self._path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _held.discard(self._path)
        os.close(self._handle)

    def share(self, notice: Callable[[], None]) -> None:
        """Holds it beside others who share; waits for one who owns it, and says so once.

        Raises:
            SpaceError: the file system has no locks.
        """
        self._take(fcntl.LOCK_SH, notice)

    def own(self, notice: Callable[[], None] | None = None) -> None:
        """Holds it alone; waits for all others, having said so, where there is a `notice`.

        What was shared before is given back first: two that both wait to own would wait forever.

        Raises:
            LockedError: others hold it, and there is no `notice`.
            SpaceError: the file system has no locks.
        """
        fcntl.lockf(self._handle, fcntl.LOCK_UN)
        self._take(fcntl.LOCK_EX, notice)

    def _take(self, how: int, notice: Callable[[], None] | None) -> None:
        try:
            fcntl.lockf(self._handle, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise _no_locks(self._path, error) from error
            if notice is None:
                raise LockedError(
                    f"{self._path!r} is held by runs at work; wait for them, or choose another "
                    "--out"
                ) from error
            notice()
            fcntl.lockf(self._handle, how)


def _open_lock(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SpaceError(f"lock file {path} cannot be made: {error.strerror}") from error


def _no_locks(path: str, error: OSError) -> SpaceError:
    return SpaceError(
        f"file system of {path} has no locks ({error.strerror}), without which two runs could "
        "spoil one file; put the output elsewhere"
    )


def refuse_if_held(out: str) -> None:
    """Raises at once if another run holds `out`; makes no lock file and keeps no lock.

    Raises:
        LockedError: see `hold`.
    """
    if os.path.exists(os.path.realpath(out) + ".lock"):
        with hold(out):
            pass


def _lock(handle: int, path: str, out: str) -> None:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            holder = ""
            with contextlib.suppress(OSError):  # some file systems' locks keep others from reading
                holder = os.pread(handle, 300, 0).decode(errors="replace").strip()
            raise LockedError(
                f"output {out!r} is held by another run ({holder or 'unknown'}); wait for it, or "
                "choose another --out"
            ) from error
        raise _no_locks(path, error) from error
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()} since {started}\n".encode(), 0)
