"""Learn the map of each method, with what is chosen on held-out classes."""

from __future__ import annotations

import dataclasses
import itertools
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
    NEIGHBORS,
    REGULARIZERS,
    Attempt,
    Chooser,
    Sample,
)
from vggfeat.zeroshot.eszsl import (
    eszsl_columns,
    eszsl_side,
    regularised,
    row_products,
    solve_rows,
    sum_rows,
    targets_of,
)
from vggfeat.zeroshot.features import Inputs, joined_blocks, joined_rows
from vggfeat.zeroshot.nearest import USUAL_NEIGHBORS

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
CLOSED = ("eszsl", "ridge", "nearest")
"""Methods that `auto` chooses from: all but `devise`, which takes minutes."""

_NAMES = {"eszsl": ("gamma", "lambda"), "ridge": ("gamma",), "nearest": ("neighbors",)}
_WIDTH_TO_COMPARE = 4096  # up to which ridge is fitted only to compare with it
_BY_CLASS = 10  # classes from which attention is judged by classes held out, not by images


@dataclass(frozen=True, slots=True, eq=False)
class TrainedMap:
    """What was learnt from the rows of seen classes.

    Attributes:
        method: that was chosen.
        inputs: with attention if it was requested.
        map: V, float32 (d, a); None for `nearest`, which has none.
        ridge: V of ridge regression to compare with, float32 (d, a); None if it is too large.
        neighbors: nearest classes whose words are averaged.
        means: mean of each class, float32 (z, d).
        bias, temperature: see `Calibration`; None if no classes could be held out.
        notes: for the user.
        figures: for the record of the model.
    """

    method: str
    inputs: Inputs
    map: Values | None
    ridge: Values | None
    neighbors: int
    means: Values
    bias: float | None
    temperature: float | None
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
        if self.settings.fitted_method == "devise":
            return self._devise(costs)
        return self._closed(costs, has_tree=bool(tree.parents))

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
        choices, _, scale = self._choose(inputs, costs, ("ridge", "nearest"))
        gamma = _numbers(choices, "ridge", settings)[0] * scale
        maps, means = self._closed_form(inputs, costs, {"ridge": (gamma,)})
        return TrainedMap(
            "devise", inputs, trained.map, maps.get("ridge"),
            int(_numbers(choices, "nearest", settings)[0]), means,
            None if trial is None else trial.bias,
            None if trial is None else trial.temperature,
            notes, {"epochs": trained.epochs, "margin": settings.margin},
        )  # fmt: skip

    def _closed(self, costs: Matrix, *, has_tree: bool) -> TrainedMap:
        settings, inputs, notes = self.settings, self.inputs, list[str]()
        if settings.attention:
            attention, notes = self._attention()
            inputs = dataclasses.replace(inputs, attention=attention)
        method: str = settings.fitted_method
        tried = CLOSED if method == "auto" else dict.fromkeys((method, "ridge", "nearest"))
        choices, chooser, scale = self._choose(inputs, costs, tuple(tried))
        if method == "auto":
            method = _best(choices)
            notes.append(_why(method, choices))
        numbers = _numbers(choices, method, settings)
        calibration = chooser and chooser.calibrate(Attempt(method, numbers))
        wanted = {one: _numbers(choices, one, settings) for one in {method, "ridge"}}
        wanted = {
            one: (few[0] * scale, *few[1:]) for one, few in wanted.items() if one != "nearest"
        }
        maps, means = self._closed_form(inputs, costs, wanted)
        figures = dict(zip(_NAMES[method], wanted.get(method, numbers), strict=True))
        notes.append(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        if method in choices:
            choice = choices[method]
            reached = _reached(choice.accuracy, choice.chance)
            notes[-1] += f"; {reached} in {choice.folds} folds in which some were held out"
        else:
            notes.append(_TOO_FEW)
        if has_tree and method != "eszsl":
            notes.append(f"{method} makes no use of the class tree in fitting")
        return TrainedMap(
            method, inputs, maps.get(method), maps.get("ridge"),
            int(_numbers(choices, "nearest", settings)[0]), means,
            calibration.bias if calibration else None,
            calibration.temperature if calibration else None,
            notes, figures,
        )  # fmt: skip

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

    def _choose(
        self, inputs: Inputs, costs: Matrix, methods: Sequence[str]
    ) -> tuple[Mapping[str, Choice], Chooser | None, float]:
        """Return the choice of each method; the chooser; and what its gammas are to be scaled by.

        Without enough classes, nothing is chosen and the mapping is empty.
        """
        if len(self.vectors) < FEWEST_CLASSES:
            return {}, None, 1.0
        at = self._sample(max(_CHOOSING_ROWS, _OF_EACH * len(self.vectors)))
        scale = len(self.train) / len(at)  # gamma counts against the sum over all rows
        x = joined_rows(self.cache, inputs, self.train.rows[at])
        vectors = self.vectors.astype(np.float64)
        chooser = Chooser(Sample(x, self.train.classes[at], vectors, costs), self.settings.seed)
        candidates = (_candidates(method, self.settings, scale) for method in methods)
        return chooser.choose([one for some in candidates for one in some]), chooser, scale

    def _closed_form(
        self, inputs: Inputs, costs: Matrix, wanted: Mapping[str, tuple[float, ...]]
    ) -> tuple[dict[str, Values], Values]:
        """Return the maps of some methods, float32 (d, a), and the mean of each class, (z, d).

        `wanted` has the regularisers of `eszsl` or `ridge`.
        """
        classes, vectors = self.train.classes, self.vectors.astype(np.float64)
        columns = {"eszsl": eszsl_columns(vectors, targets_of(costs)), "ridge": vectors}
        if not _is_worth_it(wanted, self.settings, len(self.train), inputs.width):
            return {}, self._class_means(inputs)
        if len(self.train) < inputs.width:
            x = joined_rows(self.cache, inputs, self.train.rows)
            products = row_products(x)
            maps = {
                method: solve_rows(x, products, columns[method][classes], numbers[0])
                for method, numbers in wanted.items()
            }
            means = self._class_means(inputs)
        else:
            blocks = joined_blocks(self.cache, inputs, self.train.rows)
            sums = sum_rows(((x, classes[at]) for at, x in blocks), inputs.width, len(vectors))
            maps = {
                method: regularised(sums.gram, sums.by_class @ columns[method], numbers[0])
                for method, numbers in wanted.items()
            }
            means = sums.means
        for method, (_, *lambdas) in wanted.items():
            if lambdas:
                maps[method] = eszsl_side(maps[method], vectors, *lambdas)
        return {method: map_.astype(np.float32) for method, map_ in maps.items()}, means

    def _class_means(self, inputs: Inputs) -> Values:
        """Return the mean of each class, float32 (z, d), in one pass over the rows."""
        total = np.zeros((len(self.vectors), inputs.width))
        for at, x in joined_blocks(self.cache, inputs, self.train.rows):
            np.add.at(total, self.train.classes[at], x)
        counts = np.bincount(self.train.classes, minlength=len(total))
        means: Values = (total / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return means


def _is_worth_it(
    wanted: Mapping[str, tuple[float, ...]], settings: ZeroShotSettings, rows: int, width: int
) -> bool:
    """Return whether to fit maps: not one that is only compared with, where it takes long."""
    is_the_method = "eszsl" in wanted or settings.fitted_method in ("auto", "ridge")
    return is_the_method or min(rows, width) <= _WIDTH_TO_COMPARE


def _candidates(method: str, settings: ZeroShotSettings, scale: float) -> list[Attempt]:
    """Return what is tried of a method: what is given, or everything."""
    gamma = settings.gamma if settings.fitted_method == method else None
    gammas = REGULARIZERS if gamma is None else (gamma / scale,)
    if method == "eszsl":
        lambdas = REGULARIZERS if settings.lambda_ is None else (settings.lambda_,)
        return [Attempt(method, pair) for pair in itertools.product(gammas, lambdas)]
    if method == "ridge":
        return [Attempt(method, (one,)) for one in gammas]
    counts = NEIGHBORS if settings.neighbors is None else (settings.neighbors,)
    return [Attempt(method, (one,)) for one in counts]


def _numbers(
    choices: Mapping[str, Choice], method: str, settings: ZeroShotSettings
) -> tuple[float, ...]:
    """Return the chosen numbers of a method; without a choice those given, or usual ones."""
    if method in choices:
        return choices[method].best.numbers
    gamma = (settings.gamma if settings.fitted_method == method else None) or 1.0
    if method == "eszsl":
        return gamma, settings.lambda_ or 1.0
    return (gamma,) if method == "ridge" else (settings.neighbors or USUAL_NEIGHBORS,)


def _best(choices: Mapping[str, Choice]) -> str:
    """Return the method with the best mean reciprocal rank; ridge if none could be tried."""
    return max(choices, key=lambda method: choices[method].reciprocal_rank, default="ridge")


def _why(method: str, choices: Mapping[str, Choice]) -> str:
    if not choices:
        return f"method {method}, since too few classes are seen to try others on some held out"
    figures = ", ".join(f"{one} {choice.reciprocal_rank:.3f}" for one, choice in choices.items())
    return f"method {method}, the best by mean reciprocal rank on held-out seen classes: {figures}"


_TOO_FEW = (
    f"fewer than {FEWEST_CLASSES} seen classes: none could be held out, so nothing was chosen by "
    "cross-validation and there is no calibration"
)


def _reached(accuracy: float, chance: float) -> str:
    return f"{accuracy:.1%} of images right (chance {chance:.1%}) among seen classes"
