"""Exact top-k rows of a cache, streamed over the memory map in several threads.

Each thread scores blocks in float32 and keeps every row that may be among the k nearest, given how
far float32 may be off; these candidates are then scored in float64. So the result depends neither
on blocks nor on threads, and rows of equal score stand in the order of the file.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.resources import usable_cores
from vggfeat.errors import UsageError
from vggfeat.retrieval.blas_threads import single_threaded
from vggfeat.retrieval.selection import row_named
from vggfeat.retrieval.similarity import (
    DISTANCES,
    Kernel,
    LayerQuery,
    block_rows,
    exact_similarities,
    final_scores,
    prepare_queries,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.similarity import Metric, PreparedQuery, Rows, Values

_MOST_KEPT = 1 << 20  # rows that one thread keeps before it decides between them in float64


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """The rows nearest to each query, nearest first.

    Attributes:
        rows: int64 (q, k); -1 where fewer than k rows exist.
        scores: float32 (q, k), cosines, inner products or distances; NaN where the row is -1.
    """

    rows: Rows
    scores: Values


def top_k(
    cache: FeatureCache,
    layer: str,
    queries: Values,
    k: int,
    metric: Metric = "cosine",
    *,
    rows: Rows | None = None,
) -> tuple[Rows, Values]:
    """Return the k rows nearest to each query by one layer; exact.

    Args:
        cache: what is searched.
        layer: a layer of vectors.
        queries: float32 (q, D).
        k: number of rows a query, at least 1.
        metric: `cosine`, `l2`, `l2-raw` or `dot`; see `prepare_queries`.
        rows: int64 (n,), the rows to search; by default all rows that are done.

    Returns:
        rows int64 (q, k) and scores float32 (q, k), nearest first, equal scores by row; k is less
        where fewer rows exist. Scores are cosines, distances or inner products.

    Raises:
        UsageError: queries, k, rows or metric that make no sense.
        CacheError: no such layer.
    """
    result = nearest(cache, [LayerQuery(layer, queries)], k, metric, rows=rows)
    return result.rows, result.scores


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An image near to another, and the cosine of their features."""

    row: int
    path: str
    cosine: float


@dataclass(frozen=True, slots=True)
class NearestImages:
    """The images nearest to the image `path` by one layer, nearest first, without itself."""

    layer: str
    path: str
    neighbours: tuple[Neighbour, ...]


def nearest_images(cache: FeatureCache, name: str, most: int = 10) -> tuple[NearestImages, ...]:
    """Return the images nearest to a done one by cosine, for each layer of vectors; exact."""
    own = np.array([row_named(cache, name)])
    layers = [layer for layer in cache.layers if len(cache.header.shapes[layer]) == 1]
    if not layers:
        raise UsageError(f"cache {cache.path!r} holds maps only; --nearest compares vectors")
    answers = []
    for layer in layers:
        query = LayerQuery(layer, cache.values(layer, own))
        result = nearest(cache, [query], most, left_out=own)
        pairs = zip(result.rows[0].tolist(), result.scores[0].tolist(), strict=True)
        neighbours = tuple(Neighbour(row, cache.name(row), cos) for row, cos in pairs if row >= 0)
        answers.append(NearestImages(layer, name, neighbours))
    return tuple(answers)


def nearest(
    cache: FeatureCache,
    queries: Sequence[LayerQuery],
    k: int,
    metric: Metric = "cosine",
    *,
    rows: Rows | None = None,
    left_out: Rows | None = None,
    threads: int | None = None,
) -> Nearest:
    """Return the k rows nearest to each query by one layer or several; exact.

    Args:
        cache: what is searched; memory needed does not grow with it.
        queries: by each layer; see `prepare_queries` for the similarity by several layers.
        k: see `top_k`.
        metric: likewise.
        rows: likewise.
        left_out: int64 (q,), a row to leave out for each query, -1 for none.
        threads: number of threads; by default one for each core this process may use.
    """
    if k < 1:
        raise UsageError(f"top is {k}; expected at least 1")
    prepared = prepare_queries(cache, queries, metric)
    wanted = np.flatnonzero(cache.done) if rows is None else _checked(cache, rows)
    k = min(k, len(wanted))
    kept = k if left_out is None else k + 1
    blocks = _Blocks(wanted, block_rows(cache, [query.layer for query in prepared]))
    with single_threaded() as alone:
        count = max(1, threads or usable_cores()) if alone else 1
        shortlists = [_Shortlist(cache, prepared, kept) for _ in range(count)]
        scan = partial(_scan, blocks, cache, prepared)
        with ThreadPoolExecutor(count) if count > 1 else nullcontext() as pool:
            run = map if pool is None else pool.map
            list(run(scan, shortlists))
        candidates = [shortlist.candidates() for shortlist in shortlists]
        which, near = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
        return ranked(cache, prepared, which, near, k, left_out=left_out)


def _checked(cache: FeatureCache, rows: Rows) -> Rows:
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < len(cache)):
        raise UsageError(
            f"rows from {wanted[0]} to {wanted[-1]} are requested; cache {cache.path!r} has "
            f"{len(cache)}, counted from 0"
        )
    return wanted


class _Blocks:
    """Blocks of at most `size` of the ascending `wanted` rows; threads take one after another."""

    def __init__(self, wanted: Rows, size: int) -> None:
        self.size = size
        self._wanted = wanted
        self._next = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, int, Rows]]:
        """Yield the first row, the end, and the wanted rows counted from the first."""
        while True:
            with self._lock:
                if self._next >= len(self._wanted):
                    return
                first = int(self._wanted[self._next])
                stop = int(np.searchsorted(self._wanted, first + self.size))
                rows = self._wanted[self._next : stop]
                self._next = stop
            yield first, int(rows[-1]) + 1, rows - first


def _scan(
    blocks: _Blocks,
    cache: FeatureCache,
    queries: Sequence[PreparedQuery],
    shortlist: _Shortlist,
) -> None:
    """Score blocks, in one thread, until none is left."""
    kernel = Kernel(cache, queries, blocks.size)
    with np.errstate(all="ignore"):  # rows that are not done may hold anything
        for start, stop, wanted in blocks:
            scores, error = kernel(start, stop)
            if len(wanted) < stop - start:
                scores = scores[wanted]
            shortlist.add(start + wanted, scores, error)


class _Shortlist:
    """Rows that may be among the k nearest, of those one thread has scored."""

    def __init__(self, cache: FeatureCache, queries: Sequence[PreparedQuery], k: int) -> None:
        self._cache = cache
        self._queries = queries
        self._k = k
        count = len(queries[0].vectors) if queries else 0
        self._count = count
        self._floor = np.full(count, -np.inf)  # surely reached by k rows
        self._parts: list[NDArray[np.float64]] = []  # (4, n): query, row, lowest, highest
        self._held = 0
        self._limit = 0

    def add(self, rows: Rows, scores: Values, error: float) -> None:
        """Add the rows of a block, scores (n, q), that may be among the nearest."""
        floor = (self._floor - error).astype(np.float32)
        # Rounded up, the floor would leave out a row that just reaches it.
        hits = np.flatnonzero(scores >= np.nextafter(floor, np.float32(-np.inf)))
        if not len(hits):
            return
        at, which = np.divmod(hits, self._count)
        values = scores.reshape(-1)[hits].astype(np.float64)
        self._parts.append(np.stack([which, rows[at], values - error, values + error]))
        self._held += len(hits)
        if self._held > self._limit:
            self._prune()

    def _prune(self) -> None:
        kept = _reaching(np.concatenate(self._parts, axis=1), self._floor, self._k)
        if kept.shape[1] > max(_MOST_KEPT, 4 * self._k * self._count):
            kept = self._decided(kept)
        self._parts, self._held = [kept], kept.shape[1]
        self._limit = 2 * self._held + 1024

    def _decided(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return only the k nearest of each query, where float32 cannot tell too many apart."""
        which, rows = kept[0].astype(np.int64), kept[1].astype(np.int64)
        exact = exact_similarities(self._cache, self._queries, which, rows)
        best = best_of(which, rows, exact, self._queries[0].metric, self._k)
        off = np.abs(exact[best]) * 2.0**-22  # equal as float32 scores counts as equal
        return np.stack([which[best], rows[best], exact[best] - off, exact[best] + off])

    def candidates(self) -> tuple[Rows, Rows]:
        """Return query and row of all candidates, int64 (n,) each."""
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        kept = _reaching(np.concatenate(self._parts, axis=1), self._floor, self._k)
        return kept[0].astype(np.int64), kept[1].astype(np.int64)


def _reaching(
    entries: NDArray[np.float64], floor: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """Return the entries, (4, n), that may be among their query's k nearest; raise the floor."""
    order = np.lexsort((-entries[2], entries[0]))
    which = entries[0][order].astype(np.int64)
    starts = np.searchsorted(which, np.arange(len(floor)))
    counts = np.searchsorted(which, np.arange(len(floor)), side="right") - starts
    full = np.flatnonzero(counts >= k)
    kth = entries[2][order[starts[full] + k - 1]]
    floor[full] = np.maximum(floor[full], kth)
    kept: NDArray[np.float64] = entries[:, entries[3] >= floor[entries[0].astype(np.int64)]]
    return kept


def best_of(
    which: Rows, rows: Rows, exact: NDArray[np.float64], metric: Metric, k: int
) -> NDArray[np.int64]:
    """Return the places of each query's k best entries, by query, score as shown, and row."""
    shown = final_scores(exact, metric)
    order = np.lexsort((rows, shown if metric in DISTANCES else -shown, which))
    sorted_which = which[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_which, sorted_which)
    best: NDArray[np.int64] = order[rank < k]
    return best


def ranked(
    cache: FeatureCache,
    queries: Sequence[PreparedQuery],
    which: Rows,
    rows: Rows,
    k: int,
    *,
    left_out: Rows | None = None,
) -> Nearest:
    """Return the k nearest of candidates, query `which` and row `rows`, scored in float64."""
    if left_out is not None:
        others = rows != np.asarray(left_out)[which]
        which, rows = which[others], rows[others]
    exact = exact_similarities(cache, queries, which, rows)
    metric = queries[0].metric
    best = best_of(which, rows, exact, metric, k)
    which = which[best]
    rank = np.arange(len(which)) - np.searchsorted(which, which)
    shape = (len(queries[0].vectors), k)
    result = Nearest(np.full(shape, -1, np.int64), np.full(shape, np.nan, np.float32))
    result.rows[which, rank] = rows[best]
    result.scores[which, rank] = final_scores(exact[best], metric)
    return result
