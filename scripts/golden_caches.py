"""Make the small cache of `tests/data` in the format version of the vggfeat that runs this.

    python scripts/golden_caches.py tests/data/version-2.h5 b

The second argument begins the names of the images, so that files of several versions can be merged
or be shards of one cache. Files of older versions are made by the commits that wrote them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vggfeat

SETTINGS: dict[str, Any] = {
    "layers": "conv1_1,conv1_1:max",
    "model": "vgg11",
    "weights": "random:0",
    "size": 32,
    "batch_size": 4,
    "device": "cpu",
    "precision": "float32",
    "workers": 0,
    "max_failures": "1",
    "max_removed": "1",
}


def main(out: str, prefix: str) -> None:
    """Extract four images, one of them broken, and remove a fifth."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        noise = np.random.default_rng(ord(prefix))
        for number in range(5):
            picture = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(images / f"{prefix}{number}.png")
        (images / f"{prefix}2.png").write_bytes(b"no image")
        for image in images.iterdir():
            os.utime(image, (1_700_000_000, 1_700_000_000))
        settings = vggfeat.Settings(**SETTINGS)
        vggfeat.extract(images, out, settings)
        (images / f"{prefix}4.png").unlink()
        policy = vggfeat.UpdatePolicy(update=True)
        vggfeat.extract(images, out, settings, policy=policy)


if __name__ == "__main__":
    main(*sys.argv[1:])
