"""What this process may use of the machine; no torch."""

from __future__ import annotations

import contextlib
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
    """Return the cores that this process may use, as a container or a job scheduler limits them.

    A quota of time counts as so many cores, rounded up.
    """
    quota = cores_allowed()
    cores = _cores_at_hand()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _cores_at_hand() -> int:
    """Return the cores that threads of this process may run on, whatever their quota of time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads() -> None:
    """Have torch, NumPy and others start no more threads than a quota of time leaves cores.

    OpenMP knows nothing of quotas: with 2 cores' worth of 64 it starts 64 threads, which the kernel
    stops together once they have used it up. Call it before they are loaded. OMP_NUM_THREADS of the
    user's own stays. So does all where the quota is more than half of the cores: two of these may
    be threads of one, which torch knows of, and starts fewer threads.
    """
    allowed = usable_cores()
    if 2 * allowed <= _cores_at_hand():
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed))


def user_cache() -> str:
    """Return the absolute path of this user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`.

    As its specification has it, an empty or relative value counts as not set. The home is `$HOME`,
    or what the user database says; without either a UsageError says what to set.
    """
    named = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", ""))
    if os.path.isabs(named):
        return named
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        with contextlib.suppress(KeyError):  # the user database does not know this user
            home = pwd.getpwuid(os.getuid()).pw_dir
    if not os.path.isabs(home):
        raise UsageError(
            "no folder for weights and other files to keep: HOME is not set, and neither is "
            "XDG_CACHE_HOME; set one of them to an absolute path"
        )
    return os.path.join(home, ".cache")


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next batch, however large; return whether it does.

    By default it maps every large block anew, and the kernel clears its pages as they are touched:
    with a shallow network on a CPU that is a third of the time. It holds for the whole process,
    which then keeps the memory it once needed; so the command line calls it, and the library leaves
    it to its user. Call it before the first tensor is made.
    """
    return _set_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def give_freed_memory_back() -> bool:
    """Do the opposite, for processes that seldom need much memory; return whether it worked."""
    limits = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}
    return _set_malloc(limits)


def _set_malloc(limits: Mapping[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others have none
    return mallopt is not None and all(mallopt(*limit) for limit in limits.items())
