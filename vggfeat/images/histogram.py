"""Percentiles of all values of many images in little memory: exact for integers of 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LOWEST: Final = -(1 << 15)
HIGHEST: Final = (1 << 16) - 1

_SAMPLE = 4096  # values kept of an image whose values are no integers of 16 bits
_MOST_KEPT = 1 << 20  # of all images


@dataclass(frozen=True, slots=True, eq=False)
class ValueCounts:
    """The values of one image, or a sample of them.

    Attributes:
        values: float64 (k,).
        counts: float64 (k,), how often each of them occurs, or how many values each stands for.
        exact: they are all values, and whole numbers from `LOWEST` to `HIGHEST`.
        lowest, highest: of all finite values; NaN if there are none.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.float64]
    exact: bool
    lowest: float
    highest: float


def count_values(values: NDArray[Any]) -> ValueCounts:
    """Counts finite values, (…) of any numbers; of those that are not whole a spread sample."""
    flat = values.reshape(-1)
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        nothing = np.empty(0)
        return ValueCounts(nothing, nothing, exact=True, lowest=np.nan, highest=np.nan)
    lowest, highest = float(flat.min()), float(flat.max())
    if lowest >= LOWEST and highest <= HIGHEST and _are_whole(flat):
        counts = np.bincount(flat.astype(np.int64) - int(lowest))
        places = np.flatnonzero(counts)
        found = places.astype(np.float64) + np.float64(lowest)
        return ValueCounts(found, counts[places].astype(np.float64), True, lowest, highest)
    some = np.linspace(0, flat.size - 1, min(_SAMPLE, flat.size)).astype(np.int64)
    share = np.full(len(some), flat.size / len(some))
    return ValueCounts(flat[some].astype(np.float64), share, False, lowest, highest)


def _are_whole(flat: NDArray[Any]) -> bool:
    return flat.dtype.kind != "f" or bool((np.floor(flat) == flat).all())


class ValueHistogram:
    """The values of many images together."""

    def __init__(self) -> None:
        self.exact = True
        self.lowest, self.highest = np.inf, -np.inf
        self._whole = np.zeros(HIGHEST - LOWEST + 1)
        self._others: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._kept = 0

    def add(self, found: ValueCounts) -> None:
        """Adds those of an image."""
        self.exact = self.exact and found.exact
        if not len(found.values):
            return
        self.lowest = min(self.lowest, found.lowest)
        self.highest = max(self.highest, found.highest)
        if found.exact:
            self._whole[found.values.astype(np.int64) - LOWEST] += found.counts
            return
        self._others.append((found.values, found.counts))
        self._kept += len(found.values)
        while self._kept > _MOST_KEPT:  # every other one, for twice as many
            self._others = [(values[::2], 2 * counts[::2]) for values, counts in self._others]
            self._kept = sum(len(values) for values, _ in self._others)

    def percentiles(self, wanted: Sequence[float]) -> list[float]:
        """Linear between neighbouring values, as `numpy.percentile` has it; NaN of nothing."""
        places = np.flatnonzero(self._whole)
        values = np.concatenate([places + float(LOWEST), *(one for one, _ in self._others)])
        counts = np.concatenate([self._whole[places], *(one for _, one in self._others)])
        if not len(values):
            return [float("nan")] * len(wanted)
        order = np.argsort(values, kind="stable")
        values, upto = values[order], counts[order].cumsum()
        at = np.asarray(wanted, np.float64) / 100 * (upto[-1] - 1)
        below, above = (
            values[np.searchsorted(upto, edge, side="right").clip(max=len(values) - 1)]
            for edge in (np.floor(at), np.ceil(at))
        )
        return [float(value) for value in below + (above - below) * (at - np.floor(at))]
