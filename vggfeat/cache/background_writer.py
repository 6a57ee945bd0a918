"""A background thread writes rows and checkpoints, so that the network never waits for the disk."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from vggfeat.cache.writer import CacheWriter
    from vggfeat.core.records import FeatureBatch

_DEPTH = 4  # batches that may wait for the disk before the loop does
_LEAVE_SECONDS = 5.0  # that Ctrl-C waits for the batch being written


class Sink:
    """Hand batches to a `CacheWriter` in a thread, which checkpoints every few seconds.

    Leaving the block writes all queued batches, checkpoints and closes the writer, whatever error
    ended it, so that no computed feature is lost; only KeyboardInterrupt leaves at once. A crash
    may cost the work of `checkpoint_seconds`.
    """

    def __init__(self, writer: CacheWriter, checkpoint_seconds: float) -> None:
        self._writer = writer
        self._interval = checkpoint_seconds
        self._queue: queue.Queue[FeatureBatch | None] = queue.Queue(_DEPTH)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="vggfeat-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

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
        self._writer.close()
        if self._error is not None and kind is None:
            raise self._error

    def _abandon(self) -> None:
        """End the thread without writing what waits: the file is whole up to the last checkpoint.

        A program that goes on after Ctrl-C keeps no thread and no open file, and nothing writes
        after its lock is given back. If the disk hangs, the thread, a daemon, is left to it.
        """
        self._error = self._error or InterruptedError("stopped at once")
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_LEAVE_SECONDS)
        self._thread.join(_LEAVE_SECONDS)
        if not self._thread.is_alive():
            self._writer.close()

    def _work(self) -> None:
        saved = time.monotonic()
        while True:
            batch = self._queue.get()
            if self._error is None:
                self._attempt(batch, due=time.monotonic() - saved >= self._interval)
                if not self._writer.unsaved:
                    saved = time.monotonic()
            if batch is None:
                return

    def _attempt(self, batch: FeatureBatch | None, *, due: bool) -> None:
        """Write a batch; keep an error for the loop, after which batches are only taken off."""
        try:
            if batch is not None:
                self._writer.write(batch)
            if due or batch is None:
                self._writer.checkpoint()
        except Exception as error:  # noqa: BLE001 raised again in the loop's thread, by put or exit
            self._error = error
