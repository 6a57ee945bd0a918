"""What this process may use of the machine; no torch."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def usable_cores() -> int:
    """Cores this process may run on, which a container or a job scheduler may have made few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user_cache() -> str:
    """Where programs of this user keep what they can get again: `$XDG_CACHE_HOME`, `~/.cache`."""
    return os.path.expanduser(os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache")))


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks for the next batch, however large; whether that could be done.

    By default it maps every large block anew, and the kernel clears its pages as they are touched:
    of a shallow network on a CPU that is a third of the time. It holds for the whole process,
    which then keeps the memory it once needed; so the command line asks for it, and the library
    leaves it to its user. Call it before the first tensor is made.
    """
    return _set_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def give_freed_memory_back() -> bool:
    """The opposite, for processes that need much memory seldom; whether that could be done."""
    limits = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}
    return _set_malloc(limits)


def _set_malloc(limits: Mapping[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others have none
    return mallopt is not None and all(mallopt(*limit) for limit in limits.items())
