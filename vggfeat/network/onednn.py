"""Call the 8-bit convolution of oneDNN, whose operators are private to torch.

torch may rename them in any release: only this module calls them, and `has_convolution` checks for
them before the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_OPERATORS = ("qconv_prepack", "qconv2d_pointwise")


def has_convolution() -> bool:
    """Return whether this torch has the operators."""
    return all(hasattr(torch.ops.onednn, name) for name in _OPERATORS)


def pack_weight(weight: Tensor, scales: Tensor, scale_in: float, padding: int) -> Tensor:
    """Return int8 weights (o, i, 3, 3) in the order of the kernel.

    Args:
        weight: int8 (o, i, 3, 3).
        scales: float32 (o,), the real value of a weight of 1.
        scale_in: the real value of a 1 of the input.
        padding: on each side of the input.
    """
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight, scales, scale_in, 0, [1, 1], [padding] * 2, [1, 1], 1, None
    )
    return packed


def convolve(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor,
    *,
    scale_in: float,
    scale_out: float | None,
    padding: int,
) -> Tensor:
    """Convolve uint8 maps, (N, i, H, W) channels last, with stride 1 and packed weights.

    The result is uint8 behind a ReLU, with the real value `scale_out` of a 1; if that is None,
    float32 before the ReLU. `bias` is float32 (o,); see `pack_weight` for the others.
    """
    rectified = scale_out is not None
    result: Tensor = torch.ops.onednn.qconv2d_pointwise(
        x,
        scale_in,
        0,  # zero point of x
        packed,
        scales,
        torch.zeros_like(scales, dtype=torch.int32),  # zero points of the weights
        bias,
        [1, 1],  # stride
        [padding] * 2,
        [1, 1],  # dilation
        1,  # groups
        scale_out if rectified else 1.0,
        0,  # zero point of the output
        torch.uint8 if rectified else torch.float32,
        "relu" if rectified else "none",
        [],
        "",
    )
    return result
