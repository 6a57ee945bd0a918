"""Learn the map of ESZSL or DeViSE, with what is chosen on held-out classes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.arrays import spread
from vggfeat.core.text import counted
from vggfeat.transforms.base import blocks_of
from vggfeat.zeroshot.class_tree import flat_costs, tree_distances
from vggfeat.zeroshot.cross_validation import (
    FEWEST_CLASSES,
    REGULARIZERS,
    Sample,
    choose_regularisers,
)
from vggfeat.zeroshot.eszsl import solve_eszsl, spanning_basis, sum_rows, targets_of
from vggfeat.zeroshot.features import Inputs, joined_blocks, joined_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.transforms.fusion import Attention
    from vggfeat.zeroshot.class_split import Labelled
    from vggfeat.zeroshot.class_tree import ClassTree
    from vggfeat.zeroshot.cross_validation import Choice
    from vggfeat.zeroshot.settings import ZeroShotSettings

    Values = NDArray[np.float32]
    Matrix = NDArray[np.float64]

_MOST_ROWS = 20_000  # that attention is learnt from, spread evenly
_CHOOSING_ROWS = 3000  # that regularisers are chosen by, likewise, or so many of each class:
_OF_EACH = 10
_MOST_BYTES = 1 << 29  # of either, as float32
_BY_CLASS = 10  # classes from which attention is judged by classes held out, not by images


@dataclass(frozen=True, slots=True, eq=False)
class TrainedMap:
    """A trained map, float32 (d, a), and the mean of each class, float32 (z, d).

    The inputs have attention if requested; `figures` are for the record of the model.
    """

    inputs: Inputs
    map: Values
    means: Values
    bias: float | None
    notes: list[str]
    figures: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """Learn from the rows of seen classes.

    `inputs` have no attention yet; `vectors` are those of the seen classes, at unit length.
    """

    cache: FeatureCache
    settings: ZeroShotSettings
    inputs: Inputs
    train: Labelled
    vectors: Values

    def __call__(self, tree: ClassTree, names: Sequence[str]) -> TrainedMap:
        """Learn the map; `tree` has no parents if none was given."""
        costs = flat_costs(len(names))
        if tree.parents:
            costs = tree_distances(tree, names).costs(self.settings.beta)
        return self._devise(costs) if self.settings.method == "devise" else self._eszsl(costs)

    def _devise(self, costs: Matrix) -> TrainedMap:
        from vggfeat.zeroshot.devise import Task, train_devise

        settings = self.settings
        margins = (settings.margin * costs).astype(np.float32)
        trained = train_devise(
            Task(
                self.cache, self.inputs, self.train, self.vectors, margins,
                settings.attention, settings.seed, settings.device,
            )
        )  # fmt: skip
        inputs = dataclasses.replace(self.inputs, attention=trained.attention)
        notes = [f"trained for {counted(trained.epochs, 'epoch')}"]
        trial = trained.trial
        if trial is None:
            notes.append(_TOO_FEW)
        else:
            notes[0] += f"; {_reached(trial.accuracy, trial.chance)} when some were held out"
        means = self._class_means(inputs)
        figures = {"epochs": trained.epochs, "margin": settings.margin}
        bias = None if trial is None else trial.bias
        return TrainedMap(inputs, trained.map, means, bias, notes, figures)

    def _class_means(self, inputs: Inputs) -> Values:
        """Return the mean of each class, float32 (z, d), in one pass over the rows."""
        total = np.zeros((len(self.vectors), inputs.width))
        for at, x in joined_blocks(self.cache, inputs, self.train.rows):
            np.add.at(total, self.train.classes[at], x)
        counts = np.bincount(self.train.classes, minlength=len(total))
        means: Values = (total / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return means

    def _eszsl(self, costs: Matrix) -> TrainedMap:
        inputs, notes = self.inputs, list[str]()
        if self.settings.attention:
            attention, notes = self._attention()
            inputs = dataclasses.replace(inputs, attention=attention)
        gamma, lambda_, choice = self._regularisers(inputs, costs)
        notes.append(f"gamma {gamma:.4g}, lambda {lambda_:.4g}")
        if choice is None:
            notes.append(_TOO_FEW)
        else:
            notes[-1] += (
                f"; {_reached(choice.accuracy, choice.chance)} in {choice.folds} folds in which "
                "some were held out"
            )
        map_, means = self._closed_form(inputs, costs, gamma, lambda_)
        bias = None if choice is None else choice.bias
        figures = {"gamma": gamma, "lambda": lambda_}
        return TrainedMap(inputs, map_.astype(np.float32), means, bias, notes, figures)

    def _sample(self, most: int) -> NDArray[np.int64]:
        """Return positions of rows to choose by, spread evenly."""
        held = _MOST_BYTES // (4 * self.inputs.width)
        return spread(np.arange(len(self.train)), min(most, held))

    def _attention(self) -> tuple[Attention | None, list[str]]:
        from vggfeat.transforms.layer_weights import Examples, learn

        at = self._sample(_MOST_ROWS)
        blocks = [
            self.inputs.parts(layers)
            for _, layers in blocks_of(self.cache, self.inputs.layers, self.train.rows[at])
        ]
        parts = {
            name: np.concatenate([block[name] for block in blocks]) for name in self.inputs.layers
        }
        learnt = learn(
            self.inputs.fusion(),
            Examples(parts, self.train.classes[at]),
            by_group=len(self.vectors) >= _BY_CLASS,
            device=self.settings.device,
        )
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in learnt.mean_weights.items())
        return learnt.fusion.attention, [f"mean weights of the layers: {weights}"]

    def _regularisers(self, inputs: Inputs, costs: Matrix) -> tuple[float, float, Choice | None]:
        gamma, lambda_ = self.settings.gamma, self.settings.lambda_
        if len(self.vectors) < FEWEST_CLASSES:
            return gamma or 1.0, lambda_ or 1.0, None
        at = self._sample(max(_CHOOSING_ROWS, _OF_EACH * len(self.vectors)))
        scale = len(self.train) / len(at)  # gamma counts against the sum over all rows
        x = joined_rows(self.cache, inputs, self.train.rows[at])
        sample = Sample(x, self.train.classes[at], self.vectors.astype(np.float64), costs)
        choice = choose_regularisers(
            sample,
            REGULARIZERS if gamma is None else (gamma / scale,),
            REGULARIZERS if lambda_ is None else (lambda_,),
            self.settings.seed,
        )
        return choice.gamma * scale, choice.lambda_, choice

    def _closed_form(
        self, inputs: Inputs, costs: Matrix, gamma: float, lambda_: float
    ) -> tuple[Matrix, Values]:
        """Return the map, float64 (d, a), and the mean of each class, float32 (z, d)."""
        vectors, targets = self.vectors.astype(np.float64), targets_of(costs)
        classes = self.train.classes
        if len(self.train) >= inputs.width:
            blocks = joined_blocks(self.cache, inputs, self.train.rows)
            sums = sum_rows(((x, classes[at]) for at, x in blocks), inputs.width, len(self.vectors))
            return solve_eszsl(sums, vectors, targets, gamma, lambda_), sums.means
        x = joined_rows(self.cache, inputs, self.train.rows)
        basis = spanning_basis(x)
        assert basis is not None  # noqa: S101 there are fewer rows than dimensions
        small = x @ basis  # (n, n)
        sums = sum_rows([(small, classes)], len(x), len(self.vectors))
        map_: Matrix = basis @ solve_eszsl(sums, vectors, targets, gamma, lambda_)
        return map_, (sums.means.astype(np.float64) @ basis.T).astype(np.float32)


_TOO_FEW = (
    f"fewer than {FEWEST_CLASSES} seen classes: none could be held out, so nothing was chosen by "
    "cross-validation and there is no calibration"
)


def _reached(accuracy: float, chance: float) -> str:
    return f"{accuracy:.1%} of images right (chance {chance:.1%}) among seen classes"
