"""The nearest rows of a cache to queries: exact, streamed over the memory map, in several threads.

Each thread scores blocks in float32 and keeps every row that may be among the k nearest, given how
far float32 may be off; what is left is scored in float64. So the result depends neither on blocks
nor on threads, and rows of equal score stand in the order of the file.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.resources import usable_cores
from vggfeat.errors import UsageError
from vggfeat.retrieval.blas_threads import single_threaded
from vggfeat.retrieval.similarity import (
    Kernel,
    LayerQuery,
    block_rows,
    exact_similarities,
    final_scores,
    sides,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.similarity import Metric, Rows, Side, Values

    Scorer = Callable[[int, int], tuple[Values, float]]
    MakeScorer = Callable[[FeatureCache, Sequence[Side], int], Scorer]

_MOST_KEPT = 1 << 20  # rows that one thread keeps before it decides between them in float64


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """What queries found, nearest first.

    Attributes:
        rows: int64 (q, k); -1 where there are fewer than k rows.
        scores: float32 (q, k), cosines, inner products or distances; NaN where there is no row.
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
    """The k rows nearest to each query by one layer; exact.

    Args:
        cache: what is searched.
        layer: a layer of vectors.
        queries: float32 (q, D).
        k: how many, at least 1.
        metric: `cosine`, `l2` or `dot`.
        rows: int64 (n,), where to look; by default all rows that are done.

    Returns:
        rows int64 (q, k) and scores float32 (q, k), nearest first, equal scores by row; k is less
        where there are fewer rows. Scores are cosines, distances or inner products.

    Raises:
        UsageError: queries, k, rows or metric that make no sense.
        CacheError: no such layer.
    """
    found = nearest(cache, [LayerQuery(layer, queries)], k, metric, rows=rows)
    return found.rows, found.scores


def nearest(
    cache: FeatureCache,
    asked: Sequence[LayerQuery],
    k: int,
    metric: Metric = "cosine",
    *,
    rows: Rows | None = None,
    left_out: Rows | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Nearest:
    """The k rows nearest to each query by one layer or several; exact.

    Args:
        cache: what is searched; memory needed does not grow with it.
        asked: the queries by each layer; see `blocks.sides` for what several layers come to.
        k: how many, at least 1.
        metric: `cosine`, `l2` or `dot`.
        rows: int64 (n,), where to look; by default all rows that are done.
        left_out: int64 (q,), a row that each query does not find, -1 for none.
        threads: how many; by default one for each core this process may use.
        device: `cpu`; a CUDA device, which computes the products; `auto`, CUDA where torch is
            loaded already and there is one.

    Raises:
        UsageError: queries, k, rows or metric that make no sense.
        CacheError: no such layer.
        DeviceError: no such device.
    """
    if k < 1:
        raise UsageError(f"top is {k}; expected at least 1")
    queries = sides(cache, asked, metric)
    wanted = _wanted(cache, rows)
    extra = 0 if left_out is None else 1
    k = min(k, len(wanted))
    make = _maker(device)
    size = block_rows(cache, [side.layer for side in queries])
    blocks = _Blocks(wanted, size)
    with single_threaded() as alone:
        count = max(1, threads or usable_cores()) if alone and make is Kernel else 1
        shortlists = [_Shortlist(cache, queries, k + extra) for _ in range(count)]
        work = _Work(blocks, cache, queries, make)
        with ThreadPoolExecutor(count) if count > 1 else nullcontext() as pool:
            run = map if pool is None else pool.map
            list(run(work, shortlists))
        return _merged(cache, queries, shortlists, k, left_out)


def _wanted(cache: FeatureCache, rows: Rows | None) -> Rows:
    if rows is None:
        return np.flatnonzero(cache.done)
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < len(cache)):
        raise UsageError(
            f"rows from {wanted[0]} to {wanted[-1]} are asked for; cache {cache.path!r} has "
            f"{len(cache)}, counted from 0"
        )
    return wanted


def _maker(device: str) -> MakeScorer:
    if device == "cpu":
        return Kernel
    from vggfeat.retrieval.cuda_similarity import CudaKernel, cuda_device

    found = cuda_device(device)
    return Kernel if found is None else CudaKernel.on(found)


class _Blocks:
    """Blocks of rows that threads take one after the other.

    Args:
        wanted: int64 (n,), ascending.
        size: rows of a block at most.
    """

    def __init__(self, wanted: Rows, size: int) -> None:
        self.size = size
        self._wanted = wanted
        self._next = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, int, Rows]]:
        """First row, the one behind the last, and which of them are wanted, counted from it."""
        while True:
            with self._lock:
                if self._next >= len(self._wanted):
                    return
                first = int(self._wanted[self._next])
                stop = int(np.searchsorted(self._wanted, first + self.size))
                rows = self._wanted[self._next : stop]
                self._next = stop
            yield first, int(rows[-1]) + 1, rows - first


@dataclass(frozen=True, slots=True)
class _Work:
    """What one thread does."""

    blocks: _Blocks
    cache: FeatureCache
    queries: Sequence[Side]
    make: MakeScorer

    def __call__(self, shortlist: _Shortlist) -> None:
        kernel = self.make(self.cache, self.queries, self.blocks.size)
        with np.errstate(all="ignore"):  # rows that are not done may hold anything
            for start, stop, wanted in self.blocks:
                scores, error = kernel(start, stop)
                if len(wanted) < stop - start:
                    scores = scores[wanted]
                shortlist.add(start + wanted, scores, error)


class _Shortlist:
    """Rows that may be among the k nearest, of what one thread has seen.

    Args:
        cache: what is searched.
        queries: see `blocks.sides`.
        k: how many are wanted.
    """

    def __init__(self, cache: FeatureCache, queries: Sequence[Side], k: int) -> None:
        self._cache = cache
        self._sides = queries
        self._k = k
        count = len(queries[0].vectors) if queries else 0
        self._count = count
        self._floor = np.full(count, -np.inf)  # surely reached by k rows
        self._parts: list[NDArray[np.float64]] = []  # (4, n): query, row, lowest, highest
        self._held = 0
        self._limit = 0

    def add(self, rows: Rows, scores: Values, error: float) -> None:
        """Takes in the scores, (n, q), of a block."""
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
        """Only the k nearest of each query, where float32 cannot tell too many apart."""
        which, rows = kept[0].astype(np.int64), kept[1].astype(np.int64)
        exact = exact_similarities(self._cache, self._sides, which, rows)
        best = best_of(which, rows, exact, self._sides[0].metric, self._k)
        off = np.abs(exact[best]) * 2.0**-22  # equal as float32 scores counts as equal
        return np.stack([which[best], rows[best], exact[best] - off, exact[best] + off])

    def candidates(self) -> tuple[Rows, Rows]:
        """Query and row of all that are left, int64 (n,) each."""
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        kept = _reaching(np.concatenate(self._parts, axis=1), self._floor, self._k)
        return kept[0].astype(np.int64), kept[1].astype(np.int64)


def _reaching(
    entries: NDArray[np.float64], floor: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """The entries, (4, n), that may be among the k nearest of their query; raises the floor."""
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
    """Places of the k best entries of each query, by query, then score as shown, then row."""
    shown = final_scores(exact, metric)
    order = np.lexsort((rows, shown if metric == "l2" else -shown, which))
    sorted_which = which[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_which, sorted_which)
    best: NDArray[np.int64] = order[rank < k]
    return best


def _merged(
    cache: FeatureCache,
    queries: Sequence[Side],
    shortlists: Sequence[_Shortlist],
    k: int,
    left_out: Rows | None,
) -> Nearest:
    """The k nearest of all that the threads have left."""
    found = [shortlist.candidates() for shortlist in shortlists]
    which, rows = (np.concatenate([one[part] for one in found]) for part in (0, 1))
    return ranked(cache, queries, which, rows, k, left_out=left_out)


def ranked(
    cache: FeatureCache,
    queries: Sequence[Side],
    which: Rows,
    rows: Rows,
    k: int,
    *,
    left_out: Rows | None = None,
) -> Nearest:
    """The k nearest of candidates to each query, scored in float64.

    Args:
        cache: what is searched.
        queries: see `blocks.sides`.
        which: int64 (n,), the query of each candidate.
        rows: int64 (n,), its row.
        k: how many.
        left_out: int64 (q,), a row that each query does not find, -1 for none.
    """
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
