"""The small records that travel between the stages, each frozen and slotted.

Shapes: B is the batch shape fixed for the run, n ≤ B the images really in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image as the sources list it.

    Attributes:
        path: relative to the source root, the file system's own bytes, `/` as separator.
        size: bytes, 0 where the file could not be looked at.
        mtime_ns: time of last change in nanoseconds since 1970, 0 likewise.
    """

    path: bytes
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """The path as text; bytes that are no UTF-8 as surrogate escapes."""
        return os.fsdecode(self.path)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that gave no features: its row in the cache and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Images of one batch as the workers hand them over.

    Attributes:
        images: uint8 RGB, (B, H, W, 3) in memory; `.permute(0, 3, 1, 2)` is (B, 3, H, W) in
            channels-last layout without a copy. Slots that hold no image are zero.
        rows: int64 (n,), the cache rows of the images that decoded.
        slots: int64 (n,), where in `images` each of them lies.
        failures: the images that did not decode.
        seconds: time spent decoding, in the worker.
    """

    images: torch.Tensor
    rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    failures: tuple[Failure, ...]
    seconds: float

    def pin_memory(self) -> DecodedBatch:
        """The same batch in page-locked memory; what DataLoader calls with `pin_memory=True`."""
        return DecodedBatch(
            self.images.pin_memory(), self.rows, self.slots, self.failures, self.seconds
        )


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of one batch on their way into the file.

    Attributes:
        rows: int64 (n,), the cache row of each feature.
        features: canonical layer spec → (n, …) array in the file's dtype.
        failures: rows of the batch that have no features, and why.
        clamped: values beyond the dtype's range that were set to its largest.
    """

    rows: NDArray[np.int64]
    features: Mapping[str, NDArray[np.generic]]
    failures: tuple[Failure, ...]
    clamped: int
