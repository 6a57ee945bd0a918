"""How many threads NumPy's matrix products take; no dependency, and harmless where it fails."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIXES = ("scipy_openblas", "openblas")
_SUFFIXES = ("64_", "")


@dataclass(slots=True)
class _Users:
    """Who has asked for single threads, and what to go back to when the last one leaves."""

    count: int = 0
    before: int = 0


_users = _Users()
_lock = threading.Lock()


@contextlib.contextmanager
def single_threaded() -> Iterator[bool]:
    """Has each product computed by the thread that asks for it; whether that could be arranged.

    Many small products from several threads of our own are far faster so: OpenBLAS has one pool
    for the process, and callers queue for it. It holds for the process until the block ends, also
    where several overlap.
    """
    library = _openblas()
    if library is None:
        yield False
        return
    get, put = library
    with _lock:
        if _users.count == 0:
            _users.before = int(get())
            put(1)
        _users.count += 1
    try:
        yield True
    finally:
        with _lock:
            _users.count -= 1
            if _users.count == 0:
                put(_users.before)


@functools.cache
def _openblas() -> tuple[Any, Any] | None:
    """The functions that get and set the number of threads, of the OpenBLAS that NumPy loaded."""
    for path in _loaded_libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:  # the file was replaced by an upgrade since it was loaded
            continue
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                if get is not None and put is not None:
                    return get, put
    return None


def _loaded_libraries() -> list[str]:
    """Paths of the BLAS libraries in this process; NumPy's own first. Linux only, else none."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines.splitlines() if "blas" in line}
    found = (path for path in paths if path.startswith("/") and ".so" in path)
    return sorted(found, key=lambda path: ("numpy" not in path, path))
