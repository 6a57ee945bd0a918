"""What int8, bfloat16 and --decode fast cost, with real weights on photographs.

accuracy.py WEIGHTS PHOTOS [OTHERS]... [--emulate]

vgg16's convolutions, normalised as `--transform features` does. int8 is calibrated on the first
photographs, and compared on the others and on the images of further folders. Prints quantiles of
the cosine of each layer to float32. Without --emulate, which is for CPUs without VNNI and computes
what the integers come to in float32, also those of bfloat16, whether altered photographs find their
own, and the cosine of --decode fast.
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
from vggfeat.network import device, onednn
from vggfeat.network.calibration import calibrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LAYERS = "conv1_2,conv2_2,conv3_3,conv4_3,conv5_3,pool5:flatten"
QUANTILES = (0.01, 0.05, 0.5)
SMALL = 64
LIMIT = 2**30


def main() -> None:
    """Prints a table for precisions, lines for retrieval, a table for decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("photos", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--emulate", action="store_true")
    given = parser.parse_args()
    exact = Settings(
        layers=LAYERS, model="vgg16", weights=given.weights, transform="features",
        precision="float32", device="cpu",
    )  # fmt: skip
    files = [path.read_bytes() for path in sorted(given.photos.iterdir())]
    photos = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    others = [Image.open(path).convert("RGB") for folder in given.others
              for path in sorted(folder.rglob("*.*"))]  # fmt: skip
    if given.emulate:
        emulate()
    networks = networks_of(exact, prepared(exact, photos[:CALIBRATION_SAMPLE]), given.emulate)
    compare_precisions(networks, prepared(exact, photos[CALIBRATION_SAMPLE:] + others))
    if not given.emulate:
        compare_retrieval(networks, photos)
        compare_decoding(dataclasses.replace(exact, size=SMALL), files)


def prepared(settings: Settings, photos: list[Image.Image]) -> Tensor:
    """The photographs resized and cropped as in a run, uint8 (N, 3, 224, 224)."""
    network = Extractor(settings)
    return torch.stack([network.transform(photo) for photo in photos])


def emulate() -> None:
    """Lets the 8-bit convolution be one in float32, which sums integers to a rounding."""
    device.cpu_has_vnni = lambda: True
    onednn.pack_weight = lambda weight, *_: weight
    onednn.convolve = convolve
    check_emulation()


def convolve(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor,
    *,
    scale_in: float,
    scale_out: float | None,
    padding: int,
) -> Tensor:
    """What `vggfeat.network.onednn.convolve` returns, by float32."""
    sums = functional.conv2d(x.float(), packed.float(), padding=padding)
    values = sums * (scale_in * scales).view(-1, 1, 1) + bias.view(-1, 1, 1)
    if scale_out is None:
        return values
    return (values / scale_out).round().clamp(0, 255).to(torch.uint8)


def check_emulation() -> None:
    """The emulation gives what exact integers come to, within one step."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1, 64, 9, 9), generator=draw, dtype=torch.uint8)
    weight = torch.randint(-127, 128, (8, 64, 3, 3), generator=draw, dtype=torch.int8)
    scales, bias = torch.rand(8, generator=draw) / 127, torch.randn(8, generator=draw)
    windows = functional.unfold(x.double(), 3, padding=1)  # (1, 576, 81)
    sums = (weight.double().flatten(1) @ windows).view(1, 8, 9, 9)
    values = sums * (0.1 * scales.double()).view(-1, 1, 1) + bias.double().view(-1, 1, 1)
    right = (values / 3.0).round().clamp(0, 255)
    found = convolve(x, weight, scales, bias, scale_in=0.1, scale_out=3.0, padding=1)
    assert (found.double() - right).abs().max() <= 1
    assert (found.double() == right).double().mean() > 0.99


def networks_of(exact: Settings, sample: Tensor, emulated: bool) -> dict[str, Extractor]:
    """Precision → the network; int8 is calibrated on the sample, uint8 (N, 3, 224, 224)."""
    eight_bits = dataclasses.replace(exact, precision="int8")
    int8 = Extractor(eight_bits, activations=calibrate(eight_bits, sample))
    networks = {"float32": Extractor(exact), "int8": int8}
    if not emulated:
        networks["bfloat16"] = Extractor(dataclasses.replace(exact, precision="bfloat16"))
    return networks


def compare_precisions(networks: dict[str, Extractor], images: Tensor) -> None:
    """Quantiles of the cosine to float32 over images that calibration did not see."""
    found = {name: features_of(network, images) for name, network in networks.items()}
    right = found.pop("float32")
    print(f"{len(images)} images")
    print("| layer | precision | least |", " | ".join(f"{share:.0%}" for share in QUANTILES), "|")
    print("|---" * (len(QUANTILES) + 3) + "|")
    for name, features in found.items():
        for layer, feature in features.items():
            cosine = torch.cosine_similarity(feature, right[layer])
            shown = " | ".join(f"{cosine.quantile(share):.5f}" for share in QUANTILES)
            print(f"| {layer} | {name} | {cosine.min():.5f} | {shown} |", flush=True)


def compare_retrieval(networks: dict[str, Extractor], photos: list[Image.Image]) -> None:
    """How many altered photographs find their own first."""
    for name in ("float32", "int8"):
        database = features_of(networks[name], squashed(photos))["conv5_3"]
        hits = sum(own_found(networks[name], database, photos, alter)
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
