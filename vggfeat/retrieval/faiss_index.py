"""A faiss index of one layer, which finds nearest rows of a large cache without scanning it.

Up to `FLAT_ROWS` rows the index is flat. More rows lie in lists, each around a centroid (an
inverted file: Sivic and Zisserman 2003, "Video Google"; Jégou et al. 2011, "Product quantization
for nearest neighbor search", IV), and a query probes the lists of the nearest centroids only. The
number of probes is measured: as few as find 95 % of the ten nearest rows of the exact search.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
from dataclasses import dataclass
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
from vggfeat.retrieval.similarity import DISTANCES, LayerQuery, check_layers, prepare_queries
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import check_place

if TYPE_CHECKING:
    from collections.abc import Callable

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
_LISTS_PER_ROOT = 4  # lists = 4 sqrt(n), so that a query compares about as many centroids as rows
_LEAST_POINTS = 39  # training rows a list, below which faiss warns that they are too few
_POINTS = 40
_ITERATIONS = 10  # of k-means, after which recall gains nothing worth its time
_SAMPLE_BYTES = 1 << 29  # of training rows
_BLOCK_BYTES = 1 << 26  # of rows added at a time
_LARGEST_HALF = 65504.0
_AT_UNIT_LENGTH = ("cosine", "l2")


@dataclass(slots=True, eq=False)
class FaissIndex:
    """An index of faiss in use, with the cache that it was built from, which scores its finds."""

    cache: FeatureCache
    source: IndexedLayer
    info: IndexInfo
    index: Any  # of faiss
    rows: Rows  # (n,), the cache's row of each entry
    guard: LengthGuard | None = None  # of the file that it is mapped from

    def search(self, queries: Values, k: int, *, left_out: Rows | None = None) -> Nearest:
        """Return the k nearest rows to each query that the index finds, as `nearest` does.

        faiss returns twice as many; these are scored from the cache in float64, as the exact search
        does, and the best are kept. That also mends most confusions by float16.
        """
        if self.guard is not None:
            self.guard.check()
        if k < 1:
            raise UsageError(f"top is {k}; expected at least 1")
        requested = [LayerQuery(self.source.layer, queries)]
        prepared = prepare_queries(self.cache, requested, self.source.metric)
        places = self._places(prepared[0].vectors, min(len(self.rows), 2 * k + 1))
        which, rank = np.nonzero((places >= 0) & (places < len(self.rows)))
        rows = self.rows[places[which, rank]]
        most = min(k, len(self.rows))
        return ranked(self.cache, prepared, which, rows, most, left_out=left_out)

    def _places(self, vectors: Values, count: int) -> NDArray[np.int64]:
        """Return entries, int64 (q, count); probe more lists where these hold too few."""
        if not self.info.lists:
            flat: NDArray[np.int64] = self.index.search(vectors, count)[1]
            return flat
        faiss = load_faiss()
        probes = self.info.probes
        while True:
            parameters = faiss.SearchParametersIVF(nprobe=probes)
            places: NDArray[np.int64] = self.index.search(vectors, count, params=parameters)[1]
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
    """Open the index of a layer's done rows; build it if it does not exist or is of other rows.

    Raises:
        CacheMismatchError: it is of another cache, layer or metric.
        CacheError: the file is no index of ours or is damaged, or the cache has no such layer.
        LockedError: another run is building it, or writing rows of the cache.
    """
    path = _checked_path(path)
    source, rows = _source(cache, layer, metric)
    record = _current(path, source)
    if record is None:
        build_index(cache, layer, metric, path, on_progress=on_progress)
        source, rows = _source(cache, layer, metric)
        record = _current(path, source)
        if record is None:
            raise LockedError(
                f"cache {cache.path!r} changed while index {path!r} was built; search it when the "
                "run that fills it is over"
            )
    index, guard = read_index(path, record)
    if index.d != cache[layer].shape[1]:
        raise damaged(path, "its width")
    return FaissIndex(cache, source, record.info, index, rows, guard)


def build_index(
    cache: FeatureCache,
    layer: str,
    metric: Metric,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> IndexInfo:
    """Build the index of a layer's done rows and measure its recall.

    It appears at `path` when it is whole, and replaces nothing but an index of the same cache,
    layer and metric. Memory holds the index and a block of rows. `on_progress` is called with the
    number of rows added, and of all rows.
    """
    path = _checked_path(path)
    source, rows = _source(cache, layer, metric)
    if not source.rows:
        raise InputError(f"no image of cache {cache.path!r} is done; run vggfeat extract first")
    record = read_record(path)
    if record is not None:
        _refuse_another(path, record.source, source)
    try:
        with hold(path):
            return _built(cache, source, rows, path, on_progress)
    except LockedError as error:
        raise LockedError(f"index {path!r} is being built by another run; wait for it") from error


def _checked_path(path: str | os.PathLike[str]) -> str:
    load_faiss()  # refuses at once where it is not installed
    path = os.fspath(path)
    check_place(path, "index")
    ending = foreign_ending(path)
    if ending not in (b"", b"faiss"):
        raise UsageError(
            f"index {path!r} is named like a file of another format; name it "
            f"{path[: -len(ending)] + 'faiss'!r}"
        )
    return path


def _source(cache: FeatureCache, layer: str, metric: Metric) -> tuple[IndexedLayer, Rows]:
    """Describe the layer as it is now, and return the rows that are done."""
    done = np.array(cache.done)
    check_layers(cache, [layer], [1.0], metric)
    return IndexedLayer.of(cache, cache.canonical(layer), metric, done), np.flatnonzero(done)


def _current(path: str, source: IndexedLayer) -> Record | None:
    """Return the record of the index if it is of the rows that are done now."""
    record = read_record(path)
    if record is None:
        return None
    _refuse_another(path, record.source, source)
    if record.source == source:
        return record
    _log.info(
        "index %r is of %s, and some of the %d done now are others: building it anew",
        path,
        counted(record.source.rows, "image"),
        source.rows,
    )
    return None


def _refuse_another(path: str, had: IndexedLayer, wanted: IndexedLayer) -> None:
    for field, name in (
        ("layer", "layer"),
        ("metric", "metric"),
        ("root", "a cache of the images in"),
        ("fingerprint", "a cache with fingerprint"),
    ):
        has, expected = getattr(had, field), getattr(wanted, field)
        if has != expected:
            raise CacheMismatchError(
                f"index {path!r} is of {name} {has}, expected {expected}; name another file"
            )


def _built(
    cache: FeatureCache, source: IndexedLayer, rows: Rows, path: str, on_progress: OnProgress | None
) -> IndexInfo:
    _log.info("building index %r of %s by %s", path, counted(len(rows), "image"), source.layer)
    index, info = _trained(cache, source, rows)
    added = 0
    step = max(1, _BLOCK_BYTES // (4 * cache[source.layer].shape[1]))
    for start in range(0, len(rows), step):
        x = _ready(cache, source, rows[start : start + step])
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
    """Return a trained index without rows, and its description except probes and recall."""
    faiss = load_faiss()
    width, count = cache[source.layer].shape[1], len(rows)
    kind = faiss.METRIC_L2 if source.metric in DISTANCES else faiss.METRIC_INNER_PRODUCT
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
    """Return whether no value can be too large for float16."""
    if source.metric in _AT_UNIT_LENGTH or cache[source.layer].dtype == np.float16:
        return True
    scales = cache.header.scales.get(source.layer)
    if scales is None:
        return False
    return bool(np.all(np.abs(scales.offset) + 128 * np.abs(scales.scale) < _LARGEST_HALF))


def _ready(cache: FeatureCache, source: IndexedLayer, rows: Rows) -> Values:
    """Return rows as the index holds them, float32 (n, D)."""
    x = cache.values(source.layer, rows)
    return unit_rows(x) if source.metric in _AT_UNIT_LENGTH else x


def _measured(
    index: FaissIndex, cache: FeatureCache, source: IndexedLayer, rows: Rows
) -> IndexInfo:
    """Return the description with the fewest probes, a power of two, that reach the recall.

    A row as near as the last of the exact search counts: which of equal rows is shown does not
    matter.
    """
    own = spread(rows, _QUERIES)
    at = min(_AT, len(rows) - 1)
    if not at:
        return index.info
    queries = cache.values(source.layer, own)
    exact = nearest(cache, [LayerQuery(source.layer, queries)], at, source.metric, left_out=own)
    sign = -1 if source.metric in DISTANCES else 1
    info = index.info
    for power in itertools.count():
        info = dataclasses.replace(info, probes=min(2**power, info.lists), at=at, sample=len(own))
        index.info = info
        result = index.search(queries, at, left_out=own)
        recall = float(np.mean(sign * result.scores >= sign * exact.scores[:, -1:]))
        info = dataclasses.replace(info, recall=recall)
        if recall >= RECALL or info.probes >= info.lists:
            break
    return info
