"""Open files under descriptors above 2, so that none is taken for a standard stream.

A daemon may start a process with descriptors 0, 1 or 2 closed. The next file opened then gets that
number, and whatever a library prints to descriptor 1 goes into it: into the middle of a cache.
"""

from __future__ import annotations

import fcntl
import os
import sys

_STANDARD = (0, 1, 2)


def open_descriptor(path: str | bytes, flags: int, mode: int = 0o666) -> int:
    """Open a file like `os.open`, under a number above 2 and closed on exec.

    Also an `opener` of the built-in `open`.
    """
    handle = os.open(path, flags | os.O_CLOEXEC, mode)
    if handle > _STANDARD[-1]:
        return handle
    try:
        return fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, _STANDARD[-1] + 1)
    finally:
        os.close(handle)


def fill_standard_descriptors() -> None:
    """Open `/dev/null` on each of the descriptors 0 to 2 that is closed.

    They stay open: a library that opens a file later, as HDF5 does, must not get such a number.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if handle > _STANDARD[-1]:  # but for another thread, which has filled it
                os.close(handle)
            else:
                os.set_inheritable(handle, True)  # programs that are started want it too


def open_standard_streams() -> None:
    """Fill the standard descriptors, and give `sys` the streams that it lacks.

    For the start of a command, before any other file is opened. Python itself leaves a stream of
    `sys` None where its descriptor was closed, on which libraries that print fail.
    """
    fill_standard_descriptors()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", errors="replace")  # noqa: SIM115 it stays open
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
