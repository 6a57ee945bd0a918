"""The images of a cache that are nearest to one of them, as `inspect --nearest` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.errors import UsageError
from vggfeat.retrieval.exact_search import top_k
from vggfeat.retrieval.selection import row_named

if TYPE_CHECKING:
    from vggfeat.cache.reader import FeatureCache


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An image near to another, and the cosine of their features."""

    row: int
    path: str
    cosine: float


@dataclass(frozen=True, slots=True)
class NearestImages:
    """The images nearest to one in one layer.

    Attributes:
        layer: of the cache.
        path: the image they are near to, which is not among them.
        neighbours: nearest first.
    """

    layer: str
    path: str
    neighbours: tuple[Neighbour, ...]


def nearest_images(cache: FeatureCache, name: str, most: int = 10) -> tuple[NearestImages, ...]:
    """Return the images nearest to a done one by cosine, in each layer of vectors; exact.

    At most `most` neighbours a layer; the image itself is not among them.
    """
    own = row_named(cache, name)
    layers = [layer for layer in cache.layers if len(cache.header.shapes[layer]) == 1]
    if not layers:
        raise UsageError(f"cache {cache.path!r} holds maps only; --nearest compares vectors")
    return tuple(
        NearestImages(layer, name, _neighbours(cache, layer, own, most)) for layer in layers
    )


def _neighbours(cache: FeatureCache, layer: str, own: int, most: int) -> tuple[Neighbour, ...]:
    query = cache.values(layer, np.array([own]))  # (1, D)
    rows = np.flatnonzero(cache.done)
    found, cosines = top_k(cache, layer, query, most, rows=rows[rows != own])
    return tuple(
        Neighbour(row, cache.name(row), cosine)
        for row, cosine in zip(found[0].tolist(), cosines[0].tolist(), strict=True)
        if row >= 0
    )
