"""Convert rows of float32 features to the dtype they are stored in: float16, float32 or int8 codes.

Everything runs on the tensor's own device and never waits for it: nothing here reads a value back.
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

    Finite values of a magnitude above the dtype's largest finite value (65504 for float16) are
    set to it, so that none turns into an infinity; for int8, values beyond the range of the scales
    are set to its end. All of these are counted, for float16 also those just above it (up to
    65520) that rounding to nearest would have brought back to it.

    Args:
        x: (N, ...) float32, as `reduce_map` returns it.
        dtype: `float16`, `float32` or `int8`.
        scales: for int8, scale and offset that go with `x`: see `core.quantization.Scales.along`.

    Returns:
        The values in `dtype`, shaped as `x` (`x` itself for `float32`); how many were
        set to the largest, an int64 scalar; and for each row whether all its values were finite
        in `x`, bool (N,). What becomes of an infinity or a NaN is not defined: the third result
        is there to discard its row.
    """
    finite = torch.isfinite(x)
    rows_finite = finite.flatten(1).all(1)  # (N,)
    if dtype == "float32":
        return x, torch.zeros((), dtype=torch.int64, device=x.device), rows_finite
    if scales is not None:
        codes = _codes(x, *scales)
        beyond = (finite & (codes.abs() > LARGEST_CODE)).sum()  # ()
        return codes.clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), beyond, rows_finite
    clamped = (finite & (x.abs() > _FLOAT16_MAX)).sum()  # ()
    return x.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half(), clamped, rows_finite


def _codes(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return codes as `core.quantization.encode` does, before clipping, on the device."""
    return ((x - offset) / torch.where(scale > 0, scale, torch.inf)).round()
