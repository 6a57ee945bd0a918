"""Choose ESZSL's regularisers and the bias of seen classes by cross-validation over classes.

Some of the seen classes are held out in turn and play the unseen ones (Xian et al., TPAMI 2018).
Cross-validation over images would choose for another task: telling known classes apart.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.zeroshot.class_split import held_out
from vggfeat.zeroshot.eszsl import Sums, solve_many, spanning_basis, sum_rows, targets_of
from vggfeat.zeroshot.metrics import joined, judge, per_class, trade_off

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.zeroshot.metrics import Judged

    Numbers = NDArray[np.int64]
    Values = NDArray[np.float32]
    Matrix = NDArray[np.float64]

REGULARIZERS = tuple(10.0**power for power in range(-3, 4))
"""Of either regulariser, as in Romera-Paredes & Torr 2015."""

FEWEST_CLASSES = 4
"""Seen classes from which some can be held out: two to tell apart, and two to learn from."""

FEW_CLASSES = 20
"""Below this a choice by a few classes held out once is mostly luck, so it is made more often."""

_FOLDS, _REPEATS, _SPARE = 3, 4, 0.2
_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Rows of seen classes to choose by.

    Attributes:
        x: float32 (n, d).
        classes: int64 (n,), indices into the vectors.
        vectors: of the seen classes, at unit length, float64 (z, a).
        costs: of taking one class for another, float64 (z, z).
    """

    x: Values
    classes: Numbers
    vectors: Matrix
    costs: Matrix


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen regularisers, and what they reach on held-out classes.

    Attributes:
        gamma, lambda_: the regularisers.
        accuracy: averaged over classes and folds.
        chance: accuracy of guessing.
        bias: to subtract from scores of seen classes for the highest harmonic mean; 0 if no rows
            of seen classes were spare.
        folds: number of times that classes were held out.
    """

    gamma: float
    lambda_: float
    accuracy: float
    chance: float
    bias: float
    folds: int


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """One choice of held-out classes.

    Attributes:
        kept: bool (z,), the classes that are fitted to.
        sums: of their rows, except spare ones.
        x, classes: rows of held-out classes, and spare rows of the others.
    """

    kept: NDArray[np.bool_]
    sums: Sums
    x: Values
    classes: Numbers


def class_folds(count: int, noise: np.random.Generator) -> list[Numbers]:
    """Split classes into three folds, or two if there are fewer than six; each has two or more."""
    return np.array_split(noise.permutation(count), _FOLDS if count >= 2 * _FOLDS else 2)


def choose_regularisers(
    sample: Sample, gammas: Sequence[float], lambdas: Sequence[float], seed: int
) -> Choice:
    """Choose the pair with the best accuracy on held-out classes; of equals the one nearest (1, 1).

    The sample must have rows of at least `FEWEST_CLASSES` classes; `seed` is that of the folds.
    """
    pairs = list(itertools.product(gammas, lambdas))
    # Folds are made anew for the bias: each holds a matrix that may be large.
    tried = [_accuracies(fold, sample, gammas, lambdas) for fold in _folds(sample, seed)]
    reached = np.mean(tried, axis=0)[:-1]
    best = max(
        range(len(pairs)),
        key=lambda at: (round(float(reached[at]), 9), -float(np.square(np.log(pairs[at])).sum())),
    )
    gamma, lambda_ = pairs[best]
    judged = [_judged(fold, sample, gamma, lambda_) for fold in _folds(sample, seed)]
    seen, unseen = (joined(kind) for kind in zip(*judged, strict=True))
    bias = trade_off(seen, unseen).best if len(seen.classes) and len(unseen.classes) else 0.0
    chance = float(np.mean([one[-1] for one in tried]))
    return Choice(gamma, lambda_, float(reached[best]), chance, bias, len(tried))


def _folds(sample: Sample, seed: int) -> Iterator[_Fold]:
    noise = np.random.default_rng(seed)
    basis = spanning_basis(sample.x)
    x = sample.x if basis is None else (sample.x @ basis).astype(np.float32)
    spare = held_out(sample.classes, _SPARE, noise)
    count = len(sample.vectors)
    repeats = _REPEATS if count < FEW_CLASSES else 1
    for part in (part for _ in range(repeats) for part in class_folds(count, noise)):
        kept = ~np.isin(np.arange(count), part)
        learnt = np.flatnonzero(kept[sample.classes] & ~spare)
        numbers = np.cumsum(kept) - 1  # of the classes among those kept
        blocks = (
            (x[rows], numbers[sample.classes[rows]])
            for rows in np.array_split(learnt, len(learnt) // _BLOCK + 1)
        )
        sums = sum_rows(blocks, x.shape[1], int(kept.sum()))
        judging = spare | ~kept[sample.classes]
        yield _Fold(kept, sums, x[judging], sample.classes[judging])


def _maps(fold: _Fold, sample: Sample, gamma: float, lambdas: Sequence[float]) -> Iterator[Matrix]:
    targets = targets_of(sample.costs[np.ix_(fold.kept, fold.kept)])
    return solve_many(fold.sums, sample.vectors[fold.kept], targets, gamma, lambdas)


def _accuracies(
    fold: _Fold, sample: Sample, gammas: Sequence[float], lambdas: Sequence[float]
) -> list[float]:
    """Return the accuracy of each pair, in the order of their product; last, that of guessing."""
    out = ~fold.kept[fold.classes]
    classes = fold.classes[out]
    found = []
    for gamma in gammas:
        for map_ in _maps(fold, sample, gamma, lambdas):
            scores = (fold.x[out] @ map_ @ sample.vectors.T).astype(np.float32)
            found.append(per_class(judge(scores, classes, fold.kept).within(1), classes))
    return [*found, 1 / float((~fold.kept).sum())]


def _judged(fold: _Fold, sample: Sample, gamma: float, lambda_: float) -> tuple[Judged, Judged]:
    """Judge spare rows of fitted classes, and rows of held-out classes, among all classes."""
    (map_,) = _maps(fold, sample, gamma, (lambda_,))
    scores = (fold.x @ map_ @ sample.vectors.T).astype(np.float32)
    judged, kept = judge(scores, fold.classes, fold.kept), fold.kept[fold.classes]
    return judged.where(kept), judged.where(~kept)
