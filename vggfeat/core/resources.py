"""What this process may use of the machine; no torch."""

from __future__ import annotations

import ctypes
import math
import os
import pwd
from typing import TYPE_CHECKING

from vggfeat.core.cgroups import cores_allowed
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def usable_cores() -> int:
    """Cores this process may run on, which a container or a job scheduler may have made few.

    A quota of time, as containers have, counts as so many cores, a part of one as a whole one.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cores_allowed()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def user_cache() -> str:
    """Return where programs of this user keep what they can get again, an absolute path.

    `$XDG_CACHE_HOME`, else `~/.cache`. As its specification has it, an empty or relative value
    counts as not set. A home is `$HOME`, or what the user database says.

    Raises:
        UsageError: there is neither.
    """
    named = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", ""))
    if os.path.isabs(named):
        return named
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        home = _home_in_database()
    if not home:
        raise UsageError(
            "no folder for weights and other files to keep: HOME is not set, and neither is "
            "XDG_CACHE_HOME; set one of them to an absolute path"
        )
    return os.path.join(home, ".cache")


def _home_in_database() -> str:
    """Return the user's home in the user database; empty where there is none."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""
    return home if os.path.isabs(home) else ""


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
