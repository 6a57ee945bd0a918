"""Writes synthetic photographs, about as large as ImageNet's: `make_images.py COUNT FOLDER`.

Smooth noise as JPEG, 500 pixels on the longer side and about 100 kB. Only some are different; the
others are further names of the same files, which costs no time and no space.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os

import numpy as np
from PIL import Image

SHAPES = ((375, 500), (500, 375), (333, 500), (375, 500))  # height, width
OCTAVES = ((4, 45.0), (16, 30.0), (64, 20.0), (160, 14.0), (500, 7.0))
"""Cells along the longer side, and how far from grey they go."""


def main() -> None:
    """Makes the distinct images in all cores, then names them again until there are enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("folder")
    parser.add_argument("--distinct", type=int, default=500)
    given = parser.parse_args()
    os.makedirs(given.folder, exist_ok=True)
    distinct = min(given.count, given.distinct)
    with multiprocessing.Pool() as pool:
        sizes = pool.map(functools.partial(write, given.folder), range(distinct))
    for index in range(distinct, given.count):
        os.link(path_of(given.folder, index % distinct), path_of(given.folder, index))
    kilobytes = sum(sizes) / len(sizes) / 1000
    print(f"{given.count} images, {distinct} different ones, {kilobytes:.0f} kB each")


def path_of(folder: str, index: int) -> str:
    """Path of the image of that number."""
    return os.path.join(folder, f"{index:07d}.jpg")


def write(folder: str, index: int) -> int:
    """Writes one image, the same at every call, and returns its bytes."""
    path = path_of(folder, index)
    paint(index).save(path, quality=94)
    return os.path.getsize(path)


def paint(seed: int) -> Image.Image:
    """Noise of several scales on top of each other, in colour."""
    random = np.random.default_rng(seed)
    height, width = SHAPES[seed % len(SHAPES)]
    canvas = np.full((height, width, 3), 127.0, dtype=np.float32)
    for cells, strength in OCTAVES:
        shape = (max(2, height * cells // 500), max(2, width * cells // 500), 3)
        noise = np.clip(127 + strength * random.standard_normal(shape), 0, 255).astype(np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        canvas += np.asarray(layer, dtype=np.float32) - 127
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
