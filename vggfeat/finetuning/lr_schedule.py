"""The learning rate of each step: linear warm-up, then half a cosine to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

_WARM_UP = 0.1  # of all steps


@dataclass(frozen=True, slots=True)
class LearningRateSchedule:
    """A rate that rises over the first tenth of the steps and falls to zero.

    Attributes:
        peak: largest change of a number in a step, as a share of its tensor's root mean square at
            the beginning.
        steps: of the whole training, over which the rate rises and falls.
    """

    peak: float
    steps: int

    def at(self, step: int) -> float:
        """Share of the peak in step `step`; the first is 0."""
        warm = math.ceil(_WARM_UP * self.steps)
        return min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
