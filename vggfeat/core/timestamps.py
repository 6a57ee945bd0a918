"""File dates as the cache stores them: nanoseconds since 1970 in an int64."""

from __future__ import annotations

from typing import Final

EARLIEST_NS: Final = -(2**63)
"""1677-09-21, the earliest date that an int64 of nanoseconds can hold."""

LATEST_NS: Final = 2**63 - 1
"""2262-04-11, the latest."""


def clamp_ns(mtime_ns: int) -> int:
    """Return nanoseconds since 1970 that fit in an int64; dates outside become the nearest one.

    File systems hold dates from 1901 to 2446 (ext4) or any (tmpfs), and cameras, restored backups
    and archives write dates that nobody meant.
    """
    return min(max(mtime_ns, EARLIEST_NS), LATEST_NS)
