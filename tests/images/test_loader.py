from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from vggfeat.core.settings import Settings
from vggfeat.images.batch_plan import EMPTY, plan_batches
from vggfeat.images.loader import choose_workers, load_batches
from vggfeat.images.streams import open_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
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
    def open_image(row: int) -> AbstractContextManager[BinaryIO]:
        return open_file(os.path.join(folder, NAMES[row]))

    chosen = Settings(**{"layers": "conv1_1", "size": 32, "resize": 32, **settings})
    return list(load_batches(open_image, np.array(plan), chosen, workers=workers, pin=False))


PLAN = ((0, 1, 2), (3, 4, 5), (6, EMPTY, EMPTY))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_lie_in_their_slots(folder: bytes, workers: int) -> None:
    """Batches come in the plan's order, each row's pixels in its slot, broken files as failures."""
    found = load(folder, PLAN, workers)
    assert [batch.rows.tolist() for batch in found] == [[0, 1], [3, 5], [6]]
    assert [batch.slots.tolist() for batch in found] == [[0, 1], [0, 2], [0]]
    assert [[failure.row for failure in batch.failures] for batch in found] == [[2], [4], []]
    assert found[0].failures[0].reason == "not an image Pillow can read"
    assert found[1].failures[0].reason == "no such file (gone since it was listed)"
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
