"""One run per output: locks that die with their process.

`<out>.lock` is created beside the output, or `.<out>.lock` where programs read whole folders. Its
last holder removes it where the file system is a local one.

The lock belongs to the open file description (`F_OFD_SETLK`). Unlike a POSIX record lock it is kept
when another descriptor of the same file is closed, as code does that reads all files of a folder.
Unlike `flock`, which filelock and portalocker use, it excludes POSIX record locks of other programs
and works between machines on a network file system. A forked child would hold it too: decoding
processes would keep the lock of a run that was killed. So a hook closes their copy.

On local file systems the output itself is locked too, if it exists: hard links of one file have a
lock file each. That lock alone would not do. An output that is yet to be made, or is a folder, has
no file to lock; versions that know only the lock file must be kept out; and on network file systems
a lock on the file could keep readers from it (on SMB locks are mandatory, and NFS makes HDF5's own
`flock` a lock of the same kind).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
import threading
import time
from typing import TYPE_CHECKING

from vggfeat.errors import InputError, LockedError, SpaceError, UsageError
from vggfeat.storage.descriptors import fill_standard_descriptors, open_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from typing_extensions import Self

_TAKEN = (errno.EACCES, errno.EAGAIN)  # what POSIX lets a refused lock say
_UNKNOWN_KIND = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_OTHER_KINDS = {errno.ELOOP: "a symbolic link", errno.EISDIR: "a folder", errno.ENXIO: "a socket"}
_STALE_TRIES = 10  # ESTALE is NFS's error for a file that its holder has removed on the server

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_OURS = re.compile(rb"pid \d+ on [^\n]*")
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, process

_FUSE = 0x65735546
# ext2 to ext4, XFS, Btrfs, tmpfs, ramfs, F2FS, ZFS, bcachefs, overlayfs: see statfs(2).
_LOCAL = {
    0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x858458F6, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E,
    0x794C7630,
}  # fmt: skip

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

_OVERLAY = 0x794C7630
_CONTENT_AT = 1 << 62
"""Byte of an output that is locked: behind the end of any, as no reader or writer asks for it."""

_SHARED, _EXCLUSIVE = fcntl.F_RDLCK, fcntl.F_WRLCK

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
            if not _acquire(lock, _EXCLUSIVE, wait=False):
                raise LockedError(
                    f"output {out!r} is held by another run ({lock.holder()}); wait for it, or "
                    "choose another --out"
                )
            with _held_content(path, out):
                lock.write_holder()
                yield
        finally:
            lock.release()


@contextlib.contextmanager
def _held_content(path: str, out: str) -> Iterator[None]:
    """Hold the lock on the output itself while the block runs; `path` is that of its lock file."""
    content = _ContentLock(out)
    try:
        content.renew()
        _contents[path] = content
        yield
    finally:
        _contents.pop(path, None)
        content.close()


def hold_replaced(out: str) -> None:
    """Hold the lock on the file that has just taken the place of the output `out`, too.

    Does nothing unless this process holds the output. Gives back the lock on the file that was
    there. Raises LockedError as `hold` does.
    """
    content = _contents.get(lock_path(out))
    if content is not None:
        content.renew(new=True)


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
    elsewhere = is_held_elsewhere(path) or is_held_elsewhere(os.path.realpath(out), _CONTENT_AT)
    if elsewhere or path in _held:
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
        if not lock.acquire(_EXCLUSIVE, wait=False):
            notice()
            lock.acquire(_EXCLUSIVE, wait=True)
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

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def acquire_shared(self, notice: Callable[[], None]) -> None:
        """Hold the lock beside others; wait for an exclusive holder after calling `notice`."""
        self._take(_SHARED, notice)

    def acquire_exclusive(self, notice: Callable[[], None] | None = None) -> None:
        """Hold the lock alone; wait for all others after calling `notice`, or without one raise.

        A shared lock is released first: two that both waited for the other would wait forever.
        """
        self._lock.unlock()
        self._take(_EXCLUSIVE, notice)

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


def _cannot_create(path: str, error: OSError) -> SpaceError:
    return SpaceError(error.errno, f"lock file {path} cannot be created: {error.strerror}")


class LockFile:
    """A lock file: opened, locked, checked to have its name still, removed by its last holder.

    Args:
        path: its path; raises UsageError if it names something else. The last holder removes it, if
            the file system is a local one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = -1
        self._held = fcntl.F_UNLCK  # or _SHARED, _EXCLUSIVE
        self._own_description = True  # locks are of the open file description
        self._removable = False
        fill_standard_descriptors()  # for all libraries that write what is locked
        self._open()

    def _open(self) -> None:
        with _forking:
            try:
                self._handle = open_descriptor(self.path, _FLAGS)
            except OSError as error:
                if other := _OTHER_KINDS.get(error.errno or 0):
                    raise UsageError(_not_ours(self.path, other)) from error
                raise
            _opened.add(self)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise UsageError(_not_ours(self.path, "no regular file"))
        kind = _file_system(self._handle)
        # Over FUSE the kernel does not release such a lock when its process is killed.
        self._own_description = hasattr(fcntl, "F_OFD_SETLK") and kind != _FUSE
        self._removable = self._own_description and kind in _LOCAL

    def acquire(self, how: int, *, wait: bool) -> bool:
        """Acquire the lock, `_SHARED` or `_EXCLUSIVE`; a lock held before is converted.

        Returns False if another process holds it and `wait` is not set. Raises OSError if the file
        system has no locks or the file cannot be created again, UsageError if the file is not one
        of ours.
        """
        stale = 0
        while True:
            if self._handle < 0:
                self._open()
            try:
                self._lock(how, wait=wait)
                self._held = how
                current = self._is_current()
            except OSError as error:
                if not wait and error.errno in _TAKEN:
                    return False
                stale += 1
                if error.errno != errno.ESTALE or stale == _STALE_TRIES:
                    raise
                current = False
            if current:
                self._refuse_other_content()
                return True
            self.close()  # its last holder has removed it meanwhile

    def unlock(self) -> None:
        """Release the lock and keep the file open."""
        if self._handle >= 0:
            self._lock(fcntl.F_UNLCK, wait=False)
        self._held = fcntl.F_UNLCK

    def _lock(self, how: int, *, wait: bool) -> None:
        if self._own_description:
            command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
            try:
                fcntl.fcntl(self._handle, command, struct.pack(_FLOCK, how, os.SEEK_SET, 0, 0, 0))
            except OSError as error:
                if error.errno not in _UNKNOWN_KIND:
                    raise
                self._own_description = self._removable = False
            else:
                return
        if how == fcntl.F_UNLCK:
            fcntl.lockf(self._handle, fcntl.LOCK_UN)
            return
        operation = fcntl.LOCK_SH if how == _SHARED else fcntl.LOCK_EX
        fcntl.lockf(self._handle, operation | (0 if wait else fcntl.LOCK_NB))

    def _is_current(self) -> bool:
        """Return whether the name is still that of the open file."""
        if not self._own_description:
            return True
        mine = os.fstat(self._handle)
        if mine.st_nlink == 0:
            return False
        if not self._removable:  # others' inode numbers cannot be relied on
            return True
        try:
            named = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(mine, named)

    def _refuse_other_content(self) -> None:
        content = os.pread(self._handle, 300, 0)
        if content.strip(b"\0") and not _OURS.match(content):  # a power failure may leave zeros
            self.close()  # so that it is not removed
            raise UsageError(_not_ours(self.path, "its content is not that of a lock"))

    def holder(self) -> str:
        """Return what the holder wrote of itself, or "unknown"."""
        try:
            found = _OURS.match(os.pread(self._handle, 300, 0))
        except OSError:  # some file systems' locks keep others from reading
            found = None
        return found.group().decode(errors="replace").strip() if found else "unknown"

    def write_holder(self) -> None:
        """Replace the content by a line that says who holds the lock; raise SpaceError."""
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = f"pid {os.getpid()} on {os.uname().nodename} since {started}\n"
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)
        except OSError as error:
            raise _cannot_create(self.path, error) from error

    def release(self) -> None:
        """Release the lock and close the file, which the last holder removes.

        Does nothing in a forked child: the lock is the parent's.
        """
        try:
            if self._handle >= 0 and self._held != fcntl.F_UNLCK and self._removable:
                with contextlib.suppress(OSError):  # then the file stays, as it does over NFS
                    self._remove_if_last()
            with contextlib.suppress(OSError):  # closing releases it too, if no child has a copy
                self.unlock()
        finally:
            self.close()

    def _remove_if_last(self) -> None:
        if self._held == _SHARED:
            # Released first: if two leave at once and both ask for it alone, none would get it.
            self.unlock()
            self._lock(_EXCLUSIVE, wait=False)
            self._held = _EXCLUSIVE
        if self._is_current():
            os.unlink(self.path)

    def close(self) -> None:
        """Close the file, which releases the lock, and leave it where it is."""
        with _forking:
            _opened.discard(self)
            handle, self._handle, self._held = self._handle, -1, fcntl.F_UNLCK
            if handle >= 0:
                os.close(handle)

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode of the open file; None if it is closed."""
        try:
            status = os.fstat(self._handle)
        except OSError:
            return None
        return status.st_dev, status.st_ino


class _ContentLock:
    """The lock on an output itself, so that all hard links of one file are one output.

    Args:
        out: the output; need not exist.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._handle = -1

    def renew(self, *, new: bool = False) -> None:
        """Lock the file that the output is by now, and give back the lock on an earlier one.

        Nothing is locked if it does not exist, is no regular file, may not be opened, or lies on
        another file system than a local one.

        Args:
            new: whether this process has just made the file.
        """
        self.close()
        with _forking:
            self._handle, how = self._open(new=new)
            _open_contents.add(self)
        if self._handle < 0:
            return
        wanted = struct.pack(_FLOCK, how, os.SEEK_SET, _CONTENT_AT, 1, 0)
        try:
            fcntl.fcntl(self._handle, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            if error.errno in _TAKEN:
                raise LockedError(
                    f"output {self._out!r} is held by another run, by another name of the file (a "
                    "hard link); wait for it, or choose another --out"
                ) from error
            # A file system without locks has been told of by the lock file.

    def _open(self, *, new: bool) -> tuple[int, int]:
        """Return a descriptor of the output, -1 for none to lock, and the kind of lock."""
        path = os.path.realpath(self._out)
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            handle = open_descriptor(path, os.O_RDONLY | flags)
        except OSError:
            return -1, fcntl.F_UNLCK
        status, kind = os.fstat(handle), _file_system(handle)
        # Where an overlay's file comes from a layer below, opening it for writing copies all of it.
        spared = kind == _OVERLAY and status.st_nlink == 1 and not new
        known = hasattr(fcntl, "F_OFD_SETLK") and kind in _LOCAL
        if not stat.S_ISREG(status.st_mode) or not known or spared:
            os.close(handle)
            return -1, fcntl.F_UNLCK
        try:
            writable = open_descriptor(path, os.O_RDWR | flags)
        except OSError:  # nobody without more rights writes to it; who has them is kept out
            return handle, _SHARED
        os.close(handle)
        return writable, _EXCLUSIVE

    def close(self) -> None:
        """Give the lock back; does nothing in a forked child, whose copy is closed."""
        with _forking:
            _open_contents.discard(self)
            handle, self._handle = self._handle, -1
            if handle >= 0:
                os.close(handle)


def is_held_elsewhere(path: str, start: int = 0) -> bool:
    """Return whether another process holds the lock file `path`, without locking or creating it.

    A file that cannot be opened or queried counts as not held: acquiring the lock will say why.
    With `start`, ask for a lock from that byte on.
    """
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return False
    try:
        handle = open_descriptor(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        wanted = struct.pack(_FLOCK, _EXCLUSIVE, os.SEEK_SET, start, 0, 0)
        command = fcntl.F_GETLK if _file_system(handle) == _FUSE else fcntl.F_OFD_GETLK
        found = fcntl.fcntl(handle, command, wanted)
    except OSError:
        return False
    finally:
        os.close(handle)
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


def is_open_lock(status: os.stat_result) -> bool:
    """Return whether a file is a lock file that this process has open.

    Where only POSIX record locks exist, opening and closing it again would release its lock.
    """
    return any(one.identity() == (status.st_dev, status.st_ino) for one in tuple(_opened))


def refuse_open_lock(path: str, what: str) -> None:
    """Refuse to read a lock file that this process has open; see `is_open_lock`."""
    try:
        status = os.stat(path)
    except OSError:  # which reading it will say
        return
    if is_open_lock(status):
        raise InputError(f"{what} {path!r} is the lock file of this run; name another file")


def _file_system(handle: int) -> int:
    """Return the kernel's number of the file system's type; 0 where it has none."""
    try:
        fstatfs = ctypes.CDLL(None).fstatfs
    except (OSError, AttributeError):  # a Python without a C library to look into, or another one
        return 0
    found = ctypes.create_string_buffer(512)  # struct statfs, which begins with the number
    if not hasattr(fcntl, "F_OFD_SETLK") or fstatfs(handle, found):
        return 0
    return ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF


def _not_ours(path: str, found: str) -> str:
    return (
        f"lock file {path!r} cannot be created: what exists there is not a lock of vggfeat: "
        f"{found}; move it away, or choose another --out"
    )


_opened: set[LockFile] = set()
_open_contents: set[_ContentLock] = set()
_contents: dict[str, _ContentLock] = {}  # by the path of the lock file
# Held while forking, so that these name all files that the child has to close.
_forking = threading.RLock()


def _close_in_child() -> None:
    for lock in tuple(_opened):
        lock.close()
    for content in tuple(_open_contents):
        content.close()
    _contents.clear()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child
)
