"""Resolve the layer and the row of a cache that a user names, or need not name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vggfeat.cache.format import RowState
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from vggfeat.cache.reader import FeatureCache

_log = logging.getLogger("vggfeat")


def only_layer(cache: FeatureCache) -> str:
    """Return the only layer of a cache; raise UsageError where it has several."""
    if len(cache.layers) > 1:
        raise UsageError(
            f"cache {cache.path!r} has several layers; name one with --layer: "
            f"{', '.join(cache.layers)}"
        )
    return cache.layers[0]


def row_named(cache: FeatureCache, name: str) -> int:
    """Return the row of an image by its path; raise UsageError unless it is done."""
    try:
        row = cache.row(name)
    except KeyError:
        example = f"; paths look like {cache.name(0)!r}" if len(cache) else ""
        raise UsageError(f"image {name!r} is not in cache {cache.path!r}{example}") from None
    check_done(cache, row)
    return row


def check_done(cache: FeatureCache, row: int) -> None:
    """Raise UsageError if a row has no features."""
    state = RowState(int(cache.state[row]))
    if state != RowState.DONE:
        raise UsageError(
            f"image {cache.name(row)!r} of cache {cache.path!r} is {state.name.lower()}, not done, "
            "and has no features; name one that is done"
        )


def warn_of_cache(cache: FeatureCache) -> str:
    """Log what a reader of the cache must know of its features, and return it; mostly empty."""
    warning = cache.header.provenance.warning
    if warning:
        _log.warning("cache %r: %s", cache.path, warning)
    return warning
