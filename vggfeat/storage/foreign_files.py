"""The one way in for files that a user or a stranger hands over: regular files, within limits.

What is opened here ends or is refused: a FIFO nobody writes to would be waited for without end, a
device such as `/dev/zero` has no end, and a small file may stand for more than memory holds. What
is refused raises a `ForeignFileError`, an OSError whose `strerror` says why, so that callers tell
it as any other reason why a file cannot be read. `docs/OPERATIONS.md` lists the limits.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from vggfeat.core.text import byte_count
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.locks import is_open_lock

if TYPE_CHECKING:
    from collections.abc import Mapping

Pipes = Literal["none", "shell", "named"]
"""What may be read besides regular files: nothing; a pipe that a shell has opened, as `<(…)` and
`/dev/stdin` are, a terminal on standard input, and `/dev/null`; or these and any FIFO."""

MOST_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "config": 1 << 20,
        "classes": 1 << 24,
        "predicates": 1 << 24,
        "class tree": 1 << 26,
        "manifest": 1 << 26,
        "vectors": 1 << 30,
        "labels": 1 << 32,
        "groups": 1 << 32,
        "list": 1 << 32,
    }
)
"""Bytes of the largest file of each kind that is read whole."""

DEEPEST: Final = 64
"""Levels of tables and lists in JSON and TOML; files of ours have five at most."""


class ForeignFileError(OSError):
    """A file that is not to be read, though the system would: no regular file, or too large."""

    def __str__(self) -> str:  # without the number that OSError puts in front
        return self.strerror or super().__str__()


_BLOCK = 1 << 20
_STANDARD_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def open_foreign(
    path: str | bytes, *, most: int | None = None, pipes: Pipes = "none", buffering: int = -1
) -> BinaryIO:
    """Open a file for reading; raise OSError as `open` does, and for what is not to be read.

    Args:
        path: of the file.
        most: bytes that it may have; None for any number, where it is not read whole.
        pipes: what may be read besides regular files. Of these the caller counts the bytes.
        buffering: as of the built-in `open`.
    """

    def opened(name: str | bytes, flags: int) -> int:
        # Before opening too: opening a device has effects, and closing the lock file of this run
        # releases its lock where only POSIX locks exist.
        regular = _check(name, os.stat(name), most, pipes)
        # Should another file have taken its place since, its FIFO is not waited for.
        handle = open_descriptor(name, flags | (os.O_NONBLOCK if regular else 0))
        try:
            _check(name, os.fstat(handle), most, pipes)
            os.set_blocking(handle, True)
        except BaseException:
            os.close(handle)
            raise
        return handle

    return open(path, "rb", buffering=buffering, opener=opened)


def read_foreign(path: str | bytes, most: int, *, pipes: Pipes = "none") -> bytes:
    """Return all bytes of a file; raise OSError as `open_foreign`, and if there are more."""
    with open_foreign(path, most=most, pipes=pipes) as stream:
        size = os.fstat(stream.fileno()).st_size
        return read_bounded(stream, most, size)


def read_bounded(stream: BinaryIO, most: int, size: int = 0, beginning: bytes = b"") -> bytes:
    """Return all bytes of a stream; raise ForeignFileError if there are more than `most`.

    Args:
        stream: read to its end.
        most: bytes.
        size: bytes that it is known to have, so that they need not be copied; 0 if none are known.
        beginning: what has been read of it already.
    """
    parts = [stream.read(size + 1)] if size else [beginning]
    count = sum(map(len, parts))
    while count <= most and (block := stream.read(_BLOCK)):
        parts.append(block)
        count += len(block)
    if count > most:
        raise too_many_bytes(count, most)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_regular(path: str, most: int | None = None) -> None:
    """Refuse what `open_foreign` would, before a library opens a file by its name."""
    _check(path, os.stat(path), most, "none")


def too_many_bytes(count: int, most: int) -> OSError:
    """Return the error of a file that has more bytes than are read of its kind."""
    return ForeignFileError(
        errno.EFBIG, f"it has {byte_count(count)} or more, and at most {byte_count(most)} are read"
    )


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raise ValueError for any other text, whatever it holds."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError if tables and lists in a parsed value nest deeper than `DEEPEST` levels.

    Whoever compares, prints or copies a value does so by recursion, which deeper ones exhaust.
    """
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it nests deeper than {DEEPEST} levels")


def _check(path: str | bytes, status: os.stat_result, most: int | None, pipes: Pipes) -> bool:
    """Return whether a file is a regular one; raise OSError if it is not to be read."""
    if stat.S_ISREG(status.st_mode):
        if most is not None and status.st_size > most:
            raise too_many_bytes(status.st_size, most)
        if is_open_lock(status):
            raise ForeignFileError(errno.EBUSY, "it is the lock file of this run; name another")
        return True
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if pipes == "none" or not _may_be_read(path, status, pipes):
        found = _kind(status.st_mode)
        raise ForeignFileError(errno.EINVAL, f"it is {found}, expected a regular file")
    return False


def _may_be_read(path: str | bytes, status: os.stat_result, pipes: Pipes) -> bool:
    name = os.fsdecode(path)
    if stat.S_ISFIFO(status.st_mode):
        # A shell's pipe has no name: links in /proc say `pipe:[7]`, which is nowhere.
        unnamed = name.startswith("/dev/fd/") or not os.path.lexists(os.path.realpath(name))
        return pipes == "named" or unnamed
    if not stat.S_ISCHR(status.st_mode):
        return False
    terminal = os.path.abspath(name) in _STANDARD_INPUT and os.isatty(0)
    return terminal or status.st_rdev == os.stat(os.devnull).st_rdev


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a disk"))
    return next((word for test, word in kinds if test(mode)), "a device")
