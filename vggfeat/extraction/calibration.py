"""Calibration of 8-bit integers on a sample of a run's images, before the first is extracted.

Convolutions in integers (`--precision int8`) need the largest activation of each layer; features
stored as integers (`--dtype int8`) need the range of each dimension.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from vggfeat.core.quantization import Scales
from vggfeat.core.text import counted
from vggfeat.errors import InputError
from vggfeat.images.dataset import ImageDataset
from vggfeat.images.decoding import choose_workers
from vggfeat.images.loader import load_batches
from vggfeat.network.calibration import calibrate, largest_activations

if TYPE_CHECKING:
    from torch import Tensor

    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights

CALIBRATION_SAMPLE = 32
"""Images on which activations are measured."""

RANGE_SAMPLE = 128
"""Images on which the ranges of features are measured."""

_HEADROOM = 1.0
_TRIED = 4  # times as many images as wanted, of which some may be broken
_IMAGES_PER_PASS = 4

log = logging.getLogger("vggfeat")


def calibrate_on_sample(
    settings: Settings, images: ImageList, weights: Weights
) -> dict[str, float]:
    """Return what `calibrate` does, on images spread evenly over those of a run.

    The same image list gives the same sample.
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
    """Return scales for features stored as int8, by images spread evenly over those of a run.

    Later images will exceed the range of the sample, some by far in a dimension that responds to
    what they show; clipping those costs more than coarser steps. So each range is doubled, and is
    at least as wide as that of the widest dimension of the layer; it does not go below 0 where the
    sample never did, as after a ReLU.

    Returns:
        stored name → scales; the same image list gives the same scales.
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
            if feature.dim() > 2:  # noqa: PLR2004 (N, D)
                feature = feature.flatten(2).transpose(1, 2).flatten(0, 1)  # noqa: PLW2901
            found[name].append(feature.cpu())  # (n * H * W, C)
    return {name: _widened(torch.cat(parts)) for name, parts in found.items()}


def _widened(values: Tensor) -> Scales:
    low, high = values.amin(0), values.amax(0)  # (D,)
    span = high - low
    more = torch.maximum(_HEADROOM * span, span.max() - span)
    down = torch.where(low < 0, more / 2, torch.minimum(more / 2, low))
    return Scales.over((low - down).numpy(), (high + more - down).numpy())


def _sample(settings: Settings, images: ImageList, count: int, what: str) -> list[Tensor]:
    """Decode up to `count` images, uint8 or uint16 (1, C, H, W) each."""
    # Shuffled, so that the first few, which most runs stop at, are spread over the list as well.
    order = np.random.default_rng(0).permutation(images.spread(_TRIED * count))
    loader = load_batches(
        ImageDataset(images, settings),
        order[:, np.newaxis],
        settings,
        workers=min(count, len(order), choose_workers(settings, {"cpu"})),
        pin=False,
    )
    with contextlib.closing(loader):
        decoded = (batch.images for batch in loader if len(batch.rows))
        found = [images.permute(0, 3, 1, 2) for images in itertools.islice(decoded, count)]
    if not found:
        raise InputError(
            f"{what} int8 is calibrated on images, and none of {len(order)} tried can be "
            f"decoded; use another --{what}, or look at what they are"
        )
    return found
