"""An extraction on a Ray cluster: workers take its shards from a board, and are watched from here.

A worker is one plain task, long enough for CUDA to start once: Ray ends the process of a task that
had a GPU; and with `max_calls=0` it gives a process that has opened one GPU to a task that was
assigned another (Ray 2.60), so that two of them share one. A shard is an ordinary run that may be
killed at any time. Ray's own retries would keep the shard of a dead worker until a node has room
for it; here the shard goes back to the board, and whichever worker is free first resumes it.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat import errors
from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.shard_manifest import MANIFEST
from vggfeat.cache.sharded import ShardedCache
from vggfeat.core.records import Progress
from vggfeat.core.signals import StopFlag, TerminatedError
from vggfeat.core.text import agree, counted
from vggfeat.errors import DeviceError, ShardsHeldError, TooManyFailuresError, UsageError
from vggfeat.extraction.pipeline import raise_if_cut_short
from vggfeat.extraction.ray_cluster import connected, first_line, import_ray, last_line, plan_slots
from vggfeat.extraction.ray_worker import (
    PLAN,
    Board,
    News,
    Outcome,
    ShardJob,
    do_jobs,
)
from vggfeat.extraction.report import FAILURES_NAMED, RunStats, summarise_run
from vggfeat.extraction.shard_planner import absolute_source
from vggfeat.storage.paths import absolute_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vggfeat.core.records import FailedImage, Summary
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.extraction.ray_cluster import RayCluster, Slots

_LOST = "lost"  # `Outcome.kind` of a job whose worker or node died
_DEATHS = 4  # of workers in a row that finished no batch of a job, until it is given up
_HELD_RETRIES = 20
_HELD_PAUSE = 3.0  # the lock of a machine that died may live on for a while on a network
_STOP_SECONDS = 60.0
_NOTICE_SECONDS = 30.0
_POLL_SECONDS = 0.3
_ADVICE = "where a node is short of memory, try fewer --actors, then run again to resume"

log = logging.getLogger("vggfeat")


def extract_on_ray(
    request: ExtractRequest,
    cluster: RayCluster,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Extract features into a sharded cache on a Ray cluster.

    The first worker lists the images and lays out the shards; then all do one shard after another.
    """
    if request.sharding.share or request.sharding.plan_only:
        raise UsageError("--engine ray does all shards; give it without --shard and --plan-only")
    if "-" in request.sources:
        raise UsageError("--engine ray lists images on a node; name an @LIST instead of -")
    placed = dataclasses.replace(
        request,
        sources=tuple(map(absolute_source, request.sources)),
        out=os.path.abspath(request.out),
        root=None if request.root is None else absolute_place(request.root),
    )
    started = time.perf_counter()
    with connected(cluster) as nodes, StopFlag(request.settings.seconds_allowed) as stop:
        slots = plan_slots(nodes, request.settings.device, cluster.actors)
        driver = _Driver(placed, slots, stop, on_progress)
        try:
            driver.extract()
        except import_ray().exceptions.RayActorError as error:
            raise DeviceError(
                f"the process that deals out shards, beside this one, ended: {last_line(error)}; "
                "run again to resume"
            ) from error
    driver.raise_before_a_plan()
    summary = driver.summary(request.out, time.perf_counter() - started)
    driver.raise_errors(summary)
    raise_if_cut_short(summary, request, stop.signum, None)
    return summary


@dataclass(slots=True)
class _Deaths:
    """Workers that died at one job: how many in a row with the same rows left, and Ray's reason."""

    in_a_row: int = 0
    left: int = -1
    text: str = ""


@dataclass(slots=True)
class _Workers:
    """The tasks that do jobs. One that dies is replaced as soon as a node has room for another."""

    run: ExtractRequest
    slots: Slots
    ray: Any = field(default_factory=import_ray)
    board: Any = None
    _tasks: dict[Any, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _begun: bool = False
    _closed: bool = False

    def __post_init__(self) -> None:
        # On this node, whose end is the end of the run anyway: no other one takes the board along.
        here = self.ray.get_runtime_context().get_node_id()
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        beside = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self.board = self.ray.remote(num_cpus=0, scheduling_strategy=beside)(Board).remote()
        for _ in range(self.slots.actors):
            self._start()

    def _start(self) -> None:
        # How many may be wanted by the run, and how long it may take, is for the driver to judge.
        settings = dataclasses.replace(
            self.run.settings, max_failures=None, time_limit=None, device=self.slots.device
        )
        number = next(self._numbers)
        task = self.ray.remote(num_cpus=self.slots.cpus, num_gpus=self.slots.gpus, max_retries=0)(
            do_jobs
        ).remote(number, self.board, dataclasses.replace(self.run, settings=settings))
        self._tasks[task] = number

    def wait(self) -> News:
        """Wait a moment, replace workers that died, and return what the others have told."""
        tasks = list(self._tasks)
        ended = self.ray.wait(tasks, num_returns=len(tasks), timeout=_POLL_SECONDS)[0]
        lost = [self._replace(task) for task in ended]
        news: News = self.ray.get(self.board.read.remote())
        self._begun |= news.busy
        news.ended += [(number, outcome) for number, outcome in lost if number is not None]
        return news

    def close(self) -> None:
        """Have all workers end after their current batch."""
        self._closed = True
        self.board.close.remote()

    def _replace(self, task: Any) -> tuple[int | None, Outcome]:
        """Start another worker for one that ended; return the job it was at, if it was at any."""
        begun, number = self.ray.get(self.board.forget.remote(self._tasks.pop(task)))
        why = ""
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            if begun and isinstance(error, self.ray.exceptions.RayTaskError):
                raise  # a defect
            if not (begun or self._begun):
                raise DeviceError(
                    f"a worker cannot start: {last_line(error)}; is vggfeat installed on every "
                    "node, in this version?"
                ) from error
            if not begun:
                time.sleep(_POLL_SECONDS)  # its node is gone, and Ray has not found that out yet
            why = first_line(error).rstrip(" .")
        if not self._closed:
            self._start()
        return number, Outcome(None, _LOST, why)


@dataclass(slots=True)
class _Driver:
    """The process that was called: says what is to be done, and judges what comes of it."""

    run: ExtractRequest
    slots: Slots
    stop: StopFlag
    on_progress: Callable[[Progress], None] | None
    stats: RunStats = field(default_factory=RunStats)
    failures: list[FailedImage] = field(default_factory=list)
    planned: Summary | None = None
    _errors: list[Outcome] = field(default_factory=list)
    _deaths: dict[int, _Deaths] = field(default_factory=dict)
    _held: Counter[int] = field(default_factory=Counter)
    _told: set[str] = field(default_factory=set)
    _failed: int = 0
    _began: float = 0.0
    _left: dict[int, int] = field(default_factory=dict)

    def extract(self) -> None:
        """Have the plan made, then every shard done that is not."""
        started = time.perf_counter()
        self.stats.device = f"{counted(self.slots.actors, 'Ray actor')}, {self.slots.device}"
        workers = _Workers(self.run, self.slots)
        self._deal(workers, [ShardJob(PLAN)])
        self.stats.discover = time.perf_counter() - started
        if self.planned is None or not self._goes_on():
            return
        before = ShardedCache(self.run.out)
        count, done = len(before.shards), _count(before.state, RowState.DONE)
        rows = {number: self._rows_left(before, number) for number in range(count)}
        self._left = {number: left for number, left in rows.items() if left}
        self.stats.total = sum(self._left.values())
        started = self._began = time.perf_counter()
        mark = os.stat(os.path.join(self.run.out, MANIFEST)).st_mtime
        self._deal(workers, [ShardJob(number, count, mark) for number in self._left])
        self._halt(workers)
        self.stats.wait = time.perf_counter() - started
        self._count_rows(done)

    @property
    def _unfinished(self) -> tuple[RowState, ...]:
        return (RowState.PENDING, RowState.FAILED)[: 2 if self.run.policy.retries_shards else 1]

    def _rows_left(self, cache: ShardedCache, number: int) -> int:
        if cache.shard_header(number) is None:
            return 0
        return _count(FeatureCache(cache.shard_path(number)).state, *self._unfinished)

    def _count_rows(self, done_before: int) -> None:
        """Count rows by what the shards hold, since workers that died have told nothing."""
        after = ShardedCache(self.run.out)
        left = _count(after.state, *self._unfinished)
        self.stats.done = _count(after.state, RowState.DONE) - done_before
        self.stats.failed = max(0, self.stats.total - self.stats.done - left)
        if self.run.policy.retries_shards:  # those that failed again are among what is left
            self.stats.failed = self._failed

    def _goes_on(self) -> bool:
        return self.stop.allows(0) and not self._errors

    def _deal(self, workers: _Workers, jobs: Sequence[ShardJob]) -> None:
        """Have jobs done until none is left or the run is to stop."""
        workers.board.deal.remote(jobs)
        open_jobs = {job.number: job for job in jobs}
        busy_at = time.monotonic()
        while open_jobs and self._goes_on():
            news = workers.wait()
            self._show(news)
            for number, outcome in news.ended:
                if self._is_over(number, outcome):
                    del open_jobs[number]
                else:
                    workers.board.deal.remote([open_jobs[number]])
            busy_at = time.monotonic() if news.busy else busy_at
            if time.monotonic() - busy_at > _NOTICE_SECONDS:
                self._tell(logging.INFO, f"waiting for the cluster to have {self.slots.free} free")

    def _halt(self, workers: _Workers) -> None:
        """Have all workers end after their batch, and wait for that."""
        workers.close()
        until = time.monotonic() + _STOP_SECONDS
        busy = True
        while busy and time.monotonic() < until:
            news = workers.wait()
            self._show(news)
            for number, outcome in news.ended:
                if outcome.kind != _LOST:
                    self._is_over(number, outcome)
            busy = news.busy

    def _is_over(self, number: int, outcome: Outcome) -> bool:
        """Keep what a job came to; return whether it need not be dealt again."""
        if outcome.kind == _LOST:
            return self._is_given_up(number, outcome.text)
        if outcome.kind == ShardsHeldError.__name__:
            self._held[number] += 1
            time.sleep(_HELD_PAUSE)
            return self._held[number] >= _HELD_RETRIES
        self._held.pop(number, None)
        self._deaths.pop(number, None)
        if outcome.kind:
            self._errors.append(outcome)
        if number == PLAN:
            self.planned = outcome.summary
        elif outcome.summary is not None:
            self._add(outcome.summary)
        return True

    def _add(self, shard: Summary) -> None:
        self.failures += shard.failures[: FAILURES_NAMED - len(self.failures)]
        self.stats.clamped += shard.clamped
        self.stats.redone += shard.redone
        self.stats.decode += shard.stages.decode
        self.stats.workers = shard.workers * self.slots.actors

    def _is_given_up(self, number: int, why: str) -> bool:
        """Count a worker that died; return whether too many in a row finished no batch of a job."""
        left = 0 if number == PLAN else self._rows_left(ShardedCache(self.run.out), number)
        deaths = self._deaths.setdefault(number, _Deaths())
        deaths.in_a_row = deaths.in_a_row + 1 if left == deaths.left else 1
        deaths.left, deaths.text = left, why
        if deaths.in_a_row == _DEATHS:
            return True
        what = "the plan" if number == PLAN else f"shard {number}"
        log.warning("the worker of %s ended (%s); dealt again", what, why)
        return False

    def _show(self, news: News) -> None:
        """Pass on log lines, each once, and the progress."""
        for level, text in news.notes:
            self._tell(level, text)
        self._failed = sum(failed for _, failed in news.progress.values())
        if self.on_progress is not None and self.stats.total:
            left = sum(news.progress.get(shard, (rows, 0))[0] for shard, rows in self._left.items())
            total = self.stats.total
            done = max(0, total - left - self._failed)
            seconds = time.perf_counter() - self._began
            rate = (done + self._failed) / seconds if self._began else 0.0
            self.on_progress(Progress(done, self._failed, total, rate))

    def _tell(self, level: int, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.log(level, "%s", text)

    def raise_before_a_plan(self) -> None:
        """Raise why there is nothing to look at yet, if there is no plan."""
        if self.planned is not None:
            return
        for outcome in self._errors:
            raise getattr(errors, outcome.kind)(outcome.text)
        if PLAN in self._deaths and self._deaths[PLAN].in_a_row == _DEATHS:
            raise DeviceError(
                f"{_DEATHS} workers ended while they listed images and laid out shards, the last "
                f"one: {self._deaths[PLAN].text}; {_ADVICE}"
            )
        if self.stop:
            raise TerminatedError(self.stop.signum)
        raise DeviceError(
            f"the cluster did not have {self.slots.free} free within --time-limit; try again later"
        )

    def summary(self, out: str, seconds: float) -> Summary:
        """Return what was done by all workers, and what the cache holds now."""
        shards = ShardedCache(self.run.out)
        summary = summarise_run(out, self.stats, seconds, self.stop.reason, shards=shards)
        found = self.planned or summary
        return dataclasses.replace(
            summary,
            failures=tuple(self.failures),
            added=found.added,
            changed=found.changed,
            gone=found.gone,
            retried=found.retried,
            skipped=found.skipped,
        )

    def raise_errors(self, summary: Summary) -> None:
        """Raise the first error that a worker came back with, or why a shard was not done."""
        for outcome in self._errors:
            kind = getattr(errors, outcome.kind)
            if kind is TooManyFailuresError:
                raise TooManyFailuresError(outcome.text, summary)
            raise kind(outcome.text)
        given_up = {n: one for n, one in self._deaths.items() if one.in_a_row == _DEATHS}
        if given_up:
            shard, deaths = next(iter(given_up.items()))
            raise DeviceError(
                f"{_DEATHS} workers in a row ended without finishing a batch, of "
                f"{counted(len(given_up), 'shard')}; the first is shard {shard}, its last worker: "
                f"{deaths.text}. All other shards are done; {_ADVICE}"
            )
        if self._held and self._goes_on():
            raise ShardsHeldError(
                f"{counted(len(self._held), 'shard')} of {self.run.out!r} "
                f"{agree(len(self._held), 'is')} held by other runs; all "
                "others are done. Wait, and run again to see that they ended",
                summary,
            )


def _count(state: Any, *wanted: RowState) -> int:
    return int(np.isin(np.asarray(state), wanted).sum())
