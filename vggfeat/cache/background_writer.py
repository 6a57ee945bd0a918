"""Background threads write rows and sync them, so that the network never waits for the disk."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from vggfeat.cache.writer import CacheWriter
    from vggfeat.core.records import FeatureBatch

_DEPTH = 4  # batches that may wait for the disk before the loop does
_LEAVE_SECONDS = 5.0  # that Ctrl-C waits for the batch being written


class Sink:
    """Hand batches to a `CacheWriter` in a thread; a second one checkpoints every few seconds.

    Rows are written on while a checkpoint syncs. One that is due while another is under way waits
    for that, and so do the rows behind it: what is not synced is never more than the work of two
    checkpoints. With `checkpoint_seconds` of 0 a batch is safe before the next one is written.

    Leaving the block writes all queued batches, checkpoints and closes the writer, whatever error
    ended it, so that no computed feature is lost; only KeyboardInterrupt leaves at once. A crash
    may cost the work of `checkpoint_seconds`, and of the time that a sync takes.
    """

    def __init__(self, writer: CacheWriter, checkpoint_seconds: float) -> None:
        self._writer = writer
        self._interval = checkpoint_seconds
        self._queue: queue.Queue[FeatureBatch | None] = queue.Queue(_DEPTH)
        self._refused: Exception | None = None
        self._saver = _Saver(writer.checkpoint)
        self._thread = threading.Thread(target=self._work, name="vggfeat-writer", daemon=True)

    def __enter__(self) -> Self:
        self._saver.start()
        self._thread.start()
        return self

    @property
    def _error(self) -> Exception | None:
        """What ended either thread; after it nothing is written or synced any more."""
        return self._refused or self._saver.error

    def put(self, batch: FeatureBatch) -> None:
        """Hand a batch over to the thread; wait only while the disk is behind."""
        if self._error is not None:
            raise self._error
        self._queue.put(batch)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._abandon()
            return
        self._queue.put(None)
        self._thread.join()
        self._saver.end()
        self._writer.close()
        if self._error is not None and kind is None:
            raise self._error

    def _abandon(self) -> None:
        """End the threads without writing what waits: the file is whole up to the last checkpoint.

        A program that goes on after Ctrl-C keeps no thread and no open file, and nothing writes
        after its lock is given back. If the disk hangs, the threads, daemons, are left to it.
        """
        until = time.monotonic() + _LEAVE_SECONDS
        self._refused = self._refused or InterruptedError("stopped at once")
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_LEAVE_SECONDS)
        self._thread.join(max(0.0, until - time.monotonic()))
        if not self._thread.is_alive() and self._saver.end(max(0.0, until - time.monotonic())):
            self._writer.close()

    def _work(self) -> None:
        saved = time.monotonic()
        while True:
            batch = self._queue.get()
            if self._error is None:
                due = batch is None or time.monotonic() - saved >= self._interval
                self._attempt(batch, due=due)
                saved = time.monotonic() if due else saved
            if batch is None:
                return

    def _attempt(self, batch: FeatureBatch | None, *, due: bool) -> None:
        """Write a batch; keep an error for the loop, after which batches are only taken off."""
        try:
            if batch is not None:
                self._writer.write(batch)
        except Exception as error:  # noqa: BLE001 raised again in the loop's thread, by put or exit
            self._refused = error
            return
        if due:
            self._saver.begin()
            if batch is None or not self._interval:
                self._saver.wait()


class _Saver:
    """Checkpoint in a thread of its own, one at a time.

    Args:
        checkpoint: of a `CacheWriter`, to which rows may be written while it runs.
    """

    def __init__(self, checkpoint: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._checkpoint = checkpoint
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._work, name="vggfeat-saver", daemon=True)
        self.start = self._thread.start

    def begin(self) -> None:
        """Wait for the checkpoint under way, if any, and begin another, unless that one failed."""
        self.wait()
        if self.error is None:
            self._idle.clear()
            self._wanted.put(True)

    def wait(self) -> None:
        """Wait for the checkpoint under way, if any."""
        self._idle.wait()

    def end(self, seconds: float | None = None) -> bool:
        """End the thread behind the checkpoint under way; return whether it has ended in time."""
        self._wanted.put(False)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while self._wanted.get():
            try:
                self._checkpoint()
            except Exception as error:  # noqa: BLE001 raised in the loop's thread by `Sink`
                self.error = error
            self._idle.set()
