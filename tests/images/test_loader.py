from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_disks import with_mount
from torch.utils.data import DataLoader, Dataset

from vggfeat.core.settings import Settings
from vggfeat.images.batch_plan import EMPTY, plan_batches
from vggfeat.images.dataset import ImageDataset
from vggfeat.images.decoding import choose_workers
from vggfeat.images.image_list import ImageList
from vggfeat.images.loader import PlannedBatches, SupervisedLoader, load_batches

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat.core.records import DecodedBatch

NAMES = (b"0.png", b"1.png", b"2-broken.png", b"3.png", b"4-gone.png", b"5/\xff.png", b"6.png")
GOOD = (0, 1, 3, 5, 6)


# Images of exactly the network's size come through untouched, so the pixels are the reference.
def pixels(row: int) -> NDArray[np.uint8]:
    return np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    """Images of noise, one file that is none, and one that is not there."""
    root = os.fsencode(tmp_path)
    os.mkdir(tmp_path / "5")
    for row in GOOD:
        with open(os.path.join(root, NAMES[row]), "wb") as stream:
            Image.fromarray(pixels(row)).save(stream, "PNG")
    (tmp_path / "2-broken.png").write_bytes(b"not a picture")
    return root


def load(
    folder: bytes,
    plan: Sequence[Sequence[int]] | NDArray[np.int64],
    workers: int,
    **settings: Any,
) -> list[DecodedBatch]:
    unknown = np.zeros(len(NAMES), np.int64)
    images = ImageList(folder, NAMES, unknown, unknown, {})
    chosen = Settings(**{"layers": "conv1_1", "size": 32, "resize": 32, **settings})
    dataset = ImageDataset(images, chosen)
    return list(load_batches(dataset, np.array(plan), chosen, workers=workers, pin=False))


PLAN = ((0, 1, 2), (3, 4, 5), (6, EMPTY, EMPTY))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_lie_in_their_slots(folder: bytes, workers: int) -> None:
    """Batches come in the plan's order, each row's pixels in its slot, broken files as failures."""
    found = load(folder, PLAN, workers)
    assert [batch.rows.tolist() for batch in found] == [[0, 1], [3, 5], [6]]
    assert [batch.slots.tolist() for batch in found] == [[0, 1], [0, 2], [0]]
    assert [[failure.row for failure in batch.failures] for batch in found] == [[2], [4], []]
    assert found[0].failures[0].reason == "not an image Pillow can read"
    assert found[1].failures[0].reason == "no such file"
    for batch in found:
        assert batch.images.shape == (3, 32, 32, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.rows.dtype == batch.slots.dtype == np.int64
        assert batch.seconds > 0
        expected = np.zeros((3, 32, 32, 3), np.uint8)  # slots without an image are zero
        for slot, row in zip(batch.slots.tolist(), batch.rows.tolist(), strict=True):
            expected[slot] = pixels(row)
        assert batch.images.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_order_is_kept(folder: bytes, workers: int) -> None:
    """However long single images take, batches come in the order of the plan."""
    plan = [[row] for row in (6, 2, 0, 5, 1, 4, 3) * 3]
    found = load(folder, plan, workers)
    rows = [[*batch.rows.tolist(), *(failure.row for failure in batch.failures)] for batch in found]
    assert rows == plan


def test_a_batch_of_failures_alone(folder: bytes) -> None:
    """A batch without one good image has no rows and a batch of zeros of the usual shape."""
    (batch,) = load(folder, [[EMPTY, 2, 4, EMPTY]], 0)
    assert batch.rows.tolist() == batch.slots.tolist() == []
    assert [failure.row for failure in batch.failures] == [2, 4]
    assert batch.images.shape == (4, 32, 32, 3)
    assert not batch.images.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_without_a_crop_keep_their_shape(folder: bytes, workers: int) -> None:
    """Under crop none a batch is one image of its own shape."""
    with open(os.path.join(folder, NAMES[6]), "wb") as stream:
        Image.new("RGB", (64, 128), (1, 2, 3)).save(stream, "PNG")
    found = load(folder, [[0], [6], [2]], workers, resize=None, crop="none")
    assert [tuple(batch.images.shape[1:3]) for batch in found[:2]] == [(32, 32), (64, 32)]
    assert np.unique(found[1].images.numpy().reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]
    assert found[2].images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_equal_shapes_share_a_batch(folder: bytes, workers: int) -> None:
    """Under crop none images of one shape come together, each in its slot, failures with them."""
    for row in (3, 6):
        with open(os.path.join(folder, NAMES[row]), "wb") as stream:
            Image.new("RGB", (64, 128), (row,) * 3).save(stream, "PNG")
    found = load(folder, [[0, 3, 2, 5], [EMPTY, 6, EMPTY, 1]], workers, resize=None, crop="none")
    assert [batch.images.shape for batch in found] == [
        (4, 32, 32, 3), (4, 64, 32, 3), (4, 64, 32, 3), (4, 32, 32, 3),
    ]  # fmt: skip
    assert [batch.rows.tolist() for batch in found] == [[0, 5], [3], [6], [1]]
    assert [batch.slots.tolist() for batch in found] == [[0, 3], [1], [1], [3]]
    assert [[failure.row for failure in batch.failures] for batch in found] == [[2], [], [], []]
    assert (found[0].images[3].numpy() == pixels(5)).all()
    assert not found[0].images[1:3].any()
    assert (found[1].images[1] == 3).all()


def test_too_many_pixels(folder: bytes) -> None:
    """Images beyond the limit fail, the others of the batch do not."""
    (batch,) = load(folder, [[0, 1, 2]], 0, max_pixels=1023)
    assert len(batch.failures) == 3
    assert "at most 1023 allowed" in batch.failures[0].reason


def test_nothing_to_do(folder: bytes) -> None:
    """A plan without batches gives none."""
    assert load(folder, plan_batches(np.arange(0), 4), 0) == []


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_workers_as_asked(workers: int) -> None:
    """A number of workers that was asked for is taken, whatever the machine has."""
    settings = Settings(layers="fc7", workers=workers)
    assert choose_workers(settings, {"cpu"}) == workers
    assert choose_workers(settings, {"cuda"}) == workers


@pytest.mark.parametrize(
    ("cores", "device", "expected"),
    [(1, "cpu", 1), (16, "cpu", 2), (1, "cuda", 1), (16, "cuda", 16)],
)
def test_workers_from_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, device: str, expected: int
) -> None:
    """Left to us, workers are the cores this process may use; beside a CPU network few."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    assert choose_workers(Settings(layers="fc7"), {device}) == expected


class Grey(Dataset[int]):
    """A data set whose image `i` is grey of value `i`; decoding image 3 kills the process."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index

    def decode(self, index: int) -> tuple[bytes, NDArray[np.uint8]]:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return bytes(32), np.full((4, 4, 3), index, np.uint8)


Seen = list[tuple[int, str, int]]
"""Row, reason and value of each image of a batch."""


def grey_batches(workers: int, dataset: Grey | None = None) -> SupervisedLoader[Seen]:
    return SupervisedLoader(
        dataset or Grey(),
        PlannedBatches(np.array([[1, EMPTY, 3], [EMPTY, 5, 7]])),
        lambda images: [
            (image.row, image.reason, -1 if image.pixels is None else int(image.pixels.max()))
            for image in images
        ],
        num_workers=workers,
        timeout=600,
    )


KILLED = "its decoding process was killed by SIGKILL, 2 times"
EXPECTED = [[(1, "", 1), (3, KILLED, -1)], [(5, "", 5), (7, "", 7)]]


def test_it_is_a_dataloader_whose_workers_may_die() -> None:
    """It is torch's by type, length and batch sampler; a killed worker costs its image alone."""
    loader = grey_batches(33)  # more workers than cores are no warning
    assert isinstance(loader, DataLoader)
    assert len(loader) == 2
    assert list(loader.batch_sampler or ()) == [[1, 3], [5, 7]]
    for _ in range(2):  # epochs
        assert list(loader) == EXPECTED


@pytest.mark.filterwarnings("ignore:(?s).*use of fork.*:DeprecationWarning")
def test_torchs_handler_of_dead_workers_passes_ours_over() -> None:
    """Beside workers of torch's own, whose SIGCHLD handler raises, ours die without an error."""
    beside = iter(DataLoader(Grey(), batch_size=None, num_workers=1))
    assert next(beside) == 0
    assert signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, signal.SIG_IGN, None)
    assert list(grey_batches(2)) == EXPECTED
    assert list(beside) == [1, 2, 3, 4, 5, 6, 7]


def test_no_file_in_dev_shm_is_needed(tmp_path: Path) -> None:
    """Batches come from workers where /dev/shm takes no file at all."""
    program = """
import numpy as np
from vggfeat.images.worker_pool import decode_batches
def row(number): return bytes(32), np.full((224, 224, 3), number, np.uint8)
plan = np.arange(64).reshape(2, 32)
found = decode_batches(plan, (224, 224, 3), row, workers=2, timeout=60, goes_on=lambda: True)
print([[int(image.pixels.min()) for image in images] for images in found] == plan.tolist())
try: open("/dev/shm/any", "x")
except OSError as error: print(error.strerror)
"""
    before = with_mount("mount -t tmpfs -o ro,size=4k tmpfs /dev/shm", tmp_path)
    done = subprocess.run(
        [*before, sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["True", "Read-only file system"]


class Computed(Grey):
    """A data set whose items take torch several threads, where it may have them."""

    def decode(self, index: int) -> tuple[bytes, NDArray[np.uint8]]:
        ones = int(torch.ones(2**20).mul(2).sum()) >> 21
        return bytes(32), np.full((4, 4, 3), index * ones, np.uint8)


def test_workers_compute_with_torch_after_their_parent_has() -> None:
    """torch in a forked worker does not wait for threads that did not survive the fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.ones(2**20).mul(2).sum() == 2**21
        loader = grey_batches(2, Computed())
        assert [row for batch in loader for row, reason, value in batch if value == row] == [
            1, 3, 5, 7,
        ]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
