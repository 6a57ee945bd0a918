"""`vggfeat search`: find the images of a cache nearest to query images or to its rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.sharded import open_cache
from vggfeat.core import activity
from vggfeat.core.isolation import isolated
from vggfeat.core.sequences import as_tuple
from vggfeat.core.text import counted
from vggfeat.errors import InputError, TooManyFailuresError, UsageError
from vggfeat.retrieval.exact_search import nearest
from vggfeat.retrieval.faiss_index import open_index
from vggfeat.retrieval.query_images import (
    Queries,
    QueryImageOptions,
    listed_images,
    query_images,
)
from vggfeat.retrieval.query_vectors import query_vectors
from vggfeat.retrieval.selection import only_layer, row_named
from vggfeat.retrieval.similarity import DISTANCES, LayerQuery, check_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Unpack

    from vggfeat.core.records import FailedImage
    from vggfeat.extraction.extractor import ImagesLike
    from vggfeat.retrieval.exact_search import Nearest
    from vggfeat.retrieval.faiss_index_file import IndexInfo
    from vggfeat.retrieval.similarity import Metric

    Values = NDArray[np.float32]
    NetworkWeights = str | os.PathLike[str] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Hit:
    """A search hit.

    Attributes:
        rank: from 1.
        row: in the cache.
        path: of the image, relative to the cache's root.
        score: cosine, inner product, or with metrics `l2` and `l2-raw` the distance.
        similarity: the score, but of a distance d it is 1 / (1 + d).
        is_self: whether it is the query itself: the image of the query's own path, or, where the
            cache has none of that path, one of the same bytes.
        identical: whether its file had the same bytes as the query.
    """

    rank: int
    row: int
    path: str
    score: float
    similarity: float
    is_self: bool = False
    identical: bool = False

    @property
    def mark(self) -> str:
        """Remark on the hit, `the query itself` or `identical file`; mostly empty."""
        if self.is_self:
            return "the query itself"
        return "identical file" if self.identical else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits of one query.

    Attributes:
        query: path of the image, or its name in the cache.
        row: of a query that is an image of the cache, else None.
        hits: nearest first.
    """

    query: str
    row: int | None
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Outcome of a search.

    Attributes:
        cache: its path.
        layers: searched by.
        weights: of each layer, adding up to 1.
        metric: `cosine`, `l2`, `l2-raw` or `dot`.
        images: number of images searched.
        answers: one a query: images, then vectors, then rows.
        failures: queries that could not be decoded.
        index: the index searched, with its measured recall; None where the search was exact.
        warning: what to know of the cache's features, e.g. that their weights are random.
    """

    cache: str
    layers: tuple[str, ...]
    weights: tuple[float, ...]
    metric: str
    images: int
    answers: tuple[Answer, ...]
    failures: tuple[FailedImage, ...]
    index: IndexInfo | None = None
    warning: str = ""


@isolated()
def search(
    cache: str | os.PathLike[str] | FeatureCache,
    queries: ImagesLike = (),
    *,
    rows: str | int | Sequence[str | int] = (),
    vectors: Any = None,
    layers: str | Sequence[str] = (),
    layer_weights: Sequence[float] = (),
    weights: NetworkWeights | Sequence[float] | None = None,
    metric: Metric = "cosine",
    top: int = 10,
    index: str | os.PathLike[str] | None = None,
    exclude_self: bool = False,
    **images: Unpack[QueryImageOptions],
) -> SearchResult:
    """Find the images of a cache that are nearest to query images; exact without an index.

    A query that is an image of the cache finds itself, and the hit says so.

    Args:
        cache: what is searched: its rows that are done.
        queries: one or several of any kinds: paths of images, folders and archives, PIL images,
            arrays; see `query_images`.
        rows: images of the cache as queries, by name or row; each leaves itself out. Without
            `queries` no network is needed, and torch is not imported.
        vectors: queries that are features already: (q, D), or layer → (q, D) as an `Extractor` of
            the cache's settings returns; see `query_vectors`.
        layers: one or more; may be left out where the cache has one only.
        layer_weights: one a layer; equal by default. See `prepare_queries` for several layers.
        weights: of the network, see `query_images`; numbers are taken as `layer_weights`.
        metric: `cosine`; `l2`, the distance of the vectors at unit length; `l2-raw`, that of the
            vectors as they are stored; or `dot`.
        top: number of hits a query.
        index: file of an index of the one layer; built if it does not exist or is of other rows,
            see `open_index`. It may miss some images; scores are exact.
        exclude_self: leave out hits that are the query itself; others take their place.
        device: for the network; rows are searched on the CPU.
        model_weights: older name of `weights`.
        use: see `query_images`.

    Raises:
        UsageError: choices that make no sense, no query, or faiss is not installed.
        InputError: a query is missing, or nothing is done yet.
        TooManyFailuresError: no query could be decoded.
        WeightsError: the weights were not found and could not be downloaded.
        CacheError: not a cache of ours, without such a layer, or made with other weights; an index
            of another cache, or damaged.
        DeviceError: no such device.
        LockedError: another run builds the index.
        SpaceError: the index cannot be written.
    """
    unknown = sorted(images.keys() - QueryImageOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"search() got an unexpected keyword argument {unknown[0]!r}")
    opened = cache if isinstance(cache, FeatureCache) else open_cache(cache)
    of_layers = _weights(layer_weights, weights, images)
    names, shares = _layers(opened, as_tuple(layers), of_layers)
    asked, chosen = listed_images(queries), as_tuple(rows)
    if not asked and not chosen and vectors is None:
        raise UsageError("no query; name images or folders, or an image of the cache with --row")
    done = int(opened.done.sum())
    if not done:
        raise InputError(f"no image of cache {opened.path!r} is done; run vggfeat extract first")
    own = [row_named(opened, name) for name in chosen]
    check_layers(opened, names, shares, metric)
    _check_choices(top, names, has_index=index is not None)
    decoded = Queries() if vectors is None else query_vectors(opened, vectors, names)
    if asked:
        decoded = query_images(opened, asked, names, **images).joined(decoded)
    result = SearchResult(opened.path, names, shares, metric, done, (), decoded.failures)
    if not decoded.paths and not own:
        raise TooManyFailuresError(_none_decoded(decoded.failures), result)
    known = _queries(opened, decoded, own)
    left_out = np.array([q.own if exclude_self or q.row is not None else -1 for q in known])
    by_layer = _layer_queries(opened, names, shares, decoded.vectors, own)
    used = None if index is None else open_index(opened, names[0], metric, index)

    def find(count: int) -> Nearest:
        if used is not None:
            return used.search(by_layer[0].vectors, count, left_out=left_out)
        return nearest(opened, by_layer, count, metric, left_out=left_out)

    answers = _answers(opened, known, find, top, metric, exclude_self=exclude_self)
    info = None if used is None else used.info
    return replace(result, answers=answers, index=info, warning=opened.warn())


def _check_choices(top: int, layers: Sequence[str], *, has_index: bool) -> None:
    if top < 1:
        raise UsageError(f"top is {top}; expected at least 1")
    if has_index and len(layers) > 1:
        raise UsageError(f"an index is of one layer, not of {', '.join(layers)}; name one")


@dataclass(frozen=True, slots=True)
class _Query:
    """A query: `label` and `row` as in `Answer`, and what tells it among the hits.

    Attributes:
        own: row of the image at the query's path, or -1.
        digest: SHA-256 of the query's bytes, or zeros.
    """

    label: str
    row: int | None
    own: int
    digest: bytes


def _queries(cache: FeatureCache, decoded: Queries, own: Sequence[int]) -> list[_Query]:
    images = [
        _Query(path, None, _own_row(cache, place), digest)
        for path, place, digest in zip(decoded.paths, decoded.places, decoded.digests, strict=True)
    ]
    rows = [_Query(cache.name(row), row, row, cache.digests[row].tobytes()) for row in own]
    return images + rows


def _own_row(cache: FeatureCache, place: bytes) -> int:
    """Return the row of the image at an absolute path or address, or -1."""
    above = cache.header.provenance.root.rstrip(b"/") + b"/"
    with contextlib.suppress(KeyError):
        if place.startswith(above):
            return cache.row(place[len(above) :])
    return -1


def _answers(
    cache: FeatureCache,
    queries: Sequence[_Query],
    find: Callable[[int], Nearest],
    top: int,
    metric: Metric,
    *,
    exclude_self: bool,
) -> tuple[Answer, ...]:
    """Return `top` hits a query; search for more where hits on itself are left out."""
    activity.begins(f"searching {os.path.basename(cache.path)}")
    count = top
    while True:
        near = find(count)
        hits = [
            _hits(cache, query, rows, scores, metric)
            for query, rows, scores in zip(queries, near.rows, near.scores, strict=True)
        ]
        if not exclude_self:
            break
        others = [[hit for hit in some if not hit.is_self] for some in hits]
        # Byte-identical files may be many, and rank first.
        complete = all(
            len(kept) >= top or len(some) < count for kept, some in zip(others, hits, strict=True)
        )
        hits = [
            [replace(hit, rank=rank) for rank, hit in enumerate(kept[:top], 1)] for kept in others
        ]
        if complete:
            break
        count *= 2
    return tuple(
        Answer(query.label, query.row, tuple(some))
        for query, some in zip(queries, hits, strict=True)
    )


def _weights(
    layer_weights: Sequence[float],
    weights: NetworkWeights | Sequence[float] | None,
    images: QueryImageOptions,
) -> Sequence[float]:
    """Return the weights of layers; put the network's into the options of images.

    `weights` has once meant those of layers.
    """
    is_network = isinstance(weights, str | os.PathLike | Mapping) or hasattr(weights, "state_dict")
    if is_network:
        images["model_weights"] = cast("NetworkWeights", weights)
    if weights is None or is_network:
        return layer_weights
    older = tuple(cast("Sequence[float]", weights))
    if older and len(layer_weights):
        raise UsageError("layer_weights and weights both have weights of layers; give the former")
    return older or layer_weights


def _layers(
    cache: FeatureCache, layers: Sequence[str], weights: Sequence[float]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return canonical names, and weights that add up to 1."""
    names = tuple(cache.canonical(layer) for layer in layers) or (only_layer(cache),)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"layer {', '.join(twice)} is named twice; give it one weight")
    if weights and len(weights) != len(names):
        raise UsageError(
            f"{counted(len(weights), 'weight')} for {counted(len(names), 'layer')} "
            f"({', '.join(names)}); give one each"
        )
    given = tuple(weights) or (1.0,) * len(names)
    total = sum(given)
    return names, tuple(one / total for one in given) if total else given


def _layer_queries(
    cache: FeatureCache,
    layers: Sequence[str],
    weights: Sequence[float],
    vectors: Mapping[str, Values],
    own: Sequence[int],
) -> list[LayerQuery]:
    queries = []
    for layer, weight in zip(layers, weights, strict=True):
        parts = [cache.values(layer, np.array(own, np.int64))]
        if layer in vectors:
            parts.insert(0, vectors[layer])
        queries.append(LayerQuery(layer, np.concatenate(parts), weight))
    return queries


def _hits(
    cache: FeatureCache, query: _Query, rows: NDArray[np.int64], scores: Values, metric: Metric
) -> list[Hit]:
    rows, scores = rows[rows >= 0], scores[rows >= 0]
    digest = np.frombuffer(query.digest, np.uint8)
    same = np.full(len(rows), any(query.digest))
    same &= (np.asarray(cache.digests[rows]) == digest).all(1)
    itself = same if query.own < 0 else rows == query.own
    return [
        Hit(
            rank,
            row,
            cache.name(row),
            score,
            1 / (1 + score) if metric in DISTANCES else score,
            *marks,
        )
        for rank, (row, score, *marks) in enumerate(
            zip(rows.tolist(), scores.tolist(), itself.tolist(), same.tolist(), strict=True), 1
        )
    ]


def _none_decoded(failures: Sequence[FailedImage]) -> str:
    first = failures[0]
    return (
        f"none of {counted(len(failures), 'query image')} can be decoded; the first, "
        f"{first.path!r}: {first.reason}"
    )
