"""Accuracy of zero-shot learning as Xian et al. (TPAMI 2018) measure it.

Accuracy is averaged over classes, so that large classes do not dominate. In the generalised task
images of seen and unseen classes are classified among all classes, and the figure is the harmonic
mean of both accuracies. Calibrated stacking (Chao et al., ECCV 2016) subtracts a bias from the
scores of seen classes; the area under the curve of both accuracies over all biases needs no bias.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Results of rows by their scores, each row of a seen or an unseen class.

    Attributes:
        classes: int64 (n,), the right ones.
        rank: of the right class among those of its kind, seen or unseen, from 0, int64 (n,); ties
            count against it.
        gap: best score of a seen class minus best of an unseen one, float64 (n,).
        best_seen: int64 (n,); -1 if there is no seen class.
        best_unseen: likewise.
        before: number of classes of the other kind that score at least as high as the right one
            after the bias is subtracted, int64 (n,).
    """

    classes: Numbers
    rank: Numbers
    gap: NDArray[np.float64]
    best_seen: Numbers
    best_unseen: Numbers
    before: Numbers

    def within(self, top: int) -> NDArray[np.bool_]:
        """Return whether the right class is among the first `top` of its kind, bool (n,)."""
        return self.rank < top

    def where(self, which: NDArray[np.bool_]) -> Judged:
        """Return the rows chosen by a mask, bool (n,)."""
        return Judged(*(getattr(self, one.name)[which] for one in fields(self)))

    def among_all(self, top: int) -> NDArray[np.bool_]:
        """Return whether the right class is among the first `top` of all, bool (n,)."""
        return self.rank + self.before < top


def judge(scores: Values, classes: Numbers, seen: NDArray[np.bool_], bias: float = 0.0) -> Judged:
    """Judge rows by their scores, float32 (n, z), of which seen classes' have `bias` subtracted."""
    ranked = scores.astype(np.float64) - bias * seen
    own = np.take_along_axis(ranked, classes[:, None], 1)  # (n, 1)
    ahead = ranked >= own
    alike = seen[classes][:, None] == seen  # (n, z)
    raw = scores.astype(np.float64)
    best = {kind: np.where(seen == kind, raw, -np.inf) for kind in (True, False)}
    with np.errstate(invalid="ignore"):  # no class of a kind
        gap = best[True].max(1) - best[False].max(1)
    return Judged(
        classes,
        (ahead & alike).sum(1) - 1,
        gap,
        best[True].argmax(1) if seen.any() else np.full(len(classes), -1),
        best[False].argmax(1) if not seen.all() else np.full(len(classes), -1),
        (ahead & ~alike).sum(1),
    )


def joined(parts: Iterable[Judged]) -> Judged:
    """Concatenate blocks of rows."""
    every = list(parts)
    names = [one.name for one in fields(Judged)]
    return Judged(*(np.concatenate([getattr(part, name) for part in every]) for name in names))


def per_class(right: NDArray[Any], classes: Numbers) -> float:
    """Return the share of right rows, a mean over the classes that have rows; NaN without rows.

    Numbers instead of bool are averaged likewise.
    """
    if not len(classes):
        return float("nan")
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(inverse, right) / counts))


def harmonic_mean(a: float, b: float) -> float:
    """Return 2ab / (a + b); 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Accuracy on seen and unseen classes, among all, against the bias of seen scores.

    Attributes:
        bias: float64 (k,), ascending, one between any two values at which an accuracy changes.
        seen: per-class accuracy of rows of seen classes, float64 (k,), falling.
        unseen: of rows of unseen classes, rising.
    """

    bias: NDArray[np.float64]
    seen: NDArray[np.float64]
    unseen: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area under the curve of seen over unseen accuracy: AUSUC."""
        widths = np.diff(self.unseen)
        return float(np.sum(widths * (self.seen[1:] + self.seen[:-1]) / 2))

    @property
    def best(self) -> float:
        """The bias of the highest harmonic mean."""
        total = self.seen + self.unseen
        harmonic = np.divide(
            2 * self.seen * self.unseen, total, out=np.zeros_like(total), where=total > 0
        )
        return float(self.bias[harmonic.argmax()])


def trade_off(seen: Judged, unseen: Judged) -> Curve:
    """Return accuracies at all biases; a row changes where its best scores of both kinds tie.

    Args:
        seen: rows of seen classes, at least one; classes of both kinds had scores.
        unseen: rows of unseen classes, at least one.
    """
    turns = np.unique(np.concatenate([seen.gap, unseen.gap]))
    outer = np.array([turns[0] - 1, turns[-1] + 1])
    bias = np.sort(np.concatenate([(turns[1:] + turns[:-1]) / 2, outer]))
    return Curve(
        bias,
        _share_above(seen.gap, bias, seen.within(1), seen.classes),
        _share_above(-unseen.gap, -bias[::-1], unseen.within(1), unseen.classes)[::-1],
    )


def _share_above(
    gap: NDArray[np.float64], bias: NDArray[np.float64], right: NDArray[np.bool_], classes: Numbers
) -> NDArray[np.float64]:
    """Return the per-class share of right rows with a gap above each bias, float64 (k,)."""
    names, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weight = np.where(right, 1 / (counts[inverse] * len(names)), 0.0)
    order = np.argsort(gap)
    above = np.concatenate([[0.0], np.cumsum(weight[order][::-1])])[::-1]  # from each place on
    share: NDArray[np.float64] = above[np.searchsorted(gap[order], bias, side="right")]
    return share


def fit_temperature(parts: Sequence[tuple[Values, Numbers]]) -> float:
    """Return the temperature T whose softmax(scores / T) gives right classes the most likelihood.

    Guo et al., "On calibration of modern neural networks", ICML 2017, on classes held out.

    Args:
        parts: scores (n, candidates) and the right ones among them, int64 (n,); at least one row.
    """
    coarse = np.geomspace(1e-3, 1e2, 41)
    best = min(coarse, key=lambda one: _surprise(parts, one))
    step = coarse[1] / coarse[0]
    return float(min(np.geomspace(best / step, best * step, 21), key=lambda t: _surprise(parts, t)))


def _surprise(parts: Sequence[tuple[Values, Numbers]], temperature: float) -> float:
    """Return minus the log likelihood of the right classes."""
    total = 0.0
    for scores, own in parts:
        logits = scores.astype(np.float64) / temperature
        logits -= logits.max(1, keepdims=True)
        right = np.take_along_axis(logits, own[:, None], 1)[:, 0]
        total += float(np.sum(np.log(np.exp(logits).sum(1)) - right))
    return total


def probabilities(ranked: Values, temperature: float) -> Values:
    """Return softmax(ranked / temperature), float32 (n, z)."""
    logits = ranked.astype(np.float64) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Values = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return shares
