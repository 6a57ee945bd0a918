"""Extraction into the shards of a folder, by any number of processes; locks tell who does which."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import match_paths
from vggfeat.cache.shard_manifest import MANIFEST, read_manifest
from vggfeat.cache.sharded import ShardedCache
from vggfeat.core.records import PLAN_ONLY
from vggfeat.core.signals import StopFlag
from vggfeat.core.text import agree, counted, first_few
from vggfeat.errors import CacheError, LockedError, ShardsHeldError, UsageError
from vggfeat.extraction.fresh_mark import (
    as_continued,
    check_same,
    has_pending,
    is_marked,
    note_begun,
    note_finished,
    note_if_finished,
    was_begun,
)
from vggfeat.extraction.kept_replicas import KeptReplicas
from vggfeat.extraction.metadata import describe_cache
from vggfeat.extraction.pipeline import (
    RunContext,
    list_images,
    raise_if_cut_short,
    resume_cache,
)
from vggfeat.extraction.report import RunStats, summarise_run
from vggfeat.extraction.resume import check_items, check_settings
from vggfeat.extraction.shard_planner import (
    Planner,
    check_known_items,
    check_plan,
    checked_folder,
    items_of_shard,
    list_shard,
    named_sources,
    remove_leftovers,
)
from vggfeat.extraction.update import UpdatePolicy
from vggfeat.storage.locks import SharedLock, hold, remove_left_lock, unless_read_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.core.records import Progress, Summary
    from vggfeat.errors import SpaceError
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.extraction.update import Changes
    from vggfeat.images.image_list import ImageList

log = logging.getLogger("vggfeat")


def extract_shards(
    request: ExtractRequest,
    on_progress: Callable[[Progress], None] | None,
    kept: KeptReplicas | None = None,
) -> Summary:
    """Extract features into a folder of shards, or into this process's share of them.

    `kept` has the networks of shards extracted before, if any, and afterwards those of this call.
    """
    if request.sharding.share and (request.fresh or request.policy.update):
        option = "--fresh" if request.fresh else "--update"
        raise UsageError(
            f"{option} is about all shards and --shard {request.sharding.share} about some; run "
            f"once with {option} --plan-only, then the shares without"
        )
    with checked_folder(request.out):
        return _extract_shards(request, on_progress, kept or KeptReplicas())


def _extract_shards(
    request: ExtractRequest,
    on_progress: Callable[[Progress], None] | None,
    kept: KeptReplicas,
) -> Summary:
    started = time.perf_counter()
    stats = RunStats()
    lock = SharedLock(os.path.join(request.out, MANIFEST))
    with unless_read_only(lock) as refusal:
        # A signal ends waiting and listing at once. From `StopFlag` on it is looked at between
        # shards, as the loop does between batches: a plan is published whole or not at all.
        if refusal is None:
            request, plan = _prepare_plan(request, lock, stats)
        else:
            plan = _no_plan(request, refusal, stats)
        limit = request.settings.seconds_allowed
        with StopFlag(limit and limit - (time.perf_counter() - started)) as stop:
            changes = plan(stop)
            if changes is not None:
                stats.note(changes)
            if refusal is None:
                lock.acquire_shared(lambda: None)  # held alone or shared already: at once
            stats.discover = time.perf_counter() - started
            context = RunContext(stats, stop, request, on_progress, kept)
            cache = ShardedCache(request.out, request.sharding.share)
            work = _Work(cache, context)
            if refusal is not None and any(work.rows_left()):
                raise refusal
            left = [] if request.sharding.plan_only else work.do()
            if refusal is None:
                note_if_finished(_mark_of(request), functools.partial(ShardedCache, request.out))
    reason = PLAN_ONLY if request.sharding.plan_only else stop.reason
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


def _prepare_plan(
    request: ExtractRequest, lock: SharedLock, stats: RunStats
) -> tuple[ExtractRequest, Callable[[StopFlag], Changes | None]]:
    """List the images if a plan is to be made or updated; change nothing yet.

    Returns:
        the request, which resumes what `fresh` has begun, and a function that makes or updates
        the plan where needed, and returns what has changed.
    """
    path = os.path.join(request.out, MANIFEST)

    def tell() -> None:
        log.info("another run makes the plan of %s; waiting for it", request.out)

    lock.acquire_shared(tell)
    if request.fresh or request.policy.update:
        lock.acquire_exclusive()
    elif not os.path.exists(path):
        lock.acquire_exclusive(tell)
    request = _continued(request)
    if not request.fresh and os.path.exists(path):
        # by a run that was killed as it ended
        note_if_finished(path, functools.partial(ShardedCache, request.out))
    if request.fresh or not os.path.exists(path):
        images = list_images(request, stats)
        shards = request.sharding.count_for(len(images))
        made = describe_cache(request.settings, images)

        def begin(stop: StopFlag) -> None:
            note_finished(path)  # an earlier mark is not of the plan that comes
            _planner(request, images, stop).begin(made, shards)
            if request.fresh:
                note_begun(path, made.identity.fingerprint())

        return request, begin
    existing = read_manifest(request.out)
    if request.policy.update:
        request.sharding.check_count(request.out, len(existing.shards))
        images = list_images(request, stats)
        return request, lambda stop: _planner(request, images, stop).update(
            existing, request.settings, request.policy
        )
    check_plan(request, existing)
    if request.items is not None:
        check_known_items(request.items, existing, request.out)
    remove_leftovers(request.out, existing)
    return request, lambda _: None


def _mark_of(request: ExtractRequest) -> str:
    return os.path.join(request.out, MANIFEST)


def _continued(request: ExtractRequest) -> ExtractRequest:
    """As `fresh_mark.continued`, for the plan in a folder whose lock the caller holds alone."""
    path = _mark_of(request)
    if not (request.fresh and is_marked(path) and os.path.exists(path)):
        return request
    try:
        existing, cache = read_manifest(request.out), ShardedCache(request.out)
        numbers = [number for number in range(len(cache.shards)) if cache.shard_header(number)]
        begun = was_begun(path, existing.fingerprint) and numbers and has_pending(cache)
        other = request.sharding.shards not in (None, len(existing.shards))
        if not begun or other or named_sources(request.sources) != existing.sources:
            return request
        first = FeatureCache(cache.shard_path(numbers[0]))
        check_same(first, request.settings)
    except CacheError:  # also a damaged one, which is replaced
        return request
    return as_continued(request, cache)


def _planner(request: ExtractRequest, images: ImageList, stop: StopFlag) -> Planner:
    return Planner(request.out, images, named_sources(request.sources), stop)


def _no_plan(
    request: ExtractRequest, refusal: SpaceError, stats: RunStats
) -> Callable[[StopFlag], None]:
    """Refuse what needs another plan than the existing one, in a read-only folder."""
    if request.fresh or not os.path.exists(os.path.join(request.out, MANIFEST)):
        raise refusal
    existing = read_manifest(request.out)
    if not request.policy.update:
        check_plan(request, existing)
        return lambda _: None
    request.sharding.check_count(request.out, len(existing.shards))
    images = list_images(request, stats)

    def refuse_changes(stop: StopFlag) -> None:
        planner = _planner(request, images, stop)
        if not planner.is_up_to_date(existing, request.settings, request.policy):
            raise refusal

    return refuse_changes


class _Work:
    """The shards that one process is to extract."""

    def __init__(self, cache: ShardedCache, context: RunContext) -> None:
        self.damaged: list[str] = []
        self._cache = cache
        self._context = context
        self._retry = context.request.policy.retries_shards

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
            if not left[number]:  # else this run takes the lock anyway, and compares the items
                remove_left_lock(cache.shard_path(number))
                self._refuse_changed_items(cache.shard_path(number))
        self._context.stats.total = sum(left[number] for number in waiting)
        if existing:
            first = FeatureCache(cache.shard_path(existing[0]))
            check_settings(first, self._context.request.settings, work=bool(waiting))
        while waiting and self._context.goes_on():
            held = [number for number in waiting if not self._try(number)]
            if len(held) == len(waiting):
                break
            waiting = held
        return [cache.shards[number].name for number in waiting]

    def _refuse_changed_items(self, path: str) -> None:
        request = self._context.request
        if request.items is None or request.fingerprint != "bytes" or request.policy.update:
            return
        cache = FeatureCache(path)
        items = items_of_shard(cache, request.items)
        if items is not None:
            check_items(cache, match_paths(cache.paths, items.paths), items)

    def _refuse_missing(self) -> None:
        missing = self._cache.missing
        if missing:
            self.damaged.append(
                f"{counted(len(missing), 'shard')} of {self._cache.path!r} "
                f"{agree(len(missing), 'is')} missing: "
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
        items = self._context.request.items
        images = (
            list_shard(FeatureCache(path), self._cache.manifest.root)
            if items is None
            else items_of_shard(FeatureCache(path), items)
        )
        if images is None:
            return
        policy = UpdatePolicy(retry_failed=self._retry)
        request = dataclasses.replace(self._context.request, out=path, policy=policy)
        resume_cache(images, dataclasses.replace(self._context, request=request))
