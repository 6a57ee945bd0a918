"""What 8-bit integers must know before the first image: how large values get on a sample.

Two things go by it: convolutions computed in integers (`--precision int8`), which need the largest
activation of each layer, and features stored as integers (`--dtype int8`), which need the range of
each dimension.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from vggfeat.core.quantization import Scales
from vggfeat.core.text import counted
from vggfeat.errors import DecodeError, InputError
from vggfeat.images.decode import decode
from vggfeat.network.calibration import calibrate, largest_activations

if TYPE_CHECKING:
    from torch import Tensor

    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights

CALIBRATION_SAMPLE = 32
"""Images that a run is calibrated on."""

RANGE_SAMPLE = 128
"""Images from which the ranges of dimensions are taken."""

_HEADROOM = 1.0
_TRIED = 4  # times as many images as wanted, of which some may be broken
_IMAGES_PER_PASS = 4

log = logging.getLogger("vggfeat")


def calibrate_on_sample(
    settings: Settings, images: ImageList, weights: Weights
) -> dict[str, float]:
    """`calibrate` on images spread evenly over a run's, the same ones for the same images.

    Raises:
        InputError: none of them can be decoded.
    """
    log.info(
        "calibrating 8-bit integers on %s", counted(min(CALIBRATION_SAMPLE, len(images)), "image")
    )
    batches = _sample(settings, images, CALIBRATION_SAMPLE, "precision")
    if settings.crop == "none":  # shapes differ
        return largest_activations(settings, batches, weights)
    return calibrate(settings, torch.cat(batches), weights)


def scales_on_sample(
    settings: Settings, images: ImageList, replicas: Replicas
) -> dict[str, Scales]:
    """Scales for features stored as int8, from images spread evenly over a run's.

    Images to come will go beyond the sample's range, some far in one dimension that is about what
    they show; cutting that off costs more than coarser steps. So each range is doubled, and is
    that of the layer's widest dimension at least; not below 0 where the sample never was, as
    behind a ReLU.

    Args:
        settings: with dtype int8.
        images: the run's images; the same ones give the same scales.
        replicas: the networks.

    Returns:
        stored name → scales.

    Raises:
        InputError: none of the images tried can be decoded.
    """
    sample = counted(min(RANGE_SAMPLE, len(images)), "image")
    log.info("finding the range of each dimension on %s", sample)
    batches = _sample(settings, images, RANGE_SAMPLE, "dtype")
    if settings.crop != "none":  # else shapes differ
        starts = range(0, len(batches), _IMAGES_PER_PASS)
        batches = [torch.cat(batches[at : at + _IMAGES_PER_PASS]) for at in starts]
    found: dict[str, list[Tensor]] = {name: [] for name in settings.stored}
    for batch in batches:
        for name, feature in replicas.features(batch).items():
            found[name].append(_per_channel(feature).cpu())  # (n * H * W, C)
    return {name: _widened(torch.cat(parts)) for name, parts in found.items()}


def _per_channel(feature: Tensor) -> Tensor:
    return feature.flatten(2).transpose(1, 2).flatten(0, 1) if feature.dim() > 2 else feature  # noqa: PLR2004 (N, D)


def _widened(values: Tensor) -> Scales:
    low, high = values.amin(0), values.amax(0)  # (D,)
    span = high - low
    more = torch.maximum(_HEADROOM * span, span.max() - span)
    down = torch.where(low < 0, more / 2, torch.minimum(more / 2, low))
    return Scales.over((low - down).numpy(), (high + more - down).numpy())


def _sample(settings: Settings, images: ImageList, count: int, what: str) -> list[Tensor]:
    """Up to `count` images, uint8 or uint16 (1, C, H, W) each."""
    # In an order of which every beginning is spread as well, as most will do with the first few.
    order = np.random.default_rng(0).permutation(images.spread(_TRIED * count))
    found: list[Tensor] = []
    for position in order.tolist():
        if len(found) == count:
            break
        try:
            with images.open(position) as stream:
                pixels = decode(stream, settings.preprocess(), settings.max_pixels)
        except DecodeError:
            continue
        found.append(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    if not found:
        raise InputError(
            f"{what} int8 is calibrated on images, and none of {len(order)} tried can be "
            f"decoded; use another --{what}, or look at what they are"
        )
    return found
