"""Caches made for benchmarks, without images or a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.format import CacheMetadata, Header, Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.writer import create_cache
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.records import Images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def new_cache(
    path: str,
    rows: int,
    shapes: Mapping[str, tuple[int, ...]],
    fill: Callable[[int, Header], None] | None = None,
) -> Header:
    """A cache of `rows` float16 rows named by their numbers, pending or as `fill` leaves them."""
    ones = np.ones(rows, dtype=np.int64)
    images = Images(np.array([b"%09d.jpg" % row for row in range(rows)]), ones, ones)
    layers = tuple(sorted(shapes))
    identity = Identity("vgg19", "w", "00" * 32, "float32", "float16", Preprocess(), layers)
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-01T00:00:00+00:00", "1", {})
    return create_cache(path, images, CacheMetadata(identity, provenance, shapes), fill=fill)
