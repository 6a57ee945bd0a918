"""How well scores find what is relevant, and the scores: cosines and distances.

A query scores each of n images, the higher the nearer; some of the images are relevant to it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def average_precision(scores: NDArray[np.float32], relevant: NDArray[np.bool_]) -> float:
    """Return the mean over the relevant images of the precision down to each one's score.

    Images of equal score count together, so that their order does not matter. This is the sum of
    precision times gain in recall over all thresholds, without interpolation (Manning, Raghavan
    and Schütze 2008, 8.4), and scikit-learn's `average_precision_score`.

    Args:
        scores: float (n,).
        relevant: bool (n,).

    Returns:
        Above 0, at most 1; NaN where nothing is relevant.
    """
    hits = np.sort(scores[relevant])
    if not len(hits):
        return math.nan
    ranked = np.sort(scores[scores >= hits[0]])  # what lies below the last hit changes nothing
    retrieved = len(ranked) - np.searchsorted(ranked, hits)
    found = len(hits) - np.searchsorted(hits, hits)
    return float(np.mean(found / retrieved))


def first_relevant(scores: NDArray[np.float32], relevant: NDArray[np.bool_]) -> float:
    """Count the irrelevant images before the best relevant one, or tied with it, (n,) and (n,).

    NaN if nothing is relevant.
    """
    if not relevant.any():
        return math.nan
    ahead = scores >= scores[relevant].max()
    return float(np.count_nonzero(ahead & ~relevant))
