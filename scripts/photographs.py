"""Writes the photographs that scikit-image ships to a folder: `photographs.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import skimage.data
from PIL import Image

NAMES = ("astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins",
         "grass", "gravel", "horse", "hubble_deep_field", "immunohistochemistry", "moon",
         "page", "retina", "rocket", "text")  # fmt: skip


def write_photographs(folder: Path) -> int:
    """Writes those that need no download as PNG and returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name in NAMES:
        if not _is_shipped(name):
            continue
        Image.fromarray(getattr(skimage.data, name)()).convert("RGB").save(folder / f"{name}.png")
        count += 1
    return count


def _is_shipped(name: str) -> bool:
    """Whether the package holds the picture itself; others it would fetch from the network."""
    data = Path(skimage.data.__file__).parent
    aliases = {"clock": "clock_motion", "immunohistochemistry": "ihc"}
    stem = aliases.get(name, name)
    return any((data / f"{stem}{end}").is_file() for end in (".png", ".jpg", ".jpeg", ".gif"))


if __name__ == "__main__":
    print(f"{write_photographs(Path(sys.argv[1]))} photographs in {sys.argv[1]}")
