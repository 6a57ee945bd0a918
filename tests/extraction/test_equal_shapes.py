"""Batches of images that are not cropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
from killing import contents
from PIL import Image

import vggfeat
from vggfeat.core.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

SIDES = ((40, 60), (60, 40), (40, 60), (40, 60), (60, 40), (50, 50), (40, 60))


def settings(batch_size: int) -> Settings:
    return Settings(
        layers="conv2_1,conv3_1:gem", model="vgg11", weights="random:0", size=32, crop="none",
        device="cpu", precision="float32", dtype="float32", workers=0, batch_size=batch_size,
    )  # fmt: skip


def test_uncropped_batches_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """Rows of batches of one shape are those of single images; a resumed file is the same."""
    (tmp_path / "images").mkdir()
    for row, (height, width) in enumerate(SIDES):
        noise = np.random.default_rng(row).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{row}.png")
    for name, size in (("one", 1), ("three", 3), ("resumed", 3)):
        vggfeat.extract(tmp_path / "images", tmp_path / f"{name}.h5", settings(size))
    one, three = vggfeat.open(tmp_path / "one.h5"), vggfeat.open(tmp_path / "three.h5")
    for layer in one.layers:
        assert np.allclose(
            np.asarray(three[layer], float), np.asarray(one[layer], float), 1e-4, 1e-6
        )
    with h5py.File(tmp_path / "resumed.h5", "r+") as file:  # as if killed with these rows to do
        file["images/state"][[0, 2, 4]] = 0
        file["features/conv2_1"][[0, 2, 4]] = 0
    vggfeat.extract(tmp_path / "images", tmp_path / "resumed.h5", settings(3))
    assert contents(tmp_path / "resumed.h5") == contents(tmp_path / "three.h5")
