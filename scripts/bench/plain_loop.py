"""The loop people start from: one image at a time, a pass a layer, float32, appended to HDF5.

plain_loop.py IMAGES OUT.h5 --layers conv5_3,fc7 --weights FILE.pth
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

import h5py
import torch
from common import list_images, load_vgg19, network_up_to, pick_device, report
from PIL import Image
from torchvision.models import VGG19_Weights

if TYPE_CHECKING:
    from torch import nn


def main() -> None:
    """Reads the command line and runs the loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--layers", default="conv5_3,fc7")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = pick_device(given.device)
    model = load_vgg19(given.weights, device)
    parts = {layer: network_up_to(model, layer) for layer in given.layers.split(",")}
    started = time.perf_counter()
    names = list_images(given.images)
    with h5py.File(given.out, "w") as file, torch.no_grad():
        run(given.images, names, parts, file, device)
    report(len(names), time.perf_counter() - started)


def run(
    folder: str,
    names: list[str],
    parts: dict[str, nn.Sequential],
    file: h5py.File,
    device: torch.device,
) -> None:
    """One dataset an image and layer, `/<image name>/<layer>`, float32 (D,)."""
    transform = VGG19_Weights.IMAGENET1K_V1.transforms()
    for name in names:
        image = Image.open(os.path.join(folder, name)).convert("RGB")
        x = transform(image).unsqueeze(0).to(device)  # (1, 3, 224, 224)
        for layer, part in parts.items():
            feature = part(x)  # (1, C, H, W) or (1, D)
            if feature.dim() == 4:
                feature = feature.mean(dim=(2, 3))  # (1, C)
            file[f"{name}/{layer}"] = feature.squeeze(0).cpu().numpy()


if __name__ == "__main__":
    main()
