"""`--decode gpu` on the device: nvJPEG on CUDA; a CPU has the same calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import torch
from accelerator import DEVICE, ON_CUDA

import vggfeat

pytest.importorskip("torchvision")

from jpeg_files import (
    FOR_THE_DEVICE,
    NOT_FOR_THE_DEVICE,
    batches,
    by_row,
    cropped,
    encoded,
    reference,
    run_settings,
    write_photos,
)

from vggfeat.images import device_jpeg
from vggfeat.images.tensor_resize import turned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def test_pixels_of_the_device_do_not_depend_on_company(tmp_path: Path) -> None:
    """A row is torchvision's transform of its own decoded tensor, whatever is beside it."""
    device = torch.device(DEVICE)
    files = [*FOR_THE_DEVICE.values(), *NOT_FOR_THE_DEVICE.values()]
    alone = {}
    for row, data in enumerate(FOR_THE_DEVICE.values()):
        image = encoded(data)
        [tensor] = device_jpeg.decode_jpegs([torch.from_numpy(image.data.copy())], device)
        alone[row] = cropped(turned(tensor, image.turn))
    for batch_size in (1, 5, len(files)) if ON_CUDA else (5,):
        pixels = by_row(batches(tmp_path, files, device=device, workers=2, batch_size=batch_size))
        for row, expected in alone.items():
            np.testing.assert_array_equal(pixels[row], expected)
            difference = np.abs(expected.astype(int) - reference(files[row]))
            assert difference.mean() < 4, list(FOR_THE_DEVICE)[row]  # other decoder, same picture


def test_runs_that_decode_on_the_device_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs write the same features, whatever the number of processes that read the files."""
    if not ON_CUDA:
        monkeypatch.setattr(device_jpeg, "DEVICE_TYPES", ("cpu",))
    photos = write_photos(tmp_path / "photos")
    for name, workers in (("one", 1), ("two", 3)):
        given = run_settings(device=DEVICE, workers=workers)
        vggfeat.extract(photos, tmp_path / f"{name}.h5", given)
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        assert (one["images/state"][()] == 1).all()
        np.testing.assert_array_equal(one["features/conv1_1"], two["features/conv1_1"])
