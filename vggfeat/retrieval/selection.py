"""Resolve the layer and the row of a cache that a user names, or need not name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.cache.format import RowState
from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from vggfeat.cache.reader import FeatureCache


def only_layer(cache: FeatureCache) -> str:
    """Return the only layer of a cache; raise UsageError where it has several."""
    if len(cache.layers) > 1:
        raise UsageError(
            f"cache {cache.path!r} has several layers; name one with --layers: "
            f"{', '.join(cache.layers)}"
        )
    return cache.layers[0]


def row_named(cache: FeatureCache, name: str | int) -> int:
    """Return the row of an image by its path or number; raise UsageError unless it is done."""
    if isinstance(name, int):
        row = name
        if not 0 <= row < len(cache):
            raise UsageError(
                f"row {row} is not in cache {cache.path!r} of {counted(len(cache), 'row')}"
            )
    else:
        try:
            row = cache.row(name)
        except KeyError:
            example = f"; paths look like {cache.name(0)!r}" if len(cache) else ""
            raise UsageError(f"image {name!r} is not in cache {cache.path!r}{example}") from None
    state = RowState(int(cache.state[row]))
    if state != RowState.DONE:
        raise UsageError(
            f"image {cache.name(row)!r} of cache {cache.path!r} is {state.name.lower()}, not done, "
            "and has no features; name one that is done"
        )
    return row
