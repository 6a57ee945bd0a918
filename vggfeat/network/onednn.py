"""The 8-bit convolution of oneDNN, whose operators are private to torch: all calls stand here.

torch may rename them in any release, so `has_convolution` looks for them before the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_OPERATORS = ("qconv_prepack", "qconv2d_pointwise")


def has_convolution() -> bool:
    """Return whether this torch has the operators that are called below."""
    return all(hasattr(torch.ops.onednn, name) for name in _OPERATORS)


def pack_weight(weight: Tensor, scales: Tensor, scale_in: float, padding: int) -> Tensor:
    """Return int8 weights (o, i, 3, 3) in the order that the kernel reads them in.

    Args:
        weight: int8 (o, i, 3, 3).
        scales: float32 (o,), what a weight of 1 stands for.
        scale_in: what a 1 of the input stands for.
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
    """Convolve uint8 maps, stride 1.

    Args:
        x: uint8 (N, i, H, W), channels last.
        packed: what `pack_weight` returns.
        scales: see `pack_weight`.
        bias: float32 (o,).
        scale_in: see `pack_weight`.
        scale_out: what a 1 of the output stands for, behind a ReLU; None for float32 in front of
            it.
        padding: see `pack_weight`.

    Returns:
        uint8 behind the ReLU, or float32 in front of it.
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
