"""The candidates of a comparison, and what queries find by each of them among all images.

Scores are computed for some queries at a time against blocks of database rows, so that memory stays
within about 1 GiB beside the mapped files, whatever the number of images: `_SCORE_BYTES` of scores,
`_ROW_BYTES` of queries, and rows of the same size, two or three times over while they become
numbers.

`similarity` is not used: ranking needs every score rather than the best, and its roundings, which
are of rows that are neither centred nor divided by their length before, would change the figures.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vggfeat.core.arrays import inner_products, nearness, spread, unit_rows
from vggfeat.core.ranking_metrics import average_precision, first_relevant
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

_log = logging.getLogger("vggfeat")

RANKING_METRICS: Final = ("cosine", "l2", "l2-raw")
FUSIONS: Final = ("all", "pairs", "none")

_SCORE_BYTES = 1 << 29
_ROW_BYTES = 1 << 27
_CENTRE_ROWS = 1000  # whose mean is subtracted before distances; any point would do, far or near


@dataclass(frozen=True, slots=True)
class RankedLayer:
    """A layer of vectors of `width` numbers, in the cache with number `source`."""

    name: str
    source: int
    width: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, and how.

    Candidates are each layer, after it its pairs with earlier ones, and after the last of the
    `fused` first layers (0 or at least 2), all of these.
    """

    layers: tuple[RankedLayer, ...]
    metric: str
    fused: int
    pairs: bool
    names: tuple[str, ...]  # of the candidates, as the next two
    widths: tuple[int, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Database:
    """The images searched, which all caches have; by queries each image is a separate class."""

    caches: tuple[FeatureCache, ...]
    rows: tuple[NDArray[np.int64], ...]  # (n,) for each cache
    classes: NDArray[np.int64]  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class RankingQueries:
    """Queries to a database; their caches are parallel to the database's."""

    caches: tuple[FeatureCache, ...]
    rows: tuple[NDArray[np.int64], ...]  # (q,) for each cache
    classes: NDArray[np.int64]  # (q,), what is relevant
    own: NDArray[np.int64]  # (q,), place in the database that is left out, or -1


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """Average precision and irrelevant images ahead of the first relevant one, float64 (c, q).

    One of each for every candidate and query.
    """

    precision: NDArray[np.float64]
    ahead: NDArray[np.float64]


def plan_candidates(caches: Sequence[FeatureCache], metric: str, fusions: str) -> Plan:
    """Return the candidates: each layer of vectors, and fusions of the first cache's layers."""
    layers = _vector_layers(caches)
    first = sum(layer.source == 0 for layer in layers)
    fused = first if first > 1 and fusions != "none" else 0
    pairs = fusions == "pairs" and fused > 2  # noqa: PLR2004 of two layers the pair is all
    groups: list[tuple[RankedLayer, ...]] = []
    for number, layer in enumerate(layers):
        groups.append((layer,))
        if pairs and number < fused:
            groups += [(earlier, layer) for earlier in layers[:number]]
        if number == fused - 1:
            groups.append(layers[:fused])
    return Plan(
        layers,
        metric,
        fused,
        pairs,
        names=tuple(_name(group, layers, caches) for group in groups),
        widths=tuple(sum(layer.width for layer in group) for group in groups),
        sources=tuple(group[0].source for group in groups),
    )


def _vector_layers(caches: Sequence[FeatureCache]) -> tuple[RankedLayer, ...]:
    layers: list[RankedLayer] = []
    for source, cache in enumerate(caches):
        for name in cache.layers:
            shape = cache[name].shape[1:]
            if len(shape) == 1:
                layers.append(RankedLayer(name, source, shape[0]))
            else:
                _log.info("%s of %s holds maps, not vectors: left out", name, cache.path)
    if not layers:
        raise UsageError(
            f"no vectors to compare: {', '.join(repr(cache.path) for cache in caches)} hold maps; "
            "extract layers with a pool such as avg or gem"
        )
    return tuple(layers)


def _name(
    group: Sequence[RankedLayer], layers: Sequence[RankedLayer], caches: Sequence[FeatureCache]
) -> str:
    if len(group) > 1:
        return f"concat({','.join(layer.name for layer in group)})"
    (layer,) = group
    if sum(layer.name == other.name for other in layers) == 1:
        return layer.name
    files = [os.path.basename(cache.path) for cache in caches]
    alike = files.count(files[layer.source]) > 1
    return f"{layer.name} in {caches[layer.source].path if alike else files[layer.source]}"


def rank_database(database: Database, queries: RankingQueries, plan: Plan) -> Judgements:
    """Score every image of the database for every query by every candidate, and judge."""
    count, images = len(queries.classes), len(database.classes)
    held = 1 + (2 if plan.fused else 0) + (plan.fused if plan.pairs else 0)
    widest = max(layer.width for layer in plan.layers)
    step = max(1, min(_SCORE_BYTES // (4 * images * held), _ROW_BYTES // (4 * widest)))
    judged = np.empty((2, len(plan.names), count))
    for start in range(0, count, step):
        part = slice(start, start + step)
        for number, scores in enumerate(_candidate_scores(database, queries, plan, part)):
            judged[:, number, part] = _judge(
                scores, database.classes, queries.classes[part], queries.own[part]
            )
    return Judgements(*judged)


def _judge(
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    wanted: NDArray[np.int64],
    own: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return average precision, and images ahead of the first relevant: float64 (2, q).

    Scores (q, n) are overwritten with -inf for the query itself, whose place is `own` or -1.
    """
    judged = np.empty((2, len(scores)))
    for query, row in enumerate(scores):
        relevant = classes == wanted[query]
        if own[query] >= 0:
            row[own[query]] = -np.inf
            relevant[own[query]] = False
        judged[:, query] = average_precision(row, relevant), first_relevant(row, relevant)
    return judged


def _candidate_scores(
    database: Database, queries: RankingQueries, plan: Plan, part: slice
) -> Iterator[NDArray[np.float32]]:
    """Yield scores (q, n) of some queries by each candidate, in the order of the plan.

    A fusion's scores are sums over its layers: the mean of their cosines, or minus the squared
    distance of their concatenations, but for a factor.
    """
    earlier: list[NDArray[np.float32]] = []
    total: NDArray[np.float32] | None = None
    for number, layer in enumerate(plan.layers):
        scores = _scores(database, queries, layer, part, plan.metric)
        yield scores
        if number >= plan.fused:
            continue
        yield from (other + scores for other in earlier)
        if plan.pairs:
            earlier.append(scores)
        total = scores.copy() if total is None else np.add(total, scores, out=total)
        if number == plan.fused - 1:
            yield total


def _scores(
    database: Database,
    queries: RankingQueries,
    layer: RankedLayer,
    part: slice,
    metric: str,
) -> NDArray[np.float32]:
    """Return scores (q, n) of some queries by one layer, at unit length but for `l2-raw`."""
    cache, rows = database.caches[layer.source], database.rows[layer.source]
    step = max(1, _ROW_BYTES // (4 * layer.width))
    some = spread(rows, min(step, _CENTRE_ROWS))
    centre = None if metric != "l2-raw" else cache.values(layer.name, some).mean(axis=0)

    def prepared(source: FeatureCache, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        x = source.values(layer.name, chosen)
        return unit_rows(x) if centre is None else np.subtract(x, centre, out=x)

    score = inner_products if metric == "cosine" else nearness
    wanted = prepared(queries.caches[layer.source], queries.rows[layer.source][part])
    scores = np.empty((len(wanted), len(rows)), dtype=np.float32)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        scores[:, start : start + step] = score(wanted, prepared(cache, block))
    return scores
