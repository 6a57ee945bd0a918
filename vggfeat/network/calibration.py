"""Measure the largest activation of each convolution, the scales of `--precision int8`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vggfeat.core.isolation import isolated
from vggfeat.errors import UsageError
from vggfeat.network.device import choose_devices
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.vgg import needed_layers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from vggfeat.core.settings import Settings
    from vggfeat.network.weights import Weights

_IMAGES_PER_PASS = 4


@isolated()
def calibrate(
    settings: Settings, images: Tensor, weights: Weights | None = None
) -> dict[str, float]:
    """Return the largest value of each convolution after its ReLU over some images, for int8.

    Args:
        settings: layers, model, weights, device; their precision is taken as float32.
        images: uint8 RGB (N, 3, H, W). A few dozen of the kind to come are enough; larger
            values that come later are clipped.
        weights: loaded weights; None looks for `settings.weights`.

    Returns:
        convolution → its largest value, for all convolutions that `settings.layers` need.

    Raises:
        UsageError: there are no images, or an `Extractor` would refuse them.
    """
    given: Any = images
    if not isinstance(given, torch.Tensor) or not given.numel():
        found = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise UsageError(
            f"images to calibrate on are {found}; expected pixels, a torch.Tensor (N, 3, H, W) "
            "with a few dozen of the images to come"
        )
    return largest_activations(settings, torch.split(images, _IMAGES_PER_PASS), weights)


def largest_activations(
    settings: Settings, batches: Iterable[Tensor], weights: Weights | None
) -> dict[str, float]:
    """Do what `calibrate` does, for batches that may differ in shape."""
    table = needed_layers(settings.specs, settings.model)
    names = [layer.name for layer in table if layer.kind == "conv"]
    tapped = ",".join(f"{name}:max" for name in names)
    device = str(choose_devices(settings.device)[0])  # one is enough for a few images
    exact = replace(settings, layers=tapped, precision="float32", norm="none", device=device)
    extractor = TensorExtractor(exact, weights)
    largest = dict.fromkeys(names, 0.0)
    for batch in batches:
        features = extractor(batch)
        for name in names:
            largest[name] = max(largest[name], float(features[f"{name}:max"].max()))
    return largest
