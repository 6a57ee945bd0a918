"""Caches of vectors whose neighbours are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from sklearn.preprocessing import normalize

from vggfeat.cache.format import Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.cache.reader import FeatureCache
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.quantization import Scales, encode, scales_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def cache_of(
    path: Path,
    layers: Mapping[str, NDArray[np.float32]],
    dtype: str = "float16",
    states: Sequence[int] | None = None,
    paths: Sequence[bytes] | None = None,
) -> FeatureCache:
    """A cache with these rows; all are done unless `states` says otherwise."""
    count = len(next(iter(layers.values())))
    scales = {
        name: Scales.over(rows.min(0), rows.max(0)) for name, rows in layers.items()
    } if dtype == "int8" else {}  # fmt: skip
    identity = Identity(
        "vgg11", "w", "00" * 32, "float32", dtype, Preprocess(), tuple(sorted(layers)),
        scales=scales_digest(scales),
    )  # fmt: skip
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    path.unlink(missing_ok=True)
    shapes = {name: rows.shape[1:] for name, rows in layers.items()}
    paths = paths or [f"{row:06}.png".encode() for row in range(count)]
    lay_out(
        str(path), count, max(map(len, paths)), shapes=shapes, identity=identity,
        provenance=provenance, scales=scales,
    )  # fmt: skip
    with h5py.File(path, "r+") as file:
        file["images/path"][:] = sorted(paths)
        file["images/state"][:] = 1 if states is None else states
        for name, rows in layers.items():
            stored = encode(rows, scales[name])[0] if scales else rows
            file["features"][name][:] = stored
    return FeatureCache(path)


def noise(rows: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width), np.float32)


def scored(x: NDArray[Any], queries: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """Scores (q, n) in float64, more is nearer."""
    x, queries = x.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        x, queries = normalize(x), normalize(queries)
    if metric.startswith("l2"):
        distances: NDArray[np.float64] = np.sqrt(((queries[:, None] - x[None]) ** 2).sum(-1))
        return -distances
    if metric == "cosine":
        x, queries = normalize(x), normalize(queries)
    products: NDArray[np.float64] = queries @ x.T
    return products
