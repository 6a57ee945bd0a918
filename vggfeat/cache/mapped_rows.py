"""Map the rows of one dataset, within what the file has of them now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggfeat.core.text import counted
from vggfeat.errors import CacheError

if TYPE_CHECKING:
    from typing import TypeAlias

    from vggfeat.cache.format import DatasetExtent

    MappedRows: TypeAlias = np.memmap[tuple[int, ...], np.dtype[np.generic]]


def map_rows(path: str, run: DatasetExtent, mode: Literal["r", "c"] = "r") -> MappedRows:
    """Return all rows of a dataset as a memory map.

    Args:
        path: of the file.
        run: where the rows lie.
        mode: `r`, or `c` for a private copy of each page that is written to.

    Raises:
        CacheError: the file is gone or was cut short since its metadata was read.
    """
    end = run.offset + run.row_bytes * run.shape[0]
    try:
        size = os.stat(path).st_size
        if size >= end:
            return np.memmap(path, dtype=run.dtype, mode=mode, offset=run.offset, shape=run.shape)
    except FileNotFoundError:
        raise CacheError(f"cache {path!r} is gone; it was there a moment ago") from None
    except ValueError:  # it became shorter just now
        size = os.stat(path).st_size
    raise CacheError(
        f"cache {path!r} was cut short while it was read: {counted(size, 'byte')}, expected {end} "
        "at least; take it from a backup, or extract it again with --fresh"
    )
