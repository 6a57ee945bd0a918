"""Looking into a cache: rows whose path matches a pattern, and the images nearest to one."""

from __future__ import annotations

import fnmatch
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.errors import UsageError
from vggfeat.retrieval.exact_search import top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

BLOCK_BYTES: Final = 1 << 24
"""Of features that are read at once."""


@dataclass(frozen=True, slots=True)
class MatchingRow:
    """One row of a cache.

    Attributes:
        row: its number.
        path: as text; undecodable bytes as surrogate escapes.
        state: name of it, lower case.
        reason: of a failed row; else empty.
    """

    row: int
    path: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An image near to another.

    Attributes:
        row: its number.
        path: of the image.
        cosine: of its features with those of the other.
    """

    row: int
    path: str
    cosine: float


@dataclass(frozen=True, slots=True)
class Nearest:
    """The images nearest to one in one layer.

    Attributes:
        layer: of the cache.
        path: the image they are near to, which is not among them.
        neighbours: nearest first.
    """

    layer: str
    path: str
    neighbours: tuple[Neighbour, ...]


def matching(cache: FeatureCache, pattern: str) -> NDArray[np.int64]:
    """Rows whose path matches a shell pattern, int64 (n,), in file order.

    `*` goes over `/` too: `cats/*` is everything below that folder.

    Raises:
        UsageError: none does; says what paths look like.
    """
    fits = re.compile(fnmatch.translate(pattern)).match
    found = [row for row, path in enumerate(cache.paths) if fits(os.fsdecode(bytes(path)))]
    if not found:
        example = f"; paths look like {cache.name(len(cache) // 2)!r}" if len(cache) else ""
        raise UsageError(f"no image of cache {cache.path!r} matches {pattern!r}{example}")
    return np.array(found, dtype=np.int64)


def describe(cache: FeatureCache, rows: NDArray[np.int64]) -> tuple[MatchingRow, ...]:
    """Number, path, state and reason of some rows."""
    failed = {failure.row: failure.reason for failure in cache.failures()}
    states = cache.state
    return tuple(
        MatchingRow(
            row, cache.name(row), RowState(int(states[row])).name.lower(), failed.get(row, "")
        )
        for row in rows.tolist()
    )


def nearest(cache: FeatureCache, name: str, most: int = 10) -> tuple[Nearest, ...]:
    """The images nearest to one by cosine, in each layer of vectors; exact, in blocks.

    Args:
        cache: with at least one such layer.
        name: path of an image that is done.
        most: neighbours a layer.

    Raises:
        UsageError: no such image, or it is not done; or all layers hold maps.
    """
    own = _row_of(cache, name)
    layers = [layer for layer in cache.layers if len(cache.header.shapes[layer]) == 1]
    if not layers:
        raise UsageError(f"cache {cache.path!r} holds maps only; --nearest compares vectors")
    return tuple(Nearest(layer, name, _neighbours(cache, layer, own, most)) for layer in layers)


def _row_of(cache: FeatureCache, name: str) -> int:
    try:
        row = cache.row(name)
    except KeyError as error:
        example = f"; paths look like {cache.name(0)!r}" if len(cache) else ""
        raise UsageError(f"no image {name!r} in cache {cache.path!r}{example}") from error
    state = RowState(int(cache.state[row]))
    if state != RowState.DONE:
        raise UsageError(
            f"image {name!r} of cache {cache.path!r} is {state.name.lower()} and has no features; "
            "name one that is done"
        )
    return row


def _neighbours(cache: FeatureCache, layer: str, own: int, most: int) -> tuple[Neighbour, ...]:
    query = cache.values(layer, np.array([own]))  # (1, D)
    rows = np.flatnonzero(cache.done)
    found, cosines = top_k(cache, layer, query, most, rows=rows[rows != own])
    return tuple(
        Neighbour(row, cache.name(row), cosine)
        for row, cosine in zip(found[0].tolist(), cosines[0].tolist(), strict=True)
        if row >= 0
    )


def blocks(count: int, item_bytes: int) -> list[tuple[int, int]]:
    """Ranges that cover `count` items, of at most about `BLOCK_BYTES` each."""
    size = max(1, BLOCK_BYTES // max(1, item_bytes))
    return [(at * size, min(count, (at + 1) * size)) for at in range(math.ceil(count / size))]
