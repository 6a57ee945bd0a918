"""Write files and folders that appear under their name whole, and on the disk, or not at all.

Everything is written under a temporary name in the folder of the output, synced, and renamed:

- `atomic_file`: written through a file object. Several processes may write one output at once.
- `write_bytes`: the same for bytes in memory.
- `atomic_path`: written by a library that needs a path. The caller holds the output's lock.
- `atomic_folder`: a folder of files, likewise under its lock.

An output that is a symbolic link is resolved first, so that the file it names is replaced, not the
link. A replaced file's mode, owner, group and access list are kept. Temporary names are fixed, so
that the next run removes what a killed one left. They contain our name, since half a file cannot be
recognised by its content, and a user's own `<path>.tmp` must not be taken for one. A link, a folder
or a device at such a name is neither followed nor removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from typing import TYPE_CHECKING, BinaryIO, cast

from vggfeat.errors import SpaceError, UsageError
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.paths import kind_of, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPORARY_SUFFIX = ".vggfeat.tmp"

_MARK = ".vggfeat-unfinished"
_CONTENT = "content"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# For writing, since NFS locks nothing else; not waiting for a pipe to be opened at its other end.
_EXISTING = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
_ACCESS_LIST = "system.posix_acl_access"


def write_bytes(path: str, data: bytes) -> None:
    """Replace the file `path` by one that holds `data`; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(
    path: str, *, temporary: str | None = None, exclusive: bool = False
) -> Iterator[BinaryIO]:
    """Replace the file `path` by what the block writes, once the block has ended without an error.

    Processes and threads that write the same output at once wait for each other. If anything fails,
    the existing file stays.

    Args:
        path: the output; need not exist. Raises UsageError if it is no regular file.
        temporary: name to write under, in the folder of the output; by default that of the output
            with `TEMPORARY_SUFFIX`. A file left there by a killed run is removed.
        exclusive: raise FileExistsError rather than replace a file. Decided by the file system, NFS
            included, so that of two processes without a common lock one wins.

    Yields:
        a binary file, empty, open for reading and writing.
    """
    with _published(path, temporary, exclusive=exclusive, in_turn=True) as (_, handle):
        file = cast("BinaryIO", open(handle, "w+b", closefd=False))  # noqa: SIM115 closed below
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):  # the buffer's rest must not hide the error
                file.close()
            raise
        file.close()


@contextlib.contextmanager
def atomic_path(
    path: str, *, temporary: str | None = None, exclusive: bool = False
) -> Iterator[str]:
    """Replace the file `path` by what the block writes to the path that it is given.

    For libraries that open files themselves, and truncate existing ones. The caller holds the lock
    of the output. Arguments and errors are those of `atomic_file`.
    """
    with _published(path, temporary, exclusive=exclusive, in_turn=False) as (name, _):
        yield name


@contextlib.contextmanager
def _published(
    path: str, temporary: str | None, *, exclusive: bool, in_turn: bool
) -> Iterator[tuple[str, int]]:
    """Yield the name and a descriptor of the temporary file, then put it at `path`."""
    target = resolve(path)
    name = f"{target}{TEMPORARY_SUFFIX}" if temporary is None else temporary
    # Not readable by others before it has the permissions of the file that it replaces.
    replaced = os.path.lexists(target)
    mode = 0o600 if replaced else 0o666
    handle = -1
    try:
        if in_turn:
            handle = _create_in_turn(name, mode)
        else:
            remove_leftover(name)
            handle = _create(name, mode)
        yield name, handle
        if replaced:
            _take_over_rights(handle, target)
        os.fsync(handle)
        _put(handle, name, target, exclusive=exclusive)
    except BaseException as error:
        if handle >= 0 and _is_at(handle, name):
            os.unlink(name)
        elif isinstance(error, KeyboardInterrupt):
            _remove_unused(name)  # perhaps it was created, and `handle` not yet assigned
        raise
    finally:
        if handle >= 0:
            os.close(handle)
    sync_directory(os.path.dirname(target))


def _create(name: str, mode: int) -> int:
    return open_descriptor(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)


def _create_in_turn(name: str, mode: int) -> int:
    """Open a new file, after any process that is writing another one there has ended.

    A `flock` on the temporary file itself says that it is in use: no other file is needed, and the
    lock dies with the process. Only the holder of that lock removes or renames the file.
    """
    while True:
        _remove_when_unused(name)
        try:
            handle = _create(name, mode)
        except FileExistsError:  # somebody else was faster
            continue
        _flock(handle)
        if _is_at(handle, name):  # nobody took it for a leftover before it was locked
            return handle
        os.close(handle)


def _remove_when_unused(name: str) -> None:
    """Remove the temporary file `name` once no process writes to it any more."""
    if not _is_leftover(name):
        return
    try:
        handle = open_descriptor(name, _EXISTING)
    except FileNotFoundError:
        return
    try:
        _flock(handle)
        if _is_at(handle, name):
            os.unlink(name)
    finally:
        os.close(handle)


def _flock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def remove_leftover(name: str) -> None:
    """Remove the temporary file that a killed run left at `name`; refuse anything else there."""
    if _is_leftover(name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _is_leftover(name: str) -> bool:
    """Return whether there is a temporary file at `name`; refuse anything else there."""
    try:
        mode = os.lstat(name).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"{name!r} is {kind_of(name)}, expected nothing, or a file that a killed run left; "
            "it is not touched: move it away, or choose another output"
        )
    return True


def _remove_unused(name: str) -> None:
    """Remove the temporary file `name` unless another process is writing to it."""
    with contextlib.suppress(OSError):
        handle = open_descriptor(name, _EXISTING)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(handle).st_mode) and _is_at(handle, name):
                os.unlink(name)
        finally:
            os.close(handle)


def _is_at(handle: int, name: str) -> bool:
    """Return whether `name` is the very file that `handle` has open."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(name))
    except FileNotFoundError:
        return False


def _take_over_rights(handle: int, target: str) -> None:
    """Give an open file the owner, group, mode and access list of the file it will replace."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return
    new = os.fstat(handle)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except PermissionError:  # only root gives files away; a group of one's own is allowed
            with contextlib.suppress(PermissionError):
                os.fchown(handle, -1, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode))
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):  # no access list, or no such thing here
            os.setxattr(handle, _ACCESS_LIST, os.getxattr(target, _ACCESS_LIST))


def _put(handle: int, name: str, target: str, *, exclusive: bool) -> None:
    if not _is_at(handle, name):
        raise OSError(errno.ESTALE, f"{name!r} was replaced by another program meanwhile")
    if not exclusive:
        os.replace(name, target)
        return
    try:
        os.link(name, target)
    except FileExistsError:
        # NFS repeats a request whose reply was lost, and is refused for the link it has made.
        if os.stat(name).st_nlink < 2:  # noqa: PLR2004 its own name and the new one
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(target):  # no hard links here; the caller's lock has to suffice
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.replace(name, target)
        return
    os.unlink(name)


@contextlib.contextmanager
def atomic_folder(path: str, *, temporary: str | None = None) -> Iterator[str]:
    """Create the folder `path` from what the block creates at the path that it is given.

    Files and folders of any depth are synced before the folder gets its name. The caller holds the
    lock of the output. If anything fails, nothing is left.

    Args:
        path: the folder; raises FileExistsError if anything exists there.
        temporary: name to work under, beside it; by default with `TEMPORARY_SUFFIX`. Raises
            UsageError if what exists there was not left by an earlier run.

    Yields:
        where the block creates a folder.
    """
    target = os.path.realpath(path)
    work = temporary or f"{target}{TEMPORARY_SUFFIX}"
    _remove_unfinished(work)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    try:
        with contextlib.suppress(FileExistsError):  # an empty one, of a run killed at this line
            os.mkdir(work)
        # The mark says that all in here is ours. It stands beside the content and not in it, so
        # that at every instant either nothing is published or all, and all that is left is marked.
        os.close(open_descriptor(os.path.join(work, _MARK), os.O_CREAT | os.O_EXCL, 0o666))
        content = os.path.join(work, _CONTENT)
        yield content
        sync_tree(content)
        os.rename(content, target)
    finally:
        _remove_unfinished(work)
        with contextlib.suppress(OSError):
            os.rmdir(work)  # before it had its mark
    sync_directory(os.path.dirname(target))


def remove_unfinished(name: str) -> None:
    """Remove the temporary file or folder that a killed run left at `name`; leave anything else."""
    with contextlib.suppress(UsageError):
        if os.path.isdir(name):
            _remove_unfinished(name)
        else:
            remove_leftover(name)


def _remove_unfinished(work: str) -> None:
    """Remove what a killed run left of a folder; refuse anything else; keep an empty folder."""
    try:
        names = os.listdir(work) if not os.path.islink(work) else None
    except FileNotFoundError:
        return
    except NotADirectoryError:
        names = None
    if names is None or (names and _MARK not in names):
        raise UsageError(
            f"{work!r} is {kind_of(work)} that vggfeat did not make; it is not touched: move it "
            "away, or choose another output"
        )
    if names:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(work, _CONTENT))
        os.unlink(os.path.join(work, _MARK))  # last, so that what is left stays recognisable
        os.rmdir(work)


def sync_tree(path: str) -> None:
    """Sync all files below a folder, and the names of all, to the disk."""
    for folder, _, files in os.walk(path):
        for name in files:
            handle = open_descriptor(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_directory(folder)


def sync_directory(path: str) -> None:
    """Sync the names in a directory, new and renamed ones, to the disk.

    Some network file systems cannot sync directories, and a directory without read permission
    cannot be opened: there the file system decides when the names are on the disk.
    """
    try:
        handle = open_descriptor(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:  # the kernel may have dropped the pages: a later sync proves nothing
        if error.errno != errno.EINVAL:
            raise SpaceError(
                error.errno, f"the disk did not keep what was written: {error.strerror}"
            ) from error
    finally:
        os.close(handle)
