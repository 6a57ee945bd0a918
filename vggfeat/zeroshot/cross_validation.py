"""Choose a method, its regularisers and the bias of seen classes by cross-validation over classes.

Some of the seen classes are held out in turn and play the unseen ones (Xian et al., TPAMI 2018).
Cross-validation over images would choose for another task: recognising known classes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.arrays import unit_rows
from vggfeat.zeroshot.class_split import held_out
from vggfeat.zeroshot.eszsl import (
    eszsl_columns,
    eszsl_side,
    regularised,
    row_products,
    sum_rows,
    targets_of,
)
from vggfeat.zeroshot.metrics import fit_temperature, joined, judge, per_class, trade_off
from vggfeat.zeroshot.nearest import NearestWords

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Values = NDArray[np.float32]
    Matrix = NDArray[np.float64]

REGULARIZERS = tuple(10.0**power for power in range(-3, 4))
"""Of either regulariser, as in Romera-Paredes & Torr 2015."""

NEIGHBORS = (1, 2, 3, 5, 8, 12, 20)
"""Nearest seen classes whose words are averaged."""

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
class Attempt:
    """A method with its numbers.

    Attributes:
        method: `eszsl`, `ridge` or `nearest`.
        numbers: gamma and lambda of `eszsl`, gamma of `ridge`, number of classes of `nearest`.
    """

    method: str
    numbers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate, and what it reaches on held-out classes.

    Attributes:
        best: the candidate.
        accuracy: averaged over classes and folds.
        reciprocal_rank: mean of 1 / the place of the right class, likewise.
        chance: accuracy of guessing.
        folds: number of times that classes were held out.
    """

    best: Attempt
    accuracy: float
    reciprocal_rank: float
    chance: float
    folds: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes scores of one candidate comparable, found on held-out classes.

    Attributes:
        bias: to subtract from scores of seen classes for the highest harmonic mean; 0 if no rows
            of seen classes were spare.
        temperature: that scores are divided by before softmax, for the highest likelihood of the
            right class among those held out.
    """

    bias: float
    temperature: float


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """One choice of held-out classes.

    Attributes:
        kept: bool (z,), the classes that are fitted to.
        learnt: classes of the rows that are fitted to, numbered among those kept, int64 (m,).
        system: products of these rows, float64 (m, m), or of their dimensions (d, d).
        judged: what maps the solution of the system to judged rows, float64 (j, m) or (j, d).
        by_class: sum of each class's rows, (d, z'); None if the system is one of rows.
        x, classes: judged rows, of held-out classes and spare ones of the others.
        means: mean of each class kept, float32 (z', d).
    """

    kept: NDArray[np.bool_]
    learnt: Numbers
    system: Matrix
    judged: Matrix
    by_class: Matrix | None
    x: Values
    classes: Numbers
    means: Values

    def embed(self, columns: Matrix, gamma: float) -> Matrix:
        """Regress on columns (z', a) of the classes kept; return judged rows, float64 (j, a)."""
        right = columns[self.learnt] if self.by_class is None else self.by_class @ columns
        return self.judged @ regularised(self.system, right, gamma)


def class_folds(count: int, noise: np.random.Generator) -> list[Numbers]:
    """Split classes into three folds, or two if there are fewer than six; each has two or more."""
    return np.array_split(noise.permutation(count), _FOLDS if count >= 2 * _FOLDS else 2)


class Chooser:
    """Try candidates on classes that are held out in turn.

    The sample must have rows of at least `FEWEST_CLASSES` classes; `seed` is that of the folds.
    """

    def __init__(self, sample: Sample, seed: int) -> None:
        self._sample, self._seed = sample, seed
        fewer = len(sample.x) < sample.x.shape[1]
        self._products = row_products(sample.x) if fewer else None  # once, for all folds

    def choose(self, candidates: Sequence[Attempt]) -> Mapping[str, Choice]:
        """Return the best candidate of each method.

        Of `eszsl` that is the one with the best accuracy, of the others the one with the best mean
        reciprocal rank, which few classes leave less to luck; of equals the one nearest to 1.
        """
        folds = [self._measure(fold, candidates) for fold in self._folds()]
        chance = float(np.mean([chance for _, chance in folds]))
        reached = np.mean([figures for figures, _ in folds], axis=0)  # (candidates, 2)
        best: dict[str, int] = {}
        for at, one in enumerate(candidates):
            if one.method not in best or _merit(one, reached[at]) > _merit(
                candidates[best[one.method]], reached[best[one.method]]
            ):
                best[one.method] = at
        return {
            method: Choice(
                candidates[at], float(reached[at, 0]), float(reached[at, 1]), chance, len(folds)
            )
            for method, at in best.items()
        }

    def calibrate(self, candidate: Attempt) -> Calibration:
        """Return the bias and the temperature of a candidate."""
        seen, unseen, scored = [], [], []
        for fold in self._folds():  # not kept: each holds a matrix that may be large
            ((_, scores),) = self._scores(fold, (candidate,))
            judged, kept = judge(scores, fold.classes, fold.kept), fold.kept[fold.classes]
            seen.append(judged.where(kept))
            unseen.append(judged.where(~kept))
            own = (np.cumsum(~fold.kept) - 1)[fold.classes[~kept]]
            scored.append((scores[np.ix_(~kept, ~fold.kept)], own))
        a, b = joined(seen), joined(unseen)
        bias = trade_off(a, b).best if len(a.classes) and len(b.classes) else 0.0
        return Calibration(bias, fit_temperature(scored))

    def _measure(self, fold: _Fold, candidates: Sequence[Attempt]) -> tuple[Matrix, float]:
        """Return accuracy and reciprocal rank of each candidate, (candidates, 2); and chance."""
        out = ~fold.kept[fold.classes]
        figures = np.empty((len(candidates), 2))
        for at, scores in self._scores(fold, candidates):
            judged = judge(scores[out], fold.classes[out], fold.kept)
            ranks = 1 / (judged.rank + 1)
            figures[at] = [per_class(one, judged.classes) for one in (judged.within(1), ranks)]
        return figures, 1 / float((~fold.kept).sum())

    def _scores(self, fold: _Fold, candidates: Sequence[Attempt]) -> Iterator[tuple[int, Values]]:
        """Yield the place of each candidate and its scores of judged rows, float32 (j, z)."""
        everything, vectors = self._sample.vectors, self._sample.vectors[fold.kept]
        targets = targets_of(self._sample.costs[np.ix_(fold.kept, fold.kept)])
        columns = np.hstack([eszsl_columns(vectors, targets), vectors])
        linear = [at for at, one in enumerate(candidates) if one.method != "nearest"]
        by_gamma = itertools.groupby(
            sorted(linear, key=lambda at: candidates[at].numbers[0]),
            key=lambda at: candidates[at].numbers[0],
        )
        for gamma, places in by_gamma:  # one solution serves both methods, and all lambdas
            left, right = np.hsplit(fold.embed(columns, gamma), 2)
            for at in places:
                if candidates[at].method == "eszsl":
                    embedded = eszsl_side(left, vectors, candidates[at].numbers[1])
                    yield at, (embedded @ everything.T).astype(np.float32)
                else:
                    unit = unit_rows(right.astype(np.float32))
                    yield at, unit @ everything.T.astype(np.float32)
        for at, one in enumerate(candidates):
            if one.method == "nearest":
                words = NearestWords.of(fold.means, vectors.astype(np.float32), int(one.numbers[0]))
                yield at, words(fold.x) @ everything.T.astype(np.float32)

    def _folds(self) -> Iterator[_Fold]:
        noise, classes = np.random.default_rng(self._seed), self._sample.classes
        spare = held_out(classes, _SPARE, noise)
        count = len(self._sample.vectors)
        repeats = _REPEATS if count < FEW_CLASSES else 1
        for part in (part for _ in range(repeats) for part in class_folds(count, noise)):
            kept = ~np.isin(np.arange(count), part)
            learnt = np.flatnonzero(kept[classes] & ~spare)
            yield self._fold(kept, learnt, np.flatnonzero(spare | ~kept[classes]))

    def _fold(self, kept: NDArray[np.bool_], learnt: Numbers, judging: Numbers) -> _Fold:
        x, classes, products = self._sample.x, self._sample.classes, self._products
        own = (np.cumsum(kept) - 1)[classes[learnt]]  # numbered among those kept
        if products is not None:
            total = np.zeros((int(kept.sum()), x.shape[1]))
            np.add.at(total, own, x[learnt])
            means = (total / np.bincount(own)[:, None]).astype(np.float32)
            system, judged = products[np.ix_(learnt, learnt)], products[np.ix_(judging, learnt)]
            by_class = None
        else:
            blocks = np.array_split(np.arange(len(learnt)), len(learnt) // _BLOCK + 1)
            rows = ((x[learnt[at]], own[at]) for at in blocks)
            sums = sum_rows(rows, x.shape[1], int(kept.sum()))
            system, by_class, means = sums.gram, sums.by_class, sums.means
            judged = x[judging].astype(np.float64)
        return _Fold(kept, own, system, judged, by_class, x[judging], classes[judging], means)


def _merit(one: Attempt, reached: Matrix) -> tuple[float, float]:
    """Return what the best candidate of a method has most of."""
    figure = reached[0] if one.method == "eszsl" else reached[1]
    return round(float(figure), 9), -sum(math.log(number) ** 2 for number in one.numbers)
