"""The state of `vgg.features` alone, an `nn.Sequential`: bare numbers in front of each name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vggfeat.dialects.records import Dialect, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.dialects.records import Shape

FIRST = "0.weight"
_FIRST_CHANNELS = 64
_NUMBERED = re.compile(r"\d+\.\w+")


def is_first_kernel(shape: Shape) -> bool:
    """Return whether a tensor may be the weight of conv1_1, for images of any channels."""
    return (shape[:1], shape[2:]) == ((_FIRST_CHANNELS,), (3, 3))


def _translate(shapes: Mapping[str, Shape]) -> dict[str, Source] | None:
    if not is_first_kernel(shapes.get(FIRST, ())):
        return None
    return {
        f"features.{name}" if _NUMBERED.fullmatch(name) else name: Source(name, shape)
        for name, shape in shapes.items()
    }


SEQUENTIAL = Dialect("torchvision's features alone", _translate)
