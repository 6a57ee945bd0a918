"""Similarity of a few vectors, by one layer or several, in float64.

`similarity.py` has the same for the rows of a cache, where speed matters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from vggfeat.core.choices import choose
from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

PairMetric = Literal["cosine", "l2", "l2-raw"]
PAIR_METRICS: Final[tuple[PairMetric, ...]] = get_args(PairMetric)


def vector_scores(a: Any, b: Any, metric: PairMetric, *, pairwise: bool = False) -> Numbers:
    """Return cosines or distances of vectors (D,) or (N, D).

    Args:
        a: numbers (D,) or (N, D): an array, a tensor on any device, lists.
        b: likewise, (D,) or (M, D).
        metric: `cosine`; `l2`, of the vectors at unit length; `l2-raw`, as they are.
        pairwise: compare each vector of `a` with each of `b`, rather than with the one beside it.

    Returns:
        float64 (N, M) if pairwise; else (N,), where one vector is compared with all of the other
        side, or () for two vectors.

    Raises:
        UsageError: no such vectors, shapes that do not fit, or values that are not finite.
    """
    choose("metric", PAIR_METRICS, metric)
    first, second = _numbers(a, "a"), _numbers(b, "b")
    if first.shape[-1] != second.shape[-1]:
        raise UsageError(
            f"a has shape {first.shape} and b {second.shape}; expected vectors of one length"
        )
    if pairwise:
        return scores_of_all_pairs(np.atleast_2d(first), np.atleast_2d(second), metric)
    if first.ndim == second.ndim and first.shape != second.shape:
        raise UsageError(
            f"a has {counted(len(first), 'vector')} and b {len(second)}; expected equally many, or "
            "pairwise=True to compare each with each"
        )
    return _scores(_ready(first, metric), _ready(second, metric), metric)


def scores_of_all_pairs(a: Numbers, b: Numbers, metric: PairMetric) -> Numbers:
    """Return the scores of each row of `a`, (N, D), with each of `b`, (M, D): float64 (N, M)."""
    first, second = _ready(a, metric), _ready(b, metric)
    rows = [_scores(row, second, metric) for row in first]  # equal rows have equal scores
    return np.array(rows).reshape(len(first), len(second))


def combined(
    scores: Mapping[str, Numbers], weights: Sequence[float], metric: PairMetric
) -> Numbers:
    """Return the scores by all layers, one a key, whose weights add up to 1.

    Cosines are averaged. Of distances it is the root of the mean square: the distance of the
    layers joined with the roots of their weights.
    """
    power = 1 if metric == "cosine" else 2
    parts = zip(weights, scores.values(), strict=True)
    total: Numbers = np.sum([weight * score**power for weight, score in parts], axis=0)
    return total if metric == "cosine" else np.sqrt(total)


def as_similarity(scores: Numbers, metric: PairMetric) -> Numbers:
    """Return cosines as they are, and distances d as 1 / (1 + d)."""
    return scores if metric == "cosine" else 1 / (1 + scores)


def shares(weights: Sequence[float], layers: Sequence[str]) -> tuple[float, ...]:
    """Return weights of layers so that they add up to 1; equal ones where none is given."""
    given = tuple(weights) or (1.0,) * len(layers)
    if len(given) != len(layers):
        raise UsageError(
            f"{counted(len(given), 'weight')} for {counted(len(layers), 'layer')} "
            f"({', '.join(layers)}); give one each"
        )
    total = math.fsum(given)
    if not (all(0 <= weight < math.inf for weight in given) and 0 < total < math.inf):
        named = ", ".join(f"{weight:g}" for weight in given)
        raise UsageError(f"weights {named} must be numbers of 0 or more, and not all 0")
    return tuple(weight / total for weight in given)


def _numbers(given: Any, name: str) -> Numbers:
    """Return vectors as float64 (D,) or (N, D)."""
    held = given.detach().cpu().double() if hasattr(given, "detach") else given  # a tensor
    try:
        values = np.asarray(held)
        kind = values.dtype.kind
        numbers = values.astype(np.float64) if kind in "biuf" else None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is no array of numbers: {error}") from error
    if numbers is None:
        raise UsageError(f"{name} is an array of {values.dtype}; expected numbers (D,) or (N, D)")
    if numbers.ndim not in (1, 2) or not numbers.shape[-1]:
        raise UsageError(
            f"{name} has shape {numbers.shape}; expected vectors (D,) or (N, D): pool maps or "
            "reshape them to (N, -1), and give images as paths or PIL images"
        )
    if values.dtype == np.int8:
        raise UsageError(
            f"{name} is int8, as the codes of a cache in int8 are; FeatureCache.values gives the "
            "numbers they stand for"
        )
    if not np.isfinite(numbers).all():
        raise UsageError(f"{name} holds values that are not finite")
    return numbers


def _ready(x: Numbers, metric: PairMetric) -> Numbers:
    """Return vectors at unit length, where zeros stay zeros; of `l2-raw` as they are."""
    if metric == "l2-raw":
        return x
    largest = np.max(np.abs(x), axis=-1, keepdims=True)  # whose square may overflow
    scaled = x / np.where(largest > 0, largest, 1)
    length = np.sqrt(np.sum(scaled * scaled, axis=-1, keepdims=True))
    units: Numbers = scaled / np.where(length > 0, length, 1)
    return units


def _scores(a: Numbers, b: Numbers, metric: PairMetric) -> Numbers:
    """Return the scores of vectors, as `_ready` returns them, with those beside them."""
    if metric != "cosine":
        return np.asarray(np.sqrt(np.sum((a - b) ** 2, axis=-1)))
    return np.asarray(np.clip(np.sum(a * b, axis=-1), -1, 1))
