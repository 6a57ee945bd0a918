"""Features in fewer bits: as float16, or as 8 bits with a scale and an offset a dimension.

value = scale * code + offset        code from -127 to 127; -128 is not a number
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LARGEST_CODE = 127
NAN_CODE = -128
_STEPS = 2 * LARGEST_CODE
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """How the codes of one layer become values.

    Attributes:
        scale: float32, (D,) for vectors, (C,) for maps; 0 where a dimension never varies.
        offset: float32, likewise.
    """

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def over(cls, low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]]) -> Scales:
        """Return scales that spread the codes over `low` to `high`, each (D,) or (C,).

        The lowest value comes back exactly: the zeros that a ReLU leaves stay zeros.
        """
        low32 = low.astype(np.float32)
        span = high.astype(np.float64) - low32
        scale = (span / _STEPS).astype(np.float32)
        return cls(scale, low32 + np.float32(LARGEST_CODE) * scale)

    def along(self, ndim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scale and offset shaped to fit rows, (n, D) or (n, C, H, W), of `ndim` axes."""
        shape = (-1, *[1] * (ndim - 2))
        return self.scale.reshape(shape), self.offset.reshape(shape)


def encode(x: NDArray[np.float32], scales: Scales) -> tuple[NDArray[np.int8], int]:
    """Return codes of finite values, and how many were beyond the range and set to its end.

    Args:
        x: float32 (n, D) or (n, C, H, W).
        scales: of that layer.
    """
    scale, offset = scales.along(x.ndim)
    codes = np.rint((x - offset) / np.where(scale > 0, scale, np.float32(np.inf)))
    beyond = int((np.abs(codes) > LARGEST_CODE).sum())
    return codes.clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int8), beyond


def to_float16(x: NDArray[np.float32]) -> tuple[NDArray[np.float16], int]:
    """Return finite values as float16, and how many were beyond its range and set to its end."""
    beyond = int((np.abs(x) > _FLOAT16_MAX).sum())
    return x.clip(-_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16), beyond


def decode_codes(codes: NDArray[np.int8], scales: Scales) -> NDArray[np.float32]:
    """Return the values, float32, shaped as `codes`; NaN where they are not a number."""
    scale, offset = scales.along(codes.ndim)
    values = codes.astype(np.float32) * scale + offset
    values[codes == NAN_CODE] = np.nan
    return values


def scales_digest(scales: Mapping[str, Scales]) -> str:
    """Return SHA-256 over all scales and offsets in the order of the layers' names, or ''."""
    if not scales:
        return ""
    digest = hashlib.sha256()
    for spec, one in sorted(scales.items()):
        digest.update(spec.encode() + b"\0")
        for part in (one.scale, one.offset):
            digest.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
    return digest.hexdigest()
