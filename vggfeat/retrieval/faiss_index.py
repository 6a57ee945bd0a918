"""An index of one layer: finds the nearest rows of a large cache without looking at them all.

Up to `FLAT_ROWS` rows it is a flat index. More lie in lists, each around a centroid (an inverted
file: Sivic and Zisserman 2003, "Video Google"; Jégou et al. 2011, "Product quantization for nearest
neighbor search", IV), and a query looks into the lists of the nearest centroids only. How many is
decided by measuring: as few as find 95 % of the ten nearest rows that the exact scan finds.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.arrays import spread, unit_rows
from vggfeat.core.file_types import foreign_ending
from vggfeat.core.text import counted
from vggfeat.errors import CacheMismatchError, InputError, LockedError, UsageError
from vggfeat.retrieval.exact_search import Nearest, nearest, ranked
from vggfeat.retrieval.faiss_index_file import (
    IndexedLayer,
    IndexInfo,
    LengthGuard,
    damaged,
    load_faiss,
    read_index,
    read_record,
    write_file,
)
from vggfeat.retrieval.similarity import LayerQuery, sides
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import check_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.faiss_index_file import Record
    from vggfeat.retrieval.similarity import Metric, Rows, Values

    OnProgress = Callable[[int, int], None]

_log = logging.getLogger("vggfeat")

FLAT_ROWS = 20_000
"""Up to so many rows an index is flat."""

RECALL = 0.95
"""That a query must reach, as a mean, where enough lists can do it."""

_AT = 10  # nearest rows that recall is measured at
_QUERIES = 200  # rows of the cache that recall is measured on
_LISTS_PER_ROOT = 4  # lists = 4 sqrt(n), which keeps centroids and rows looked at of one order
_LEAST_POINTS = 39  # training rows a list, below which faiss warns that they are too few
_POINTS = 40
_ITERATIONS = 10  # of k-means, after which recall gains nothing worth its time
_SAMPLE_BYTES = 1 << 29  # of training rows
_BLOCK_BYTES = 1 << 26  # of rows added at a time
_LARGEST_HALF = 65504.0


class FaissIndex:
    """Rows of a cache that can be searched without looking at them all.

    Args:
        cache: that it was built from.
        source: likewise, in particular.
        info: what it is; `probes` decides how many lists a query looks into.
        index: faiss's.
        rows: int64 (n,), the row of the cache of each of its entries.
        guard: of the file that it is mapped from; None where it is in memory.
    """

    def __init__(
        self,
        cache: FeatureCache,
        source: IndexedLayer,
        info: IndexInfo,
        index: Any,
        rows: Rows,
        *,
        guard: LengthGuard | None = None,
    ) -> None:
        self.info = info
        self._cache = cache
        self._source = source
        self._index = index
        self._rows = rows
        self._guard = guard

    def search(self, queries: Values, k: int, *, left_out: Rows | None = None) -> Nearest:
        """The k nearest rows to each query, as far as the index finds them.

        It is asked for twice as many; these are scored from the cache in float64, as the exact
        search does, and the best are kept. So scores are exact, and what float16 confuses is
        mostly put right.

        Args:
            queries: float32 (q, D).
            k: how many, at least 1.
            left_out: int64 (q,), a row that each query does not find, -1 for none.

        Raises:
            UsageError: queries or k that make no sense.
            CacheError: the file of the index was cut short since it was opened.
        """
        if self._guard is not None:
            self._guard.check()
        if k < 1:
            raise UsageError(f"top is {k}; expected at least 1")
        metric: Metric = self._source.metric  # type: ignore[assignment] # checked when built
        queries_ready = sides(self._cache, [LayerQuery(self._source.layer, queries)], metric)
        count = min(len(self._rows), 2 * k + 1)
        places = self._places(queries_ready[0].vectors, count)
        which, rank = np.nonzero((places >= 0) & (places < len(self._rows)))
        rows = self._rows[places[which, rank]]
        return ranked(
            self._cache, queries_ready, which, rows, min(k, len(self._rows)), left_out=left_out
        )

    def _places(self, vectors: Values, count: int) -> NDArray[np.int64]:
        """Entries found, int64 (q, count); looks into more lists where they hold too few."""
        if not self.info.lists:
            flat: NDArray[np.int64] = self._index.search(vectors, count)[1]
            return flat
        faiss = load_faiss()
        probes = self.info.probes
        while True:
            parameters = faiss.SearchParametersIVF(nprobe=probes)
            places: NDArray[np.int64] = self._index.search(vectors, count, params=parameters)[1]
            if probes >= self.info.lists or (places >= 0).all():
                return places
            probes = min(2 * probes, self.info.lists)


def open_index(
    cache: FeatureCache,
    layer: str,
    metric: Metric,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> FaissIndex:
    """Opens the index of a layer, and builds it first where there is none, or of other rows.

    Args:
        cache: its rows that are done now.
        layer: a layer of vectors.
        metric: `cosine`, `l2` or `dot`.
        path: of the index.
        on_progress: see `build_index`.

    Raises:
        CacheMismatchError: it is of another cache, layer or metric.
        CacheError: the file is no index of ours or is damaged, or the cache has no such layer.
        UsageError: faiss is not installed, a layer of maps, or no such metric.
        InputError: no row is done.
        LockedError: another run is building it.
        SpaceError: it cannot be written.
    """
    load_faiss()
    path = os.fspath(path)
    _check_path(path)
    done = np.array(cache.done)
    source = _source(cache, layer, metric, done)
    record = _current(path, source)
    if record is None:
        build_index(cache, layer, metric, path, on_progress=on_progress)
        done = np.array(cache.done)
        source = _source(cache, layer, metric, done)
        record = _current(path, source)
        if record is None:
            raise LockedError(
                f"cache {cache.path!r} changed while index {path!r} was built; search it when the "
                "run that fills it is over"
            )
    index, guard = _read(path, record, cache)
    return FaissIndex(cache, source, record.info, index, np.flatnonzero(done), guard=guard)


def build_index(
    cache: FeatureCache,
    layer: str,
    metric: Metric,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> IndexInfo:
    """Builds the index of a layer and measures it. In memory is the index, and a block of rows.

    Args:
        cache: its rows that are done.
        layer: a layer of vectors.
        metric: `cosine`, `l2` or `dot`.
        path: where the index appears when it is whole. An index of the same cache, layer and metric
            is replaced; nothing else is.
        on_progress: called with rows added, and all there are.

    Raises:
        see `open_index`.
    """
    load_faiss()
    path = os.fspath(path)
    _check_path(path)
    done = np.array(cache.done)
    source = _source(cache, layer, metric, done)
    if not source.rows:
        raise InputError(f"no image of cache {cache.path!r} is done; run vggfeat extract first")
    record = read_record(path)
    if record is not None:
        _refuse_another(path, record.source, source)
    try:
        with hold(path):
            return _built(cache, source, np.flatnonzero(done), path, on_progress)
    except LockedError as error:
        raise LockedError(f"index {path!r} is being built by another run; wait for it") from error


def _check_path(path: str) -> None:
    check_place(path, "index")
    ending = foreign_ending(path)
    if ending not in (b"", b"faiss"):
        raise UsageError(
            f"index {path!r} is named like a file of another format; name it "
            f"{path[: -len(ending)] + 'faiss'!r}"
        )


def _source(
    cache: FeatureCache, layer: str, metric: Metric, done: NDArray[np.bool_]
) -> IndexedLayer:
    nothing = np.zeros((0, cache[layer].shape[-1]), np.float32)
    (side,) = sides(cache, [LayerQuery(layer, nothing)], metric)  # refuses maps and unknown metrics
    return IndexedLayer.of(cache, side.layer, metric, done)


def _current(path: str, source: IndexedLayer) -> Record | None:
    """The record of the index if it is of the rows that are done now."""
    record = read_record(path)
    if record is None:
        return None
    _refuse_another(path, record.source, source)
    if record.source == source:
        return record
    _log.info(
        "index %r is of %s, and of the %d done now some are others: building it anew",
        path,
        counted(record.source.rows, "image"),
        source.rows,
    )
    return None


def _refuse_another(path: str, found: IndexedLayer, wanted: IndexedLayer) -> None:
    for field, name in (
        ("layer", "layer"),
        ("metric", "metric"),
        ("root", "a cache of the images in"),
        ("fingerprint", "a cache with fingerprint"),
    ):
        has, expected = getattr(found, field), getattr(wanted, field)
        if has != expected:
            raise CacheMismatchError(
                f"index {path!r} is of {name} {has}, expected {expected}; name another file"
            )


def _read(path: str, record: Record, cache: FeatureCache) -> tuple[Any, LengthGuard | None]:
    index, guard = read_index(path, record)
    if index.d != cache[record.source.layer].shape[1]:
        raise damaged(path, "its width")
    return index, guard


def _built(
    cache: FeatureCache, source: IndexedLayer, rows: Rows, path: str, on_progress: OnProgress | None
) -> IndexInfo:
    _log.info("building index %r of %s by %s", path, counted(len(rows), "image"), source.layer)
    index, info = _trained(cache, source, rows)
    added = 0
    for x in _blocks(cache, source, rows):
        index.add(x)
        added += len(x)
        if on_progress is not None:
            on_progress(added, len(rows))
    info = _measured(FaissIndex(cache, source, info, index, rows), cache, source, rows)
    write_file(path, index, source, info)
    _log.info("index %r is built: %s, recall at %d is %.3f", path, info.kind, info.at, info.recall)
    if info.recall < RECALL:
        _log.warning("index %r finds less than %g even in all its lists", path, RECALL)
    return info


def _trained(cache: FeatureCache, source: IndexedLayer, rows: Rows) -> tuple[Any, IndexInfo]:
    """An index without rows, and what it is but for probes and recall."""
    faiss = load_faiss()
    width, count = cache[source.layer].shape[1], len(rows)
    kind = faiss.METRIC_L2 if source.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if count <= FLAT_ROWS:
        info = IndexInfo("flat", count, "float32", 0, 0, 0, 1.0, 0, 0)
        return faiss.IndexFlat(width, kind), info
    wanted = int(_LISTS_PER_ROOT * math.sqrt(count))
    sample = spread(rows, min(_POINTS * wanted, max(_LEAST_POINTS, _SAMPLE_BYTES // (4 * width))))
    lists = max(1, min(wanted, len(sample) // _LEAST_POINTS))
    half = _fits_float16(cache, source)
    coarse = faiss.IndexFlat(width, kind)
    if half:
        code = faiss.ScalarQuantizer.QT_fp16
        # False: rows as they are and not what the centroid leaves of them, which products need.
        index = faiss.IndexIVFScalarQuantizer(coarse, width, lists, code, kind, False)
    else:
        index = faiss.IndexIVFFlat(coarse, width, lists, kind)
    index.cp.niter = _ITERATIONS
    index.train(_ready(cache, source, sample))
    storage = "float16" if half else "float32"
    return index, IndexInfo("ivf", count, storage, lists, lists, len(sample), 1.0, 0, 0)


def _fits_float16(cache: FeatureCache, source: IndexedLayer) -> bool:
    """Whether no value can be too large for float16."""
    if source.metric == "cosine" or cache[source.layer].dtype == np.float16:
        return True
    scales = cache.header.scales.get(source.layer)
    if scales is None:
        return False
    return bool(np.all(np.abs(scales.offset) + 128 * np.abs(scales.scale) < _LARGEST_HALF))


def _blocks(cache: FeatureCache, source: IndexedLayer, rows: Rows) -> Iterator[Values]:
    step = max(1, _BLOCK_BYTES // (4 * cache[source.layer].shape[1]))
    for start in range(0, len(rows), step):
        yield _ready(cache, source, rows[start : start + step])


def _ready(cache: FeatureCache, source: IndexedLayer, rows: Rows) -> Values:
    """Rows as the index has them, float32 (n, D); for cosines of unit length."""
    x = cache.values(source.layer, rows)
    return unit_rows(x) if source.metric == "cosine" else x


def _measured(
    index: FaissIndex, cache: FeatureCache, source: IndexedLayer, rows: Rows
) -> IndexInfo:
    """The index with as few probes, a power of two, as reach the recall, or with all lists.

    A row that is as near as the last one wanted counts as found: which of equal rows is shown does
    not matter.
    """
    own = spread(rows, _QUERIES)
    at = min(_AT, len(rows) - 1)
    if not at:
        return index.info
    queries = cache.values(source.layer, own)
    metric: Metric = source.metric  # type: ignore[assignment] # checked by `sides`
    exact = nearest(cache, [LayerQuery(source.layer, queries)], at, metric, left_out=own)
    sign = -1 if metric == "l2" else 1
    info = index.info
    for power in itertools.count():
        info = dataclasses.replace(info, probes=min(2**power, info.lists), at=at, sample=len(own))
        index.info = info
        found = index.search(queries, at, left_out=own)
        recall = float(np.mean(sign * found.scores >= sign * exact.scores[:, -1:]))
        info = dataclasses.replace(info, recall=recall)
        if recall >= RECALL or info.probes >= info.lists:
            break
    return info
