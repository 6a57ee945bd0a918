"""What the contestants of a benchmark share: images, layers, weights, the clock, the report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.models import vgg19

ENDINGS = {".jpg", ".jpeg", ".png"}
CONVOLUTIONS = (2, 2, 4, 4, 4)
"""Of VGG19, in each block."""

_INDEX = {f"fc{number}": index for number, index in ((6, 1), (7, 4), (8, 6))}


def _end_of(layer: str) -> tuple[str, int]:
    """Container and index of the torchvision module whose output the layer is: behind its ReLU."""
    if layer in _INDEX:
        return "classifier", _INDEX[layer]
    block, number = (int(part) for part in layer.removeprefix("conv").split("_"))
    return "features", 2 * (sum(CONVOLUTIONS[: block - 1]) + number) - 1 + (block - 1)


def node_of(layer: str) -> str:
    """Name of the torchvision module whose output the layer is, `features.33` for conv5_3."""
    container, index = _end_of(layer)
    return f"{container}.{index}"


def network_up_to(model: nn.Module, layer: str) -> nn.Sequential:
    """The part of torchvision's `model` that ends with `layer`, with its own modules."""
    container, index = _end_of(layer)
    features, classifier = model.get_submodule("features"), model.get_submodule("classifier")
    if container == "features":
        return nn.Sequential(*list(features.children())[: index + 1])
    tail = list(classifier.children())[: index + 1]
    return nn.Sequential(features, model.get_submodule("avgpool"), nn.Flatten(), *tail)


def load_vgg19(weights: str, device: torch.device) -> nn.Module:
    """VGG19 of torchvision with a state dict from a file, ready for inference."""
    model: nn.Module = vgg19(init_weights=False)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval().to(device)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def list_images(folder: str) -> list[str]:
    """Paths of the images in and below a folder, relative to it, sorted."""
    root = Path(folder)
    found = [path for path in root.rglob("*") if path.suffix.lower() in ENDINGS]
    return sorted(path.relative_to(root).as_posix() for path in found)


def seconds_since_start() -> float:
    """Seconds since the system started this process, before Python itself was up."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def report(images: int, steady: float) -> None:
    """Prints one line of JSON: how many images, and in which time."""
    line = {
        "images": images,
        "seconds_total": seconds_since_start(),
        "seconds_steady": steady,
        "images_per_second": images / steady,
    }
    print(json.dumps(line))
