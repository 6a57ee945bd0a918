"""Batches whose memory is that which the workers decode into: no copy in the main thread."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from vggfeat.core.settings import Settings
from vggfeat.images.batch_plan import plan_batches
from vggfeat.images.dataset import ImageDataset
from vggfeat.images.decoding import decode_early
from vggfeat.images.image_reader import ImageReader
from vggfeat.images.loader import load_batches
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vggfeat.core.records import DecodedBatch

SETTINGS = Settings(layers="fc7", size=32, workers=2)
BROKEN = {21, 22, 30}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(40):
        Image.new("RGB", (32, 32), (number + 1,) * 3).save(tmp_path / f"{number:02}.png")
    for number in BROKEN:
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    return tmp_path


def batches(folder: Path, devices: list[str], *, pin: bool = False) -> Iterator[DecodedBatch]:
    listed = discover([folder])
    plan = plan_batches(np.arange(40), 4)
    decoded = decode_early(
        ImageReader(listed, SETTINGS), plan, SETTINGS, workers=2, devices=devices,
        goes_on=lambda: True,
    )  # fmt: skip
    dataset = ImageDataset(listed, SETTINGS)
    return load_batches(dataset, plan, SETTINGS, workers=2, pin=pin, decoded=decoded)


def check(number: int, batch: DecodedBatch) -> None:
    """Slots of images hold their pixels; those of failed ones hold zeros, not an earlier batch."""
    rows = range(4 * number, 4 * number + 4)
    expected = [0 if row in BROKEN else row + 1 for row in rows]
    assert batch.images.shape == (4, 32, 32, 3)
    assert batch.images[:, 5, 7, 1].tolist() == expected
    assert batch.rows.tolist() == [row for row in rows if row not in BROKEN]
    assert [failure.row for failure in batch.failures] == [row for row in rows if row in BROKEN]


def test_batches_are_the_memory_of_the_workers(images: Path) -> None:
    """Memory comes again after some batches, and slots without an image are zero then."""
    places = set()
    for number, batch in enumerate(batches(images, ["cpu"])):
        check(number, batch)
        places.add(batch.images.data_ptr())
    assert len(places) < 8


class Cudart:
    """Stands in for CUDA's runtime, which locks pages, or refuses to."""

    def __init__(self, code: int) -> None:
        self.code, self.locked, self.calls = code, {}, 0  # type: ignore[var-annotated]

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 1
        assert not any(at < address + size and address < at + n for at, n in self.locked.items())
        self.calls += 1
        if not self.code:
            self.locked[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.locked[address]
        return 0


@pytest.mark.parametrize("code", [0, 801])
def test_memory_is_page_locked_once(
    images: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Each piece once, until it is gone; where that is refused, batches are copied as before."""
    cudart, plain = Cudart(code), torch.empty
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)

    def empty(*shape: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:  # noqa: ARG001 torch's own
        return plain(*shape, **how)  # there is none to lock here

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr("vggfeat.images.decoding.AHEAD_OF_EACH", 0)
    loaded = batches(images, ["cuda"], pin=True)
    before = None
    for number, batch in enumerate(loaded):
        check(number, batch)
        if before is not None:
            check(number - 1, before)  # in flight
        before = batch
        at = batch.images.data_ptr()
        assert (at in cudart.locked) == (code == 0)
    assert 0 < cudart.calls < 10
    del loaded, batch, before
    gc.collect()
    assert not cudart.locked
