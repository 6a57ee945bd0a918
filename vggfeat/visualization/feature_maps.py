"""Compute the feature maps of one image."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vggfeat.core import activity
from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.preprocessing import RGB
from vggfeat.core.vgg_layers import layer_table
from vggfeat.errors import DecodeError, InputError, UsageError
from vggfeat.images.decode import decode_file
from vggfeat.images.intensity import BYTE, Range, to_levels
from vggfeat.network.extractor import TensorExtractor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.core.settings import Settings

log = logging.getLogger("vggfeat")

MEAN: Final = "mean"
"""Stands for the mean of all channels."""

_TOP: Final = "top:"
_MOST_CHANNELS: Final = 144  # drawn of one layer; more would be smaller than what they show


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """The output of one layer for one image.

    Attributes:
        layer: its name, with `.pre` if taken before its ReLU.
        values: float32 (C, H, W).
    """

    layer: str
    values: NDArray[np.float32]

    @property
    def mean(self) -> NDArray[np.float32]:
        """The mean over channels, float32 (H, W)."""
        mean: NDArray[np.float32] = self.values.mean(axis=0)
        return mean

    def strongest(self, count: int) -> NDArray[np.int64]:
        """Return the channels with the largest mean, largest first, int64 (count,)."""
        means = self.values.mean(axis=(1, 2), dtype=np.float64)  # (C,)
        order: NDArray[np.int64] = np.argsort(-means, kind="stable")[:count]
        return order


@dataclass(frozen=True, slots=True, eq=False)
class SeenImage:
    """An image as the network receives it, and its feature maps."""

    name: str
    model: str
    weights: str
    pixels: NDArray[np.uint8]  # (H, W, 3); the mean of channels other than RGB
    maps: tuple[FeatureMap, ...]
    warning: str = ""  # what to know of them, such as that the weights are random


def last_convolutions(model: str) -> str:
    """Return the last convolution of each block, as layer specs."""
    last = {layer.level: layer.name for layer in layer_table(model) if layer.kind == "conv"}
    return ",".join(last.values())


def see(path: str, settings: Settings) -> SeenImage:
    """Compute the feature maps of one image, in float32 on any device, so that no rounding shows.

    Args:
        path: an image file.
        settings: layers, without pools; model, weights, one device and preprocessing.
    """
    specs = _map_specs(settings)
    preprocess = settings.preprocess()
    try:
        pixels = decode_file(os.fsencode(path), preprocess, settings.max_pixels)  # (H, W, C)
    except DecodeError as error:
        raise InputError(
            f"{path!r} cannot be plotted: {error}; expected an image or a cache"
        ) from error
    # One image alone may have any shape, which settings that make a cache refuse for maps.
    alone = replace(settings, layers=",".join(specs), precision="float32", crop="squash",
                    resize=None)  # fmt: skip
    extractor = TensorExtractor(alone)
    if extractor.weights.warning:
        log.warning(extractor.weights.warning)
    images = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # (1, C, H, W)
    activity.begins("computing feature maps")
    outputs = extractor.compute(images)  # of any shape, by --crop none
    maps = [
        FeatureMap(spec.removesuffix(":map"), outputs[spec][0].cpu().numpy())  # (C, H, W)
        for spec in specs
    ]
    name = os.path.basename(path)
    levels = to_levels(pixels, Range(0, preprocess.white), BYTE)  # (H, W, C) uint8
    if preprocess.channels != RGB:
        levels = np.rint(levels.mean(axis=2, keepdims=True)).astype(np.uint8).repeat(RGB, axis=2)
    warning = extractor.weights.warning or extractor.caution
    return SeenImage(name, settings.model, extractor.weights.name, levels, tuple(maps), warning)


def _map_specs(settings: Settings) -> list[str]:
    """Return the layers as specs that keep the map."""
    wrong = [
        str(spec)
        for spec in settings.specs
        if not spec.layer.is_map or spec.norm != "none" or str(spec.pool) not in ("avg", "map")
    ]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} has no map to draw; expected names of convolutions or pools "
            "alone, such as conv4_4 or pool5"
        )
    names = [spec.layer.name + (".pre" if spec.pre else "") for spec in settings.specs]
    text = ",".join(f"{name}:map" for name in names)
    return [str(spec) for spec in parse_specs(text, settings.model)]


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of a layer to show: `top` with the largest means, or numbers, or the mean."""

    top: int = 0
    numbers: tuple[int, ...] = ()

    @property
    def is_mean(self) -> bool:
        """Whether to show the mean of all channels."""
        return not self.top and not self.numbers

    def of(self, one: FeatureMap) -> NDArray[np.int64]:
        """Return the channel numbers in a layer, int64 (n,); fewer if the layer has fewer."""
        return one.strongest(self.top) if self.top else np.array(self.numbers, dtype=np.int64)


def parse_channels(text: str) -> Channels:
    """Parse `mean`, `top:16` or `3,17,200`."""
    words = [word.strip() for word in text.removeprefix(_TOP).split(",")]
    if text == MEAN:
        return Channels()
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"channels {text!r}: expected mean, top:16, or numbers such as 3,17,200")
    numbers = tuple(dict.fromkeys(map(int, words)))
    top = text.startswith(_TOP)
    if top and (len(words) != 1 or not numbers[0]):
        raise UsageError(f"channels {text!r}: expected one number from 1 on, as in top:16")
    count = numbers[0] if top else len(numbers)
    if count > _MOST_CHANNELS:
        raise UsageError(f"channels {text!r} are {count}; at most {_MOST_CHANNELS} can be drawn")
    return Channels(top=numbers[0]) if top else Channels(numbers=numbers)


def check_map_channels(channels: Channels, settings: Settings) -> None:
    """Refuse channels that a layer lacks; name every such layer."""
    highest = max(channels.numbers, default=-1)
    few: Sequence[str] = [
        f"{spec.layer.name} has 0 to {spec.layer.channels - 1}"
        for spec in settings.specs
        if highest >= spec.layer.channels
    ]
    if few:
        raise UsageError(f"channel {highest} is not in every layer: {', '.join(few)}")
