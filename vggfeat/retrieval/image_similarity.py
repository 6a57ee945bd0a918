"""`vggfeat.similarity`: how alike vectors or images are, by one layer or several."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.sharded import open_cache
from vggfeat.core.choices import choose
from vggfeat.core.isolation import isolated
from vggfeat.core.layer_spec import split_specs
from vggfeat.core.sequences import as_tuple
from vggfeat.core.settings import Settings
from vggfeat.core.text import counted
from vggfeat.errors import DecodeError, TooManyFailuresError, UsageError
from vggfeat.images.transform import is_one_image
from vggfeat.retrieval.query_images import (
    Queries,
    QueryImageOptions,
    compute_queries,
    listed_images,
    listed_queries,
    query_images,
)
from vggfeat.retrieval.selection import row_named
from vggfeat.retrieval.similarity import check_layers
from vggfeat.retrieval.vector_similarity import (
    PAIR_METRICS,
    as_similarity,
    combined,
    scores_of_all_pairs,
    shares,
    vector_scores,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from vggfeat.core.records import FailedImage
    from vggfeat.extraction.extractor import ImagesLike
    from vggfeat.retrieval.vector_similarity import Numbers, PairMetric

_log = logging.getLogger("vggfeat")

DEFAULT_LAYERS = "conv5_3,fc7"
"""Compared by where neither layers nor a cache are given."""


@dataclass(frozen=True, slots=True, eq=False)
class SimilarityMatrix:
    """How alike images are: each with each.

    Attributes:
        images: their paths, or names in the cache; N of them.
        layers: compared by.
        weights: of each layer, adding up to 1.
        metric: `cosine`, `l2` or `l2-raw`.
        scores: layer → float64 (N, N): cosines, or distances.
        combined: float64 (N, N), the same by all layers together.
        failures: images that could not be decoded, and are left out.
        warning: what to know of the features, e.g. that their weights are random.
    """

    images: tuple[str, ...]
    layers: tuple[str, ...]
    weights: tuple[float, ...]
    metric: PairMetric
    scores: Mapping[str, NDArray[np.float64]]
    combined: NDArray[np.float64]
    failures: tuple[FailedImage, ...] = ()
    warning: str = ""

    def similarities(self, layer: str | None = None) -> NDArray[np.float64]:
        """Return similarities (N, N), where more is more alike; by one layer, or by all together.

        These are the cosines, or 1 / (1 + distance).
        """
        scores = self.combined if layer is None else self.scores[layer]
        return as_similarity(scores, self.metric)


def similarity(
    a: Any,
    b: Any,
    metric: PairMetric = "cosine",
    *,
    pairwise: bool = False,
    **compared: Any,
) -> float | NDArray[np.float64]:
    """Return how alike two vectors or two images are, or many.

        vggfeat.similarity(x, y)                                   # vectors (D,): one number
        vggfeat.similarity(cache["fc7"][0], cache["fc7"][1:])      # one with each: (N - 1,)
        vggfeat.similarity(x, y, "l2", pairwise=True)              # (N, D), (M, D): (N, M)
        vggfeat.similarity("a.jpg", "b.jpg", layers="conv5_3,fc7")
        vggfeat.similarity("a.jpg", image, cache="feats.h5")       # a PIL image

    Args:
        a: one vector (D,) or several (N, D), as array, tensor or lists; rows of a cache are such
            arrays. Or one image or several: paths, PIL images, the bytes of image files.
        b: the same kind, one or several.
        metric: `cosine`, the cosine of the angle, from -1 to 1 (equal direction); 0 with zeros.
            Or `l2`, 1 / (1 + distance) of the vectors at unit length, from 1/3 (opposite) to 1
            (equal direction). Or `l2-raw`, the same of the vectors as they are, which depends on
            the range of a layer: of fc7, mostly below 0.05 even for photos of one thing.
        pairwise: compare each of `a` with each of `b`. By default one is compared with every one of
            the other side, and several with as many others, row by row.
        compared: for images: `layers`, `cache`, `settings`, `layer_weights`, `device` and more, as
            in `similarity_matrix`. By several layers, this is their similarity together.

    Returns:
        a float for one and one; else float64 (N,), or (N, M) if pairwise.

    Raises:
        UsageError: vectors of other shapes or with values that are not finite, or choices that make
            no sense.
        DecodeError: an image cannot be decoded.
        InputError, WeightsError, CacheError, DeviceError: see `similarity_matrix`.
    """
    kinds = _are_images(a), _are_images(b)
    if kinds[0] != kinds[1]:
        raise UsageError(f"{'a' if kinds[0] else 'b'} is of images, and the other of numbers")
    if kinds[0]:
        found = _image_scores(a, b, metric, pairwise=pairwise, **compared)
    elif compared:
        raise TypeError(f"similarity() of vectors takes no argument {min(compared)!r}")
    else:
        found = vector_scores(a, b, metric, pairwise=pairwise)
    alike = as_similarity(found, metric)
    return alike if alike.ndim else float(alike)


def _are_images(given: Any) -> bool:
    if isinstance(given, np.ndarray) or hasattr(given, "detach"):
        return False
    several = isinstance(given, Sequence) and not is_one_image(given)
    return any(map(_are_images, given)) if several else is_one_image(given)


def _image_scores(
    a: ImagesLike, b: ImagesLike, metric: PairMetric, *, pairwise: bool, **compared: Any
) -> Numbers:
    """Return the scores of images by all layers, of the shapes of `vector_scores`."""
    sides = listed_images(a), listed_images(b)
    alone = is_one_image(a), is_one_image(b)
    first, second = map(len, sides)
    if not (pairwise or any(alone) or first == second):
        raise UsageError(
            f"a has {counted(first, 'image')} and b {second}; expected equally many, or "
            "pairwise=True to compare each with each"
        )
    features = _features([*sides[0], *sides[1]], **compared)
    for failure in features.images.failures:
        raise DecodeError(f"image {failure.path!r}: {failure.reason}")
    found = len(features.images.paths)
    if found != first + second:
        raise UsageError(
            f"{counted(first + second, 'image')} are given and {found} found, since one is a "
            "folder or an archive; use similarity_matrix for these"
        )
    scores = {}
    for layer, x in features.vectors.items():
        left, right = (x[0] if alone[0] else x[:first]), (x[first] if alone[1] else x[first:])
        scores[layer] = vector_scores(left, right, metric, pairwise=pairwise)
    return combined(scores, features.weights, metric)


def similarity_matrix(
    images: ImagesLike = (),
    *,
    rows: str | int | Sequence[str | int] = (),
    cache: str | os.PathLike[str] | FeatureCache | None = None,
    layers: str | Sequence[str] = (),
    layer_weights: Sequence[float] = (),
    metric: PairMetric = "cosine",
    settings: Settings | None = None,
    **options: Unpack[QueryImageOptions],
) -> SimilarityMatrix:
    """Return how alike images are, each with each, by every layer and by all together.

        found = vggfeat.similarity_matrix(["a.jpg", "b.jpg", "c.jpg"], layers="conv5_3,fc7")
        found.scores["fc7"]     # (3, 3) cosines
        found.combined          # (3, 3)

    Args:
        images: paths, folders, archives, PIL images, the bytes of files, arrays (H, W, C) of
            pixels, tensors (C, H, W); in this order, the images of a folder sorted.
        rows: images of the cache, by name or row, behind them; without `images` no network is
            needed.
        cache: compute the images with the network, weights and preprocessing of this cache.
        layers: of the cache, by default all; or, without one, of the network, by default
            conv5_3 and fc7.
        layer_weights: one a layer; equal by default.
        metric: `cosine`; `l2`, the distance of the vectors at unit length; or `l2-raw`, that of the
            vectors as they are.
        settings: without a cache: layers, model, weights, device, preprocessing.
        device: for the network; with a cache, or with `layers`.
        model_weights: see `query_images`; with a cache.
        use: likewise.

    By several layers a cosine is the mean of the layers' cosines, and a distance is that of the
    joined vectors, each layer (with `l2` at unit length) multiplied by the root of its weight.

    Raises:
        UsageError: choices that make no sense, fewer than two images, or a layer of maps.
        InputError: an image is missing.
        TooManyFailuresError: fewer than two images could be decoded.
        WeightsError: the weights were not found and could not be downloaded.
        CacheError: not a cache of ours, without such a layer, or made with other weights.
        DeviceError: no such device.
    """
    choose("metric", PAIR_METRICS, metric)
    features = _features(
        images, rows=rows, cache=cache, layers=layers, layer_weights=layer_weights,
        settings=settings, **options,
    )  # fmt: skip
    found = features.images
    if len(found.paths) < 2:  # noqa: PLR2004 a pair
        raise _too_few(found)
    scores = {name: scores_of_all_pairs(x, x, metric) for name, x in features.vectors.items()}
    together = combined(scores, features.weights, metric)
    return SimilarityMatrix(
        found.paths, tuple(scores), features.weights, metric, scores, together, found.failures,
        features.warning,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    """Features of images that are compared, by each layer, and the layers' weights."""

    images: Queries
    vectors: Mapping[str, Numbers]
    weights: tuple[float, ...]
    warning: str


@isolated()
def _features(
    images: ImagesLike,
    *,
    rows: str | int | Sequence[str | int] = (),
    cache: str | os.PathLike[str] | FeatureCache | None = None,
    layers: str | Sequence[str] = (),
    layer_weights: Sequence[float] = (),
    settings: Settings | None = None,
    **options: Unpack[QueryImageOptions],
) -> _Features:
    """Return the features of images; the arguments are those of `similarity_matrix`."""
    unknown = sorted(options.keys() - QueryImageOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"no argument {unknown[0]!r} to compare images; see similarity_matrix")
    asked, chosen = listed_images(images), as_tuple(rows)
    if cache is None:
        if chosen or "use" in options or "model_weights" in options:
            raise UsageError(
                "rows of a cache, --use and model_weights are for a cache; name it with --cache"
            )
        twice = (["layers"] if layers else []) + (["device"] if "device" in options else [])
        if settings is not None and twice:
            raise UsageError(f"{' and '.join(twice)} given beside settings, which have them too")
        settings = settings or _settings(layers, options)
        weights = shares(layer_weights, settings.stored)
        found, warning = _of_network(asked, settings)
    else:
        if settings is not None:
            raise UsageError("a cache says how its images are computed; leave settings out")
        opened = cache if isinstance(cache, FeatureCache) else open_cache(cache)
        given = split_specs(layers) if isinstance(layers, str) else list(layers)
        names = tuple(dict.fromkeys(map(opened.canonical, given or opened.layers)))
        check_layers(opened, names, (1.0,), "cosine")
        weights = shares(layer_weights, names)
        found, warning = _of_cache(opened, asked, chosen, names, options), opened.warn()
    vectors = {name: x.astype(np.float64) for name, x in found.vectors.items()}
    return _Features(found, vectors, weights, warning)


def _settings(layers: str | Sequence[str], options: QueryImageOptions) -> Settings:
    named = ",".join(as_tuple(layers))
    return Settings(layers=named or DEFAULT_LAYERS, device=options.get("device", "auto"))


def _of_network(images: list[Any], settings: Settings) -> tuple[Queries, str]:
    """Return features of images by the network of `settings`, and a warning about its weights."""
    from vggfeat.extraction.extractor import Extractor

    queries = listed_queries(images, in_order=True)
    if len(queries) < 2:  # noqa: PLR2004 a pair; before the network is loaded
        raise _too_few(Queries(tuple(query.name for query in queries)))
    extractor = Extractor(dataclasses.replace(settings, dtype="float32", augment=""))
    warning = extractor.weights.warning or ""
    if warning:
        _log.warning("%s", warning)
    found = compute_queries(queries, extractor)
    maps = [name for name, x in found.vectors.items() if x.ndim != 2]  # noqa: PLR2004 (N, D)
    if maps:
        raise UsageError(
            f"{', '.join(maps)} holds maps, not vectors; compare by a pool such as avg, gem or "
            "flatten"
        )
    return found, warning


def _of_cache(
    cache: FeatureCache,
    images: list[Any],
    rows: Sequence[str | int],
    layers: Sequence[str],
    options: QueryImageOptions,
) -> Queries:
    """Return features of images by the network of a cache, and behind them those of its rows."""
    own = np.array([row_named(cache, name) for name in rows], np.int64)
    held = {layer: cache.values(layer, own) for layer in layers}
    known = Queries(tuple(map(cache.name, own.tolist())), held)
    if not images:
        return known
    return query_images(cache, images, layers, in_order=True, **options).joined(known)


def _too_few(found: Queries) -> UsageError | TooManyFailuresError:
    if not found.failures:
        return UsageError(f"{counted(len(found.paths), 'image')} to compare; name two or more")
    first = found.failures[0]
    return TooManyFailuresError(
        f"{counted(len(found.failures), 'image')} cannot be decoded, so that no two can be "
        f"compared; the first, {first.path!r}: {first.reason}",
        None,
    )
