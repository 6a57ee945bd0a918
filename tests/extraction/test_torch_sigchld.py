"""torch's handler of SIGCHLD raises in the main thread when a worker of its DataLoader dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import vggfeat

if TYPE_CHECKING:
    from collections.abc import Iterator


class Waiting(Dataset[int]):
    """Items that never come: its worker waits until it is killed."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        time.sleep(3600)
        return index


SETTINGS = vggfeat.Settings(
    layers="conv1_1",
    model="vgg11",
    weights="random:0",
    size=32,
    device="cpu",
    precision="float32",
    batch_size=2,
    workers=0,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):  # more batches than wait for the writer
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def worker() -> Iterator[Any]:
    """A worker process of a DataLoader of torch's, whose handler of SIGCHLD watches it."""
    loader: Any = iter(DataLoader(Waiting(), batch_size=None, num_workers=1))
    yield loader._workers[0]
    loader._shutdown_workers()  # else the handler would raise at the next death of any child


def is_dead(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    )


@pytest.mark.filterwarnings("ignore:(?s).*use of fork.*:DeprecationWarning")
def test_its_error_during_a_write_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Any
) -> None:
    """A worker of a caller's DataLoader dies while rows are written: the file stays right."""
    right, out = tmp_path / "right.h5", tmp_path / "out.h5"
    vggfeat.extract(photos, right, SETTINGS)
    pwrite, writes = os.pwrite, 0
    killed: list[int] = []

    def killing(handle: int, data: Any, place: int) -> int:
        nonlocal writes
        writes += os.readlink(f"/proc/self/fd/{handle}").endswith("out.h5")
        if writes == 3 and not killed:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            until = time.monotonic() + 300
            while not is_dead(worker.pid) and time.monotonic() < until:
                time.sleep(0.01)
        return pwrite(handle, data, place)

    monkeypatch.setattr(os, "pwrite", killing)
    with pytest.raises(RuntimeError, match="is killed by signal"):
        vggfeat.extract(photos, out, SETTINGS)
    monkeypatch.undo()
    assert vggfeat.verify(out).bad == ()
    with h5py.File(out) as cut, h5py.File(right) as whole:
        done = cut["images/state"][()] == 1
        assert not done.all()
        for name in ("features/conv1_1", "images/checksum"):
            np.testing.assert_array_equal(cut[name][()][done], whole[name][()][done])
    vggfeat.extract(photos, out, SETTINGS)
    with h5py.File(out) as resumed, h5py.File(right) as whole:
        for name in ("features/conv1_1", "images/checksum", "images/state"):
            np.testing.assert_array_equal(resumed[name], whole[name])
