"""95 % intervals of accuracies and of their difference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Interval = tuple[float, float]

_Z = 1.959964  # of a normal distribution, 95 % lie within so many deviations
_DRAWS = 10_000


def wilson(right: int, images: int) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927), at least one image."""
    share, part = right / images, _Z**2 / images
    centre = (share + part / 2) / (1 + part)
    half = _Z * math.sqrt(share * (1 - share) / images + part / (4 * images)) / (1 + part)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: NDArray[np.float64], groups: NDArray[np.int64]) -> Interval:
    """Return the percentile interval of a mean over images, drawing whole groups.

    Args:
        values: float64 (n,), at least one.
        groups: int64 (n,), of images that depend on each other; one each if they do not.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(inverse, values), np.bincount(inverse)
    noise = np.random.default_rng(0)
    means = np.empty(_DRAWS)
    for at in range(_DRAWS):
        drawn = noise.integers(0, len(sums), len(sums))
        means[at] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
