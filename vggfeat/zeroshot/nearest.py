"""Words of the nearest seen classes, as in ConSE: a mixture of class vectors for each image.

Norouzi et al., "Zero-shot learning by convex combination of semantic embeddings", ICLR 2014. The
classifier of the paper is here the nearest class mean, so nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.arrays import inner_products, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float32]

USUAL_NEIGHBORS = 5
"""Classes whose words are averaged if none could be held out to choose their number."""

LEAST_WEIGHT = 1e-9
"""Weight of a class that is not similar at all; with 0 a mixture of such classes would be zero."""


@dataclass(frozen=True, slots=True, eq=False)
class NearestWords:
    """Maps images to mixtures of the vectors of the nearest seen classes, by cosine.

    Attributes:
        means: of the rows of each seen class, at unit length, float32 (z, d).
        words: vectors of these classes, float32 (z, a).
        count: of nearest classes.
    """

    means: Values
    words: Values
    count: int

    @classmethod
    def of(cls, means: Values, words: Values, count: int) -> NearestWords:
        """Return the map to `count` nearest of some classes, or all if there are fewer."""
        return cls(unit_rows(means.copy()), words, min(count, len(means)))

    def __call__(self, x: Values) -> Values:
        """Return the mixture for each row of features at unit length, float32 (n, a), likewise.

        Each class weighs as much as its cosine.
        """
        similar = inner_products(x, self.means)  # (n, z)
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, : self.count]
        weights = np.take_along_axis(similar, nearest, 1).clip(LEAST_WEIGHT)
        mixed = np.zeros((len(x), self.words.shape[1]), dtype=np.float32)
        for at in range(self.count):
            mixed += weights[:, at, None] * self.words[nearest[:, at]]
        return unit_rows(mixed)
