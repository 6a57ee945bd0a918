"""timm's VGG: torchvision's convolutions, and fully connected layers written as convolutions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import VGG
from vggfeat.network.dialects.records import Dialect, TensorSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.network.dialects.records import Shape

_FC_NAMES: Mapping[str, str] = {
    "pre_logits.fc1": "classifier.0",
    "pre_logits.fc2": "classifier.3",
    "head.fc": "classifier.6",
}
"""timm's modules → torchvision's that compute the same."""


def _translate(shapes: Mapping[str, Shape]) -> dict[str, TensorSource] | None:
    has_fc = any(name.startswith("pre_logits.fc") for name in shapes)
    if VGG.first_weight not in shapes or not has_fc:
        return None
    sources = {}
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".")
        own = f"{_FC_NAMES[module]}.{part}" if module in _FC_NAMES else name
        if module in _FC_NAMES and len(shape) > 1:
            # A convolution that covers the whole map reads it channel by channel, as flatten does.
            flat = (shape[0], math.prod(shape[1:]))  # (out, in x rows x columns)
            sources[own] = TensorSource(name, flat, lambda weight: weight.flatten(1))
        else:
            sources[own] = TensorSource(name, shape)
    return sources


TIMM = Dialect(
    "timm",
    _translate,
    note="fc6 and deeper are timm's own for inputs of 224 pixels; it slides them over larger maps, "
    "where torchvision pools the map to 7 x 7",
)
