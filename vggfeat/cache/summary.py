"""Summarise a cache for people and programs: counts, layers, value statistics, failures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.format import RowState, count_rows
from vggfeat.cache.sharded import ShardedCache
from vggfeat.core.preprocessing import NOT_ALWAYS
from vggfeat.core.records import FailedImage, HasRowCounts, RowCounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.preprocessing import Preprocess

SAMPLE_BYTES = 64 << 20
"""Of a large layer only so many bytes are read for its statistics, in rows spread evenly."""


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer of a cache.

    Attributes:
        spec: canonical layer spec.
        shape: of one row.
        dtype: of the stored values.
        size: bytes of the whole dataset.
        sampled: rows the statistics are from.
        minimum, maximum, mean, std: of their values; None if no row is done.
        zeros: share of values that are 0.
        saturated: values at the floating-point dtype's largest or smallest number: clamped, most
            likely. Of int8 it cannot be told.
    """

    spec: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    sampled: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    zeros: float | None
    saturated: int


@dataclass(frozen=True, slots=True)
class ShardSummary(HasRowCounts):
    """One shard of a sharded cache.

    Attributes:
        name: of its file; empty if it has no rows, and so no file.
        row_counts: of its rows; all pending if the file is missing.
        there: whether the file exists.
    """

    name: str
    row_counts: RowCounts
    there: bool


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """All that `vggfeat inspect` shows.

    Attributes:
        path: the cache.
        rows: images in it.
        states: state name → rows in it.
        layers: in the order of the file.
        failures: every failed image and why.
        size: bytes of the file.
        on_disk: bytes it takes on the disk; less while rows are missing.
        model, weights, weights_sha256, precision, dtype: see `cache.identity.Identity`.
        preprocess: see `Preprocess`; what came later only where it is set.
        root: directory the images were in.
        created_utc, tool_version, versions, warning: see `cache.format.Provenance`.
        fingerprint: decides whether a run may resume the file.
        config: all settings of the run that made it.
        steps: of a derived cache how its features came about, first step first, each with what it
            `read`; empty where they are the network's own.
        shards: of a sharded cache, in their order; else empty.
    """

    path: str
    rows: int
    states: Mapping[str, int]
    layers: tuple[LayerSummary, ...]
    failures: tuple[FailedImage, ...]
    size: int
    on_disk: int
    model: str
    weights: str
    weights_sha256: str
    precision: str
    dtype: str
    preprocess: Mapping[str, Any]
    root: str
    created_utc: str
    tool_version: str
    versions: Mapping[str, str]
    warning: str
    fingerprint: str
    config: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    shards: tuple[ShardSummary, ...] = ()


def summarise(cache: FeatureCache) -> CacheSummary:
    """Count the rows of a cache, describe it, and sample the values of its layers."""
    identity, provenance = cache.header.identity, cache.header.provenance
    counts = np.bincount(cache.state, minlength=len(RowState)).tolist()
    files = [os.stat(part.path) for part in cache.parts()]
    return CacheSummary(
        path=cache.path,
        rows=len(cache),
        states={state.name.lower(): counts[state] for state in RowState},
        layers=tuple(summarise_layer(cache, layer) for layer in cache.layers),
        failures=tuple(
            FailedImage(cache.name(failure.row), failure.reason) for failure in cache.failures()
        ),
        size=sum(status.st_size for status in files),
        on_disk=sum(status.st_blocks for status in files) * 512,
        model=identity.model,
        weights=identity.weights,
        weights_sha256=identity.weights_sha256,
        precision=identity.precision,
        dtype=identity.dtype,
        preprocess=_shown(identity.preprocess),
        root=os.fsdecode(provenance.root),
        created_utc=provenance.created_utc,
        tool_version=provenance.tool_version,
        versions=provenance.versions,
        warning=provenance.warning,
        fingerprint=identity.fingerprint(),
        config=provenance.config,
        steps=_steps(cache),
        shards=_shards(cache),
    )


def _shards(cache: FeatureCache) -> tuple[ShardSummary, ...]:
    if not isinstance(cache, ShardedCache):
        return ()
    state = np.asarray(cache.state)
    return tuple(
        ShardSummary(
            shard.name,
            count_rows(state[shard.first : shard.first + shard.rows]),
            there=cache.shard_header(number) is not None or not shard.rows,
        )
        for number, shard in enumerate(cache.shards)
    )


def _shown(preprocess: Preprocess) -> dict[str, Any]:
    """Return the preprocessing to show: what every file records, and what else is set.

    A line of settings that most people never touch would hide the others.
    """
    always = {"decode": preprocess.decode, "augment": preprocess.augment}
    recorded = preprocess.recorded()
    first = {name: value for name, value in recorded.items() if name not in NOT_ALWAYS}
    later = {name: value for name, value in recorded.items() if name in NOT_ALWAYS}
    return {**first, **always, **later}


def _steps(cache: FeatureCache) -> tuple[Mapping[str, Any], ...]:
    read = cache.header.provenance.sources
    return tuple(
        {**step.record, "read": read[at] if at < len(read) else {}}
        for at, step in enumerate(cache.header.identity.steps)
    )


def summarise_layer(cache: FeatureCache, layer: str) -> LayerSummary:
    """Return statistics of one layer over its done rows, or over a sample of a large layer."""
    run = cache.header.feature(layer)
    rows = np.flatnonzero(cache.done)
    most = max(1, SAMPLE_BYTES // run.row_bytes)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    values = cache.values(layer, rows)
    known = len(rows) > 0
    dtype = np.dtype(run.dtype)
    most_stored = np.finfo(dtype).max if dtype.kind == "f" else np.inf
    return LayerSummary(
        spec=layer,
        shape=run.shape[1:],
        dtype=dtype.name,
        size=run.row_bytes * len(cache),
        sampled=len(rows),
        minimum=float(values.min()) if known else None,
        maximum=float(values.max()) if known else None,
        mean=float(values.mean(dtype=np.float64)) if known else None,
        std=float(values.std(dtype=np.float64)) if known else None,
        zeros=float((values == 0).mean()) if known else None,
        saturated=int((np.abs(values) >= most_stored).sum()),
    )
