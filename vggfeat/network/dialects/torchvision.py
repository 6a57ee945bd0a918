"""torchvision's names, which everything trained with its models has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import VGG
from vggfeat.network.dialects.records import Dialect, kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.network.dialects.records import Shape, TensorSource


def _translate(shapes: Mapping[str, Shape]) -> dict[str, TensorSource] | None:
    return kept(shapes) if VGG.first_weight in shapes else None


TORCHVISION = Dialect("torchvision", _translate)
