"""Convert rows of float32 features to the stored dtype: float16, float32 or int8 codes.

Everything runs on the tensor's device and never waits for it: no value is read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vggfeat.core.quantization import LARGEST_CODE

if TYPE_CHECKING:
    from torch import Tensor

    from vggfeat.core.settings import Dtype

_FLOAT16_MAX = torch.finfo(torch.float16).max


def quantise(
    x: Tensor, dtype: Dtype, scales: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Convert rows to the storage dtype; count values out of its range and find non-finite rows.

    Finite values above the dtype's largest magnitude (65504 for float16) are clipped to it, so that
    none becomes infinite; for int8, values beyond the range of the scales are clipped to its end.
    All of these are counted, including float16 values up to 65520, which would round to 65504.

    Args:
        x: (N, ...) float32, as `reduce_map` returns it.
        dtype: `float16`, `float32` or `int8`.
        scales: scale and offset of `x` for int8: see `core.quantization.Scales.along`.

    Returns:
        The values in `dtype`, shaped as `x` (`x` itself for `float32`); and for each row the number
        of clipped values, int64 (N,), and whether all its values were finite, bool (N,). Infinity
        and NaN become any value: discard their rows by the third result.
    """
    finite = torch.isfinite(x)
    rows_finite = finite.flatten(1).all(1)  # (N,)
    if dtype == "float32":
        return x, torch.zeros(len(x), dtype=torch.int64, device=x.device), rows_finite
    if scales is not None:
        scale, offset = scales
        # As `core.quantization.encode` before clipping, on the device.
        codes = ((x - offset) / torch.where(scale > 0, scale, torch.inf)).round()
        beyond = (finite & (codes.abs() > LARGEST_CODE)).flatten(1).sum(1)  # (N,)
        return codes.clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), beyond, rows_finite
    clamped = (finite & (x.abs() > _FLOAT16_MAX)).flatten(1).sum(1)  # (N,)
    return x.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half(), clamped, rows_finite
