"""What 8-bit integers must know before the first image: how large values get on a sample.

Two things go by it: convolutions computed in integers (`--precision int8`), which need the largest
activation of each layer, and features stored as integers (`--dtype int8`), which need the range of
each dimension.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vggfeat.core.isolation import isolated
from vggfeat.core.quantization import Scales
from vggfeat.core.text import counted
from vggfeat.errors import DecodeError, InputError, UsageError
from vggfeat.images.decode import decode
from vggfeat.network.device import choose_devices
from vggfeat.network.extractor import Extractor
from vggfeat.network.vgg import needed_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vggfeat.core.settings import Settings
    from vggfeat.images.sources import ImageList
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights

CALIBRATION_SAMPLE = 32
"""Images that a run is calibrated on."""

RANGE_SAMPLE = 128
"""Images from which the ranges of dimensions are taken."""

_HEADROOM = 1.0
_TRIED = 4  # times as many images as wanted, of which some may be broken
_AT_ONCE = 4  # images a pass

log = logging.getLogger("vggfeat")


@isolated()
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

    Raises:
        UsageError: no images, or what an `Extractor` refuses.
    """
    given: Any = images
    if not isinstance(given, torch.Tensor) or not given.numel():
        found = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise UsageError(
            f"images to calibrate on are {found}; expected pixels, a torch.Tensor (N, 3, H, W) "
            "with a few dozen of the images to come"
        )
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
    settings: Settings, manifest: ImageList, weights: Weights
) -> dict[str, float]:
    """`calibrate` on images spread evenly over a run's, the same ones for the same manifest.

    Raises:
        InputError: none of them can be decoded.
    """
    log.info(
        "calibrating 8-bit integers on %s", counted(min(CALIBRATION_SAMPLE, len(manifest)), "image")
    )
    images = _sample(settings, manifest, CALIBRATION_SAMPLE, "precision")
    if settings.crop == "none":  # shapes differ
        return _largest(settings, images, weights)
    return calibrate(settings, torch.cat(images), weights)


def scales_on_sample(
    settings: Settings, manifest: ImageList, replicas: Replicas
) -> dict[str, Scales]:
    """Scales for features stored as int8, from images spread evenly over a run's.

    Images to come will go beyond the sample's range, some far in one dimension that is about what
    they show; cutting that off costs more than coarser steps. So each range is doubled, and is
    that of the layer's widest dimension at least; not below 0 where the sample never was, as
    behind a ReLU.

    Args:
        settings: with dtype int8.
        manifest: the run's images; the same ones give the same scales.
        replicas: the networks.

    Returns:
        stored name → scales.

    Raises:
        InputError: none of the images tried can be decoded.
    """
    sample = counted(min(RANGE_SAMPLE, len(manifest)), "image")
    log.info("finding the range of each dimension on %s", sample)
    images = _sample(settings, manifest, RANGE_SAMPLE, "dtype")
    if settings.crop != "none":  # else shapes differ
        images = [torch.cat(images[at : at + _AT_ONCE]) for at in range(0, len(images), _AT_ONCE)]
    found: dict[str, list[Tensor]] = {name: [] for name in settings.stored}
    for batch in images:
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


def _sample(settings: Settings, manifest: ImageList, count: int, what: str) -> list[Tensor]:
    """Up to `count` images, uint8 or uint16 (1, C, H, W) each."""
    # In an order of which every beginning is spread as well, as most will do with the first few.
    order = np.random.default_rng(0).permutation(manifest.spread(_TRIED * count))
    images: list[Tensor] = []
    for position in order.tolist():
        if len(images) == count:
            break
        try:
            with manifest.open(position) as stream:
                pixels = decode(stream, settings.preprocess(), settings.max_pixels)
        except DecodeError:
            continue
        images.append(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    if not images:
        raise InputError(
            f"{what} int8 is calibrated on images, and none of {len(order)} tried can be "
            f"decoded; use another --{what}, or look at what they are"
        )
    return images
