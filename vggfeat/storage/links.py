"""Symbolic links that lead nowhere."""

from __future__ import annotations

import errno
import os


def dangling_link(path: bytes, error: OSError) -> str:
    """Say which link is why a file does not exist: the file itself or a folder above it; else "".

    Args:
        path: the file.
        error: that opening it ended with.
    """
    if error.errno != errno.ENOENT:  # of others a loop of links
        return ""
    while path and path != os.path.dirname(path):
        if os.path.islink(path) and not os.path.exists(path):
            target = os.fsdecode(os.readlink(path))
            return f"a symbolic link to {target!r}, which does not exist"
        path = os.path.dirname(path)
    return ""
