"""What runs on a Ray cluster: tasks that each do many jobs, and the board that deals these out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vggfeat.cache.shard_manifest import MANIFEST
from vggfeat.cache.sharding import Sharding
from vggfeat.errors import InterruptedRunError, TooManyFailuresError, VggfeatError
from vggfeat.extraction.api import extract_request
from vggfeat.extraction.kept_replicas import KeptReplicas
from vggfeat.extraction.ray_cluster import import_ray
from vggfeat.extraction.update import UpdatePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vggfeat.core.records import Progress, Summary
    from vggfeat.extraction.api import ExtractRequest

PLAN = -1
"""Number of the job that lists the images and lays out the shards."""

_REPORT_SECONDS = 0.5
_IDLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A shard to process by its number among the plan's `shards`, or `PLAN`.

    `mark` is the modification time of the manifest, which every node must see as the driver does.
    """

    number: int
    shards: int = 0
    mark: float = 0.0

    def request(self, run: ExtractRequest) -> ExtractRequest:
        """Return the request of this job, as a part of that of the run."""
        if self.number == PLAN:
            sharding = Sharding(run.sharding.shards, plan_only=True)
            return dataclasses.replace(run, sharding=sharding)
        return dataclasses.replace(
            run,
            fresh=False,
            policy=UpdatePolicy(retry_failed=run.policy.retries_shards),
            sharding=Sharding(share=f"{self.number}/{self.shards}"),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a job: a summary, or an error by its class name and text."""

    summary: Summary | None = None
    kind: str = ""
    text: str = ""


@dataclass(slots=True)
class News:
    """Reports of the workers to the board.

    Attributes:
        progress: job → rows left and rows that failed, as last reported.
        notes: level and text of log lines not read before.
        ended: number and outcome of jobs that ended and were not read before.
        busy: whether a job is under way.
    """

    progress: dict[int, tuple[int, int]] = field(default_factory=dict)
    notes: list[tuple[int, str]] = field(default_factory=list)
    ended: list[tuple[int, Outcome]] = field(default_factory=list)
    busy: bool = False


class Board:
    """The actor that deals jobs to the workers and hears from them how they are getting on."""

    def __init__(self) -> None:
        self._waiting: deque[ShardJob] = deque()
        self._under_way: dict[int, int | None] = {}  # worker → number of its job
        self._news = News()
        self._closed = False

    def deal(self, jobs: Iterable[ShardJob]) -> None:
        """Add jobs for whichever worker is free first."""
        self._waiting += jobs

    def take(self, worker: int) -> tuple[bool, ShardJob | None]:
        """Return whether a worker is to stay, and a job for it if one waits."""
        job = self._waiting.popleft() if self._waiting and not self._closed else None
        self._under_way[worker] = None if job is None else job.number
        return not self._closed, job

    def report(self, number: int, left: int, failed: int) -> bool:
        """Note how many rows of a job are left and how many failed; return whether to stop."""
        self._news.progress[number] = (left, failed)
        return self._closed

    def note(self, level: int, text: str) -> None:
        """Keep a line of a worker's log."""
        self._news.notes.append((level, text))

    def finish(self, worker: int, number: int, outcome: Outcome) -> None:
        """Note what a job came to."""
        self._under_way[worker] = None
        self._news.ended.append((number, outcome))

    def forget(self, worker: int) -> tuple[bool, int | None]:
        """Return whether a worker that died had begun to run, and the number of its job."""
        begun = worker in self._under_way
        return begun, self._under_way.pop(worker, None)

    def close(self) -> None:
        """Have every worker end after its current batch."""
        self._closed = True

    def read(self) -> News:
        """Return what has been told; log lines and outcomes once."""
        news = self._news
        self._news = News(news.progress)
        news.busy = any(number is not None for number in self._under_way.values())
        return news


def do_jobs(worker: int, board: Any, run: ExtractRequest) -> None:
    """Take jobs from the board and process them one by one, until the board closes."""
    ask, kept = import_ray().get, KeptReplicas()
    stay, job = ask(board.take.remote(worker))
    while stay:
        if job is None:
            time.sleep(_IDLE_SECONDS)
        else:
            ask(board.finish.remote(worker, job.number, _do(job, board, run, kept)))
        stay, job = ask(board.take.remote(worker))


def _do(job: ShardJob, board: Any, run: ExtractRequest, kept: KeptReplicas) -> Outcome:
    mark = None
    with contextlib.suppress(OSError):
        mark = os.stat(os.path.join(run.out, MANIFEST)).st_mtime
    if job.number != PLAN and mark != job.mark:
        return Outcome(
            None,
            "UsageError",
            f"node {os.uname().nodename} does not see the plan in {run.out!r}; name an --out, or "
            "for an object store a --scratch, that all nodes share",
        )
    try:
        with _log_lines_sent(board):
            report = _reporter(board, job.number)
            return Outcome(extract_request(job.request(run), report, kept=kept))
    except (InterruptedRunError, TooManyFailuresError) as error:
        # Whether too many failed is for the driver to judge, which sees all shards.
        fatal = (
            isinstance(error, TooManyFailuresError)
            and run.settings.on_error == "stop"
            and error.summary.pending
        )
        return Outcome(error.summary, type(error).__name__ if fatal else "", str(error))
    except VggfeatError as error:
        return Outcome(None, type(error).__name__, str(error))


def _reporter(board: Any, number: int) -> Callable[[Progress], None]:
    """Return a callback that tells the board the progress, and stops the run if told to."""
    told = 0.0

    def report(progress: Progress) -> None:
        nonlocal told
        left = progress.total - progress.done - progress.failed
        if left and time.monotonic() - told < _REPORT_SECONDS:
            return
        told = time.monotonic()
        if import_ray().get(board.report.remote(number, left, progress.failed)):
            signal.raise_signal(signal.SIGTERM)  # caught by the run, which then stops cleanly

    return report


@contextlib.contextmanager
def _log_lines_sent(board: Any) -> Iterator[None]:
    logger = logging.getLogger("vggfeat")
    logger.setLevel(logging.INFO)
    sender = _Sender(board)
    logger.addHandler(sender)
    try:
        yield
    finally:
        logger.removeHandler(sender)


class _Sender(logging.Handler):
    """Sends log lines of this process to the board, but not those of processes it forks."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.INFO)
        self._board, self._pid = board, os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() == self._pid:
            self._board.note.remote(record.levelno, record.getMessage())
