"""`vggfeat compare`: measure how well layers and fusions retrieve a class or the same image."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggfeat.cache.labels import UNLABELLED, labels_of
from vggfeat.cache.rows import match_paths
from vggfeat.cache.sharded import open_cache
from vggfeat.core import activity
from vggfeat.core.arrays import spread
from vggfeat.core.choices import unknown_value
from vggfeat.core.isolation import isolated
from vggfeat.core.sequences import as_tuple
from vggfeat.core.text import agree, counted
from vggfeat.errors import CacheMismatchError, UsageError
from vggfeat.retrieval.layer_ranking import (
    FUSIONS,
    RANKING_METRICS,
    Database,
    Judgements,
    Plan,
    RankingQueries,
    plan_candidates,
    rank_database,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.labels import Labels
    from vggfeat.cache.reader import FeatureCache

_log = logging.getLogger("vggfeat")

RANKS = (5, 10)
"""The k of recall at k, unless told otherwise."""

QUERY_SAMPLE = 2000
"""Queries at most, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of queries that find something relevant among their first `k` images."""

    k: int
    value: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer, or several together, and how well it finds what is relevant.

    Attributes:
        name: the layer, with its file where two files have one; of several `concat(a,b)`.
        cache: file it is in.
        width: numbers a vector.
        mean_average_precision: mean over the queries of `average_precision`.
        nearest_neighbour: share of queries whose nearest image is relevant: with labels the
            accuracy of a 1-nearest-neighbour classifier, each image left out in turn.
        recalls: at each requested k, ascending.
        queries: how many were made.
        images: how many were searched.
    """

    name: str
    cache: str
    width: int
    mean_average_precision: float
    nearest_neighbour: float
    recalls: tuple[Recall, ...]
    queries: int
    images: int


@dataclass(frozen=True, slots=True)
class QueryResults:
    """The results of the queries of one cache: its path, and the candidates, best first."""

    queries: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcome of a comparison.

    Attributes:
        metric: one of `RANKING_METRICS`.
        by: what is relevant to a query: images of its class, or the image it was made of.
        classes: how many classes the images searched have; 0 by queries.
        candidates: best mean average precision first; of several query caches, over all queries.
        by_queries: of several query caches, each one's results; else empty.
        notes: what a user should know of the labels, see `Labels`, and of the caches: random
            weights, or other images under the same paths.
        warning: what a chart of it has to say in large letters: random weights; else empty.
    """

    metric: str
    by: Literal["labels", "queries"]
    classes: int
    candidates: tuple[Candidate, ...]
    by_queries: tuple[QueryResults, ...] = ()
    notes: tuple[str, ...] = ()
    warning: str = ""


@isolated()
def compare(
    caches: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    labels: str | os.PathLike[str] | None = None,
    queries: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    metric: str = "cosine",
    k: Sequence[int] = RANKS,
    fusions: str = "all",
    sample: int = QUERY_SAMPLE,
) -> Comparison:
    """Measure how well each vector layer of each cache retrieves what is relevant.

    By labels, an image is a query for the others of its class, and is itself left out. By queries,
    each altered image is one for its original among all images of the cache. Images that are not
    done in all caches are left out.

    A fusion is the concatenation of layers, each at unit length but for metric `l2-raw`. For cosine
    its score is the mean of the layers' cosines, else the sum of their squared distances, so that
    nothing is concatenated.

    Args:
        caches: of the same images, matched by path.
        labels: CSV file as `read_labels` takes it; without it and without queries, folders
            name the classes.
        queries: caches of altered images under the same paths, made with the same network.
        metric: `cosine`; `l2`, the distance at unit length, which ranks as cosine does; or
            `l2-raw`, the distance of vectors as they are stored.
        k: ranks at which recall is measured.
        fusions: of the first cache's layers: `all` together, also `pairs`, or `none`.
        sample: queries at most, of each query cache; spread evenly over the images.

    Raises:
        UsageError: an unknown choice, or nothing to compare by.
        InputError: the labels cannot be read.
        CacheError: a file is not a cache of ours, or damaged.
        CacheMismatchError: the caches have no image in common, or the queries were made otherwise.
    """
    _check_choices(metric, fusions, sample, k)
    opened = tuple(map(open_cache, as_tuple(caches)))
    altered = tuple(map(open_cache, as_tuple(queries)))
    _check_caches(opened, altered, with_labels=labels is not None)
    plan = plan_candidates(opened, metric, fusions)
    notes = tuple(_doubts(opened))
    for note in notes:
        _log.warning("%s", note)
    if altered:
        (rows,) = _common_rows(opened)
        database = Database(opened, (rows,), np.arange(len(rows)))
        sets = [_altered_queries(opened[0], rows, other, plan, sample) for other in altered]
    else:
        known = labels_of(
            opened[0], labels, instead=", or --queries with a cache of altered images"
        )
        notes += known.notes
        database, queries_by_label = _by_labels(opened, known, sample)
        sets = [queries_by_label]
    warnings = [cache.header.provenance.warning for cache in opened]
    activity.begins(f"comparing {counted(len(plan.names), 'candidate')}")
    judged = [rank_database(database, one, plan) for one in sets]
    pooled = Judgements(
        np.concatenate([one.precision for one in judged], axis=1),
        np.concatenate([one.ahead for one in judged], axis=1),
    )
    each = zip(altered, judged, strict=True) if len(altered) > 1 else ()
    return Comparison(
        metric=metric,
        by="queries" if altered else "labels",
        classes=0 if altered else len(np.unique(database.classes)),
        candidates=_results(pooled, database, plan, k),
        by_queries=tuple(
            QueryResults(cache.path, _results(part, database, plan, k)) for cache, part in each
        ),
        notes=notes,
        warning="; ".join(dict.fromkeys(filter(None, warnings))),
    )


def _check_choices(metric: str, fusions: str, sample: int, k: Sequence[int]) -> None:
    wrong = []
    if metric not in RANKING_METRICS:
        wrong.append(unknown_value("metric", RANKING_METRICS, metric))
    if fusions not in FUSIONS:
        wrong.append(unknown_value("fusions", FUSIONS, fusions))
    if sample < 1:
        wrong.append(f"sample is {sample}; expected 1 query or more")
    if not k or min(k) < 1:
        wrong.append(f"k is {','.join(map(str, k)) or 'empty'}; expected ranks from 1")
    if wrong:
        raise UsageError("; ".join(wrong))


def _check_caches(
    caches: Sequence[FeatureCache], queries: Sequence[FeatureCache], *, with_labels: bool
) -> None:
    if not caches:
        raise UsageError("no caches to compare; name one or more")
    if queries and with_labels:
        raise UsageError("labels and queries are two ways to compare; give --labels or --queries")
    if queries and len(caches) > 1:
        raise UsageError(
            f"queries go to one cache and {len(caches)} are given; compare them one at a time"
        )
    seen: dict[str, str] = {}
    for path in (cache.path for cache in (*caches, *queries)):
        if seen.setdefault(os.path.realpath(path), path) is not path:
            raise UsageError(f"cache {path!r} is given twice; name each once")


def _doubts(caches: Sequence[FeatureCache]) -> list[str]:
    """Return what makes figures mean something else than they seem to, a line each."""
    doubts = [
        f"cache {cache.path!r}: {cache.header.provenance.warning}"
        for cache in caches
        if cache.header.provenance.warning
    ]
    first, *others = caches
    for other in others:
        match = match_paths(np.asarray(first.paths), np.asarray(other.paths))
        mine, theirs = (
            np.asarray(cache.digests[rows])
            for cache, rows in ((first, match.rows), (other, match.listed))
        )
        known = mine.any(axis=1) & theirs.any(axis=1)  # zeros: never read, or not kept then
        unlike = int(((mine != theirs).any(axis=1) & known).sum())
        if unlike:
            doubts.append(
                f"{unlike} of {counted(len(mine), 'image')} that {first.path!r} and "
                f"{other.path!r} have under the same paths {agree(unlike, 'has')} other "
                "contents there; images are compared by path"
            )
    return doubts


def _by_labels(
    caches: tuple[FeatureCache, ...], known: Labels, sample: int
) -> tuple[Database, RankingQueries]:
    rows = _common_rows(caches)
    classes = known.classes[rows[0]]
    labelled = classes != UNLABELLED
    database = Database(caches, tuple(one[labelled] for one in rows), classes[labelled])
    members = np.bincount(database.classes, minlength=len(known.names))
    if np.count_nonzero(members) < 2 or members.max() < 2:  # noqa: PLR2004 classes, and images of one
        raise UsageError(
            f"labels tell nothing apart: of {counted(len(database.classes), 'image')} done the "
            f"labels make {counted(int(np.count_nonzero(members)), 'class')}, the largest of "
            f"{members.max(initial=0)}; expected two classes or more, and two images of one: give "
            "other --labels, or --queries"
        )
    places = spread(np.flatnonzero(members[database.classes] > 1), sample)
    query_rows = tuple(one[places] for one in database.rows)
    return database, RankingQueries(caches, query_rows, database.classes[places], places)


def _altered_queries(
    cache: FeatureCache,
    rows: NDArray[np.int64],
    altered: FeatureCache,
    plan: Plan,
    sample: int,
) -> RankingQueries:
    _check_queries(cache, altered, plan)
    of_cache, of_altered = _common_rows((cache, altered))
    mine = spread(of_altered, sample)
    originals = np.searchsorted(rows, spread(of_cache, sample))
    return RankingQueries((altered,), (mine,), originals, np.full(len(mine), -1))


def _check_queries(cache: FeatureCache, altered: FeatureCache, plan: Plan) -> None:
    """Refuse queries of another network or other layers; preprocessing may differ."""
    missing = [layer.name for layer in plan.layers if layer.name not in altered.layers]
    if missing:
        raise UsageError(
            f"queries {altered.path!r} have no {', '.join(missing)}; they have "
            f"{', '.join(altered.layers)}: extract the same layers as {cache.path!r} has"
        )
    own = cache.header.identity
    steps, other_steps = (
        [step.anywhere() for step in identity.steps] for identity in (own, altered.header.identity)
    )
    if steps != other_steps:
        raise CacheMismatchError(
            f"cache {cache.path!r} and queries {altered.path!r} were not made in the same way from "
            "the network's features; apply the same fusion or reduction to both (--use)"
        )
    theirs = replace(
        altered.header.identity,
        dtype=own.dtype,
        preprocess=own.preprocess,
        layers=own.layers,
        activations=own.activations,  # calibrated on other images, as queries are
        scales=own.scales,
        steps=own.steps,
    )
    differences = own.differences(theirs)
    if differences:
        raise CacheMismatchError(
            f"cache {cache.path!r} and queries {altered.path!r} (requested) were made with other "
            f"settings: {'; '.join(differences)}. Only the images may differ"
        )


def _common_rows(caches: Sequence[FeatureCache]) -> tuple[NDArray[np.int64], ...]:
    """Return rows, an array a cache, of the images that are done in all, ordered by path."""
    done = [np.flatnonzero(cache.done) for cache in caches]
    paths = [np.asarray(cache.paths[rows]) for cache, rows in zip(caches, done, strict=True)]
    common = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), paths)
    if not len(common):
        names = ", ".join(repr(cache.path) for cache in caches)
        raise CacheMismatchError(
            f"no image is done in {names}; they must be of the same images, under the same paths"
            if len(caches) > 1
            else f"no image of {names} is done; run its extraction first"
        )
    return tuple(
        rows[np.searchsorted(mine, common)] for rows, mine in zip(done, paths, strict=True)
    )


def _results(
    judged: Judgements, database: Database, plan: Plan, k: Sequence[int]
) -> tuple[Candidate, ...]:
    """Return the candidates, best mean average precision first."""
    ranks = sorted(set(k))
    candidates = [
        Candidate(
            name=name,
            cache=database.caches[source].path,
            width=width,
            mean_average_precision=float(precision.mean()),
            nearest_neighbour=float((ahead < 1).mean()),
            recalls=tuple(Recall(rank, float((ahead < rank).mean())) for rank in ranks),
            queries=len(precision),
            images=len(database.classes),
        )
        for name, source, width, precision, ahead in zip(
            plan.names, plan.sources, plan.widths, judged.precision, judged.ahead, strict=True
        )
    ]
    return tuple(sorted(candidates, key=lambda one: -one.mean_average_precision))
