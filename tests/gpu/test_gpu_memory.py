"""The device's memory: it runs out wherever it may, and does not grow."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from typing import TYPE_CHECKING, Any

import h5py
import pytest
import torch
from accelerator import (
    DEVICE,
    ON_CUDA,
    decoded,
    extractor,
    faint,
    loud_tensors,
    noise,
    relative_error,
    settings,
    write_pictures,
)

import vggfeat
from vggfeat.errors import DeviceError
from vggfeat.network.extractor import TensorExtractor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LAYERS = "conv1_1:map,conv3_2"
MANY = 16
MEBIBYTE = 1 << 20
BATCHES = 1000 if ON_CUDA else 60


@contextlib.contextmanager
def no_more_than(more: int) -> Iterator[None]:
    """Leave the allocator so many bytes beside what is in use; it then really has no more."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    allowed = torch.cuda.memory_reserved(DEVICE) + more
    torch.cuda.set_per_process_memory_fraction(allowed / total, DEVICE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


def compare(found: Any, expected: Any) -> None:
    """Parts of a batch are of other shapes, so of other kernels: nearly the same."""
    assert found.rows.tolist() == expected.rows.tolist()
    for spec, values in expected.features.items():
        assert found.features[spec].shape == values.shape
        one, other = (torch.from_numpy(x) for x in (found.features[spec], values))
        assert relative_error(one, other) <= 2e-3, spec


@pytest.mark.cuda_only
def test_a_batch_too_large_is_computed_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    """With half the memory that a batch takes it is computed in parts, and so are later ones."""
    images = faint(64, 128)
    expected = extractor(LAYERS, size=128).launch(decoded(images)).collect()
    network = extractor(LAYERS, size=128)
    network.launch(decoded(images[:1])).collect()  # cuDNN's own
    before = torch.cuda.memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    probe = extractor(LAYERS, size=128).launch(decoded(images)).collect()
    taken = torch.cuda.max_memory_allocated(DEVICE) - before
    compare(probe, expected)
    with no_more_than(taken // 2), caplog.at_level(logging.WARNING, "vggfeat"):
        found = network.launch(decoded(images)).collect()
        again = network.launch(decoded(images)).collect()
    compare(found, expected)
    assert "out of memory with 64 images a pass" in caplog.text
    for spec, values in found.features.items():
        assert again.features[spec].tobytes() == values.tobytes(), spec


@pytest.mark.cuda_only
@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("place", ["forward", "quantising", "redoing"])
def test_memory_runs_out_anywhere(
    place: str, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the forward, the quantising or the redo: the allocator's own error halves the pass."""
    if place == "redoing" and precision == "float32":
        pytest.skip("float32 is not computed again")
    images = faint(MANY, 128)
    images[3] = noise(1, 128)[0]
    more = {"weights": loud_tensors(), "size": 128, "precision": precision, "dtype": "float16"}
    expected = extractor(LAYERS, **more).launch(decoded(images)).collect()
    network = extractor(LAYERS, **more)
    network.launch(decoded(images[:4])).collect()  # builds what computes again
    sizes = [MANY] if place == "redoing" else [MANY, MANY // 2]  # of 8 at once, 4 are redone
    name = "stored" if place == "quantising" else "_pass"
    genuine, failed = getattr(TensorExtractor, name), []

    def tight(self: TensorExtractor, first: Any, rows: torch.Tensor) -> Any:
        if len(rows) <= MANY // 4 or (place == "redoing" and first is not self._exact):
            return genuine(self, first, rows)
        failed.append(len(rows))
        with no_more_than(MEBIBYTE):
            return genuine(self, first, rows)

    monkeypatch.setattr(TensorExtractor, name, tight)
    with caplog.at_level(logging.WARNING, "vggfeat"):
        found = network.launch(decoded(images)).collect()
    assert failed == sizes
    assert f"out of memory with {MANY} images a pass" in caplog.text
    compare(found, expected)
    assert found.clamped == expected.clamped


@pytest.mark.cuda_only
def test_settled_passes_are_recorded_and_kept(tmp_path: Path) -> None:
    """A cache begun with little memory has small passes, and keeps to them with more."""
    images = write_pictures(tmp_path / "images", list(faint(40, 150)))
    given = settings(LAYERS, size=128, batch_size=32, workers=0, dtype="float16")
    whole, part = tmp_path / "whole.h5", tmp_path / "part.h5"
    with no_more_than(600 * MEBIBYTE):  # 256 of them, and what float32 needs, are left unused
        found = vggfeat.extract(images, whole, given)
    assert 1 <= found.pass_images < 32
    part.write_bytes(whole.read_bytes())
    with h5py.File(part, "r+") as file:
        file["images/state"][5:30] = 0
        file["features/conv3_2"][5:30] = 0
    assert vggfeat.extract(images, part, given).new_done == 25
    with h5py.File(whole) as one, h5py.File(part) as other:
        for spec in one["features"]:
            assert one["features"][spec][()].tobytes() == other["features"][spec][()].tobytes()


@pytest.mark.cuda_only
def test_memory_for_not_even_one_image() -> None:
    """One line says so, whether the image or its maps do not fit; with memory it goes on."""
    network = extractor("conv2_1", size=2048)
    images = faint(1, 2048)
    expected = network.launch(decoded(images)).collect()
    for mebibytes in (1, 100):
        with (
            no_more_than(mebibytes * MEBIBYTE),
            pytest.raises(DeviceError, match=r"cuda:0 has no memory for one image of 2048 x 2048"),
        ):
            network.launch(decoded(images)).collect()
    found = network.launch(decoded(images)).collect()
    for spec, values in expected.features.items():
        assert found.features[spec].tobytes() == values.tobytes()


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Over many batches neither the device's memory nor the host's, pinned or not, grows."""
    images = write_pictures(tmp_path / "images", list(faint(4, 48)))
    (images / "0003.png").unlink()
    for number in range(4, BATCHES + 1):
        os.link(images / f"{number % 3:04}.png", images / f"{number:04}.png")
    taken: list[dict[str, int]] = []
    done = vggfeat.extract(
        images, tmp_path / "f.h5",
        settings("conv1_1:max,conv2_1", size=32, batch_size=1, workers=2, precision="float16"),
        on_progress=lambda _: taken.append(memory()),
    )  # fmt: skip
    assert done.done == BATCHES
    assert len(taken) >= BATCHES
    settled, later = taken[: BATCHES // 3], taken[BATCHES // 3 :]
    for kind, room in ROOM.items():
        before = max(one.get(kind, 0) for one in settled)
        assert max(one.get(kind, 0) for one in later) <= before + room, kind


ROOM = {"resident bytes": 64 * MEBIBYTE, "reserved bytes": 64 * MEBIBYTE,
        "blocks on the device": 64, "pinned blocks": 64}  # fmt: skip
"""What more may be in use for a moment, by batches that wait; far less than one a batch."""


def memory() -> dict[str, int]:
    """What this process has of memory of each kind."""
    with open("/proc/self/statm", encoding="ascii") as file:
        found = {"resident bytes": int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    if ON_CUDA:
        found["reserved bytes"] = torch.cuda.memory_reserved(DEVICE)
        found["blocks on the device"] = torch.cuda.memory_stats(DEVICE)["active.all.current"]
        if hasattr(torch.cuda, "host_memory_stats"):
            stats = torch.cuda.host_memory_stats()
            found["pinned blocks"] = stats.get("allocations.current", 0)
    return found
