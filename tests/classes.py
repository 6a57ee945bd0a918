"""Images of classes that a network can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


CLASSES = ("left", "right")


def write_classes(folder: Path, each: int) -> Path:
    """Stripes that lean left or right, faint in noise, grey, in a folder each."""
    chance = np.random.default_rng(5)
    rows, columns = np.indices((64, 64))
    for name, sign in zip(CLASSES, (1, -1), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            stripes = np.sin((rows + sign * columns + chance.uniform(0, 64)) / 2)
            pixels = 128 + 12 * stripes + 25 * chance.standard_normal((64, 64))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / name / f"{number:02}.png")
    return folder
