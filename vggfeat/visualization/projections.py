"""Histograms of a cache's values and projections of its images to a plane, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from vggfeat.core import activity
from vggfeat.core.arrays import spread, unit_rows
from vggfeat.core.choices import choose
from vggfeat.core.layer_spec import split_specs
from vggfeat.core.optional import require
from vggfeat.core.text import counted
from vggfeat.errors import InputError, UsageError
from vggfeat.transforms.pca import fit_pca

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

Projection = Literal["pca", "umap"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)

BINS: Final = 60

VALUES_BYTES: Final = 1 << 28
"""Limit of the values, as float32, that a histogram reads of a layer; it samples larger ones."""

_HELD_BYTES = 1 << 30  # of vectors as float32, of all images in a plane
_BLOCK_BYTES = 1 << 26  # of maps that are read at once, to be averaged
_NEIGHBOURS = 15  # UMAP's own default; fewer images have fewer neighbours
_FEWEST = {"pca": 3, "umap": 5}
_SEED = 0  # of UMAP, which starts from random numbers


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of the values of a layer of some rows, and the share of values that are 0."""

    counts: NDArray[np.int64]  # (BINS,)
    edges: NDArray[np.float64]  # (BINS + 1,), from the lowest value to the highest
    zeros: float
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Images as points of a plane.

    Attributes:
        points: float32 (n, 2); empty for too few images, or if all are the same.
        axes: labels of the two axes.
        note: why `points` is empty, or ''.
    """

    points: NDArray[np.float32]
    axes: tuple[str, str]
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LayerView:
    """One layer of a cache, ready to be drawn.

    `histogram` is None where no row is done; `plane` has the images in `CacheView.rows`.
    """

    layer: str
    shape: tuple[int, ...]
    dtype: str
    histogram: Histogram | None
    plane: Plane


@dataclass(frozen=True, slots=True, eq=False)
class CacheView:
    """A cache, ready to be drawn; `rows`, int64 (n,), are the images in the planes."""

    cache: FeatureCache
    rows: NDArray[np.int64]
    layers: tuple[LayerView, ...]
    projection: Projection


def check_projection(name: str) -> Projection:
    """Return the projection of that name, if it can be computed here."""
    projection = choose("projection", PROJECTIONS, name)
    if projection == "umap":
        require("umap", "umap", "projection umap", package="umap-learn")
    return projection


def named_layers(cache: FeatureCache, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return layers of a cache by their canonical names, each once; for None all of them.

    Raises UsageError if none is named, CacheError for one that the cache lacks.
    """
    if layers is None:
        return cache.layers
    words = split_specs(layers) if isinstance(layers, str) else layers
    names = tuple(dict.fromkeys(map(cache.canonical, words)))
    if not names:
        raise UsageError(f"no layers requested; cache {cache.path!r} has {', '.join(cache.layers)}")
    for name in names:
        cache[name]
    return names


def view_cache(
    cache: FeatureCache,
    *,
    layers: str | None = None,
    projection: Projection = "pca",
    sample: int = 1000,
) -> CacheView:
    """Compute histograms and projections of layers of a cache, over its done rows.

    Histograms show the values as stored. For projections of `sample` images at most each vector is
    brought to unit length, so that images with a large cosine are near one another; else a few
    images with large values would press all others into a corner.
    """
    if sample < 1:
        raise UsageError(f"sample is {sample}; expected 1 or more")
    names = named_layers(cache, layers)
    cache.warn()
    done = np.flatnonzero(cache.done)
    # Of a vector all values are held, of a map one for each channel.
    widest = max(cache[name].shape[1] for name in names)
    rows = spread(done, min(sample, max(1, _HELD_BYTES // (4 * widest))))
    activity.begins(f"projecting {counted(len(rows), 'image')}")
    views = [
        LayerView(
            layer=name,
            shape=cache[name].shape[1:],
            dtype=cache[name].dtype.name,
            histogram=_histogram(cache, name, done),
            plane=plane_of(unit_rows(row_vectors(cache, name, rows)), projection),
        )
        for name in names
    ]
    return CacheView(cache, rows, tuple(views), projection)


def _histogram(cache: FeatureCache, layer: str, done: NDArray[np.int64]) -> Histogram | None:
    width = int(np.prod(cache[layer].shape[1:]))
    values = cache.values(layer, spread(done, max(1, VALUES_BYTES // (4 * width))))
    if not len(values):
        return None
    counts, edges = np.histogram(values, bins=BINS)
    zeros = 1 - np.count_nonzero(values) / values.size
    return Histogram(counts.astype(np.int64), edges.astype(np.float64), zeros, len(values))


def row_vectors(cache: FeatureCache, layer: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read rows of a layer as float32 (n, D); of maps the mean over positions."""
    shape = cache[layer].shape[1:]  # (D,) or (C, H, W)
    if len(shape) == 1:
        return cache.values(layer, rows)
    step = max(1, _BLOCK_BYTES // (4 * int(np.prod(shape))))
    positions = tuple(range(2, len(shape) + 1))
    vectors = np.empty((len(rows), shape[0]), dtype=np.float32)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        vectors[start : start + step] = cache.values(layer, part).mean(axis=positions)
    return vectors


def plane_of(vectors: NDArray[np.float32], projection: Projection) -> Plane:
    """Project finite vectors, float32 (n, D), to a plane.

    `pca` takes the first two principal components; `umap` is that of McInnes, Healy & Melville 2018
    with its defaults, cosine metric and a fixed seed.
    """
    nothing = np.empty((0, 2), dtype=np.float32)
    axes = (
        ("principal component 1", "principal component 2")
        if projection == "pca"
        else ("UMAP 1", "UMAP 2")
    )
    fewest = _FEWEST[projection]
    if len(vectors) < fewest or vectors.shape[1] < 2:  # noqa: PLR2004 a plane
        note = (
            f"no plane: {counted(len(vectors), 'image')} of {counted(vectors.shape[1], 'value')}; "
            f"{fewest} are needed"
        )
        return Plane(nothing, axes, note)
    if projection == "umap":
        return Plane(umap_points(vectors), axes)
    try:
        pca = fit_pca(lambda: iter((vectors,)), 2)
    except InputError as error:
        return Plane(nothing, axes, f"no plane: {error}")
    first, second = (
        f"{axis} ({share:.0%} of the variance)"
        for axis, share in zip(axes, pca.explained, strict=True)
    )
    return Plane(pca.apply(vectors), (first, second))


def umap_points(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return UMAP's place of each row, (n, D) → (n, 2); five rows or more."""
    import umap

    # One job: a seed allows no more, and umap would warn of that.
    reducer = umap.UMAP(
        n_neighbors=min(_NEIGHBOURS, len(vectors) - 1),
        metric="cosine",
        init="pca",
        random_state=_SEED,
        n_jobs=1,
    )
    points: NDArray[np.float32] = np.asarray(reducer.fit_transform(vectors), dtype=np.float32)
    return points
