"""Find rows of a cache by their paths: those of a list of images, or that match a pattern."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache


@dataclass(frozen=True, slots=True)
class Match:
    """Rows of a cache for a list of images."""

    rows: NDArray[np.int64]  # (images in both,), cache rows, ascending
    listed: NDArray[np.int64]  # (images in both,), their positions in the list
    unknown: NDArray[np.int64]  # positions in the list of images that the cache does not have
    unlisted: NDArray[np.int64]  # cache rows that are not in the list


def match_paths(cached: NDArray[np.bytes_], listed: Sequence[bytes] | NDArray[np.bytes_]) -> Match:
    """Find each listed path among the cached ones; both are sorted by their bytes, each once."""
    wanted = np.asarray(listed, dtype=np.bytes_)
    places = np.searchsorted(cached, wanted)
    found = np.zeros(len(wanted), dtype=bool)
    inside = places < len(cached)
    found[inside] = cached[places[inside]] == wanted[inside]
    rows = places[found].astype(np.int64)
    requested = np.zeros(len(cached), dtype=bool)
    requested[rows] = True
    return Match(
        rows=rows,
        listed=np.flatnonzero(found),
        unknown=np.flatnonzero(~found),
        unlisted=np.flatnonzero(~requested),
    )


@dataclass(frozen=True, slots=True)
class MatchingRow:
    """One row: number, path as text, state in lower case, and reason, empty unless it failed."""

    row: int
    path: str
    state: str
    reason: str


def matching(cache: FeatureCache, pattern: str) -> NDArray[np.int64]:
    """Return rows whose path matches a shell pattern, int64 (n,), in file order.

    `*` goes over `/` too: `cats/*` is everything below that folder.
    """
    fits = re.compile(fnmatch.translate(pattern)).match
    found = [row for row, path in enumerate(cache.paths) if fits(os.fsdecode(bytes(path)))]
    if not found:
        example = f"; paths look like {cache.name(len(cache) // 2)!r}" if len(cache) else ""
        raise UsageError(f"no image of cache {cache.path!r} matches {pattern!r}{example}")
    return np.array(found, dtype=np.int64)


def matching_rows(cache: FeatureCache, rows: NDArray[np.int64]) -> tuple[MatchingRow, ...]:
    """Return number, path, state and reason of some rows."""
    failed = {failure.row: failure.reason for failure in cache.failures()}
    states = cache.state
    return tuple(
        MatchingRow(
            row, cache.name(row), RowState(int(states[row])).name.lower(), failed.get(row, "")
        )
        for row in rows.tolist()
    )
