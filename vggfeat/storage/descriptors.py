"""File descriptors above 2, so that no file of ours is anybody's standard input or output.

A daemon may start a process with descriptors 0, 1 or 2 closed. The next file opened then gets that
number, and whatever a library prints to descriptor 1 goes into it: into the middle of a cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STANDARD = (0, 1, 2)


def open_descriptor(path: str | bytes, flags: int, mode: int = 0o666) -> int:
    """Open a file like `os.open`, under a number above 2 and closed on exec.

    Also an `opener` of the built-in `open`.

    Raises:
        OSError: it cannot be opened.
    """
    handle = os.open(path, flags | os.O_CLOEXEC, mode)
    if handle > _STANDARD[-1]:
        return handle
    try:
        return fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, _STANDARD[-1] + 1)
    finally:
        os.close(handle)


def open_standard_streams() -> None:
    """Open `/dev/null` on each of the descriptors 0 to 2 that is closed, and set `sys`'s streams.

    For the start of a command, before any other file is opened. Python itself leaves a stream of
    `sys` None where its descriptor was closed, on which libraries that print fail.
    """
    for number in _STANDARD:
        if not _is_open(number):
            _take(number)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 it stays open
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


@contextlib.contextmanager
def above_standard() -> Iterator[None]:
    """Keep the numbers 0 to 2 taken within the block, for libraries that open files themselves.

    What was closed before is closed again afterwards.
    """
    taken = [number for number in _STANDARD if not _is_open(number) and _take(number)]
    try:
        yield
    finally:
        for number in taken:
            os.close(number)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _take(number: int) -> bool:
    """Open `/dev/null` as this descriptor, inherited by programs that are started; return True."""
    handle = os.open(os.devnull, os.O_RDWR)
    if handle == number:
        os.set_inheritable(handle, True)
    else:
        os.dup2(handle, number)
        os.close(handle)
    return True
