"""Limit the threads of NumPy's matrix products; no dependency, harmless where it fails."""

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
    """Number of blocks that want single threads, and the number of threads to restore after all."""

    count: int = 0
    before: int = 0


_users = _Users()
_lock = threading.Lock()


@contextlib.contextmanager
def single_threaded() -> Iterator[bool]:
    """Compute each product in the thread that calls it; yield whether that could be arranged.

    Many small products from several of our threads are far faster so: OpenBLAS has one pool for the
    process, and callers queue for it. It holds for the process until the last such block ends.
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
    """Return what gets and sets the number of threads of the OpenBLAS that NumPy loaded.

    The libraries of this process are listed on Linux only.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in lines.splitlines() if "blas" in line}
    libraries = [path for path in paths if path.startswith("/") and ".so" in path]
    for path in sorted(libraries, key=lambda path: ("numpy" not in path, path)):
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
