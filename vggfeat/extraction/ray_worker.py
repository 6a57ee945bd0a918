"""What runs on the nodes of a Ray cluster: actors that do shards, and the board they report to."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.cache.shard_manifest import MANIFEST
from vggfeat.cache.sharding import Sharding
from vggfeat.errors import InterruptedRunError, TooManyFailuresError, VggfeatError
from vggfeat.extraction.api import ExtractRequest
from vggfeat.extraction.ray_cluster import import_ray
from vggfeat.extraction.sharded import extract_here
from vggfeat.extraction.update import UpdatePolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.core.records import Progress, Summary
    from vggfeat.core.settings import Settings

_REPORT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """What every actor is asked for: see `dealing.extract_on_ray`. Paths are absolute."""

    sources: tuple[str, ...]
    out: str
    settings: Settings
    root: str | None
    shards: int | None
    retry_failed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task, sent to the driver: a summary, or an error by its kind and text."""

    summary: Summary | None = None
    kind: str = ""
    text: str = ""


class Board:
    """The actor that all others report to, and that says when they are to stop."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[int, int]] = {}
        self._notes: list[tuple[int, str]] = []
        self._stopping = False

    def report(self, shard: int, left: int, failed: int) -> bool:
        """Notes how many rows of a shard are left and how many failed; whether to stop."""
        self._left[shard] = (left, failed)
        return self._stopping

    def note(self, level: int, text: str) -> None:
        """Keeps a line of an actor's log."""
        self._notes.append((level, text))

    def stop(self) -> None:
        """Has every actor stop behind the batch it is at."""
        self._stopping = True

    def read(self) -> tuple[dict[int, tuple[int, int]], list[tuple[int, str]]]:
        """What was reported of each shard, and log lines not read before."""
        notes, self._notes = self._notes, []
        return self._left, notes


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What comes with every task, since an actor that is restarted knows nothing.

    Attributes:
        asked: of all.
        board: handle of the `Board`.
        device: for the setting of that name.
    """

    asked: Asked
    board: Any
    device: str

    @property
    def settings(self) -> Settings:
        """Those of one actor: how many images may fail, and how long it may take, is not its."""
        return dataclasses.replace(
            self.asked.settings, max_failures=None, time_limit=None, device=self.device
        )


class ShardWorker:
    """An actor: makes the plan, or does one shard after the other, each as a process would."""

    def __init__(self) -> None:
        self._told = 0.0

    def plan(self, errand: TaskContext, *, fresh: bool, policy: UpdatePolicy) -> Outcome:
        """Lists the images and lays the shards out, or brings them in line."""
        sharding = Sharding(errand.asked.shards, plan_only=True)
        return _extract(errand, sharding, policy, None, fresh=fresh)

    def do(self, errand: TaskContext, shard: int, count: int, mark: float) -> Outcome:
        """Does what is left of a shard.

        Args:
            errand: of all tasks.
            shard: its number.
            count: of shards.
            mark: time of the manifest, which this machine must see as the driver does.
        """
        problem = _not_shared(errand.asked.out, mark)
        if problem:
            return Outcome(None, "UsageError", problem)
        policy = UpdatePolicy(retry_failed=errand.asked.retry_failed)
        sharding = Sharding(share=f"{shard}/{count}")

        def report(progress: Progress) -> None:
            left = progress.total - progress.done - progress.failed
            if left and time.monotonic() - self._told < _REPORT_SECONDS:
                return
            self._told = time.monotonic()
            if import_ray().get(errand.board.report.remote(shard, left, progress.failed)):
                signal.raise_signal(signal.SIGTERM)  # caught by the run, which then stops cleanly

        return _extract(errand, sharding, policy, report)


def _not_shared(out: str, mark: float) -> str:
    """What is wrong where a node does not see the output; empty where it does."""
    with contextlib.suppress(OSError):
        if os.stat(os.path.join(out, MANIFEST)).st_mtime == mark:
            return ""
    return (
        f"node {os.uname().nodename} does not see the plan in {out!r}; name an --out, or for an "
        "object store a --scratch, that all nodes share"
    )


def _extract(
    errand: TaskContext,
    sharding: Sharding,
    policy: UpdatePolicy,
    on_progress: Callable[[Progress], None] | None,
    *,
    fresh: bool = False,
) -> Outcome:
    asked = errand.asked
    logger = logging.getLogger("vggfeat")
    logger.setLevel(logging.INFO)
    sender = _Sender(errand.board)
    logger.addHandler(sender)
    try:
        request = ExtractRequest(
            asked.sources, asked.out, errand.settings, fresh, policy, asked.root, sharding
        )
        summary = extract_here(request, on_progress)
    except (InterruptedRunError, TooManyFailuresError) as error:
        # How many failed is the driver's to judge, by all shards.
        fatal = (
            isinstance(error, TooManyFailuresError)
            and asked.settings.on_error == "stop"
            and error.summary.pending
        )
        return Outcome(error.summary, type(error).__name__ if fatal else "", str(error))
    except VggfeatError as error:
        return Outcome(None, type(error).__name__, str(error))
    finally:
        logger.removeHandler(sender)
    return Outcome(summary)


class _Sender(logging.Handler):
    """Sends log lines of this process to the board, but not those of processes it forks."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.INFO)
        self._board, self._pid = board, os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() == self._pid:
            self._board.note.remote(record.levelno, record.getMessage())
