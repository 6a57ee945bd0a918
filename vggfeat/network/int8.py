"""Convolve in 8-bit integers, on CPUs that multiply four at a time (VNNI).

Activations behind a ReLU are never negative, so they are kept as uint8 with one scale a layer,
found by calibration on sample images; weights as int8 with one scale an output channel
(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"; Krishnamoorthi 2018). The input is the image's own bytes: its
normalisation is folded into the first convolution. Fully connected layers stay in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vggfeat.core.vgg_layers import VGG
from vggfeat.network import onednn
from vggfeat.network.batch_norm import folded_convolution
from vggfeat.network.pooling import reduce_map
from vggfeat.network.vgg import TappedVgg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vggfeat.core.layer_spec import LayerSpec
    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.vgg_layers import Layer

_LARGEST, _LARGEST_WEIGHT = 255, 127
_FIRST = "conv1_1"


@dataclass(frozen=True, slots=True)
class _Convolution:
    """One layer, ready to run; o output channels. A scale is the real value of a 1."""

    packed: Tensor  # int8 weights in the order of the kernel
    scales: Tensor  # float32 (o,), of the weights
    bias: Tensor  # float32 (o,)
    scale_in: float
    scale_out: float
    padding: int  # 0 for the first, whose image is padded before

    def __call__(self, x: Tensor, *, rectified: bool) -> Tensor:
        """Convolve uint8 (N, i, H, W), channels last, to uint8 behind a ReLU, or else float32."""
        return onednn.convolve(
            x,
            self.packed,
            self.scales,
            self.bias,
            scale_in=self.scale_in,
            scale_out=self.scale_out if rectified else None,
            padding=self.padding,
        )


class Int8Vgg(nn.Module):
    """The layers of a VGG variant up to the deepest requested one, convolutions in 8 bits.

    The values of a layer depend neither on which other layers are requested, nor on the batch, nor
    on the position in it.

    Args:
        layers: all from the first to the deepest requested one.
        specs: features to take from them.
        tensors: float32 by torchvision's names.
        activations: conv layer → its largest value behind the ReLU, as `calibrate` finds it.
        preprocess: mean and deviation to fold into the first layer.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        specs: Sequence[LayerSpec],
        tensors: Mapping[str, Tensor],
        activations: Mapping[str, float],
        preprocess: Preprocess,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self._maps = tuple(layer for layer in layers if layer.container == "features")
        self._mean = torch.tensor(preprocess.mean).mul(255).round().to(torch.uint8)
        self._convolutions: dict[str, _Convolution] = {}
        scale = 1.0
        for layer in self._maps:
            if layer.kind == "conv":
                made = _convolution(layer, tensors, scale, activations[layer.name], preprocess)
                self._convolutions[layer.name] = made
                scale = made.scale_out
        self.head = _head(layers, specs, tensors)
        self.on_layer: Callable[[float], None] | None = None
        """As in `TappedVgg`, of the convolutions and pools."""

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the features of images.

        Args:
            images: uint8 RGB (N, 3, H, W).

        Returns:
            canonical spec → float32 (N, …), and bool (N,), true: integers do not overflow.
        """
        taken: dict[str, Tensor] = {}
        x, scale = _bordered(images, self._mean), 1.0
        for layer in self._maps:
            if layer.kind == "pool":
                x = _max_pool(x)
            else:
                convolution = self._convolutions[layer.name]
                for spec in self._specs_at(layer, pre=True):
                    taken[str(spec)] = reduce_map(convolution(x, rectified=False), spec)
                x, scale = convolution(x, rectified=True), convolution.scale_out
            for spec in self._specs_at(layer, pre=False):
                taken[str(spec)] = reduce_map(x.float() * scale, spec)
            if self.on_layer is not None:
                self.on_layer((self._maps.index(layer) + 1) / len(self._maps))
        if self.head is not None:
            taken |= self.head(x.float() * scale)[0]
        ordered = {str(spec): taken[str(spec)] for spec in self.specs}
        return ordered, torch.ones(len(images), dtype=torch.bool)

    def _specs_at(self, layer: Layer, *, pre: bool) -> list[LayerSpec]:
        return [spec for spec in self.specs if spec.layer is layer and spec.pre == pre]


def _head(
    layers: Sequence[Layer], specs: Sequence[LayerSpec], tensors: Mapping[str, Tensor]
) -> TappedVgg | None:
    """Return the fully connected layers in float32; None if there are none."""
    behind = [layer for layer in layers if layer.container == "classifier"]
    if not behind:
        return None
    head = TappedVgg(behind, specs, VGG.classes(tensors))
    head.load_state_dict(
        {name: value for name, value in tensors.items() if name.startswith("classifier.")},
        assign=True,
    )
    return head.requires_grad_(requires_grad=False).eval()


def _convolution(
    layer: Layer,
    tensors: Mapping[str, Tensor],
    scale_in: float,
    largest: float,
    preprocess: Preprocess,
) -> _Convolution:
    weight, bias = folded_convolution(layer, tensors, torch.float32)
    if layer.name == _FIRST:
        mean, std = (
            torch.tensor(part).view(1, 3, 1, 1) for part in (preprocess.mean, preprocess.std)
        )
        bias = bias - (weight * (mean / std)).sum((1, 2, 3))
        weight = weight / (std * 255)
    # Any scale will do for a channel of zeros, and for an output that was never above zero.
    scales = weight.abs().amax((1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
    scales = scales / _LARGEST_WEIGHT
    rounded = (weight / scales.view(-1, 1, 1, 1)).round().to(torch.int8)  # (o, i, 3, 3)
    padding = 0 if layer.name == _FIRST else 1
    packed = onednn.pack_weight(rounded, scales, scale_in, padding)
    return _Convolution(packed, scales, bias, scale_in, (largest or 1.0) / _LARGEST, padding)


def _bordered(images: Tensor, mean: Tensor) -> Tensor:
    """Pad uint8 images, (N, 3, H, W), with their mean colour, which normalises to zeros.

    Returns (N, 3, H + 2, W + 2), channels last.
    """
    count, channels, height, width = images.shape
    x = torch.empty(
        (count, channels, height + 2, width + 2),
        dtype=torch.uint8,
        memory_format=torch.channels_last,
    )
    x[:] = mean.view(1, 3, 1, 1)
    x[:, :, 1:-1, 1:-1] = images
    return x


def _max_pool(x: Tensor) -> Tensor:
    """Pool 2 x 2 with stride 2, (N, C, H, W) to (N, C, H // 2, W // 2); torch's takes no uint8."""
    height, width = (side // 2 * 2 for side in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
