"""`vggfeat.extract`: into one file, or into the shards of a folder as their locks allow."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat import run
from vggfeat.description import describe
from vggfeat.errors import CacheError, LockedError, ShardsHeldError, UsageError
from vggfeat.job import check_settings
from vggfeat.lock import SharedLock, hold
from vggfeat.reader import FeatureCache
from vggfeat.schema import RowState
from vggfeat.shardfolder import check_folder, check_plan, named_sources, remove_leftovers
from vggfeat.shardlist import MANIFEST, read_manifest
from vggfeat.shardplan import Planner, list_shard
from vggfeat.shardreader import ShardedCache
from vggfeat.signals import StopFlag
from vggfeat.sources import discover
from vggfeat.splitting import Sharding
from vggfeat.tally import Tally, summarise_run
from vggfeat.update import Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.config import Settings
    from vggfeat.records import Progress, Summary
    from vggfeat.sources import Manifest
    from vggfeat.update import Changes

log = logging.getLogger("vggfeat")


def is_sharded(out: str | os.PathLike[str], sharding: Sharding | None) -> bool:
    """Whether an output is a folder of shards: it ends in `/`, is a folder, or one is asked for."""
    return sharding not in (None, Sharding()) or os.fspath(out).endswith("/") or os.path.isdir(out)


def extract(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    fresh: bool = False,
    wish: Wish = Wish(),  # noqa: B008 frozen
    root: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    sharding: Sharding | None = None,
) -> Summary:
    """Extracts features of images into a cache, or goes on with a cache begun earlier.

    Args:
        sources: folders, files, `@list.txt`, or `-` for a list on standard input.
        out: the cache, one HDF5 file; or a folder, which gets a sharded cache: one that is there,
            a name that ends in `/`, or with `sharding` any name.
        settings: which layers of which network, and how.
        fresh: begin again even if `out` is there.
        wish: what to do about images that are new to `out`, changed, gone, or failed.
        root: directory that the recorded paths are relative to.
        on_progress: called after every batch.
        sharding: of a folder, how it is split and which of its shards to do.

    Returns:
        what was done, and what the cache now holds, or the share of it that was asked for.

    Raises:
        UsageError: `out` can be no cache, or what is asked for does not go together.
        InputError: a source is missing, or there is no image.
        WeightsError: the weights cannot be had.
        CacheError: `out` is not ours, damaged, or made with other settings or of other images.
        LockedError: another run writes to `out`; of a folder, to shards that are left.
        SpaceError: the disk is full. All rows written before are kept.
        DeviceError: the device is missing or failed. All rows written before are kept.
        TooManyFailuresError: more images failed than `settings.max_failures`, the rest is done;
            or one failed, and `settings.on_error` is `stop`.
        InterruptedRunError: SIGINT or SIGTERM; call again to go on.
    """
    if not is_sharded(out, sharding):
        return run.extract(
            sources, out, settings, fresh=fresh, wish=wish, root=root, on_progress=on_progress
        )
    listed = (sources,) if isinstance(sources, str | os.PathLike) else tuple(sources)
    asked = _Asked(
        listed, os.fspath(out), settings, sharding or Sharding(), wish, fresh=fresh, root=root
    )
    return _extract_shards(asked, on_progress)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a run over shards is asked for: see `extract`."""

    sources: tuple[str | os.PathLike[str], ...]
    out: str
    settings: Settings
    sharding: Sharding
    wish: Wish
    fresh: bool
    root: str | None

    def __post_init__(self) -> None:
        if self.sharding.share and (self.fresh or self.wish.update):
            option = "--fresh" if self.fresh else "--update"
            raise UsageError(
                f"{option} is about all shards and --shard {self.sharding.share} about some; run "
                f"once with {option} --plan-only, then the shares without"
            )


def _extract_shards(asked: _Asked, on_progress: Callable[[Progress], None] | None) -> Summary:
    started = time.perf_counter()
    tally = Tally()
    check_folder(asked.out)
    with SharedLock(os.path.join(asked.out, MANIFEST)) as lock:
        _plan(asked, lock, tally)
        tally.discover = time.perf_counter() - started
        limit = asked.settings.seconds_allowed
        with StopFlag(limit and limit - tally.discover) as stop:
            watch = run.RunWatch(tally, stop, asked.settings.on_error == "stop", on_progress)
            cache = ShardedCache(asked.out, asked.sharding.share)
            work = _Work(asked, cache, watch)
            left = [] if asked.sharding.plan_only else work.do()
    reason = "plan only" if asked.sharding.plan_only else stop.reason
    seconds = time.perf_counter() - started
    summary = summarise_run(asked.out, tally, seconds, reason, shards=cache)
    if work.damaged:
        raise CacheError("; ".join(work.damaged))
    run.raise_if_cut_short(summary, asked.settings, stop.signum, tally.fatal)
    if left and watch.goes_on():
        raise ShardsHeldError(
            f"{len(left)} shards of {asked.out!r} are held by other runs, the first is "
            f"{left[0]!r}; all others are done. Wait, and run again to see that they ended",
            summary,
        )
    return summary


def _plan(asked: _Asked, lock: SharedLock, tally: Tally) -> None:
    """Sees to a plan to work by: made or brought in line where that is needed or asked for."""
    path = os.path.join(asked.out, MANIFEST)

    def tell() -> None:
        log.info("another run makes the plan of %s; waiting for it", asked.out)

    lock.share(tell)
    if asked.fresh or asked.wish.update:
        lock.own()
    elif not os.path.exists(path):
        lock.own(tell)
    if asked.fresh or not os.path.exists(path):
        images = _discover(asked)
        shards = asked.sharding.count_for(len(images))
        planner = Planner(asked.out, images, named_sources(asked.sources))
        planner.begin(describe(asked.settings, images), shards)
    elif asked.wish.update:
        tally.note(_update(asked))
    else:
        manifest = read_manifest(asked.out)
        check_plan(asked.out, manifest, asked.sources, asked.root, asked.sharding)
        remove_leftovers(asked.out, manifest)
    lock.share(tell)


def _discover(asked: _Asked) -> Manifest:
    images = discover(asked.sources, root=asked.root)
    run.tell_skipped(images)
    return images


def _update(asked: _Asked) -> Changes:
    had = read_manifest(asked.out)
    asked.sharding.check_count(asked.out, len(had.shards))
    planner = Planner(asked.out, _discover(asked), named_sources(asked.sources))
    return planner.update(had, asked.settings, asked.wish)


class _Work:
    """The shards that one process is to do."""

    def __init__(self, asked: _Asked, cache: ShardedCache, watch: run.RunWatch) -> None:
        self.damaged: list[str] = []
        self._asked = asked
        self._cache = cache
        self._watch = watch
        self._retry = asked.wish.retry_failed and not asked.wish.update

    def do(self) -> list[str]:
        """Does what is left, shard by shard; those that others hold are tried again at the end.

        Returns:
            names of shards that others still hold.
        """
        cache = self._cache
        self._refuse_missing()
        there = [number for number in range(len(cache.shards)) if cache.shard_header(number)]
        left = self._rows_left()
        waiting = [number for number in there if left[number]]
        self._watch.tally.total = sum(left[number] for number in waiting)
        if there:
            first = FeatureCache(cache.shard_path(there[0]))
            check_settings(first, self._asked.settings, work=bool(waiting))
        while waiting and self._watch.goes_on():
            held = [number for number in waiting if not self._try(number)]
            if len(held) == len(waiting):
                break
            waiting = held
        return [cache.shards[number].name for number in waiting]

    def _refuse_missing(self) -> None:
        missing = self._cache.missing
        if missing:
            self.damaged.append(
                f"{len(missing)} shards of {self._cache.path!r} are not there: "
                f"{', '.join(missing[:3])}; restore them from a backup, or --update lists "
                "the images anew and takes theirs into the shards beside"
            )

    def _rows_left(self) -> list[int]:
        """How many rows each shard has to do; each is looked at by itself, in little memory."""
        wanted = (RowState.PENDING, RowState.FAILED) if self._retry else (RowState.PENDING,)
        state = self._cache.column("state")
        return [
            int(np.isin(state[shard.first : shard.first + shard.rows], wanted).sum())
            for shard in self._cache.shards
        ]

    def _try(self, number: int) -> bool:
        """Does one shard unless another run holds it; whether it does not have to be done again."""
        if not self._watch.goes_on():
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
        self._watch.tally.base = first
        images = list_shard(FeatureCache(path), self._cache.manifest.root)
        wish = Wish(retry_failed=self._retry)
        run.go_on(path, self._asked.settings, images, self._watch, wish)
