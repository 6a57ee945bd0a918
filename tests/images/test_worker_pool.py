from __future__ import annotations

import contextlib
import faulthandler
import functools
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import PIL.Image
import pytest

from vggfeat.errors import DecodeError, InputError, VggfeatError
from vggfeat.images.batch_plan import EMPTY, plan_batches
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.images.worker_pool import DecodedImage

SHAPE = (2, 3, 3)
KILL, FAULT, HANG, SHORT, BROKEN, DEFECT = 101, 102, 103, 104, 105, 106
ROWS = np.arange(90)


def pixels(row: int) -> NDArray[np.uint8]:
    return np.full(SHAPE, row % 251, np.uint8)


def decode_row(row: int, special: dict[int, int], marks: Path | None = None) -> Any:
    """Row `row` as pixels that tell it; rows in `special` meet with what is named there."""
    what = special.get(row)
    first = True
    if marks is not None and what is not None:
        first = not (marks / str(row)).exists()
        (marks / str(row)).touch()
    if what == KILL or (what == SHORT and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == FAULT:
        faulthandler.disable()  # what it would print is no failure here
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == HANG:
        time.sleep(1000)
    if what == BROKEN:
        raise DecodeError("broken")
    if what == DEFECT:
        raise ZeroDivisionError("a defect")
    return row.to_bytes(32, "little"), pixels(row)


def decode(
    rows: NDArray[np.int64],
    special: dict[int, int],
    *,
    batch: int = 8,
    workers: int = 2,
    timeout: float = 60.0,
    marks: Path | None = None,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[DecodedImage]:
    """All images of all batches, in the order in which they came."""
    decoded = decode_batches(
        plan_batches(rows, batch),
        SHAPE,
        functools.partial(decode_row, special=special, marks=marks),
        workers=workers,
        timeout=timeout,
        goes_on=goes_on,
    )
    found = []
    for images in decoded:
        for image in images:  # pixels are valid until the next batch only
            if image.pixels is not None:
                assert (image.pixels == pixels(image.row)).all()
                assert image.digest == image.row.to_bytes(32, "little")
            found.append(image)
    return found


def check(found: list[DecodedImage], rows: NDArray[np.int64], failed: dict[int, str]) -> None:
    assert [image.row for image in found] == rows.tolist()
    reasons = {image.row: image.reason for image in found if image.pixels is None}
    assert reasons == failed


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_every_image_once_and_in_order(workers: int) -> None:
    """Each row comes once, in the order of the plan, with its own pixels and digest."""
    found = decode(ROWS, {5: BROKEN}, workers=workers)
    check(found, ROWS, {5: "broken"})
    assert [image.slot for image in found] == (ROWS % 8).tolist()


@pytest.mark.parametrize(("what", "name"), [(KILL, "SIGKILL"), (FAULT, "SIGSEGV")])
@pytest.mark.parametrize("row", [0, 7, 44, 89])
def test_a_worker_that_dies_costs_its_image(row: int, what: int, name: str) -> None:
    """An image whose decoding kills its process, twice, fails; all others are decoded."""
    reason = f"its decoding process was killed by {name}, 2 times"
    check(decode(ROWS, {row: what}), ROWS, {row: reason})


def test_many_deadly_images() -> None:
    """However many images kill their processes, each costs itself alone."""
    deadly = dict.fromkeys(range(0, 90, 3), KILL)
    found = decode(ROWS, deadly, workers=3)
    reason = "its decoding process was killed by SIGKILL, 2 times"
    check(found, ROWS, dict.fromkeys(deadly, reason))


def test_a_worker_killed_once_costs_nothing(tmp_path: Path) -> None:
    """A process killed from outside costs no image: what it was at is decoded again."""
    check(decode(ROWS, {3: SHORT, 11: SHORT, 60: SHORT}, marks=tmp_path), ROWS, {})


def test_an_image_that_hangs_fails() -> None:
    """What is not decoded within the time fails, and the others do not wait for ever."""
    found = decode(ROWS, {4: HANG, 5: HANG, 70: HANG}, timeout=1.5)  # a busy machine pauses others
    reason = "decoding took longer than 1.5 s (--decode-timeout)"
    check(found, ROWS, dict.fromkeys((4, 5, 70), reason))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_defect_ends_the_run(workers: int) -> None:
    """An exception that is no fault of the image is raised in the caller, not made a row."""
    with pytest.raises((ZeroDivisionError, RuntimeError), match="a defect"):
        decode(ROWS, {20: DEFECT}, workers=workers)


def test_errors_of_ours_keep_their_kind() -> None:
    """An error with an exit code of its own arrives as what it was."""

    def missing(_row: int) -> Any:
        raise InputError("zstandard is not installed")

    plan = plan_batches(ROWS, 8)
    decoded = decode_batches(plan, SHAPE, missing, workers=2, timeout=60, goes_on=lambda: True)
    with pytest.raises(InputError, match="zstandard is not"):
        list(decoded)


def test_processes_that_cannot_live() -> None:
    """Where processes die before they decode anything, the run ends and says so."""

    def endless(_row: int) -> Any:
        os._exit(3)

    rows = np.arange(4000)
    decoded = decode_batches(
        plan_batches(rows, 500), SHAPE, endless, workers=2, timeout=60, goes_on=lambda: True
    )
    with pytest.raises(VggfeatError, match="end again and again"):
        list(decoded)


def test_it_stops_when_asked(tmp_path: Path) -> None:
    """While it waits for a hanging image it can be stopped, and leaves no process behind."""
    before, started = children(os.getpid()), time.monotonic()
    found = decode(ROWS, {0: HANG}, goes_on=lambda: time.monotonic() < started + 0.5)
    assert found == []
    assert children(os.getpid()) == before
    assert not list(tmp_path.iterdir())


def test_stopped_time_does_not_count() -> None:
    """A run that is stopped and continued, as by Ctrl-Z and fg, fails no image for that."""
    program = f"""
import sys, time
sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
import test_worker_pool, numpy as np
from vggfeat.images.worker_pool import decode_batches
def slow(row):
    print(row, flush=True)
    time.sleep(0.6)
    return test_worker_pool.decode_row(row, {{}})
plan = np.arange(6).reshape(6, 1)
found = decode_batches(
    plan, test_worker_pool.SHAPE, slow, workers=1, timeout=2.8, goes_on=lambda: True
)
print([image.reason for images in found for image in images])
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.killpg(process.pid, signal.SIGCONT)
        last = process.stdout.read().splitlines()[-1]
    assert last == repr([""] * 6)


class StopsWhenSent:
    """Pixels on whose way to the parent a worker stops itself: it stands between two images."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        with contextlib.suppress(FileExistsError):
            self._mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGSTOP)
        return (str, ("sent",))


def test_a_worker_that_stands_still_between_images_is_missed(tmp_path: Path) -> None:
    """One that was stopped between two images is replaced within the timeout; none is to blame."""
    plan = plan_batches(np.arange(12), 4)
    decoded = decode_batches(
        plan,
        None,
        lambda row: (bytes(32), StopsWhenSent(tmp_path / str(row // 4))),
        workers=2,
        timeout=1.0,
        goes_on=lambda: True,
    )
    found = [image for images in decoded for image in images]
    assert len(list(tmp_path.iterdir())) == 3  # as many stood still
    assert [(image.row, image.reason, image.pixels) for image in found] == [
        (row, "", "sent") for row in range(12)
    ]


def test_a_worker_stopped_at_an_image_blames_none(tmp_path: Path) -> None:
    """SIGSTOP while an image is decoded is no fault of the image: another process decodes it."""

    def stop_once(row: int) -> Any:
        if row % 3 == 0:
            with contextlib.suppress(FileExistsError):
                (tmp_path / str(row)).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGSTOP)
        return decode_row(row, {})

    decoded = decode_batches(
        plan_batches(np.arange(9), 3),
        SHAPE,
        stop_once,
        workers=2,
        timeout=1.0,
        goes_on=lambda: True,
    )
    found = [(image.row, image.reason) for images in decoded for image in images]
    assert found == [(row, "") for row in range(9)]
    assert len(list(tmp_path.iterdir())) == 3


def test_images_of_unequal_shapes() -> None:
    """Without a common shape pixels come with the answer, and as they are."""

    def grow(row: int) -> tuple[bytes, NDArray[np.uint8]]:
        return bytes(32), np.full((row + 1, 300, 3), row, np.uint8)

    plan = np.array([[row] for row in range(40)])
    decoded = decode_batches(plan, None, grow, workers=2, timeout=60, goes_on=lambda: True)
    for row, images in enumerate(decoded):
        assert images[0].pixels is not None
        assert images[0].pixels.shape == (row + 1, 300, 3)
        assert (images[0].pixels == row).all()


def test_an_empty_batch() -> None:
    """A batch without any row is a batch without images."""
    plan = np.array([[EMPTY, EMPTY], [1, EMPTY]])
    decoded = decode_batches(
        plan,
        SHAPE,
        functools.partial(decode_row, special={}),
        workers=2,
        timeout=60,
        goes_on=lambda: True,
    )
    assert [[image.row for image in images] for images in decoded] == [[], [1]]


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listed.read_text().split()]


def test_a_run_whose_workers_are_killed(tmp_path: Path) -> None:
    """A run of the command ends well though its workers are killed again and again."""
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0)
    for number in range(120):
        picture = noise.integers(0, 256, (300, 300, 3), dtype=np.uint8)
        PIL.Image.fromarray(picture).save(images / f"{number}.png")
    words = [
        sys.executable, "-m", "vggfeat", "extract", str(images), "--layers", "conv1_1",
        "--model", "vgg11", "--weights", "random:0", "--size", "32", "--precision", "float32",
        "--device", "cpu", "--batch-size", "4", "--quiet",
    ]  # fmt: skip
    quiet, killed = tmp_path / "quiet.h5", tmp_path / "killed.h5"
    subprocess.run([*words, "--out", quiet, "--workers", "0"], check=True, timeout=600)
    shot = 0
    with subprocess.Popen([*words, "--out", killed, "--workers", "2"]) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                for child in children(process.pid)[:1]:
                    os.kill(child, signal.SIGKILL)
                    shot += 1
            time.sleep(0.05)
    assert process.returncode == 0
    assert shot > 3
    with h5py.File(quiet) as right, h5py.File(killed) as found:
        # An image whose worker was shot twice has failed and says so; all others are as they were.
        done = found["images/state"][()] == 1
        assert done.any()
        for name in ("features/conv1_1", "images/digest"):
            assert (found[name][()][done] == right[name][()][done]).all()
        for reason in found["images/error"][()][~done]:
            assert b"killed by SIGKILL" in reason


def counted_row(row: int, begun: NDArray[np.int64]) -> Any:
    """A row of a megabyte that tells the process that asks for it that it was decoded."""
    begun[row] = 1
    return row.to_bytes(32, "little"), np.full((1 << 20,), row % 251, np.uint8)


def shared_shown() -> int:
    """Bytes of shared memory that this process has looked at."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssShmem"))


def test_images_are_decoded_before_the_first_batch_is_requested() -> None:
    """As many as are asked for, and no more; their memory is given back when they are read."""
    begun = np.frombuffer(mmap.mmap(-1, 8 * 60), dtype=np.int64)
    decoded = decode_batches(
        np.arange(60).reshape(30, 2),
        (1 << 20,),
        functools.partial(counted_row, begun=begun),
        workers=2,
        timeout=60,
        goes_on=lambda: True,
        ahead=33,
    )
    until = time.monotonic() + 300
    while begun.sum() < 34:  # whole batches
        assert time.monotonic() < until
        time.sleep(0.005)
    before, rows, most = shared_shown(), [], 0
    for images in decoded:
        rows += [image.row for image in images]
        assert all((image.pixels == image.row % 251).all() for image in images)
        most = max(most, shared_shown() - before)
        if len(rows) < 3:
            assert begun.sum() <= 34 + 6
    assert rows == list(range(60))
    assert most >= 30 << 20
    assert shared_shown() - before <= 16 << 20
    del decoded


def test_pixels_stay_valid_for_the_batches_that_are_kept() -> None:
    """With two batches in flight on devices, their memory is not written to until they are done."""
    decoded = decode_batches(
        plan_batches(np.arange(80), 4),
        SHAPE,
        functools.partial(decode_row, special={}),
        workers=3,
        timeout=60,
        goes_on=lambda: True,
        kept=2,
    )
    in_flight: list[Any] = []
    seen = []
    for images in decoded:
        assert images.whole is not None
        assert images.whole.shape == (4, *SHAPE)
        in_flight.append(images)
        time.sleep(0.01)  # in which workers would write, if they might
        for batch in in_flight:
            assert [int(one[0, 0, 0]) for one in batch.whole] == [one.row % 251 for one in batch]
        if len(in_flight) == 3:
            seen += [image.row for image in in_flight.pop(0)]
    assert seen == list(range(72))
