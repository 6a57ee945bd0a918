"""Rows are written on while a checkpoint syncs, and a power cut then still costs no done row."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
import time
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from power_cuts import after_power_cut
from written_caches import batch, create, random_features

from vggfeat.cache import disk
from vggfeat.cache.background_writer import Sink
from vggfeat.cache.header import read_header
from vggfeat.cache.verify import verify
from vggfeat.cache.writer import CacheWriter
from vggfeat.errors import SpaceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from power_cuts import Call

ROWS, SIZE = 60, 4
WAIT = 300.0


class Disk:
    """Stands between Python and the disk, notes all calls, and has each sync wait for `over`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Call] = []
        self.over = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._pwrite, self._fdatasync = os.pwrite, os.fdatasync
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def note(self, kind: str, offset: int = 0, data: bytes = b"") -> None:
        with self._changed:
            self.log.append((kind, "", offset, data))
            self._changed.notify_all()

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        self.note("pwrite", offset, bytes(data))
        return self._pwrite(handle, data, offset)

    def fdatasync(self, handle: int) -> None:
        self.note("fdatasync")
        assert self.over.acquire(timeout=WAIT)
        self._fdatasync(handle)
        self.note("synced")

    def count(self, kind: str) -> int:
        return sum(call[0] == kind for call in self.log)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "f.h5")


def test_a_power_cut_while_rows_come_in(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During both syncs of each checkpoint rows are written; no state of the disk lies of any."""
    features = random_features(ROWS)
    header = create(out, ROWS)
    with open(out, "rb") as file:
        base = file.read()
    watched, writer = Disk(monkeypatch), CacheWriter(out, header)
    batches = [batch(range(start, start + SIZE), features) for start in range(0, ROWS, SIZE)]
    for number in range(0, len(batches), 3):
        writer.write(batches[number])
        saver = threading.Thread(target=writer.checkpoint)
        saver.start()
        for sync, more in enumerate(batches[number + 1 : number + 3], 1):
            begun = number // 3 * 2 + sync
            watched.wait(lambda begun=begun: watched.count("fdatasync") == begun)  # type: ignore[misc] # mypy infers no lambda with a default
            writer.write(more)
            watched.over.release()
        saver.join(WAIT)
    watched.over.release(2)
    writer.checkpoint()
    writer.close()
    chance, counts, path = random.Random(3), set(), tmp_path / "cut.h5"
    for at in range(1, len(watched.log) + 1):
        path.write_bytes(after_power_cut(base, watched.log, at, (0.0, 0.5, 1.0)[at % 3], chance))
        with h5py.File(path, locking=False) as had:
            done = np.flatnonzero(had["images/state"][:] == 1)
            stored = had["features/fc7"][:]
        assert stored[done].tobytes() == features["fc7"][done].tobytes()
        counts.add(len(done))
    assert len(counts) > 5
    assert max(counts) == ROWS
    assert not verify(out).bad


def test_rows_are_written_while_a_sync_lasts(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on during a sync; a second checkpoint waits, and then the loop does too."""
    features = random_features(ROWS)
    header = create(out, ROWS)
    watched, writer = Disk(monkeypatch), CacheWriter(out, header)
    with Sink(writer, 1e-9) as sink:
        sink.put(batch([0, 1], features))
        watched.wait(lambda: watched.count("fdatasync") == 1)
        for row in range(2, 6):  # as many as may wait in the queue: none of these puts blocks
            sink.put(batch([row], features))
        watched.wait(lambda: any(call[3] == features["fc7"][2].tobytes() for call in watched.log))
        assert watched.count("fdatasync") == 1
        assert not any(call[3] == features["fc7"][3].tobytes() for call in watched.log)
        watched.over.release(100)
    assert writer.unsaved == 0
    with h5py.File(out, locking=False) as had:
        assert had["images/state"][:].tolist() == [1] * 6 + [0] * (ROWS - 6)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_sync_ends_the_run(
    out: str, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sync fails in its thread, put raises it; from then on nothing is synced or marked."""
    features = random_features(ROWS)
    header = create(out, ROWS)
    synced = 0

    def fail(_handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)

    def put_until_it_fails() -> None:
        until = time.monotonic() + WAIT
        with Sink(CacheWriter(out, header), 1e-9) as sink:
            sink.put(batch([0], features))
            while time.monotonic() < until:
                sink.put(batch([1], features))

    with pytest.raises(SpaceError, match="did not keep what was written: Input/output error"):
        put_until_it_fails()
    assert synced == failing
    with h5py.File(out, locking=False) as had:
        assert not had["images/state"][0 if failing == 1 else 2 :].any()


def test_the_disk_begins_before_a_sync(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pages of neighbouring rows are begun once, a megabyte or more at a time, in order."""
    shapes = {"conv5_3": (100_001,)}  # 200,002 bytes a row
    header = create(out, 40, shapes)
    begun: list[tuple[int, int]] = []

    def begin(_handle: int, offset: int, size: int, _flags: int) -> int:
        begun.append((offset, size))
        return 0

    monkeypatch.setattr(disk, "_sync_file_range", lambda: begin)
    writer = CacheWriter(out, header)
    features = random_features(40, shapes)
    for start in range(0, 40, 4):
        writer.write(batch(range(start, start + 4), features))
    writer.checkpoint()
    writer.close()
    run = header.feature("conv5_3")
    at = run.offset
    for offset, size in begun:
        assert offset == at
        assert size >= 1 << 20
        at += size
        assert at % 4096 == 0
    assert run.offset + 40 * run.row_bytes - at < 1 << 20
    assert not verify(out).problems


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_disk_that_cannot_begin_early(
    out: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no such thing, it is asked once, and rows are written as ever."""
    asked = []

    def refuse(*arguments: int) -> int:
        asked.append(arguments)
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(disk, "_sync_file_range", lambda: refuse)
    shapes = {"fc7": (1_000_000,)}
    writer = CacheWriter(out, create(out, 3, shapes))
    for row in range(3):
        writer.write(batch([row], random_features(3, shapes)))
    writer.checkpoint()
    writer.close()
    assert len(asked) == 1
    assert read_header(out).rows == 3
    assert not verify(out).problems


def test_a_disk_that_fails_early(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk ends the run, since a sync might not name it again."""

    def fail(*_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(disk, "_sync_file_range", lambda: fail)
    shapes = {"fc7": (1_000_000,)}
    writer = CacheWriter(out, create(out, 1, shapes))
    with pytest.raises(SpaceError, match="did not keep what was written: Input/output error"):
        writer.write(batch([0], random_features(1, shapes)))
    writer.close()
