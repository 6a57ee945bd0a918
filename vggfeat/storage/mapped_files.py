"""Files that are cut short while this process has them mapped: one line instead of SIGBUS.

The kernel ends a process that touches a page behind the end of a mapped file. Reading rows by
`pread` instead would cost a copy of every row that a search reads. So the command line catches
the signal, and ends itself at once: what it was writing is left as a kill would leave it, which
everything that writes is made for. A library cannot: the handler belongs to its caller's process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from typing import TYPE_CHECKING, Any

from vggfeat.core.text import counted
from vggfeat.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT = 0  # SIG_DFL of C's signal.h
_kept: list[object] = []  # a handler that C calls must not be collected


def end_on_cut_files(tell: Callable[[str], object]) -> None:
    """Make this process end with the exit code of `CacheError` when a file it maps is cut short.

    Python's own handlers run after the instruction that faults, which never ends; so this one is
    called by C. It may take the GIL, for whoever reads mapped rows for long has let go of it.

    Args:
        tell: receives the message for the user.
    """

    def end(_signal: int) -> None:
        try:
            tell(_message())
        finally:
            os._exit(CacheError.exit_code)

    set_handler: Any = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _kept.append(handler)
    set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    # A library that fails in a decoding process must end that process as it does elsewhere.
    os.register_at_fork(after_in_child=lambda: set_handler(signal.SIGBUS, _DEFAULT))


def cut_short(error: BaseException | None) -> CacheError | None:
    """Return the error of a mapped file that was cut short, if that is what `error` comes from.

    To write mapped rows whose file has no such bytes any more is no SIGBUS, but `EFAULT`.
    """
    while error is not None:
        if getattr(error, "errno", None) == errno.EFAULT:
            return CacheError(_message())
        error = error.__cause__ or error.__context__
    return None


def _message() -> str:
    for path, needed in _mapped_files().items():
        try:
            size = os.stat(path).st_size
        except OSError:
            continue
        if size < needed:
            return (
                f"file {path!r} was cut short while it was read: {counted(size, 'byte')} are left, "
                f"more than {needed} were there; take it from a backup, or make it again"
            )
    return "a file could not be read while it was in use: it was cut short, or its disk failed"


def _mapped_files() -> dict[str, int]:
    """Return how many bytes each file that is mapped must at least have; Linux knows."""
    found: dict[str, int] = {}
    try:
        with open("/proc/self/maps", "rb") as maps:
            lines = maps.read().splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[5].startswith(b"/"):  # noqa: PLR2004 the last is a path
            continue
        if not fields[1].startswith(b"r") or b".so" in os.path.basename(fields[5]):
            continue  # libraries have holes that nobody may touch
        start, stop = (int(one, 16) for one in fields[0].split(b"-"))
        # The last page may be a part only.
        needed = int(fields[2], 16) + stop - start - mmap.PAGESIZE
        path = os.fsdecode(fields[5])
        found[path] = max(needed, found.get(path, 0))
    return found
