"""What int8, bfloat16 and --decode fast cost, with real weights on photographs.

accuracy.py WEIGHTS PHOTOS    vgg16's convolutions, normalised as `--transform features` does

Cosine of each layer to float32 and exact decoding, and whether altered photographs find their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from vggfeat import Extractor
from vggfeat.core.settings import Settings
from vggfeat.extraction.calibration import CALIBRATION_SAMPLE
from vggfeat.images.decode import decode
from vggfeat.network.calibration import calibrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LAYERS = "conv1_2,conv2_2,conv3_3,conv4_3,conv5_3,pool5:flatten"
SMALL = 64
LIMIT = 2**30


def main() -> None:
    """Prints a table for precisions, a line for retrieval, a table for decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("photos")
    given = parser.parse_args()
    exact = Settings(
        layers=LAYERS, model="vgg16", weights=given.weights, transform="features",
        precision="float32", device="cpu",
    )  # fmt: skip
    files = [path.read_bytes() for path in sorted(Path(given.photos).iterdir())]
    compare_precisions(exact, [Image.open(io.BytesIO(file)).convert("RGB") for file in files])
    compare_decoding(dataclasses.replace(exact, size=SMALL), files)


def compare_precisions(exact: Settings, photos: list[Image.Image]) -> None:
    """The photographs squashed; int8 is calibrated on the first few and compared on the others."""
    images = squashed(photos)
    eight_bits = dataclasses.replace(exact, precision="int8")
    networks = {
        "float32": Extractor(exact),
        "bfloat16": Extractor(dataclasses.replace(exact, precision="bfloat16")),
        "int8": Extractor(
            eight_bits, activations=calibrate(eight_bits, images[:CALIBRATION_SAMPLE])
        ),
    }
    found = {name: features_of(network, images) for name, network in networks.items()}
    print("| layer | int8, least | int8, median | bfloat16, least |\n|---|---|---|---|")
    for layer, right in found["float32"].items():
        int8 = torch.cosine_similarity(found["int8"][layer], right)[CALIBRATION_SAMPLE:]
        half = torch.cosine_similarity(found["bfloat16"][layer], right)
        print(f"| {layer} | {int8.min():.5f} | {int8.median():.5f} | {half.min():.6f} |")
    for name in ("float32", "int8"):
        hits = sum(own_found(networks[name], found[name]["conv5_3"], photos, alter)
                   for alter in (ImageOps.mirror, cropped, recoloured))  # fmt: skip
        print(f"\n{name}: {hits} of {3 * len(photos)} altered photographs find their own first")


def squashed(photos: list[Image.Image]) -> Tensor:
    """uint8 (N, 3, 224, 224)."""
    pixels = np.stack([np.asarray(photo.resize((224, 224))) for photo in photos])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def features_of(network: Extractor, images: Tensor) -> dict[str, Tensor]:
    """Layer → float32 (N, D)."""
    parts = [network(part) for part in torch.split(images, 10)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def own_found(
    network: Extractor,
    database: Tensor,
    photos: list[Image.Image],
    alter: Callable[[Image.Image], Image.Image],
) -> int:
    """How many altered photographs are nearest to themselves in conv5_3, by cosine."""
    queries = features_of(network, squashed([alter(photo) for photo in photos]))["conv5_3"]
    cosines = functional.normalize(queries) @ functional.normalize(database).T
    return int((cosines.argmax(1) == torch.arange(len(photos))).sum())


def cropped(photo: Image.Image) -> Image.Image:
    """The middle 70 % of either side."""
    width, height = photo.size
    return photo.resize(photo.size, box=(0.15 * width, 0.15 * height, 0.85 * width, 0.85 * height))


def recoloured(photo: Image.Image) -> Image.Image:
    """Red brighter by a fifth, green darker by a tenth, blue by three tenths."""
    gains = np.array([1.2, 0.9, 0.7])
    return Image.fromarray((np.asarray(photo) * gains).clip(0, 255).astype(np.uint8))


def compare_decoding(settings: Settings, files: list[bytes]) -> None:
    """Photographs brought to so few pixels that most of them are shrunk while decoding."""
    network = Extractor(settings)
    found = {}
    for how in ("exact", "fast"):
        preprocess = dataclasses.replace(settings.preprocess(), decode=how)
        pixels = np.stack([decode(io.BytesIO(file), preprocess, LIMIT) for file in files])
        found[how] = features_of(network, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    print("\n| layer | --decode fast, least | median |\n|---|---|---|")
    for layer, right in found["exact"].items():
        cosine = torch.cosine_similarity(found["fast"][layer], right)
        print(f"| {layer} | {cosine.min():.5f} | {cosine.median():.5f} |")


if __name__ == "__main__":
    main()
