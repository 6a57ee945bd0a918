"""What this process may use of the machine; no torch."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores this process may run on, which a container or a job scheduler may have made few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_shared_memory() -> int | None:
    """Bytes free in /dev/shm, through which decoding workers hand batches over; None without it."""
    try:
        status = os.statvfs("/dev/shm")  # noqa: S108 asked for its size, nothing is put there
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
