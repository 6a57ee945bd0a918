from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disks import with_mount
from written_caches import SHAPES, batch, create, digests, random_features

from vggfeat.cache.background_writer import Sink
from vggfeat.cache.format import Provenance, RowState
from vggfeat.cache.header import read_header
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.cache.writer import CacheWriter
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.records import Failure, FeatureBatch
from vggfeat.errors import SpaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vggfeat.core.settings import Dtype


def read(out: str, name: str) -> NDArray[Any]:
    with h5py.File(out, "r", locking=False) as file:
        values: NDArray[Any] = file[name][:]
    return values


def states(out: str) -> list[int]:
    found: list[int] = read(out, "images/state").tolist()
    return found


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "f.h5")


@pytest.fixture
def writer(out: str) -> Iterator[CacheWriter]:
    """Of a cache of 10 rows."""
    made = CacheWriter(out, create(out, 10))
    yield made
    made.close()


@st.composite
def jobs(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], Dtype, int, list[list[int]]]:
    """Layer shapes, a dtype, a number of rows, and some of them dealt to batches in any order."""
    vector = st.tuples(st.integers(1, 300))
    maps = st.tuples(*[st.integers(1, 5)] * 3)
    specs = st.sampled_from(["fc6", "fc7", "conv1_1", "conv5_3:map", "conv4_1.pre:gem(p=4)"])
    shapes = draw(st.dictionaries(specs, vector | maps, min_size=1, max_size=3))
    rows = draw(st.integers(1, 30))
    order = draw(st.permutations(range(rows)))
    order = order[: draw(st.integers(0, rows))]
    size = draw(st.integers(1, 8))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return shapes, draw(st.sampled_from(["float16", "float32"])), rows, batches


@settings(max_examples=40, deadline=None)
@given(job=jobs())
def test_what_is_written_is_read(
    job: tuple[dict[str, tuple[int, ...]], Dtype, int, list[list[int]]],
) -> None:
    """Rows written in any order and any batches read back bit for bit, with their checksums."""
    shapes, dtype, rows, batches = job
    features = random_features(rows, shapes, dtype)
    done = sorted(row for part in batches for row in part)
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "f.h5")
        writer = CacheWriter(out, create(out, rows, shapes, dtype))
        for part in batches:
            writer.write(batch(part, features))
        writer.checkpoint()
        writer.close()
        for spec in shapes:
            stored = read(out, f"features/{spec}")
            assert stored.dtype == dtype
            assert stored[done].tobytes() == features[spec][done].tobytes()
        assert np.flatnonzero(read(out, "images/state") == 1).tolist() == done
        sums = read(out, "images/checksum")
    for row in done:
        content = b"".join(features[spec][row].tobytes() for spec in sorted(shapes))
        assert sums[row] == zlib.crc32(content + bytes([row] * 32) + bytes(160) + b"\1")


def test_neighbours_stay_as_they_are(out: str, writer: CacheWriter) -> None:
    """Writing a row changes no byte of any other, in no dataset."""
    features = random_features(10)
    writer.write(batch(range(10), features))
    writer.checkpoint()
    before = Path(out).read_bytes()
    writer.write(batch([4], random_features(10, seed=1)))
    writer.write(batch([], features, Failure(7, "broken")))
    writer.checkpoint()
    assert Path(out).read_bytes() != before
    writer.write(batch([4], features))
    writer.checkpoint()
    others = [row for row in range(10) if row != 7]
    for spec in SHAPES:
        stored = read(out, f"features/{spec}")
        assert stored[others].tobytes() == features[spec][others].tobytes()
    assert read(out, "images/path").tolist() == [b"%06d.jpg" % row for row in range(10)]
    assert read(out, "images/size").tolist() == list(range(10))


def test_failed_rows_hold_nan_and_the_reason(out: str, writer: CacheWriter) -> None:
    """A failed row is NaN throughout, says why, has its checksum and state 2."""
    features = random_features(10)
    writer.write(batch([0, 2], features, Failure(1, "truncated"), Failure(9, "gone")))
    writer.checkpoint()
    assert states(out) == [1, 2, 1, 0, 0, 0, 0, 0, 0, 2]
    for spec, shape in SHAPES.items():
        stored = read(out, f"features/{spec}")
        assert np.isnan(stored[[1, 9]]).all()
        assert stored[[1, 9]].shape == (2, *shape)
        assert not np.isnan(stored[[0, 2]]).any()
    assert read(out, "images/error")[[0, 1, 9]].tolist() == [b"", b"truncated", b"gone"]
    hollow = np.full(2 * 3 * 4 + 6, np.nan, np.float16).tobytes()
    assert read(out, "images/checksum")[[1, 9]].tolist() == [
        zlib.crc32(hollow + bytes(32) + reason.ljust(160, b"\0") + b"\2")
        for reason in (b"truncated", b"gone")
    ]


def test_a_batch_of_failures_alone(out: str, writer: CacheWriter) -> None:
    """A batch in which every image failed needs no features at all."""
    writer.write(FeatureBatch(np.array([], dtype=np.int64), digests([]), {}, (Failure(3, "x"),), 0))
    assert writer.unsaved == 1
    writer.checkpoint()
    assert states(out) == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("x" * 160, b"x" * 160),
        ("x" * 161, b"x" * 160),
        ("x" * 159 + "ü", b"x" * 159),
        ("x" * 158 + "ü!", b"x" * 158 + "ü".encode()),
        ("x" * 157 + "€" + "y", b"x" * 157 + "€".encode()),
        ("x" * 158 + "🙂", b"x" * 158),
        ("bad \udcff name", rb"bad \udcff name"),
    ],
)
def test_long_reasons_are_cut_between_characters(
    out: str, writer: CacheWriter, reason: str, kept: bytes
) -> None:
    """Of a long reason 160 bytes are kept, and no half character; lone surrogates are escaped."""
    writer.write(batch([], {}, Failure(5, reason)))
    writer.checkpoint()
    assert read(out, "images/error")[5] == kept


def test_a_shorter_reason_leaves_nothing_of_a_longer(out: str, writer: CacheWriter) -> None:
    """A reason replaces an older one whole."""
    writer.write(batch([], {}, Failure(5, "a long reason")))
    writer.write(batch([], {}, Failure(5, "short")))
    assert read(out, "images/error")[5] == b"short"


def test_states_change_at_a_checkpoint_alone(out: str, writer: CacheWriter) -> None:
    """Rows do not count before the checkpoint, although their features are in the file."""
    features = random_features(10)
    writer.write(batch([3, 4], features, Failure(5, "x")))
    assert writer.unsaved == 3
    assert states(out) == [0] * 10
    assert read(out, "features/fc7")[3].tobytes() == features["fc7"][3].tobytes()
    writer.checkpoint()
    assert writer.unsaved == 0
    assert states(out) == [0, 0, 0, 1, 1, 2, 0, 0, 0, 0]


def test_closing_is_no_checkpoint(out: str, writer: CacheWriter) -> None:
    """Rows since the last checkpoint stay pending when the writer is closed, even twice."""
    writer.write(batch([3], random_features(10)))
    writer.close()
    writer.close()
    assert states(out) == [0] * 10


def test_a_checkpoint_orders_its_writes(
    out: str, writer: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features and checksums, sync, states, sync: nothing of the states before the first sync."""
    run = create(f"{out}2", 10).runs["images/state"]
    events: list[str] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def watch_write(handle: int, data: memoryview, offset: int) -> int:
        inside = run.offset <= offset < run.offset + 10
        events.append("state" if inside else "data")
        return pwrite(handle, data, offset)

    def watch_sync(handle: int) -> None:
        events.append("sync")
        fdatasync(handle)

    monkeypatch.setattr(os, "pwrite", watch_write)
    monkeypatch.setattr(os, "fdatasync", watch_sync)
    writer.write(batch([0, 1, 5], random_features(10), Failure(2, "x")))
    assert set(events) == {"data"}
    events.clear()
    writer.checkpoint()
    assert events == ["sync", "state", "state", "sync"]  # rows 0 to 2, and 5
    events.clear()
    writer.checkpoint()
    assert events == []


def test_update_files(out: str, writer: CacheWriter) -> None:
    """Size and time of the rows given are replaced, and of no others."""
    rows = np.array([2, 3, 7])
    writer.update_files(rows, np.array([20, 30, 70]), np.array([-1, 2**62, 5]))
    assert read(out, "images/size").tolist() == [0, 1, 20, 30, 4, 5, 6, 70, 8, 9]
    assert read(out, "images/mtime_ns").tolist() == [0, 1, -1, 2**62, 4, 5, 6, 5, 8, 9]
    assert states(out) == [0] * 10
    writer.update_files(rows[:0], rows[:0], rows[:0])


def test_short_writes_are_gone_on_with(
    out: str, writer: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that takes at most 7 bytes at a time gets everything all the same."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:7], at))
    features = random_features(10)
    writer.write(batch([9, 0, 1], features))
    writer.checkpoint()
    assert states(out) == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    for spec in SHAPES:
        stored = read(out, f"features/{spec}")[[0, 1, 9]]
        assert stored.tobytes() == features[spec][[0, 1, 9]].tobytes()


def test_a_failed_sync_is_fatal(
    out: str, writer: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk does not keep the features, no state is written."""

    def fail(_handle: int) -> None:
        raise OSError(5, "Input/output error")

    writer.write(batch([1], random_features(10)))
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(SpaceError, match="the disk did not keep what was written: Input/output"):
        writer.checkpoint()
    assert states(out) == [0] * 10


FULL_DISK = """
import sys
sys.path[:0] = {path!r}
import test_writer
test_writer.fill("f.h5")
"""


def fill(out: str) -> None:
    """Writes rows into a sparse file on a small disk until one does not fit; prints the error."""
    shapes = {"fc7": (50_000,)}  # 100 kB a row
    identity = Identity("vgg16", "w", "00" * 32, "float32", "float16", Preprocess(), ("fc7",))
    provenance = Provenance(b"/", {"batch_size": 4}, "2026-01-02T03:04:05+00:00", "1", {})
    lay_out(out, 40, 10, shapes=shapes, identity=identity, provenance=provenance)
    writer = CacheWriter(out, read_header(out))
    features = random_features(40, shapes)
    try:
        for row in range(40):
            writer.write(batch([row], features))
            writer.checkpoint()
    except SpaceError as error:
        sys.stdout.write(f"{error}\n")
    found = read(out, "images/state")
    done = int((found == RowState.DONE).sum())
    stored = read(out, "features/fc7")
    assert found.tolist() == [1] * done + [0] * (40 - done)
    assert stored[:done].tobytes() == features["fc7"][:done].tobytes()
    sys.stdout.write(f"{done}\n")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """On a real disk that fills up, the error says so and every earlier row is whole."""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$PWD" && cd "$PWD"'
    wrapper = with_mount(mount, tmp_path)
    code = FULL_DISK.format(path=[os.path.dirname(__file__), *sys.path])
    command = [*wrapper, sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    message, done = shown.splitlines()
    assert message.startswith("writing failed: No space left on device; the file is intact up to")
    assert 10 < int(done) <= 20


class Slow:
    """Stands in for a writer: notes what it is asked, and may fail."""

    def __init__(self, fail_at: int = -1) -> None:
        self.events: list[str] = []
        self.unsaved = 0
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self._fail_at = fail_at

    def write(self, given: FeatureBatch) -> None:
        self.begun.set()
        self.gate.wait(300)
        row = int(given.rows[0])
        if row == self._fail_at:
            raise SpaceError(28, "the disk is full")
        self.events.append(f"write {row}")
        self.unsaved += 1

    def checkpoint(self) -> None:
        self.events.append("checkpoint")
        self.unsaved = 0

    def close(self) -> None:
        self.events.append("close")


def sink_over(writer: Slow, seconds: float = 1000) -> Sink:
    return Sink(writer, seconds)  # type: ignore[arg-type] # has all that a sink calls


def one(row: int) -> FeatureBatch:
    return FeatureBatch(np.array([row]), digests([row]), {}, (), 0)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "this never happened"
        time.sleep(0.001)


def test_a_sink_writes_in_order_and_saves_at_the_end() -> None:
    """Batches are written in the order they came; leaving checkpoints once, then closes."""
    slow = Slow()
    with sink_over(slow) as sink:
        for row in range(20):
            sink.put(one(row))
    assert slow.events == [*(f"write {row}" for row in range(20)), "checkpoint", "close"]


def test_a_sink_saves_every_few_seconds() -> None:
    """With no interval to wait for, there is a checkpoint behind every batch."""
    slow = Slow()
    with sink_over(slow, 0) as sink:
        sink.put(one(0))
        sink.put(one(1))
    assert slow.events == ["write 0", "checkpoint", "write 1", "checkpoint", "checkpoint", "close"]


def feed(sink: Sink, rows: int, *, pause: float = 0, then: BaseException | None = None) -> None:
    """A loop that puts that many batches and ends with an error if one is given."""
    with sink:
        for row in range(rows):
            sink.put(one(row))
            time.sleep(pause)
        if then is not None:
            raise then


def feed_until(sink: Sink, begun: threading.Event, then: BaseException) -> None:
    """A loop that ends with an error once its first batch is being written."""
    with sink:
        sink.put(one(0))
        assert begun.wait(300)
        raise then


def late(slow: Slow) -> Slow:
    """The same, but stuck for its first twentieth of a second."""
    slow.gate.clear()
    threading.Timer(0.05, slow.gate.set).start()
    return slow


def test_an_error_of_the_thread_comes_out_of_put() -> None:
    """After a failed write, put raises its error; nothing more is written or saved."""
    slow = Slow(fail_at=1)
    sink = sink_over(slow)
    with pytest.raises(SpaceError, match="the disk is full"):
        feed(sink, 10_000, pause=0.001, then=AssertionError("put went on for ten seconds"))
    assert slow.events == ["write 0", "close"]


def test_an_error_of_the_thread_comes_out_of_the_block() -> None:
    """A write that fails after the last put is raised on leaving, and never waits for ever."""
    slow = late(Slow(fail_at=2))
    with pytest.raises(SpaceError, match="the disk is full"):
        feed(sink_over(slow), 4)  # as many as may wait
    assert slow.events == ["write 0", "write 1", "close"]


def test_an_error_does_not_block_a_full_queue() -> None:
    """A put that waits for the disk goes on when the write it waits for fails."""
    slow = late(Slow(fail_at=0))
    with pytest.raises(SpaceError, match="the disk is full"):
        feed(sink_over(slow), 50)
    assert slow.events == ["close"]


def test_another_error_is_saved_before() -> None:
    """An error of the loop stays itself; what was computed before it is written and saved."""
    slow = late(Slow())
    with pytest.raises(ZeroDivisionError):
        feed(sink_over(slow), 2, then=ZeroDivisionError())
    assert slow.events == ["write 0", "write 1", "checkpoint", "close"]


def test_another_error_hides_that_of_the_thread() -> None:
    """When both fail, the loop's own error is the one that comes out."""
    with pytest.raises(ZeroDivisionError):
        feed(sink_over(late(Slow(fail_at=0))), 1, then=ZeroDivisionError())


def test_an_interrupt_leaves_at_once() -> None:
    """KeyboardInterrupt leaves without waiting for the disk, which here never answers."""
    slow = Slow()
    slow.gate.clear()
    sink = sink_over(slow)
    with pytest.raises(KeyboardInterrupt):
        feed_until(sink, slow.begun, KeyboardInterrupt())
    assert slow.events == []
    slow.gate.set()  # from here on only to let the thread end
    sink._queue.put(None)
    sink._thread.join(30)
    assert not sink._thread.is_alive()


def test_a_real_sink(out: str, writer: CacheWriter) -> None:
    """Through a sink, rows and failures reach the file, done when the block is left."""
    features = random_features(10)
    with Sink(writer, 1000) as sink:
        sink.put(batch([0, 1], features, Failure(2, "x")))
        sink.put(batch([3], features))
        wait_for(lambda: writer.unsaved == 4)
        assert states(out) == [0] * 10
    assert states(out) == [1, 1, 2, 1, 0, 0, 0, 0, 0, 0]
    assert read(out, "features/fc7")[3].tobytes() == features["fc7"][3].tobytes()
