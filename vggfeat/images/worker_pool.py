"""Decode images in processes that may crash or hang without ending the run.

A process that dies costs one more attempt at the image that it was decoding; one that hangs costs
that image. Pixels are written to memory that the processes share, all else is sent as small
messages. Each process has a channel of its own, and there is no queue and no lock in common, which
a killed process could leave locked or half written: a killed process of `multiprocessing.Pool`
hangs the run, one of torch's DataLoader or of `concurrent.futures` ends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.child_processes import detach, end, fork, is_stopped
from vggfeat.core.exhaustion import exhaustion_of
from vggfeat.core.records import EncodedImage
from vggfeat.errors import DecodeError, VggfeatError
from vggfeat.images.batch_plan import EMPTY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    DecodeRow = Callable[[int], tuple[bytes, Any]]

_POLL_SECONDS = 0.1
_TASKS_AHEAD = 2  # one in progress and one waiting, so that no worker waits for its next
_TASKS_AT_FIRST = 64  # messages that a channel holds, whatever its buffers, before they are read
_LARGEST_TASK = 16  # images
_ATTEMPTS = 2  # the kernel may have killed the first for want of memory, which passes
_IDLE = -1  # in place of a row, between two images


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The result for one image.

    Attributes:
        slot: of its batch.
        row: of the cache.
        digest: SHA-256 of its bytes, empty if they could not be read.
        reason: why it failed, empty if it did not.
        pixels: as `decode_row` returned them, usually uint8 or uint16 (H, W, C), or an
            `EncodedImage`; None if it failed.
        seconds: that decoding took; 0 if it ended its process.
    """

    slot: int
    row: int
    digest: bytes
    reason: str
    pixels: Any
    seconds: float = 0.0


class DecodedImages(list[DecodedImage]):
    """The images of one batch, in the order of their slots.

    Attributes:
        whole: the memory of the batch, (B, H, W, C), which the images' pixels are views of; slots
            without an image hold anything. None if images have different shapes, or none is shared.
        returns: whether later batches come in the same memory, so that it is worth registering.
    """

    whole: NDArray[Any] | None = None
    returns: bool = False


@dataclass(frozen=True, slots=True)
class _Task:
    """Images of one batch for one worker: (slot, row) each."""

    batch: int
    images: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Worker:
    """A process, the tasks that it was given, and the seconds since it last made progress."""

    pid: int
    place: int
    channel: Connection[Any, Any]
    tasks: deque[_Task] = field(default_factory=deque)
    watched: float = 0.0
    at: tuple[int, int] = (_IDLE, 0)


def decode_batches(
    plan: NDArray[np.int64],
    shape: tuple[int, ...] | None,
    decode_row: DecodeRow,
    *,
    workers: int,
    timeout: float,
    goes_on: Callable[[], bool],
    dtype: type[np.generic] = np.uint8,
    room: int = 0,
    ahead: int = 0,
    kept: int = 0,
) -> Iterator[DecodedImages]:
    """Start decoding at the call, and yield the batches in the order of the plan.

    Args:
        plan: int64 (batches, B), the row in each slot, or `EMPTY`.
        shape: of every image, (H, W, C), in memory that the processes share; None if shapes differ:
            pixels are then sent as messages.
        decode_row: returns a row's digest and pixels; raises DecodeError.
        workers: processes; 0 decodes in this one, without a time limit.
        timeout: seconds an image may take before it fails and its process is killed.
        goes_on: called while waiting; if it returns False, no more batches come.
        dtype: of the pixels, where they have a shape.
        room: bytes of shared memory for each slot at least; an `EncodedImage` that is larger than
            its slot is sent as a message.
        ahead: images that may be decoded before the first batch is requested, while the caller is
            busy; as a rule each process has two tasks. Their memory is given back afterwards.
        kept: batches whose pixels stay valid besides the latest.

    Returns:
        for each batch its images in the order of their slots, whose pixels are valid until the next
        batch is requested, or with `kept` so many more. Raises VggfeatError if processes die again
        and again before they decode anything.
    """
    if not workers:
        return _decode_here(plan, decode_row)
    pool = _Pool(
        plan,
        shape,
        decode_row,
        workers=workers,
        timeout=timeout,
        goes_on=goes_on,
        dtype=dtype,
        room=room,
        ahead=ahead,
        kept=kept,
    )
    return pool.batches()


def _decode_here(plan: NDArray[np.int64], decode_row: DecodeRow) -> Iterator[DecodedImages]:
    for batch in plan:
        yield DecodedImages(_decode(decode_row, slot, row) for slot, row in _filled(batch))


def _filled(batch: NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(slot, row) for slot, row in enumerate(batch.tolist()) if row != EMPTY]


def _decode(decode_row: DecodeRow, slot: int, row: int) -> DecodedImage:
    started = time.perf_counter()
    reason = ""
    try:
        digest, pixels = decode_row(row)
    except DecodeError as error:
        digest, pixels, reason = error.digest, None, str(error)
    return DecodedImage(slot, row, digest, reason, pixels, time.perf_counter() - started)


class _Pool:
    """The parent's side: hands out tasks, collects results, replaces dead processes."""

    def __init__(
        self,
        plan: NDArray[np.int64],
        shape: tuple[int, ...] | None,
        decode_row: DecodeRow,
        *,
        workers: int,
        timeout: float,
        goes_on: Callable[[], bool],
        dtype: type[np.generic],
        room: int,
        ahead: int,
        kept: int,
    ) -> None:
        slots = plan.shape[1]
        self._plan, self._decode_row = plan, decode_row
        self._timeout, self._goes_on = timeout, goes_on
        self._task_size = max(1, min(_LARGEST_TASK, -(-slots // workers)))
        self._kept = kept
        # Batches that the tasks of all workers may be of, and those that the caller reads.
        usual = -(-workers * _TASKS_AHEAD * self._task_size // slots) + 1 + kept
        self._buffers = min(len(plan), usual)
        self._first = min(len(plan), max(usual, -(-ahead // slots) if shape is not None else 0))
        tasks = -(-self._first * -(-slots // self._task_size) // workers)
        self._tasks_at_first = max(_TASKS_AHEAD, min(tasks, _TASKS_AT_FIRST))
        self._slots = None
        if shape is not None:
            self._slots = _SharedSlots((self._first, slots), shape, dtype, room)
        # The row that each worker decodes, and the number of images it has begun: a row that is
        # tried again at once is progress too. In shared memory, where it outlives the worker.
        self._at = _shared((workers, 2), np.int64)
        self._at[:, 0] = _IDLE
        self._next_batch = 0  # the first that is not split into tasks yet
        self._finished = 0  # batches that the caller has done with
        self._requested = False  # whether the caller waits for batches
        self._waiting: deque[_Task] = deque()
        self._images: dict[int, list[DecodedImage]] = {}
        self._missing: dict[int, int] = {}
        self._deaths: Counter[int] = Counter()
        self._in_vain = 0  # processes replaced since one last sent anything
        self._polled = time.monotonic()
        self._workers: list[_Worker] = []
        try:
            for place in range(workers):
                self._workers.append(self._fork(place))
            self._hand_out()
        except BaseException:
            self._close()
            raise

    def batches(self) -> Iterator[DecodedImages]:
        """See `decode_batches`."""
        batches = self._batches()
        next(batches)  # runs into its `try`: closing or dropping it now ends the processes
        return batches

    def _batches(self) -> Generator[DecodedImages, None, None]:
        try:
            yield DecodedImages()
            self._requested = True
            for batch in range(len(self._plan)):
                self._polled = time.monotonic()
                while self._missing.get(batch, 1):
                    if not self._goes_on():
                        return
                    self._wait()
                    self._hand_out()
                del self._missing[batch]
                yield self._whole(batch)
                # Resumed by the next request: memory is free again.
                self._finished = max(0, batch + 1 - self._kept)
                if self._finished == self._first and self._slots is not None:
                    self._slots.shrink(self._buffers)
                self._hand_out()
        finally:
            self._close()

    def _whole(self, batch: int) -> DecodedImages:
        images = DecodedImages(sorted(self._images.pop(batch), key=lambda image: image.slot))
        if self._slots is not None:
            buffer = self._buffer(batch)
            images.whole, images.returns = self._slots.whole(buffer), buffer < self._buffers
        return images

    def _hand_out(self) -> None:
        """Give tasks to the workers until each has one in progress and one waiting.

        Before the first batch is requested each gets more: the caller is busy with other things.
        """
        most = _TASKS_AHEAD if self._requested else self._tasks_at_first
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.tasks))
            if len(worker.tasks) >= most:
                return
            while not self._waiting:  # not `if`: a batch may have no image at all
                if not self._make_tasks():
                    return
            task = self._waiting.popleft()
            worker.tasks.append(task)
            with contextlib.suppress(OSError):  # it has died, which the next `_wait` notices
                worker.channel.send(task)

    def _make_tasks(self) -> bool:
        """Split the next batch into tasks, if there is memory for it; return whether there was."""
        batch = self._next_batch
        if batch == len(self._plan) or batch >= max(self._first, self._finished + self._buffers):
            return False
        self._next_batch += 1
        filled = _filled(self._plan[batch])
        self._images[batch], self._missing[batch] = [], len(filled)
        for start in range(0, len(filled), self._task_size):
            self._waiting.append(_Task(batch, tuple(filled[start : start + self._task_size])))
        return True

    def _buffer(self, batch: int) -> int:
        """Return where the pixels of a batch lie: at first one after another, then in a ring."""
        return batch if batch < self._first else (batch - self._first) % self._buffers

    def _wait(self) -> None:
        by_channel = {worker.channel: worker for worker in self._workers}
        for channel in wait(list(by_channel), _POLL_SECONDS):
            self._receive(by_channel[channel])  # type: ignore[index] # no sockets were given
        now = time.monotonic()
        # Only time in which this process ran counts, or Ctrl-Z and fg would fail every image.
        passed = min(now - self._polled, 2 * _POLL_SECONDS)
        self._polled = now
        for worker in list(self._workers):
            self._watch(worker, passed)

    def _watch(self, worker: _Worker, passed: float) -> None:
        at = (int(self._at[worker.place, 0]), int(self._at[worker.place, 1]))
        if at != worker.at or not worker.tasks:
            worker.at, worker.watched = at, 0.0
            return
        worker.watched += passed
        if worker.watched <= self._timeout:
            return
        if at[0] == _IDLE or is_stopped(worker.pid):  # no image is to blame
            self._replace(worker)
            return
        reason = f"decoding took longer than {self._timeout:g} s (--decode-timeout)"
        self._replace(worker, blamed=reason)

    def _receive(self, worker: _Worker) -> None:
        try:
            found = worker.channel.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(found, BaseException):
            raise found
        task = worker.tasks.popleft()
        self._in_vain = 0
        for slot, row, digest, reason, pixels, seconds in found:
            if not reason and self._slots is not None:
                pixels = self._slots.taken(self._buffer(task.batch), slot, pixels)  # noqa: PLW2901 the same pixels
            self._keep(task.batch, DecodedImage(slot, row, digest, reason, pixels, seconds))

    def _keep(self, batch: int, image: DecodedImage) -> None:
        self._images[batch].append(image)
        self._missing[batch] -= 1

    def _replace(self, worker: _Worker, blamed: str = "") -> None:
        """Replace a worker that died, or kill and replace one that hangs.

        One that died between two images, or was stopped from outside, costs no image.
        """
        stopped = not blamed and is_stopped(worker.pid)
        ended = end(worker.pid)
        worker.channel.close()
        row = _IDLE if stopped else int(self._at[worker.place, 0])
        self._at[worker.place, 0] = _IDLE
        self._in_vain += 1
        if self._in_vain > _ATTEMPTS * (len(self._workers) + _LARGEST_TASK):
            raise VggfeatError(
                f"decoding processes end again and again before they decode anything (the last "
                f"{ended}); is memory short? Try fewer --workers, or 0"
            )
        again: list[_Task] = []
        for task in worker.tasks:
            again += self._without(task, row, blamed or ended, at_once=bool(blamed))
            row = _IDLE  # it was decoding one of the first task; the others had not begun
        self._waiting.extendleft(reversed(again))
        self._workers[worker.place] = self._fork(worker.place)
        self._hand_out()

    def _without(self, task: _Task, row: int, why: str, *, at_once: bool) -> list[_Task]:
        """Return what is left to do of a task whose process died while it decoded `row`.

        That image is tried once more in a task of its own, so that it cannot take others with it
        again, and then fails; with `at_once` it fails now.
        """
        culprit = [image for image in task.images if image[1] == row]
        if not culprit:
            return [task]
        self._deaths[row] += 1
        others = tuple(image for image in task.images if image[1] != row)
        again = [_Task(task.batch, others)] if others else []
        if at_once or self._deaths[row] >= _ATTEMPTS:
            reason = why if at_once else f"its decoding process {why}, {_ATTEMPTS} times"
            self._keep(task.batch, DecodedImage(culprit[0][0], row, b"", reason, None))
        else:
            again.append(_Task(task.batch, tuple(culprit)))
        return again

    def _fork(self, place: int) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        parent = os.getpid()
        pid = fork()
        if pid:
            theirs.close()
            return _Worker(pid, place, ours)
        try:
            detach(parent)
            _use_one_torch_thread()
            ours.close()
            for worker in self._workers:
                worker.channel.close()
            self._work(theirs, self._at[place])
        except (EOFError, OSError):
            pass  # the parent has ended, or closed the channel
        finally:
            os._exit(0)  # not `exit`: the parent's buffers and atexit handlers are not ours to run

    def _work(self, channel: Connection[Any, Any], at: NDArray[np.int64]) -> None:
        """Run the child's side: receive tasks, send one answer for each."""
        while True:
            task: _Task = channel.recv()
            try:
                images = [self._decode_into(task.batch, *image, at) for image in task.images]
            except Exception as error:  # noqa: BLE001 a defect, which the parent raises
                channel.send(_portable(error))
                return
            channel.send(images)

    def _decode_into(
        self, batch: int, slot: int, row: int, at: NDArray[np.int64]
    ) -> tuple[int, int, bytes, str, Any, float]:
        at[:] = row, at[1] + 1
        image = _decode(self._decode_row, slot, row)
        pixels = image.pixels
        if pixels is not None and self._slots is not None:
            pixels = self._slots.put(self._buffer(batch), slot, pixels)
        at[0] = _IDLE
        return slot, row, image.digest, image.reason, pixels, image.seconds

    def _close(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self._workers:
            end(worker.pid)
            worker.channel.close()


class _SharedSlots:
    """Memory that the processes share, for the pixels of the images under way, or their files."""

    def __init__(
        self,
        slots: tuple[int, int],
        shape: tuple[int, ...],
        dtype: type[np.generic],
        room: int,
    ) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffers, batch = slots
        each = max(size, room)
        # Whole pages each, so that one can be page-locked without the others.
        self._buffer_bytes = -(-batch * each // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, buffers * self._buffer_bytes)
        memory = np.frombuffer(self._map, dtype=np.uint8).reshape(buffers, self._buffer_bytes)
        self._memory = memory[:, : batch * each].reshape(*slots, each)
        self._pixels = self._memory[..., :size].view(dtype).reshape(*slots, *shape)
        self._is_whole = each == size

    def whole(self, buffer: int) -> NDArray[Any] | None:
        """Return the memory of a buffer, (slots, H, W, C), unless there are gaps in it."""
        return self._pixels[buffer] if self._is_whole else None

    def shrink(self, buffers: int) -> None:
        """Give back the memory of all but the first buffers, which no process uses any more."""
        start = buffers * self._buffer_bytes
        if start < len(self._map) and hasattr(mmap, "MADV_REMOVE"):  # Linux
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, start, len(self._map) - start)

    def put(self, buffer: int, slot: int, image: Any) -> Any:
        """Put an image in its slot; return what is to be sent of it."""
        if not isinstance(image, EncodedImage):
            self._pixels[buffer, slot] = image
            return None
        length = len(image.data)
        if length > self._memory.shape[2]:
            return image
        self._memory[buffer, slot, :length] = image.data
        return length, dataclasses.replace(image, data=np.empty(0, np.uint8))

    def taken(self, buffer: int, slot: int, sent: Any) -> Any:
        """Return the image of a slot, of which `put` sent this."""
        if sent is None:
            return self._pixels[buffer, slot]
        if isinstance(sent, EncodedImage):
            return sent
        length, image = sent
        return dataclasses.replace(image, data=self._memory[buffer, slot, :length])


def _use_one_torch_thread() -> None:
    """Have torch compute in this thread: those of its pool did not survive the fork."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _shared(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return zeros in memory that forked processes share; no file, so no limit of /dev/shm."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype=dtype).reshape(shape)


def _portable(error: Exception) -> Exception:
    """Return the error itself if it can be sent, else one with its text."""
    if isinstance(error, VggfeatError) and len(error.args) == 1:
        return error
    exhausted = exhaustion_of(error)
    if exhausted is not None:
        return exhausted
    return RuntimeError(f"while decoding: {type(error).__name__}: {error}")
