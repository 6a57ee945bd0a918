"""Fold batch normalisation, as it is after training, into the convolution in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vggfeat.core.vgg_layers import Layer

EPSILON = 1e-5
"""What torchvision's batch normalisation adds to the variance."""


def folded_convolution(
    layer: Layer, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return weight (o, i, 3, 3) and bias (o,) of a convolution, computed in `dtype`.

    With them it gives what its batch normalisation, if it has one, makes of its output.
    """
    name = f"{layer.container}.{layer.index}"
    weight, bias = (tensors[f"{name}.{part}"].to(dtype) for part in ("weight", "bias"))
    if layer.norm_index is None:
        return weight, bias
    norm = f"{layer.container}.{layer.norm_index}"
    gain, shift, mean, variance = (
        tensors[f"{norm}.{part}"].to(dtype)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gain / (variance + EPSILON).sqrt()  # (o,)
    return weight * factor.view(-1, 1, 1, 1), (bias - mean) * factor + shift


def fold_norms(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network whose convolutions do the work of its norms.

    Those of the norms are left out. Computed in float64 and rounded to float32 once. Float16 needs
    it: running variances above 65504 would be infinite there, and small ones lose their digits.
    """
    folded = dict(tensors)
    for layer in layers:
        if layer.norm_index is None:
            continue
        weight, bias = folded_convolution(layer, tensors, torch.float64)
        name = f"{layer.container}.{layer.index}"
        folded[f"{name}.weight"], folded[f"{name}.bias"] = weight.float(), bias.float()
        norm = f"{layer.container}.{layer.norm_index}."
        for key in [key for key in folded if key.startswith(norm)]:
            del folded[key]
    return folded
