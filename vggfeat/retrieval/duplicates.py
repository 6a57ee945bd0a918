"""Near-duplicates: pairs of images closer than a threshold, and the groups they form.

Every row is compared with every other once, blocks of rows against blocks; pairs are not kept but
join groups at once (union-find, Galler & Fischer 1964), so that memory grows with the
rows and not with the pairs.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.sharded import open_cache
from vggfeat.core.choices import choose
from vggfeat.core.isolation import isolated
from vggfeat.core.resources import usable_cores
from vggfeat.core.text import agree, counted
from vggfeat.errors import InputError, UsageError
from vggfeat.retrieval.blas_threads import single_threaded
from vggfeat.retrieval.selection import only_layer
from vggfeat.retrieval.similarity import (
    DISTANCES,
    LayerQuery,
    block_rows,
    exact_pairs,
    final_scores,
    prepare_queries,
    row_squares,
    similarities,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.retrieval.similarity import Metric, PreparedQuery, Rows, Values

_log = logging.getLogger("vggfeat")

_DEFAULTS = {"cosine": 0.95, "l2": math.sqrt(2 - 2 * 0.95)}  # the same angle

_OUTER_ROWS = 2048  # compared with a block at a time
_DECIDED_AT_ONCE = 1 << 12  # pairs scored in float64


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a group.

    Attributes:
        row: in the cache.
        path: of the image, relative to the cache's root.
        score: cosine with, or distance to, the nearest other image of the group.
        identical: whether another file of the group has the same bytes.
    """

    row: int
    path: str
    score: float
    identical: bool


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images of which each is near another; any two are joined by a chain of near ones.

    Attributes:
        score: of its nearest pair.
        members: in the order of the cache.
    """

    score: float
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Near-duplicates of a cache.

    Attributes:
        cache: its path.
        layer: compared by.
        metric: `cosine`, `l2` or `l2-raw`.
        threshold: least cosine, or largest distance.
        images: compared.
        pairs: that are near enough.
        groups: largest first, then nearest pair first.
        warning: what to know of the cache's features, e.g. that their weights are random.
    """

    cache: str
    layer: str
    metric: str
    threshold: float
    images: int
    pairs: int
    groups: tuple[DuplicateGroup, ...]
    warning: str = ""

    @property
    def spare(self) -> int:
        """Number of redundant images, which could go if one of each group stayed."""
        return sum(len(group.members) - 1 for group in self.groups)


@isolated()
def duplicates(
    cache: str | os.PathLike[str] | FeatureCache,
    layer: str | None = None,
    *,
    threshold: float | None = None,
    metric: Metric = "cosine",
    on_progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Find pairs of images that are nearly alike, among all pairs, and the groups they form.

    Args:
        cache: done rows are compared.
        layer: a layer of vectors; may be left out for a cache of one layer.
        threshold: least cosine of a pair, or its largest distance; by default 0.95, and with `l2`
            0.316, which is the same. Distances as stored depend on the layer and have no default.
        metric: `cosine`; `l2`, the distance of the vectors at unit length, 2 at most; or `l2-raw`,
            that of the vectors as they are stored.
        on_progress: called with the number of comparisons done, and of all.

    Raises:
        UsageError: a layer, metric or threshold that makes no sense.
        InputError: fewer than two rows are done.
        CacheError: not a cache of ours, or without that layer.
    """
    opened = cache if isinstance(cache, FeatureCache) else open_cache(cache)
    name = opened.canonical(layer) if layer is not None else only_layer(opened)
    threshold = _checked_threshold(threshold, metric)
    rows = np.flatnonzero(opened.done)
    if len(rows) < 2:  # noqa: PLR2004 a pair
        raise InputError(
            f"{counted(len(rows), 'image')} of cache {opened.path!r} {agree(len(rows), 'is')} "
            "done; two make the first pair: extract more"
        )
    warning = opened.warn()
    task = _Task(opened, name, rows, metric, threshold)
    joined = _Groups(len(rows))
    with single_threaded() as alone:
        _compare_all(task, joined, usable_cores() if alone else 1, on_progress)
    groups, pairs = joined.groups(task), joined.pairs
    return Duplicates(opened.path, name, metric, threshold, len(rows), pairs, groups, warning)


def _checked_threshold(threshold: float | None, metric: Metric) -> float:
    """Return the threshold, or the default of the metric."""
    choose("metric", ("cosine", *DISTANCES), metric)
    rooms = {
        "cosine": (-1.0, 1.0, "a cosine from -1 to 1"),
        "l2": (
            0.0,
            2.0,
            "a distance of 0 to 2 at unit length; l2-raw is that of vectors as stored",
        ),
        "l2-raw": (0.0, sys.float_info.max, "a distance of 0 or more"),
    }
    least, most, room = rooms[metric]
    if threshold is None:
        if metric not in _DEFAULTS:
            raise UsageError(f"no threshold for metric {metric}; expected {room}")
        return _DEFAULTS[metric]
    if not least <= threshold <= most:
        raise UsageError(f"threshold is {threshold:g}; expected {room}")
    return threshold


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """The comparison of all pairs of rows, int64 (n,), of a layer."""

    cache: FeatureCache
    layer: str
    rows: Rows
    metric: Metric
    threshold: float

    @property
    def least(self) -> float:
        """The threshold as a similarity, see `Kernel`."""
        return self.threshold if self.metric == "cosine" else -self.threshold * self.threshold / 2

    @property
    def step(self) -> int:
        """Rows that are compared with the outer ones at a time."""
        return min(_OUTER_ROWS, block_rows(self.cache, [self.layer]))

    def query(self, rows: Rows) -> PreparedQuery:
        rows_as_query = LayerQuery(self.layer, self.cache.values(self.layer, rows))
        (query,) = prepare_queries(self.cache, [rows_as_query], self.metric)
        return query

    def near(self, similarity: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which pairs are near enough, by the scores as they are shown."""
        scores, threshold = final_scores(similarity, self.metric), np.float32(self.threshold)
        near: NDArray[np.bool_] = (
            scores <= threshold if self.metric in DISTANCES else scores >= threshold
        )
        return near


def _compare_all(
    task: _Task, joined: _Groups, threads: int, on_progress: Callable[[int, int], None] | None
) -> None:
    """Compare every row with every one after it, and join those that are near."""
    count = len(task.rows)
    outer = range(0, count, _OUTER_ROWS)
    # Pairs above the diagonal; blocks on the diagonal are compared whole.
    sizes = [min(_OUTER_ROWS, count - first) * (count - first) for first in outer]
    with ThreadPoolExecutor(threads) as pool:
        for number, first in enumerate(outer):
            query = task.query(task.rows[first : first + _OUTER_ROWS])
            compare = partial(_compare, task, joined, first, query)
            list(pool.map(compare, range(first, count, task.step)))
            if on_progress is not None:
                on_progress(sum(sizes[: number + 1]), sum(sizes))


def _compare(task: _Task, joined: _Groups, first: int, query: PreparedQuery, start: int) -> None:
    """Compare rows from place `start` on with the outer ones, from place `first` on."""
    x = task.cache.values(task.layer, task.rows[start : start + task.step])  # (n, D)
    scores, error = similarities(x @ query.vectors.T, row_squares(x), query)
    low = np.nextafter(np.float32(task.least - error), np.float32(-np.inf))
    hits = np.flatnonzero(scores >= low)
    at, which = np.divmod(hits, scores.shape[1])
    values = scores.reshape(-1)[hits].astype(np.float64)
    behind = start + at > first + which  # each pair once, none with itself
    at, which, values = at[behind], which[behind], values[behind]
    doubtful = np.flatnonzero(values < task.least + error)
    for begin in range(0, len(doubtful), _DECIDED_AT_ONCE):
        some = doubtful[begin : begin + _DECIDED_AT_ONCE]
        rows = x[at[some]].astype(np.float64)
        values[some] = exact_pairs(rows, query.exact[which[some]], query)
    near = task.near(values)
    joined.join(first + which[near], start + at[near], values[near])


class _Groups:
    """Groups of `count` places that belong together, and the nearest partner of each place."""

    def __init__(self, count: int) -> None:
        self.pairs = 0
        self._lock = threading.Lock()
        self._parents = np.arange(count)
        self._best = np.full(count, -np.inf)
        self._partners = np.full(count, count)

    def join(self, a: Rows, b: Rows, similarity: NDArray[np.float64]) -> None:
        """Add pairs of places, int64 (p,) each, from any thread."""
        with self._lock:
            self.pairs += len(a)
            for one, other in ((a, b), (b, a)):
                self._take(one, other, similarity)
            while len(a):
                roots, others = self._roots(a), self._roots(b)
                apart = roots != others
                a, b, roots, others = a[apart], b[apart], roots[apart], others[apart]
                np.minimum.at(self._parents, np.maximum(roots, others), np.minimum(roots, others))

    def _take(self, one: Rows, other: Rows, similarity: NDArray[np.float64]) -> None:
        """Keep the nearest partner of each place; of equally near ones the first."""
        better = (similarity > self._best[one]) | (
            (similarity == self._best[one]) & (other < self._partners[one])
        )
        one, other, similarity = one[better], other[better], similarity[better]
        order = np.lexsort((-other, similarity))  # of several for one place the last stays
        self._best[one[order]] = similarity[order]
        self._partners[one[order]] = other[order]

    def _roots(self, places: Rows) -> Rows:
        roots = self._parents[places]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                self._parents[places] = roots
                return roots
            roots = above

    def groups(self, task: _Task) -> tuple[DuplicateGroup, ...]:
        """Return the groups of two and more; places are those of the task's rows."""
        places = np.flatnonzero(self._partners < len(task.rows))
        roots = self._roots(places)
        order = np.argsort(roots, kind="stable")
        places, roots = places[order], roots[order]
        rows = task.rows[places]
        scores = _scores(task, rows, task.rows[self._partners[places]])
        bounds = np.flatnonzero(np.diff(roots, prepend=-1, append=-1)).tolist()
        groups = [
            _group(task, rows[start:stop], scores[start:stop]) for start, stop in pairwise(bounds)
        ]
        sign = 1 if task.metric in DISTANCES else -1
        groups.sort(key=lambda one: (-len(one.members), sign * one.score, one.members[0].row))
        return tuple(groups)


def _scores(task: _Task, rows: Rows, partners: Rows) -> Values:
    """Return the exact scores of pairs of rows, float32 (p,)."""
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _DECIDED_AT_ONCE):
        part = slice(start, start + _DECIDED_AT_ONCE)
        query = task.query(partners[part])
        x = task.cache.values(task.layer, rows[part]).astype(np.float64)
        scores[part] = final_scores(exact_pairs(x, query.exact, query), task.metric)
    return scores


def _group(task: _Task, rows: Rows, scores: Values) -> DuplicateGroup:
    digests = [digest.tobytes() for digest in task.cache.digests[rows]]
    often = Counter(digest for digest in digests if any(digest))
    members = tuple(
        Member(row, task.cache.name(row), score, often[digest] > 1)
        for row, score, digest in zip(rows.tolist(), scores.tolist(), digests, strict=True)
    )
    best = scores.min() if task.metric in DISTANCES else scores.max()
    return DuplicateGroup(float(best), members)
