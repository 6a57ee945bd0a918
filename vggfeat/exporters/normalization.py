"""Rows brought to unit length on their way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.core.layer_spec import Norm


def normalised(values: NDArray[np.floating[Any]], norm: Norm) -> NDArray[np.floating[Any]]:
    """Normalise rows as a layer spec's `:l2` and `:ssr` do.

    Computed in float64, where no square overflows, and rounded once.

    Args:
        values: float16 or float32, (n, D), or (n, C, H, W), which is normalised at each position.
        norm: `none`; `l2`, unit length; `ssr`, the signed square root and then unit length.

    Returns:
        The same shape and dtype. Zero vectors stay zero, rows of NaN stay NaN.
    """
    if norm == "none":
        return values
    x = values.astype(np.float64)
    if norm == "ssr":
        x = np.sign(x) * np.sqrt(np.abs(x))
    length = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    length[length == 0] = 1
    unit: NDArray[np.floating[Any]] = (x / length).astype(values.dtype)
    return unit
