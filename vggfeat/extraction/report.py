"""Statistics of a run in progress, and the summary at its end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.format import RowState, count_rows
from vggfeat.cache.reader import FeatureCache
from vggfeat.core.records import FailedImage, Failure, FeatureBatch, Progress, Stages, Summary
from vggfeat.core.signals import Pace
from vggfeat.extraction.update import join_changes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.cache.sharded import ShardedCache
    from vggfeat.extraction.update import Changes

FAILURES_NAMED = 100
"""Failed images that a summary names; the cache names all."""


@dataclass(slots=True)
class RunStats:
    """Counts and seconds of a run in progress.

    Attributes that `Summary` does not have:
        pace: of the iterations of the loop.
        fatal: the failed image that ends a run with `on_error="stop"`.
        base: first row of the current shard.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    clamped: int = 0
    redone: int = 0
    device: str = ""
    workers: int = 0
    discover: float = 0.0
    prepare: float = 0.0
    wait: float = 0.0
    collate: float = 0.0
    network: float = 0.0
    write: float = 0.0
    decode: float = 0.0
    pace: Pace = field(default_factory=Pace)
    skipped: Mapping[str, int] = field(default_factory=dict)
    changes: Changes | None = None
    fatal: Failure | None = None
    failures: list[tuple[int, str]] = field(default_factory=list)
    base: int = 0

    def add(self, batch: FeatureBatch) -> None:
        """Count the rows of a batch."""
        self.done += len(batch.rows)
        self.failed += len(batch.failures)
        self.clamped += batch.clamped
        room = FAILURES_NAMED - len(self.failures)
        self.failures += [
            (self.base + failure.row, failure.reason) for failure in batch.failures[:room]
        ]

    def note(self, changes: Changes) -> None:
        """Add the changes that an update, or one more shard, has found."""
        self.changes = changes if self.changes is None else join_changes([self.changes, changes])

    def placed(self, failure: Failure) -> Failure:
        """Return a failure with its row among those of all shards."""
        return dataclasses.replace(failure, row=self.base + failure.row)

    def stages(self) -> Stages:
        """Return the seconds spent in each stage."""
        return Stages(
            discover=self.discover,
            prepare=self.prepare,
            wait=self.wait,
            network=self.network,
            write=self.write,
            decode=self.decode,
            collate=self.collate,
        )

    def progress(self) -> Progress:
        """Return how far the run is."""
        return Progress(self.done, self.failed, self.total, self.images_per_second)

    @property
    def images_per_second(self) -> float:
        """Images of this run a second, without the time that it took to begin; 0 before any."""
        busy = self.wait + self.collate + self.network + self.write
        return (self.done + self.failed) / busy if busy else 0.0


def summarise_run(
    out: str,
    stats: RunStats,
    seconds: float,
    stopped: str,
    *,
    shards: ShardedCache | None = None,
) -> Summary:
    """Return what a run did, and what the cache `out`, or some of its shards, hold now.

    `stopped` is the signal or the time limit that ended the run early; empty for none.
    """
    cache = FeatureCache(out) if shards is None else shards
    state = np.asarray(cache.state)
    counts = count_rows(state)
    identity, provenance = cache.header.identity, cache.header.provenance
    changes = stats.changes
    return Summary(
        out=out,
        row_counts=counts,
        removed=int((state == RowState.REMOVED).sum()),
        added=len(changes.added) if changes else 0,
        changed=len(changes.changed) + len(changes.returned) if changes else 0,
        retried=len(changes.retried) if changes else 0,
        gone=len(changes.removed) if changes else 0,
        stopped=(stopped or ("a failed image" if stats.fatal else "")) if counts.pending else "",
        new_done=stats.done,
        new_failed=stats.failed,
        failures=tuple(FailedImage(cache.name(row), why) for row, why in stats.failures),
        clamped=stats.clamped,
        redone=stats.redone,
        layers=cache.header.shapes,
        model=identity.model,
        weights=identity.weights,
        warning=provenance.warning,
        device=stats.device,
        precision=identity.precision,
        dtype=identity.dtype,
        batch_size=int(provenance.config["batch_size"]),
        pass_images=int(provenance.config.get("pass_images", provenance.config["batch_size"])),
        workers=stats.workers,
        seconds=seconds,
        images_per_second=stats.images_per_second,
        stages=stats.stages(),
        skipped=stats.skipped,
        share="" if shards is None else shards.share,
    )
