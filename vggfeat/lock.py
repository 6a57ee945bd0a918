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
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SpaceError(f"lock file {path} cannot be made: {error.strerror}") from error
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
        raise SpaceError(
            f"file system of {path} has no locks ({error.strerror}), without which two runs could "
            "spoil one file; put the output elsewhere"
        ) from error
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()} since {started}\n".encode(), 0)
