"""Rank images by joined layers of caches, with bootstrap intervals: what layer tables share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.ranking_metrics import average_precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import vggfeat

    Values = NDArray[np.float32]
    Scores = NDArray[np.float64]

DRAWS = 10_000
"""Bootstrap samples of the queries."""


@dataclass(frozen=True, slots=True)
class Way:
    """Layers that are joined: each is normalised by itself, `l2` or `ssr`, then concatenated."""

    layers: tuple[str, ...]
    norm: str = "l2"

    def __str__(self) -> str:
        return " + ".join(self.layers) + (", ssr" if self.norm == "ssr" else "")

    def rows(self, caches: list[vggfeat.FeatureCache]) -> Values:
        """Return one unit vector for each image of the caches in turn, (n, width)."""
        parts = [normalised(stacked(caches, layer), self.norm) for layer in self.layers]
        return normalised(np.concatenate(parts, 1), "l2")


def stacked(caches: list[vggfeat.FeatureCache], layer: str) -> Values:
    """Return a layer of all caches, one below the other, (n, width)."""
    return np.concatenate([cache.values(layer).astype(np.float32) for cache in caches])


def normalised(rows: Values, norm: str) -> Values:
    """Return rows of unit length, of their signed square roots for `ssr`."""
    if norm == "ssr":
        rows = np.sign(rows) * np.sqrt(np.abs(rows))
    lengths: Values = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Values = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def own_precisions(queries: Values, gallery: Values, own: NDArray[np.intp]) -> Scores:
    """Return the average precision of each query, whose one relevant image is row own[i], (q,).

    It is 1 / rank; images that tie with the relevant one are counted before it.
    """
    scores = queries @ gallery.T  # (q, n)
    found = scores[np.arange(len(own)), own]
    precisions: Scores = 1.0 / np.count_nonzero(scores >= found[:, np.newaxis], axis=1)
    return precisions


def class_precisions(rows: Values, labels: NDArray[Any]) -> tuple[Scores, Scores]:
    """Return, for each labelled image, how well it finds the others of its class, (q,) and (q,).

    The first is the average precision, the second 1 where the nearest image is of the class, else
    0. An image whose label is empty, or the only one of its class, is no query, but is searched.
    """
    scores = rows @ rows.T
    precisions, nearest = [], []
    for i, label in enumerate(labels):
        relevant = labels == label
        if not label or relevant.sum() == 1:
            continue
        others = np.arange(len(labels)) != i
        precisions.append(average_precision(scores[i][others], relevant[others]))
        nearest.append(float(relevant[others][scores[i][others].argmax()]))
    return np.asarray(precisions), np.asarray(nearest)


def interval(values: Scores) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of the mean over bootstrap samples of `values`."""
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def shown(values: Scores, *, signed: bool = False) -> str:
    """Return `mean (low to high)` of the queries' values."""
    sign = "+" if signed else ""
    low, high = interval(values)
    return f"{values.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
