"""Features small enough for a web page: principal components in 8 bits, and what that loses.

A row x of length 1 is m + z P: the mean, and components z of the first k principal axes. The cosine
of two rows is then

    x · y = m·x + m·y - m·m + z_x · z_y

but for what lies outside the k axes. m·x is kept for each row, z as one byte a component: the mean,
which all images share and which is most of the length of ReLU features, costs no precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vggfeat.core.arrays import inner_products, spread, unit_rows
from vggfeat.core.quantization import LARGEST_CODE
from vggfeat.errors import InputError
from vggfeat.transforms.pca import Pca, fit_pca
from vggfeat.visualization.projections import Projection, row_vectors, umap_points

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

    Values = NDArray[np.float32]

COMPONENTS: Final = 128
"""Principal components of a layer at most."""

NEAREST: Final = 10
"""Neighbours by which the loss is measured."""

_FITTED_ROWS = 2000  # of more rows, so many spread over the cache give the axes
_FITTED_BYTES = 1 << 29  # of these as float32
_QUERIES = 200
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class CompactLayer:
    """One layer of n images, from which cosines are computed nearly exactly.

    Attributes:
        layer: canonical spec.
        width: values of a row before.
        codes: int8 (n, k).
        scales: float32 (k,): a component is its code times its scale.
        along_mean: float32 (n,): inner product of each row with the mean.
        mean_square: inner product of the mean with itself.
        points: float32 (n, 2), places on a map, from 0 to 1.
        explained: shares of the variance that the axes of the map have; empty for UMAP.
        kept: share of each query's ten nearest by the exact cosine that still are its nearest.
        error: mean deviation of a cosine.
        queries: rows that `kept` and `error` were measured with.
    """

    layer: str
    width: int
    codes: NDArray[np.int8]
    scales: Values
    along_mean: Values
    mean_square: float
    points: Values
    explained: tuple[float, ...]
    kept: float
    error: float
    queries: int

    def cosines(self, queries: NDArray[np.int64]) -> Values:
        """Return the cosine of each image to some, (n,) → (n, q), as the page computes it."""
        z = self.codes.astype(np.float32) * self.scales
        products = inner_products(z, z[queries])
        return products + (self.along_mean[:, None] + self.along_mean[queries] - self.mean_square)


def compact_layer(
    cache: FeatureCache, layer: str, rows: NDArray[np.int64], projection: Projection = "pca"
) -> CompactLayer:
    """Reduce one layer of some rows, one or more; maps are averaged over their positions first."""
    width = int(cache[layer].shape[1])
    fitted = spread(rows, max(2, min(_FITTED_ROWS, _FITTED_BYTES // (4 * width))))
    mean, pca = _axes(unit_rows(row_vectors(cache, layer, fitted)))
    queries = spread(np.arange(len(rows)), _QUERIES)
    asked = unit_rows(row_vectors(cache, layer, rows[queries]))
    z = np.zeros((len(rows), 0 if pca is None else len(pca.components)), np.float32)
    along_mean, exact = np.empty(len(rows), np.float32), np.empty((len(rows), len(queries)), "f4")
    every = np.empty((len(rows), width), np.float32) if projection == "umap" else None
    for part, vectors in _blocks(cache, layer, rows):
        along_mean[part] = vectors @ mean
        exact[part] = inner_products(vectors, asked)
        if pca is not None:
            z[part] = pca.apply(vectors)
        if every is not None:
            every[part] = vectors
    largest = np.abs(z).max(axis=0, initial=0)
    scales = np.where(largest > 0, largest / LARGEST_CODE, 1).astype(np.float32)
    explained = () if pca is None or every is not None else tuple(pca.explained[:2].tolist())
    found = CompactLayer(
        layer, width, np.rint(z / scales).astype(np.int8), scales, along_mean,
        float(mean.astype(np.float64) @ mean), _places(z, every), explained, 1.0, 0.0, len(queries),
    )  # fmt: skip
    kept, error = _loss(found.cosines(queries), exact, queries)
    return replace(found, kept=kept, error=error)


def _axes(vectors: Values) -> tuple[Values, Pca | None]:
    """Return mean and principal axes of rows; no axes where all rows are the same."""
    most = min(COMPONENTS, len(vectors) - 1, vectors.shape[1])
    try:
        pca = fit_pca(lambda: iter((vectors,)), most) if most > 0 else None
    except InputError:  # which says that they are the same
        pca = None
    mean = vectors.mean(axis=0, dtype=np.float64) if pca is None else pca.mean
    return mean.astype(np.float32), pca


def _blocks(
    cache: FeatureCache, layer: str, rows: NDArray[np.int64]
) -> Iterator[tuple[slice, Values]]:
    step = max(1, _BLOCK_BYTES // (4 * int(cache[layer].shape[1])))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, unit_rows(row_vectors(cache, layer, rows[part]))


def _places(z: Values, vectors: Values | None) -> Values:
    """Return a place for each image, (n, 2), from 0 to 1 along both axes of the map."""
    points = np.zeros((len(z), 2), np.float32)
    if vectors is not None:
        points[:] = umap_points(vectors)
    else:
        points[:, : min(2, z.shape[1])] = z[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max())  # one for both axes: distances keep their shape
    placed: Values = (points - low - (high - low) / 2) / (span or 1) + np.float32(0.5)
    return placed


def _loss(cosines: Values, exact: Values, queries: NDArray[np.int64]) -> tuple[float, float]:
    """Return the share of each query's nearest that are kept, and the mean error of a cosine."""
    count = min(NEAREST, len(exact) - 1)
    error = float(np.abs(cosines - exact).mean())
    if count < 1:
        return 1.0, error
    near, still = exact.copy(), cosines.copy()
    for scores in (near, still):
        scores[queries, np.arange(len(queries))] = -np.inf  # the query itself
    # What is as near as the last of the nearest is as good: identical images are.
    limit = -np.partition(-near, count - 1, axis=0)[count - 1] - np.float32(1e-6)
    found = np.argpartition(-still, count - 1, axis=0)[:count]
    return float((np.take_along_axis(near, found, axis=0) >= limit).mean()), error
