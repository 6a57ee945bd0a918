"""The network: a VGG cut behind the deepest layer asked for, tapped at every layer asked for."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 the name the whole field knows it by

from vggfeat.layers import GRID, Layer, layer_table
from vggfeat.pooling import reduce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.specs import LayerSpec


class TappedVgg(nn.Module):
    """Some layers of a VGG variant, one after the other, under torchvision's names.

    Args:
        layers: what is computed.
        specs: what is taken out of them.
        classes: outputs of fc8.
    """

    def __init__(self, layers: Sequence[Layer], specs: Sequence[LayerSpec], classes: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.specs = tuple(spec for spec in specs if spec.layer in self.layers)
        self.features = nn.Sequential(_modules_of(self.layers, "features", classes))
        self.classifier = nn.Sequential(_modules_of(self.layers, "classifier", classes))

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features of normalised images.

        Args:
            x: (N, 3, H, W), the network's dtype.

        Returns:
            canonical spec → float32 (N, …), and a bool scalar: in float16, whether every map at
            the end of a block, and so everything computed on the way, was finite, as was what was
            taken in front of a ReLU, which turns -inf into 0.
        """
        taken: dict[str, Tensor] = {}
        finite = torch.ones((), dtype=torch.bool, device=x.device)
        for layer in self.layers:
            x = self._linear_part(layer, x)
            before = [spec for spec in self.specs if spec.layer is layer and spec.pre]
            taken.update({str(spec): reduce(x, spec) for spec in before})
            if before and x.dtype == torch.float16:
                finite = finite & torch.isfinite(x).all()
            if layer.relu_index is not None:
                # In place only when nobody has looked at x; both give the same bits.
                x = torch.relu(x) if before else torch.relu_(x)
            after = [spec for spec in self.specs if spec.layer is layer and not spec.pre]
            taken.update({str(spec): reduce(x, spec) for spec in after})
            ends_block = layer.kind in ("pool", "fc") or layer is self.layers[-1]
            if ends_block and x.dtype == torch.float16:
                finite = finite & torch.isfinite(x).all()
        return {str(spec): taken[str(spec)] for spec in self.specs}, finite

    def _linear_part(self, layer: Layer, x: Tensor) -> Tensor:
        if layer.kind == "prob":
            return torch.softmax(x.float(), dim=1)
        if layer.kind == "fc" and x.dim() > 2:  # noqa: PLR2004 a map, not yet a vector
            x = F.adaptive_avg_pool2d(x, GRID) if x.shape[-2:] != (GRID, GRID) else x
            x = torch.flatten(x, 1)  # (N, 25088), channel by channel as the classifier was trained
        container = cast("nn.Sequential", getattr(self, layer.container))
        x = cast("Tensor", getattr(container, str(layer.index))(x))
        if layer.norm_index is not None:
            x = cast("Tensor", getattr(container, str(layer.norm_index))(x))
        return x


def needed_layers(specs: Sequence[LayerSpec], model: str) -> tuple[Layer, ...]:
    """The layers of `model` up to and with the deepest one of `specs`."""
    table = layer_table(model)
    return table[: 1 + max(table.index(spec.layer) for spec in specs)]


def _modules_of(
    layers: Sequence[Layer], container: str, classes: int
) -> OrderedDict[str, nn.Module]:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in layers:
        if layer.container != container:
            continue
        if layer.kind == "conv":
            modules[str(layer.index)] = nn.Conv2d(layer.in_channels, layer.channels, 3, padding=1)
        elif layer.kind == "pool":
            modules[str(layer.index)] = nn.MaxPool2d(2)
        elif layer.kind == "fc":
            out = classes if layer.name == "fc8" else layer.channels
            modules[str(layer.index)] = nn.Linear(layer.in_channels, out)
        if layer.norm_index is not None:
            modules[str(layer.norm_index)] = nn.BatchNorm2d(
                layer.channels, track_running_stats=True
            )
    return modules
