"""Shards dealt out to the actors of a Ray cluster, each of them an ordinary run that may be killed.

Plain actors and not Ray Data's `map_batches`, tried with Ray 2.60: that calls its function outside
the main thread, where no signal can be caught; it knows no progress within a shard; it tries a
shard that kills its worker again without end; and its reading task waits for ever where actors hold
all CPUs. Not plain tasks either: Ray ends the process of a GPU task behind it, and each shard would
start CUDA again. Ray restarts actors, on whichever node has room; shards are dealt again by us,
since the shard of an actor that has no node to restart on belongs to another one.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import time
from collections import Counter, deque
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
from vggfeat.extraction.ray_cluster import connected, import_ray
from vggfeat.extraction.ray_placement import plan_slots
from vggfeat.extraction.ray_pool import LOST, ActorPool
from vggfeat.extraction.ray_worker import Asked, Board, Outcome, ShardWorker, TaskContext
from vggfeat.extraction.report import FAILURES_NAMED, RunStats, summarise_run
from vggfeat.storage.paths import absolute_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.core.records import FailedImage, Summary
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.extraction.ray_cluster import RayCluster
    from vggfeat.extraction.ray_placement import Slots
    from vggfeat.extraction.update import UpdatePolicy

_DEATHS = 4  # of workers in a row that finished no batch of a shard, until it is given up
_HELD_RETRIES = 20
_HELD_PAUSE = 3.0  # the lock of a machine that died may live on for a while on a network
_STOP_SECONDS = 60.0
_NOTICE_SECONDS = 30.0

log = logging.getLogger("vggfeat")


def extract_on_ray(
    request: ExtractRequest,
    cluster: RayCluster,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Extracts features into a sharded cache, its shards dealt out to the actors of a Ray cluster.

    The first actor lists the images and lays the shards out. Then each actor does one shard after
    the other; of a worker or node that dies, another one goes on with its shard. See
    `engines.extract` for more.

    Raises:
        UsageError: `-` as a source, a share of the shards, or an output that nodes do not share;
            the package `ray` is not installed.
        DeviceError: there is no such cluster, or a shard's workers end again and again.
    """
    if request.sharding.share or request.sharding.plan_only:
        raise UsageError("--engine ray does all shards; give it without --shard and --plan-only")
    asked = Asked(
        tuple(_absolute(source) for source in request.sources),
        os.path.abspath(request.out),
        request.settings,
        None if request.root is None else absolute_place(request.root),
        request.sharding.shards,
        request.policy.retry_failed and not request.policy.update,
    )
    started = time.perf_counter()
    stats = RunStats()
    with connected(cluster) as nodes, StopFlag(request.settings.seconds_allowed) as stop:
        slots = plan_slots(nodes, request.settings.device, cluster.actors)
        driver = _Driver(asked, slots, stop, stats, on_progress)
        driver.run(fresh=request.fresh, policy=request.policy)
    driver.raise_before_a_plan()
    summary = driver.summary(request.out, time.perf_counter() - started)
    driver.raise_what_came(summary)
    raise_if_cut_short(summary, request, stop.signum, None)
    return summary


def _absolute(source: str | os.PathLike[str]) -> str:
    text = os.fspath(source)
    if text == "-" and isinstance(source, str):
        raise UsageError("--engine ray lists images on a node; name an @LIST instead of -")
    mark = "@" if isinstance(source, str) and text.startswith("@") else ""
    return mark + absolute_place(text[len(mark) :])


@dataclass(slots=True)
class _Driver:
    """This process's side: deals out shards, looks at what comes back and at the signals."""

    asked: Asked
    slots: Slots
    stop: StopFlag
    stats: RunStats
    on_progress: Callable[[Progress], None] | None
    failures: list[FailedImage] = field(default_factory=list)
    planned: Summary | None = None
    _errors: list[Outcome] = field(default_factory=list)
    _deaths: dict[int, _Deaths] = field(default_factory=dict)
    _held: Counter[int] = field(default_factory=Counter)
    _told: set[str] = field(default_factory=set)
    _failed: int = 0
    _left: dict[int, int] = field(default_factory=dict)
    _ray: Any = field(default_factory=import_ray)
    _board: Any = None

    def run(self, *, fresh: bool, policy: UpdatePolicy) -> None:
        """Has the plan made, then every shard done that is not."""
        started = time.perf_counter()
        workers = ActorPool(self._ray, self._start())
        self._plan(workers, fresh=fresh, policy=policy)
        self.stats.discover = time.perf_counter() - started
        if not self._goes_on():
            return
        before = ShardedCache(self.asked.out)
        done = _count(before.state, RowState.DONE)
        self._left = {
            number: rows
            for number in range(len(before.shards))
            if (rows := self._rows_left(before, number))
        }
        self.stats.total = sum(self._left.values())
        started = time.perf_counter()
        self._deal(workers, before)
        self.stats.wait = time.perf_counter() - started
        after = ShardedCache(self.asked.out)
        left = sum(_count(after.state, state) for state in self._unfinished)
        self.stats.done = _count(after.state, RowState.DONE) - done
        self.stats.failed = max(0, self.stats.total - self.stats.done - left)
        if self.asked.retry_failed:  # those that failed again are among what is left
            self.stats.failed = self._failed

    @property
    def _unfinished(self) -> tuple[RowState, ...]:
        return (RowState.PENDING, RowState.FAILED)[: 2 if self.asked.retry_failed else 1]

    def _rows_left(self, cache: ShardedCache, number: int) -> int:
        if cache.shard_header(number) is None:
            return 0
        state = FeatureCache(cache.shard_path(number)).state
        return sum(_count(state, one) for one in self._unfinished)

    def _goes_on(self) -> bool:
        return self.stop.allows(0) and not self._errors

    def _start(self) -> list[Any]:
        """The actors; they are not waited for, so that those with a place begin."""
        remote = self._ray.remote
        here = self._ray.get_runtime_context().get_node_id()
        # Beside this process, whose end is the run's: no other node takes the board along.
        beside = importlib.import_module("ray.util.scheduling_strategies")
        self._board = remote(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=beside.NodeAffinitySchedulingStrategy(here, soft=True),
        )(Board).remote()
        worker = remote(
            num_cpus=self.slots.cpus,
            num_gpus=self.slots.gpus,
            max_restarts=-1,
            max_task_retries=0,
        )(ShardWorker)
        self.stats.device = f"{self.slots.actors} Ray actors, {self.slots.device}"
        return [worker.remote() for _ in range(self.slots.actors)]

    @property
    def _errand(self) -> TaskContext:
        return TaskContext(self.asked, self._board, self.slots.device)

    def _plan(self, workers: ActorPool, *, fresh: bool, policy: UpdatePolicy) -> None:
        """Has whichever actor is there first make the plan."""
        began = time.monotonic()
        for _ in range(_DEATHS):
            while not workers.free and self._goes_on():
                workers.wait()
                self._notice_waiting(began)
            if not self._goes_on():
                return
            workers.begin(
                lambda actor: actor.plan.remote(self._errand, fresh=fresh, policy=policy), 0
            )
            ended: list[tuple[int, Outcome]] = []
            while not ended and self._goes_on():
                ended = workers.wait()
                self._show()
            if not ended:
                return
            outcome = ended[0][1]
            if outcome.kind != LOST:
                self.planned = outcome.summary
                self._note(outcome)
                return
        raise DeviceError(
            f"{_DEATHS} workers ended while they listed images and laid out shards, the last one: "
            f"{outcome.text}; {_ADVICE}"
        )

    def _notice_waiting(self, began: float) -> None:
        if time.monotonic() - began > _NOTICE_SECONDS:
            self._tell(logging.INFO, f"waiting for the cluster to have {self.slots.free} free")

    def _deal(self, workers: ActorPool, cache: ShardedCache) -> None:
        """A shard to each actor that has none, until none is left or the run is to stop."""
        mark = os.stat(os.path.join(self.asked.out, MANIFEST)).st_mtime
        count, waiting = len(cache.shards), deque(sorted(self._left))

        def task(shard: int) -> Callable[[Any], Any]:
            return lambda actor: actor.do.remote(self._errand, shard, count, mark)

        idle_since = time.monotonic()
        while (waiting or workers.busy) and self._goes_on():
            while workers.free and waiting:
                shard = waiting.popleft()
                workers.begin(task(shard), shard)
            waiting += [
                shard
                for shard, outcome in workers.wait()
                if self._take(shard, outcome)
                or (outcome.kind == LOST and self._again(shard, cache))
            ]
            if workers.busy:
                idle_since = time.monotonic()
            self._notice_waiting(idle_since)
            self._show()
        self._halt(workers)

    def _halt(self, workers: ActorPool) -> None:
        """Has every actor stop behind its batch, and waits for that."""
        until = time.monotonic() + _STOP_SECONDS
        while workers.busy and time.monotonic() < until:
            self._board.stop.remote()
            for shard, outcome in workers.wait():
                self._take(shard, outcome)
            self._show()

    def _again(self, shard: int, cache: ShardedCache) -> bool:
        """Whether a shard whose worker died is dealt again: unless workers die of it at once."""
        left = self._rows_left(cache, shard)
        deaths = self._deaths[shard]
        deaths.in_a_row = deaths.in_a_row + 1 if left == deaths.left else 1
        deaths.left = left
        if deaths.in_a_row == _DEATHS:
            return False
        log.warning("the worker of shard %d ended (%s); dealt again", shard, deaths.text)
        return True

    def _take(self, shard: int, outcome: Outcome) -> bool:
        """Keeps what came of a shard; whether it is to be tried again, having been held."""
        if outcome.kind == ShardsHeldError.__name__:
            self._held[shard] += 1
            time.sleep(_HELD_PAUSE)
            return self._held[shard] < _HELD_RETRIES
        if outcome.kind == LOST:
            self._deaths.setdefault(shard, _Deaths()).text = outcome.text
            return False
        self._held.pop(shard, None)
        self._deaths.pop(shard, None)
        self._note(outcome)
        if outcome.summary is not None:
            self.failures += outcome.summary.failures[: FAILURES_NAMED - len(self.failures)]
            self.stats.clamped += outcome.summary.clamped
            self.stats.redone += outcome.summary.redone
            self.stats.decode += outcome.summary.stages.decode
            self.stats.workers = outcome.summary.workers * self.slots.actors
        return False

    def _note(self, outcome: Outcome) -> None:
        if outcome.kind:
            self._errors.append(outcome)

    def _show(self) -> None:
        """Passes on what the actors have reported: their log lines once, and their progress."""
        reported, notes = self._ray.get(self._board.read.remote())
        for level, text in notes:
            self._tell(level, text)
        self._failed = sum(failed for _, failed in reported.values())
        if self.on_progress is not None and self.stats.total:
            left = sum(reported.get(shard, (rows, 0))[0] for shard, rows in self._left.items())
            total = self.stats.total
            done = max(0, total - left - self._failed)
            self.on_progress(Progress(done, self._failed, total))

    def _tell(self, level: int, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.log(level, "%s", text)

    def raise_before_a_plan(self) -> None:
        """Raises why there is nothing to look at yet.

        Raises:
            TerminatedError: a signal came before there was a plan.
            VggfeatError: what kept it from being made.
        """
        if self.planned is not None:
            return
        for outcome in self._errors:
            raise getattr(errors, outcome.kind)(outcome.text)
        if self.stop:
            raise TerminatedError(self.stop.signum)
        raise DeviceError(
            f"the cluster had not {self.slots.free} free within --time-limit; try again later"
        )

    def summary(self, out: str, seconds: float) -> Summary:
        """What was done by all actors, and what the cache holds now."""
        shards = ShardedCache(self.asked.out)
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

    def raise_what_came(self, summary: Summary) -> None:
        """Raises the first error that an actor came back with, or what was not done for another."""
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
                f"{counted(len(self._held), 'shard')} of {self.asked.out!r} "
                f"{agree(len(self._held), 'is')} held by other runs; all "
                "others are done. Wait, and run again to see that they ended",
                summary,
            )


_ADVICE = "where a node is short of memory, try fewer --actors, then run again to resume"


@dataclass(slots=True)
class _Deaths:
    """Workers that ended at one shard.

    Attributes:
        in_a_row: how many since rows of it were last finished.
        left: rows that were left when the last one ended.
        text: why it ended, as Ray has it.
    """

    in_a_row: int = 0
    left: int = -1
    text: str = ""


def _count(state: Any, wanted: RowState) -> int:
    return int(np.count_nonzero(np.asarray(state) == wanted))
