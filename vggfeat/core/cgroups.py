"""What the kernel's control groups leave this process of memory and cores: of containers and jobs.

Both versions are read, v1 with a hierarchy for each controller and v2 with one for all. A group is
bound by all groups around it, so the least of their limits counts. A container may see its own
group as the root, or a path of the host that does not exist in it: then what exists of it is read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNLIMITED = 1 << 60  # v1 says so by the largest multiple of a page


def memory_left(root: str = "/") -> int | None:
    """Return the bytes that the process may still take, by its groups; None without a limit.

    Page cache that is easily given back does not count as taken. `/proc` and `/sys` are at `root`.
    """
    left = []
    for folder, version in _groups(root, "memory"):
        limit = _number(folder, "memory.max" if version == 2 else "memory.limit_in_bytes")  # noqa: PLR2004 cgroup v2
        if limit is None or limit >= _UNLIMITED:
            continue
        taken = _number(folder, "memory.current" if version == 2 else "memory.usage_in_bytes")  # noqa: PLR2004
        cache = _statistic(folder, "inactive_file" if version == 2 else "total_inactive_file")  # noqa: PLR2004
        left.append(max(0, limit - max(0, (taken or 0) - cache)))
    return min(left, default=None)


def cores_allowed(root: str = "/") -> float | None:
    """Return the cores' worth of time that the process may use, by its groups; None: no limit."""
    shares = []
    for folder, version in _groups(root, "cpu"):
        if version == 2:  # noqa: PLR2004 cgroup v2
            quota, period = [*_read(folder, "cpu.max").split(), "max", ""][:2]
        else:
            quota = _read(folder, "cpu.cfs_quota_us").strip()
            period = _read(folder, "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period):
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def memory_available(root: str = "/") -> int | None:
    """Return the bytes that programs can have without swapping; None without `/proc/meminfo`.

    It is the kernel's estimate, within the groups' limits.
    """
    found = [] if (left := memory_left(root)) is None else [left]
    for line in _read(os.path.join(root, "proc"), "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1]:
            found.append(1024 * int(value.split()[0]))
    return min(found, default=None)


def _groups(root: str, controller: str) -> Iterator[tuple[str, int]]:
    """Yield the folders of the process's group and of all around it, with the version of each."""
    for line in _read(os.path.join(root, "proc", "self"), "cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        named = controllers.split(",")
        if number == "0" and not controllers:
            version, mounts = 2, ["", "unified"]
        elif controller in named:
            version, mounts = 1, list(dict.fromkeys([controllers, controller]))
        else:
            continue
        for mount in mounts:
            place = os.path.join(root, "sys", "fs", "cgroup", mount)
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield os.path.join(place, *parts[:depth]), version


def _number(folder: str, name: str) -> int | None:
    text = _read(folder, name).strip()
    return int(text) if text.isdecimal() else None


def _statistic(folder: str, name: str) -> int:
    for line in _read(folder, "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return 0


def _read(folder: str, name: str) -> str:
    """Return a file's text; '' if it does not exist or may not be read."""
    try:
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
