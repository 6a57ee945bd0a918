"""Images a second that one core decodes and resizes: `decode.py IMAGES...`.

Ours, exact and fast, against Pillow with torchvision's own transform, checked to give the same
pixels first. Only reading from memory to pixels is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional

from vggfeat.core.preprocessing import Preprocess
from vggfeat.images.decode import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Decoder = Callable[[bytes], NDArray[np.uint8]]

EXACT = Preprocess()
FAST = dataclasses.replace(EXACT, decode="fast")
LIMIT = 2**30
ROUNDS = 5


def main() -> None:
    """Checks, then times the three in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--large", action="store_true", help="also at 4000 x 3000")
    given = parser.parse_args()
    torch.set_num_threads(1)
    paths = [path for folder in given.folders for path in sorted(Path(folder).rglob("*.*"))]
    files = [path.read_bytes() for path in paths]
    print("| images | decoder | images/s a core | against torchvision's transform |")
    print("|---|---|---|---|")
    compare(f"{len(files)} as they are", files)
    if given.large:
        compare("8 of them at 4000 x 3000", [enlarged(file) for file in files[:8]])


def enlarged(file: bytes) -> bytes:
    """The image at the size of a camera's."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(file)).convert("RGB").resize((4000, 3000)).save(stream, "JPEG")
    return stream.getvalue()


def compare(name: str, files: list[bytes]) -> None:
    """Rows of the table for one set of files."""
    decoders: dict[str, Decoder] = {
        "torchvision's transform": torchvisions,
        "exact": lambda file: decode(io.BytesIO(file), EXACT, LIMIT),
        "fast": lambda file: decode(io.BytesIO(file), FAST, LIMIT),
    }
    for file in files:
        assert np.array_equal(decoders["exact"](file), torchvisions(file))
    seconds: dict[str, list[float]] = {label: [] for label in decoders}
    for _ in range(ROUNDS):
        for label, decoder in decoders.items():
            started = time.process_time()
            for file in files:
                decoder(file)
            seconds[label].append(time.process_time() - started)
    base = seconds["torchvision's transform"]
    for label, spent in seconds.items():
        ratio = statistics.median(b / s for b, s in zip(base, spent, strict=True))
        rate = len(files) / statistics.median(spent)
        print(f"| {name} | {label} | {rate:.0f} | {ratio:.2f} |")


def torchvisions(file: bytes) -> NDArray[np.uint8]:
    """What torchvision's VGG transform does before it normalises."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    image = functional.center_crop(functional.resize(image, [256]), [224])
    return np.asarray(image)


if __name__ == "__main__":
    main()
