"""Images a second that one core decodes and resizes: `decode.py IMAGES...`.

Ours (pillow, torchvision, fast) against Pillow with torchvision's own transform, checked to give
the same pixels first, and `torchvision` those of its transform of a tensor. Only reading from
memory to pixels is timed, with the memory settings of the decoding processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import functional
from torchvision.transforms.v2 import functional as v2

from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.resources import give_freed_memory_back
from vggfeat.images.decode import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Decoder = Callable[[bytes], NDArray[np.uint8]]

EXACT = Preprocess()
TENSORS = dataclasses.replace(EXACT, decode="torchvision")
FAST = dataclasses.replace(EXACT, decode="fast")
LIMIT = 2**30
ROUNDS = 9


def main() -> None:
    """Check, then time all in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--large", action="store_true", help="also at 4000 x 3000")
    given = parser.parse_args()
    torch.set_num_threads(1)
    give_freed_memory_back()
    # torchvision 0.29 announces that its decoders will move to TorchCodec.
    warnings.simplefilter("ignore", DeprecationWarning)
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
        "pillow": lambda file: decode(io.BytesIO(file), EXACT, LIMIT),
        "torchvision": lambda file: decode(io.BytesIO(file), TENSORS, LIMIT),
        "fast": lambda file: decode(io.BytesIO(file), FAST, LIMIT),
    }
    for file in files:
        assert np.array_equal(decoders["pillow"](file), torchvisions(file))
        assert np.array_equal(decoders["torchvision"](file), of_tensor(file))
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


def of_tensor(file: bytes) -> NDArray[np.uint8]:
    """What torchvision's functions make of the tensor that it decodes."""
    data = torch.frombuffer(bytearray(file), dtype=torch.uint8)
    image = decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    image = v2.center_crop(v2.resize(image, [256], antialias=True), [224])
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return pixels


if __name__ == "__main__":
    main()
