"""The state_dict of `vgg.features` alone, an `nn.Sequential`: names begin with bare numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import VARIANTS, layer_table
from vggfeat.network.dialects.records import Dialect, TensorSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.network.dialects.records import Shape

FIRST_NUMBERED = "0.weight"
_FIRST_CHANNELS = 64
_KERNEL = 4  # axes
_NUMBERED = re.compile(r"\d+\.\w+")


def is_first_kernel(shape: Shape) -> bool:
    """Return whether a tensor may be the weight of conv1_1, for images of any channel count."""
    return (shape[:1], shape[2:]) == ((_FIRST_CHANNELS,), (3, 3))


def _translate(shapes: Mapping[str, Shape]) -> dict[str, TensorSource] | None:
    if not is_first_kernel(shapes.get(FIRST_NUMBERED, ())) or not _is_vgg(shapes):
        return None
    return {
        f"features.{name}" if _NUMBERED.fullmatch(name) else name: TensorSource(name, shape)
        for name, shape in shapes.items()
    }


def _is_vgg(shapes: Mapping[str, Shape]) -> bool:
    """Return whether at least two convolutions are those of a variant, truncated or not."""
    found = {
        name.removesuffix(".weight"): shape for name, shape in shapes.items()
        if _NUMBERED.fullmatch(name) and name.endswith(".weight") and len(shape) == _KERNEL
    }  # fmt: skip
    for model in VARIANTS:
        convolutions = [layer for layer in layer_table(model) if layer.kind == "conv"]
        known = {str(one.index): (one.channels, one.in_channels) for one in convolutions[1:]}
        behind = {index: shape[:2] for index, shape in found.items() if index != "0"}
        if behind and behind.items() <= known.items():
            return True
    return False


SEQUENTIAL = Dialect("torchvision's features alone", _translate)
