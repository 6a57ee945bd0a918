"""Extraction into the shards of a folder, by any number of processes; locks tell who does which."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.shard_manifest import MANIFEST, read_manifest
from vggfeat.cache.sharded import ShardedCache
from vggfeat.cache.sharding import Sharding
from vggfeat.core.signals import StopFlag
from vggfeat.core.text import agree, counted, first_few
from vggfeat.errors import CacheError, LockedError, ShardsHeldError, UsageError
from vggfeat.extraction.metadata import describe_cache
from vggfeat.extraction.pipeline import (
    RunContext,
    extract_file,
    raise_if_cut_short,
    resume_cache,
)
from vggfeat.extraction.report import RunStats, summarise_run
from vggfeat.extraction.resume import check_settings
from vggfeat.extraction.shard_planner import (
    Planner,
    check_plan,
    checked_folder,
    list_shard,
    named_sources,
    remove_leftovers,
)
from vggfeat.extraction.update import UpdatePolicy
from vggfeat.images.sources import discover, tell_skipped
from vggfeat.storage.locks import SharedLock, hold, remove_left_lock, unless_read_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.cache.shard_manifest import ShardManifest
    from vggfeat.core.records import Progress, Summary
    from vggfeat.errors import SpaceError
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.extraction.update import Changes
    from vggfeat.images.image_list import ImageList

log = logging.getLogger("vggfeat")


def is_sharded(out: str | os.PathLike[str], sharding: Sharding) -> bool:
    """Return whether an output is a sharded cache: by its name, by what exists, or by request."""
    return sharding != Sharding() or os.fspath(out).endswith("/") or os.path.isdir(out)


def extract_here(
    request: ExtractRequest, on_progress: Callable[[Progress], None] | None = None
) -> Summary:
    """Extract features in this process, into one file or a folder of shards: see `is_sharded`."""
    if not is_sharded(request.out, request.sharding):
        return extract_file(request, on_progress)
    if request.sharding.share and (request.fresh or request.policy.update):
        option = "--fresh" if request.fresh else "--update"
        raise UsageError(
            f"{option} is about all shards and --shard {request.sharding.share} about some; run "
            f"once with {option} --plan-only, then the shares without"
        )
    with checked_folder(request.out):
        return _extract_shards(request, on_progress)


def _extract_shards(
    request: ExtractRequest, on_progress: Callable[[Progress], None] | None
) -> Summary:
    started = time.perf_counter()
    stats = RunStats()
    lock = SharedLock(os.path.join(request.out, MANIFEST))
    with unless_read_only(lock) as refusal:
        # A signal ends waiting and listing at once. From `StopFlag` on it is looked at between
        # shards, as the loop does between batches: a plan is published whole or not at all.
        if refusal is None:
            plan = _prepare_plan(request, lock, stats)
        else:
            plan = _no_plan(request, refusal, stats)
        limit = request.settings.seconds_allowed
        with StopFlag(limit and limit - (time.perf_counter() - started)) as stop:
            changes = plan(stop)
            if changes is not None:
                stats.note(changes)
            if refusal is None:
                lock.acquire_shared(_nobody_to_wait_for)
            stats.discover = time.perf_counter() - started
            context = RunContext(stats, stop, request, on_progress)
            cache = ShardedCache(request.out, request.sharding.share)
            work = _Work(request, cache, context)
            if refusal is not None and any(work.rows_left()):
                raise refusal
            left = [] if request.sharding.plan_only else work.do()
    reason = "plan only" if request.sharding.plan_only else stop.reason
    seconds = time.perf_counter() - started
    summary = summarise_run(request.out, stats, seconds, reason, shards=cache)
    if work.damaged:
        raise CacheError("; ".join(work.damaged))
    raise_if_cut_short(summary, request, stop.signum, stats.fatal)
    if left and context.goes_on():
        raise ShardsHeldError(
            f"{counted(len(left), 'shard')} of {request.out!r} {agree(len(left), 'is')} held by "
            f"other runs, the first is {left[0]!r}; all others are done. Wait, and run again to "
            "see that they ended",
            summary,
        )
    return summary


def _nobody_to_wait_for() -> None:
    """Say nothing: a lock held alone, or shared already, is shared at once."""


def _prepare_plan(
    request: ExtractRequest, lock: SharedLock, stats: RunStats
) -> Callable[[StopFlag], Changes | None]:
    """List the images if a plan is to be made or updated; change nothing yet.

    Returns:
        a function that makes or updates the plan where needed, and returns what has changed.
    """
    path = os.path.join(request.out, MANIFEST)

    def tell() -> None:
        log.info("another run makes the plan of %s; waiting for it", request.out)

    lock.acquire_shared(tell)
    if request.fresh or request.policy.update:
        lock.acquire_exclusive()
    elif not os.path.exists(path):
        lock.acquire_exclusive(tell)
    if request.fresh or not os.path.exists(path):
        return _beginning(request, stats)
    existing = read_manifest(request.out)
    if request.policy.update:
        return _updating(request, stats, existing)
    check_plan(request.out, existing, request.sources, request.root, request.sharding)
    remove_leftovers(request.out, existing)
    return lambda _: None


def _beginning(request: ExtractRequest, stats: RunStats) -> Callable[[StopFlag], None]:
    images = _discover(request, stats)
    shards = request.sharding.count_for(len(images))
    made = describe_cache(request.settings, images)

    def begin(stop: StopFlag) -> None:
        Planner(request.out, images, named_sources(request.sources), stop).begin(made, shards)

    return begin


def _updating(
    request: ExtractRequest, stats: RunStats, existing: ShardManifest
) -> Callable[[StopFlag], Changes]:
    request.sharding.check_count(request.out, len(existing.shards))
    images = _discover(request, stats)

    def update(stop: StopFlag) -> Changes:
        planner = Planner(request.out, images, named_sources(request.sources), stop)
        return planner.update(existing, request.settings, request.policy)

    return update


def _no_plan(
    request: ExtractRequest, refusal: SpaceError, stats: RunStats
) -> Callable[[StopFlag], None]:
    """Refuse what needs another plan than the existing one, in a read-only folder."""
    if request.fresh or not os.path.exists(os.path.join(request.out, MANIFEST)):
        raise refusal
    existing = read_manifest(request.out)
    if not request.policy.update:
        check_plan(request.out, existing, request.sources, request.root, request.sharding)
        return lambda _: None
    request.sharding.check_count(request.out, len(existing.shards))
    images = _discover(request, stats)

    def refuse_changes(stop: StopFlag) -> None:
        planner = Planner(request.out, images, named_sources(request.sources), stop)
        if not planner.is_up_to_date(existing, request.settings, request.policy):
            raise refusal

    return refuse_changes


def _discover(request: ExtractRequest, stats: RunStats) -> ImageList:
    images = discover(request.sources, root=request.root)
    tell_skipped(images)
    stats.skipped = images.skipped
    return images


class _Work:
    """The shards that one process is to extract."""

    def __init__(self, request: ExtractRequest, cache: ShardedCache, context: RunContext) -> None:
        self.damaged: list[str] = []
        self._request = request
        self._cache = cache
        self._context = context
        self._retry = request.policy.retry_failed and not request.policy.update

    def do(self) -> list[str]:
        """Extract what is left, shard by shard, and retry those that others hold at the end.

        Returns:
            names of shards that others still hold.
        """
        cache = self._cache
        self._refuse_missing()
        existing = [number for number in range(len(cache.shards)) if cache.shard_header(number)]
        left = self.rows_left()
        waiting = [number for number in existing if left[number]]
        for number in existing:
            if not left[number]:  # else this run takes the lock anyway
                remove_left_lock(cache.shard_path(number))
        self._context.stats.total = sum(left[number] for number in waiting)
        if existing:
            first = FeatureCache(cache.shard_path(existing[0]))
            check_settings(first, self._request.settings, work=bool(waiting))
        while waiting and self._context.goes_on():
            held = [number for number in waiting if not self._try(number)]
            if len(held) == len(waiting):
                break
            waiting = held
        return [cache.shards[number].name for number in waiting]

    def _refuse_missing(self) -> None:
        missing = self._cache.missing
        if missing:
            self.damaged.append(
                f"{counted(len(missing), 'shard')} of {self._cache.path!r} "
                f"{agree(len(missing), 'is')} not there: "
                f"{first_few(missing)}; restore them from a backup, or --update lists "
                "the images anew and takes theirs into the shards beside"
            )

    def rows_left(self) -> list[int]:
        """Return how many rows each shard has left; one shard at a time, in little memory."""
        wanted = (RowState.PENDING, RowState.FAILED) if self._retry else (RowState.PENDING,)
        state = self._cache.column("state")
        return [
            int(np.isin(state[shard.first : shard.first + shard.rows], wanted).sum())
            for shard in self._cache.shards
        ]

    def _try(self, number: int) -> bool:
        """Extract one shard; return False if another run holds it, so that it is retried."""
        if not self._context.goes_on():
            return True
        path = self._cache.shard_path(number)
        try:
            with hold(path):
                self._do(path, self._cache.shards[number].first)
        except LockedError:
            return False
        except CacheError as error:
            self.damaged.append(str(error))
        return True

    def _do(self, path: str, first: int) -> None:
        self._context.stats.base = first
        images = list_shard(FeatureCache(path), self._cache.manifest.root)
        if images is None:
            return
        policy = UpdatePolicy(retry_failed=self._retry)
        resume_cache(path, self._request.settings, images, self._context, policy)
