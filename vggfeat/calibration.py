"""How large activations get, which 8-bit integers must know before the first image."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vggfeat.decode import decode
from vggfeat.device import choose_devices
from vggfeat.errors import DecodeError, InputError
from vggfeat.extractor import Extractor
from vggfeat.network import needed_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vggfeat.config import Settings
    from vggfeat.sources import Manifest
    from vggfeat.weights import Weights

SAMPLE = 32
"""Images that a run is calibrated on."""

_TRIED = 4 * SAMPLE  # of which some may be broken
_AT_ONCE = 4  # images a pass

log = logging.getLogger("vggfeat")


def calibrate(
    settings: Settings, images: Tensor, weights: Weights | None = None
) -> dict[str, float]:
    """The largest value of each convolution behind its ReLU over some images, for precision int8.

    Args:
        settings: layers, model, weights, device; their precision is taken as float32.
        images: uint8 RGB (N, 3, H, W). A few dozen of the kind to come are enough; what exceeds
            their largest later is cut to it.
        weights: weights already found; None looks for `settings.weights`.

    Returns:
        conv layer → its largest value, for all that `settings.layers` need.
    """
    return _largest(settings, torch.split(images, _AT_ONCE), weights)


def _largest(
    settings: Settings, batches: Sequence[Tensor], weights: Weights | None
) -> dict[str, float]:
    """See `calibrate`; batches may be of different shapes."""
    table = needed_layers(settings.specs, settings.model)
    names = [layer.name for layer in table if layer.kind == "conv"]
    tapped = ",".join(f"{name}:max" for name in names)
    device = str(choose_devices(settings.device)[0])  # of several, one is enough
    exact = replace(settings, layers=tapped, precision="float32", norm="none", device=device)
    extractor = Extractor(exact, weights)
    largest = dict.fromkeys(names, 0.0)
    for batch in batches:
        features = extractor(batch)
        for name in names:
            largest[name] = max(largest[name], float(features[f"{name}:max"].max()))
    return largest


def calibrate_on_sample(
    settings: Settings, manifest: Manifest, weights: Weights
) -> dict[str, float]:
    """`calibrate` on images spread evenly over a run's, the same ones for the same manifest.

    Raises:
        InputError: none of them can be decoded.
    """
    log.info("calibrating 8-bit integers on %d images", min(SAMPLE, len(manifest)))
    images = _sample(settings, manifest)
    if settings.crop == "none":  # shapes differ
        return _largest(settings, images, weights)
    return calibrate(settings, torch.cat(images), weights)


def _sample(settings: Settings, manifest: Manifest) -> list[Tensor]:
    """Up to `SAMPLE` images, uint8 (1, 3, H, W) each."""
    # In an order of which every beginning is spread as well, as most will do with the first few.
    order = np.random.default_rng(0).permutation(manifest.spread(_TRIED))
    images: list[Tensor] = []
    for position in order.tolist():
        if len(images) == SAMPLE:
            break
        try:
            with manifest.open(position) as stream:
                pixels = decode(stream, settings.preprocess(), settings.max_pixels)
        except DecodeError:
            continue
        images.append(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    if not images:
        raise InputError(
            f"precision int8 is calibrated on images, and none of {len(order)} tried can be "
            "decoded; use another --precision, or look at what they are"
        )
    return images
