"""The good forty-line script: all layers in one pass, batches, workers, half precision.

good_script.py IMAGES OUT.h5 --layers conv5_3,fc7 --weights FILE.pth [--precision bfloat16]
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from common import list_images, load_vgg19, node_of, pick_device, report
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models import VGG19_Weights
from torchvision.models.feature_extraction import create_feature_extractor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Images(Dataset[torch.Tensor]):
    """Item k is the k-th image, normalised, float32 (3, 224, 224)."""

    def __init__(self, folder: str, names: list[str]) -> None:
        self.paths = [os.path.join(folder, name) for name in names]
        self.transform = VGG19_Weights.IMAGENET1K_V1.transforms()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def main() -> None:
    """Reads the command line, extracts, and writes one (N, D) float16 dataset a layer."""
    given = read_arguments()
    device = pick_device(given.device)
    cuda = device.type == "cuda"
    nodes = {node_of(layer): layer for layer in given.layers.split(",")}
    model = create_feature_extractor(load_vgg19(given.weights, device), nodes)
    dtype = getattr(torch, given.precision)
    model = model.to(memory_format=torch.channels_last, dtype=torch.float32 if cuda else dtype)
    names = list_images(given.images)
    loader = DataLoader(
        Images(given.images, names),
        batch_size=given.batch_size or (256 if cuda else 16),
        num_workers=given.workers or (os.cpu_count() or 1 if cuda else 2),
        pin_memory=cuda,
    )
    started = time.perf_counter()
    features = run(model, loader, device, dtype)
    with h5py.File(given.out, "w") as file:
        file["names"] = names
        for layer, values in features.items():
            file[layer] = values
    report(len(names), time.perf_counter() - started)


def read_arguments() -> argparse.Namespace:
    """Images, output, layers, weights; batch size and workers of 0 are the device's own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--layers", default="conv5_3,fc7")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    return parser.parse_args()


def run(
    model: Any, loader: DataLoader[torch.Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, NDArray[np.float16]]:
    """Layer → float16 (N, D); maps are averaged over their positions."""
    parts: dict[str, list[NDArray[np.float16]]] = {}
    half = torch.autocast("cuda", dtype=torch.float16, enabled=device.type == "cuda")
    with torch.no_grad(), half:
        for batch in loader:
            images = batch.to(device, non_blocking=True, memory_format=torch.channels_last)
            images = images if device.type == "cuda" else images.to(dtype)
            for layer, feature in model(images).items():
                pooled = feature.float().mean(dim=(2, 3)) if feature.dim() == 4 else feature
                parts.setdefault(layer, []).append(pooled.half().cpu().numpy())
    return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}


if __name__ == "__main__":
    main()
