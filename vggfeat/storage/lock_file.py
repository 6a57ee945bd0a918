"""One lock file: opened, locked, checked to have its name still, removed by its last holder.

The lock belongs to the open file description (`F_OFD_SETLK`). Unlike a POSIX record lock it is kept
when another descriptor of the same file is closed, as code does that reads all files of a folder.
Unlike `flock`, which filelock and portalocker use, it excludes POSIX record locks of other programs
and works between machines on a network file system. A forked child would hold it too: decoding
processes would keep the lock of a run that was killed. So a hook closes their copy.
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

from vggfeat.errors import InputError, UsageError
from vggfeat.storage.descriptors import fill_standard_descriptors, open_descriptor

_TAKEN = (errno.EACCES, errno.EAGAIN)  # what POSIX lets a refused lock say
_UNKNOWN_KIND = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
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

SHARED, EXCLUSIVE = fcntl.F_RDLCK, fcntl.F_WRLCK


class LockFile:
    """A lock file, created if it does not exist.

    Args:
        path: its path; raises UsageError if it names something else. The last holder removes it, if
            the file system is a local one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = -1
        self._held = fcntl.F_UNLCK  # or SHARED, EXCLUSIVE
        self._own_description = True  # locks are of the open file description
        self._removable = False
        fill_standard_descriptors()  # for all libraries that write what is locked
        self._open()

    def _open(self) -> None:
        with _forking:
            try:
                self._handle = open_descriptor(self.path, _FLAGS)
            except OSError as error:
                raise _as_usage_error(self.path, error) from error
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
        """Acquire the lock, `SHARED` or `EXCLUSIVE`; a lock held before is converted.

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
        operation = fcntl.LOCK_SH if how == SHARED else fcntl.LOCK_EX
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

    def write(self, text: str) -> None:
        """Replace the content, which says who the holder is."""
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def release(self) -> None:
        """Release the lock and close the file, which the last holder removes.

        Does nothing in a forked child: the lock is the parent's.
        """
        try:
            if self._handle >= 0 and self._held != fcntl.F_UNLCK and self._removable:
                with contextlib.suppress(
                    OSError
                ):  # then the file stays, as on a network file system
                    self._remove_if_last()
            with contextlib.suppress(OSError):  # closing releases it too, if no child has a copy
                self.unlock()
        finally:
            self.close()

    def _remove_if_last(self) -> None:
        if self._held == SHARED:
            # Released first: if two leave at once and both ask for it alone, none would get it.
            self.unlock()
            self._lock(EXCLUSIVE, wait=False)
            self._held = EXCLUSIVE
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


def is_held_elsewhere(path: str) -> bool:
    """Return whether another process holds the lock file `path`, without locking or creating it.

    A file that cannot be opened or asked counts as not held: acquiring the lock will say why.
    """
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return False
    try:
        handle = open_descriptor(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        wanted = struct.pack(_FLOCK, EXCLUSIVE, os.SEEK_SET, 0, 0, 0)
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


def _as_usage_error(path: str, error: OSError) -> Exception:
    kinds = {errno.ELOOP: "a symbolic link", errno.EISDIR: "a folder", errno.ENXIO: "a socket"}
    kind = kinds.get(error.errno or 0)
    return error if kind is None else UsageError(_not_ours(path, kind))


def _not_ours(path: str, found: str) -> str:
    return (
        f"lock file {path!r} cannot be created: what exists there is not a lock of vggfeat: "
        f"{found}; move it away, or choose another --out"
    )


_opened: set[LockFile] = set()
_forking = (
    threading.RLock()
)  # held while forking, so that `_opened` names all files that the child has to close


def _close_in_child() -> None:
    for one in tuple(_opened):
        one.close()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child
)
