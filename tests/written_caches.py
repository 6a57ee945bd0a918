"""Caches written by `CacheWriter`, with random features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.cache.format import CacheMetadata, Header, Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.writer import create_cache
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.records import Failure, FeatureBatch
from vggfeat.images.image_list import ImageList

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vggfeat.core.settings import Dtype

Rows = NDArray[np.int64]
Features = dict[str, NDArray[Any]]

SHAPES: Mapping[str, tuple[int, ...]] = {"fc7": (6,), "conv5_3:map": (2, 3, 4)}


def create(
    out: str, rows: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: Dtype = "float16"
) -> Header:
    numbers = np.arange(rows, dtype=np.int64)
    paths = tuple(b"%06d.jpg" % row for row in range(rows))
    manifest = ImageList(b"/data", paths, numbers, numbers, {})
    layers = tuple(sorted(shapes))
    identity = Identity("vgg16", "w", "00" * 32, "float32", dtype, Preprocess(), layers)
    provenance = Provenance(b"/data", {"batch_size": 4}, "2026-01-02T03:04:05+00:00", "1", {})
    return create_cache(out, manifest, CacheMetadata(identity, provenance, shapes))


def random_features(
    rows: int,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    dtype: str = "float16",
    seed: int = 0,
) -> Features:
    random = np.random.default_rng(seed)
    return {
        spec: random.standard_normal((rows, *shape)).astype(dtype) for spec, shape in shapes.items()
    }


def batch(rows: Sequence[int], features: Features, *failures: Failure) -> FeatureBatch:
    """The features of those rows, out of arrays that hold all rows."""
    index = np.array(rows, dtype=np.int64)
    taken = {spec: all_[index] for spec, all_ in features.items()}
    return FeatureBatch(index, digests(index), taken, failures, 0)


def digests(rows: Iterable[int]) -> NDArray[np.uint8]:
    """A digest of its own for each row."""
    return np.array([[row] * 32 for row in rows], dtype=np.uint8).reshape(-1, 32)
