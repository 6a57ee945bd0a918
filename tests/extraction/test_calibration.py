"""The sample of images that 8-bit integers are calibrated on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import vggfeat.images.dataset
import vggfeat.images.decode
from vggfeat.core.settings import Settings
from vggfeat.extraction.calibration import _sample
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_an_image_that_kills_its_process_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample is decoded in processes of its own: what crashes one costs its image alone."""
    for value in (1, 2, 3):
        Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / f"{value}.png")
    whole = vggfeat.images.decode.read_pixels

    def deadly(*arguments: Any) -> Any:
        pixels = whole(*arguments)
        if pixels.max() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return pixels

    monkeypatch.setattr("vggfeat.images.image_reader.read_pixels", deadly)
    settings = Settings(layers="fc7", size=32, workers=2)
    found = _sample(settings, discover([tmp_path]), 3, "precision")
    assert [tuple(images.shape) for images in found] == [(1, 3, 32, 32)] * 2
    assert sorted(int(np.unique(images.numpy())[0]) for images in found) == [1, 3]
