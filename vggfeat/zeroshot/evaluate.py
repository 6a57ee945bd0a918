"""Evaluate a zero-shot model by the protocol of Xian et al. 2018, with baselines."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.labels import labels_of
from vggfeat.cache.sharded import open_cache
from vggfeat.core.arrays import nearness
from vggfeat.core.isolation import isolated
from vggfeat.core.text import agree, counted
from vggfeat.errors import UsageError
from vggfeat.transforms.base import blocks_of
from vggfeat.zeroshot.class_split import Labelled, image_keys, labelled_rows
from vggfeat.zeroshot.class_tree import TreeMistakes, read_tree, tree_mistakes
from vggfeat.zeroshot.metrics import Judged, harmonic_mean, joined, judge, per_class, trade_off
from vggfeat.zeroshot.model import ZeroShotModel
from vggfeat.zeroshot.predict import bias_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

    Numbers = NDArray[np.int64]
    Values = NDArray[np.float32]

SEEN, UNSEEN = "seen", "unseen"


@dataclass(frozen=True, slots=True)
class Figure:
    """One accuracy, averaged over classes, with its baselines.

    Attributes:
        of: whose images: `seen` (held out of the fit) or `unseen`.
        among: the candidate classes: `seen`, `unseen` or `all`.
        top: an image is right if its class is among the first `top`.
        accuracy: 0 to 1.
        chance: accuracy of guessing.
        majority: of always predicting the classes with most training images; of any classes if all
            candidates are unseen.
        class_mean: of the nearest mean of a seen class's images in feature space, which cannot
            predict unseen classes; None if it does not apply.
        nearest: of the word of the nearest seen class, by its mean in feature space: the unseen
            class with the most similar vector; None if not all candidates are unseen.
        nearest_few: likewise of the words of the few nearest classes: see `Evaluation.neighbors`.
        ridge: of ridge regression to class vectors, likewise; None also in models of earlier
            versions.
    """

    of: str
    among: str
    top: int
    accuracy: float
    chance: float
    majority: float
    class_mean: float | None
    nearest: float | None
    nearest_few: float | None
    ridge: float | None


@dataclass(frozen=True, slots=True)
class Generalised:
    """Top-1 accuracies of the generalised task.

    Attributes:
        bias: subtracted from the scores of seen classes.
        seen: accuracy on images of seen classes among all classes.
        unseen: likewise of unseen classes.
        harmonic: their harmonic mean H.
    """

    bias: float
    seen: float
    unseen: float
    harmonic: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The accuracy of a model on a cache.

    Attributes:
        model, cache: files.
        method: of the model.
        neighbors: seen classes whose words `Figure.nearest_few` averages.
        seen_classes, unseen_classes: number with test images.
        seen_images, unseen_images: number of test images.
        figures: accuracies and their baselines.
        generalised: without a bias; None unless there are images of both kinds.
        calibrated: with the requested bias; None if none was requested.
        area: under the curve of seen over unseen accuracy over all biases (AUSUC); None likewise.
        mistakes: distances in the class tree; empty without a tree.
        notes: remarks for the user.
    """

    model: str
    cache: str
    method: str
    neighbors: int
    seen_classes: int
    unseen_classes: int
    seen_images: int
    unseen_images: int
    figures: tuple[Figure, ...]
    generalised: Generalised | None
    calibrated: Generalised | None
    area: float | None
    mistakes: tuple[TreeMistakes, ...]
    notes: tuple[str, ...]


@isolated()
def evaluate_zeroshot(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    tree: str | os.PathLike[str] | None = None,
    top: Sequence[int] = (1, 5),
    calibrate: float | str | None = None,
) -> Evaluation:
    """Evaluate a model on the images of a cache that it was not trained on.

    Images of seen classes count unless the fit used them, which is recognised by their content; the
    cache may be the one that the model was fitted to, or another.

    Args:
        model: a file of `fit_zeroshot`.
        source: a cache of the same network and layers.
        labels: as for `fit_zeroshot`.
        tree: over the classes, CSV of child,parent; by default the one that the model was fitted
            with.
        top: numbers of predictions among which the right class may be.
        calibrate: a bias to subtract from scores of seen classes (Chao et al. 2016), or `auto`.

    Raises:
        UsageError: invalid options, or no test image.
        InputError: a file cannot be read.
        CacheError: the model or cache was not made by vggfeat, is damaged, or they do not match.
    """
    path, cache = os.fspath(model), open_cache(source)
    cache.warn()
    loaded = ZeroShotModel.load(path)
    loaded.check(cache, path)
    bias = None if calibrate is None else bias_of(loaded, calibrate)
    if not top or min(top) < 1:
        raise UsageError(f"top {list(top)}: expected numbers of 1 or more, as in 1,5")
    classes = loaded.tree if tree is None else read_tree(tree).above(loaded.names)
    known = labels_of(cache, labels)
    labelled = labelled_rows(cache, known, loaded.names)
    is_known = np.isin(image_keys(cache, labelled.rows), loaded.trained)
    learnt = is_known & loaded.seen[labelled.classes]
    labelled, left_out = labelled.where(~learnt), int(learnt.sum())
    if not len(labelled):
        raise UsageError(_nothing_to_judge_by(cache, loaded, left_out))
    found, shifted = _scored(cache, loaded, labelled, (0.0, bias or 0.0))
    figures = found.figures(top)
    return Evaluation(
        path,
        cache.path,
        loaded.method,
        loaded.nearest.count,
        *found.counts,
        figures,
        found.generalised(0.0),
        shifted.generalised(bias) if bias is not None else None,
        found.area,
        tree_mistakes(classes, loaded.names, found.judged, loaded.seen) if classes.parents else (),
        (*_notes(loaded, labelled, left_out), *_beaten(loaded, figures), *known.notes),
    )


def _nothing_to_judge_by(cache: FeatureCache, model: ZeroShotModel, left_out: int) -> str:
    some = ", ".join(model.names[:3])
    return (
        f"no image of cache {cache.path!r} to judge by: of the model's "
        f"{counted(len(model.names), 'class')} "
        f"({some}, ...) it has {left_out} that were learnt from, and no others; give --labels if "
        "folders do not name the classes, or fit with --held-out or --unseen"
    )


def _notes(model: ZeroShotModel, labelled: Labelled, left_out: int) -> list[str]:
    notes = (
        [f"{counted(left_out, 'image')} of the training {agree(left_out, 'is')} left out"]
        if left_out
        else []
    )
    present = set(labelled.classes.tolist())
    without = [name for at, name in enumerate(model.names) if at not in present]
    if without:
        notes.append(f"classes without images to judge by: {', '.join(without)}")
    unseen = np.flatnonzero(~model.seen).tolist()
    if len(unseen) == 1 and unseen[0] in present:
        notes.append("one unseen class: among unseen classes alone no answer could be wrong")
    return notes


def _beaten(model: ZeroShotModel, figures: Sequence[Figure]) -> list[str]:
    """Name the simpler ways that do better on unseen classes, at the largest number of answers."""
    mine = [one for one in figures if (one.of, one.among) == (UNSEEN, UNSEEN)]
    if not mine:
        return []
    last = mine[-1]
    rivals = {
        "nearest --neighbors 1": last.nearest,
        f"nearest --neighbors {model.nearest.count}": last.nearest_few,
        "ridge": last.ridge,
    }
    better = {
        way: value for way, value in rivals.items() if value is not None and value > last.accuracy
    }
    if not better:
        return []
    way = max(better, key=lambda one: better[one])
    say = f"on unseen classes, top {last.top}, --method {way} reaches {better[way]:.3f}"
    return [f"{say}, this model of {model.method} {last.accuracy:.3f}"]


def _scored(
    cache: FeatureCache, model: ZeroShotModel, labelled: Labelled, biases: Sequence[float]
) -> list[_Findings]:
    """Judge the rows at each bias, by the baselines, and find the nearest class mean of each."""
    judged: list[list[Judged]] = [[] for _ in biases]
    others: dict[str, list[Judged]] = {}
    nearest, start = [], 0
    for rows, layers in blocks_of(cache, model.inputs.layers, labelled.rows):
        x = model.inputs(layers)
        classes = labelled.classes[start : start + len(rows)]
        scores = model.embed_joined(x) @ model.vectors.T
        for found, bias in zip(judged, biases, strict=True):
            found.append(judge(scores, classes, model.seen, bias))
        for name, embedded in _baselines(model, x):
            part = judge(embedded @ model.vectors.T, classes, model.seen)
            others.setdefault(name, []).append(part)
        nearest.append(nearness(x, model.means).argmax(1))
        start += len(rows)
    whole = {name: joined(parts) for name, parts in others.items()}
    return [_Findings(model, joined(found), np.concatenate(nearest), whole) for found in judged]


def _baselines(model: ZeroShotModel, x: Values) -> Iterator[tuple[str, Values]]:
    """Yield simple ways to map rows to class vectors, with their results, float32 (n, a)."""
    yield "nearest", dataclasses.replace(model.nearest, count=1)(x)
    yield "nearest_few", model.nearest(x)
    if model.ridge is not None:
        yield "ridge", x @ model.ridge


@dataclass(frozen=True, slots=True, eq=False)
class _Findings:
    """Judged rows, the class whose mean is nearest to each, and the rows judged by baselines."""

    model: ZeroShotModel
    judged: Judged
    nearest: Numbers
    baselines: Mapping[str, Judged]

    @property
    def is_seen(self) -> NDArray[np.bool_]:
        """True for rows of seen classes, bool (n,)."""
        kinds: NDArray[np.bool_] = self.model.seen[self.judged.classes]
        return kinds

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Seen and unseen classes, then seen and unseen images."""
        kinds, classes = self.is_seen, self.judged.classes
        present = [len(np.unique(classes[which])) for which in (kinds, ~kinds)]
        return present[0], present[1], int(kinds.sum()), int((~kinds).sum())

    def _both(self) -> tuple[Judged, Judged]:
        return self.judged.where(self.is_seen), self.judged.where(~self.is_seen)

    @property
    def area(self) -> float | None:
        """AUSUC; None unless there are rows of both kinds."""
        seen, unseen = self._both()
        if not len(seen.classes) or not len(unseen.classes):
            return None
        return trade_off(seen, unseen).area

    def generalised(self, bias: float) -> Generalised | None:
        """Return accuracies among all classes; None unless there are rows of both kinds."""
        seen, unseen = self._both()
        if not len(seen.classes) or not len(unseen.classes):
            return None
        a = per_class(seen.among_all(1), seen.classes)
        b = per_class(unseen.among_all(1), unseen.classes)
        return Generalised(bias, a, b, harmonic_mean(a, b))

    def figures(self, tops: Sequence[int]) -> tuple[Figure, ...]:
        """Return the figures of each kind of rows among its own classes, and among all."""
        seen = self.model.seen
        kinds = [(SEEN, SEEN), (UNSEEN, UNSEEN)]
        if seen.any() and not seen.all():
            kinds += [(SEEN, "all"), (UNSEEN, "all")]
        found = (self._figure(of, among, top) for of, among in kinds for top in sorted(set(tops)))
        return tuple(figure for figure in found if figure is not None)

    def _figure(self, of: str, among: str, top: int) -> Figure | None:
        mine = self.is_seen == (of == SEEN)
        count = (
            len(self.model.seen) if among == "all" else int((self.model.seen == (of == SEEN)).sum())
        )
        if not mine.any() or top >= count:
            return None  # all answers are right
        judged = self.judged.where(mine)
        right = judged.among_all(top) if among == "all" else judged.within(top)
        mean = None
        if top == 1 and (of, among) != (UNSEEN, UNSEEN):
            mean = per_class(self.nearest[mine] == judged.classes, judged.classes)
        accuracy = per_class(right, judged.classes)
        if (of, among) == (UNSEEN, UNSEEN):
            majority = min(1.0, top / len(np.unique(judged.classes)))
        else:
            largest = np.argsort(-self.model.counts, kind="stable")[:top]
            majority = per_class(np.isin(judged.classes, largest), judged.classes)
        others: dict[str, float] = {}
        if (of, among) == (UNSEEN, UNSEEN):
            ranked = {name: one.where(mine) for name, one in self.baselines.items()}
            others = {name: per_class(one.within(top), one.classes) for name, one in ranked.items()}
        return Figure(
            of, among, top, accuracy, min(1.0, top / count), majority, mean,
            others.get("nearest"), others.get("nearest_few"), others.get("ridge"),
        )  # fmt: skip
