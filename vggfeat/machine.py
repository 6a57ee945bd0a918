"""What this process may use of the machine; no torch."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores this process may run on, which a container or a job scheduler may have made few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
