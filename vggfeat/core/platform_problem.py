"""Whether this system has what vggfeat is built on; no imports that other systems lack."""

from __future__ import annotations

import sys

# Open file description locks, fdatasync, parent death signals, /proc and fork beside threads.
PLATFORM_PROBLEM = (
    ""
    if sys.platform == "linux"
    else f"runs on Linux, and this is {sys.platform}; its files are HDF5, which h5py reads anywhere"
)
"""Why it cannot run here; empty if it can."""
