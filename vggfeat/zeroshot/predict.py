"""Predict the classes of images: seen, unseen or new ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.sharded import open_cache
from vggfeat.core.class_names import ClassNames
from vggfeat.core.isolation import isolated
from vggfeat.core.sequences import as_tuple
from vggfeat.core.text import first_few
from vggfeat.errors import CacheError, InputError, TooManyFailuresError, UsageError
from vggfeat.transforms.base import blocks_of
from vggfeat.zeroshot.class_split import read_class_list
from vggfeat.zeroshot.class_vectors import class_vectors
from vggfeat.zeroshot.metrics import probabilities
from vggfeat.zeroshot.model import ZeroShotModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.records import FailedImage
    from vggfeat.extraction.extractor import ImagesLike

    Numbers = NDArray[np.int64]
    Values = NDArray[np.float32]

WHICH = ("all", "seen", "unseen")
"""Of the model's classes; anything else names a list of classes."""

AUTO = "auto"
"""The bias of seen classes that was found on classes held out when the model was fitted."""


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predicted classes of images, best first.

    Attributes:
        model: its file.
        names: of the candidate classes.
        paths: of the n images.
        classes: int64 (n, top), indices into `names`.
        scores: float32 (n, top), before the bias is subtracted; comparable within one image.
        probabilities: float32 (n, top), each class's among the candidates, by a temperature fitted
            to seen classes that were held out; None if the model has none.
        bias: subtracted from scores of seen classes.
        failures: images that could not be decoded.
    """

    model: str
    names: tuple[str, ...]
    paths: tuple[str, ...]
    classes: Numbers
    scores: Values
    probabilities: Values | None
    bias: float
    failures: tuple[FailedImage, ...]

    @property
    def figures(self) -> Values:
        """Probabilities if there are any, else raw scores, float32 (n, top)."""
        return self.scores if self.probabilities is None else self.probabilities

    def of(self, position: int) -> list[tuple[str, float]]:
        """Return class and score of one image, best first."""
        pairs = zip(self.classes[position].tolist(), self.scores[position].tolist(), strict=True)
        return [(self.names[number], score) for number, score in pairs]


@isolated()
def predict_zeroshot(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    images: ImagesLike = (),
    *,
    classes: str = "all",
    vectors: str | os.PathLike[str] | None = None,
    top: int = 5,
    calibrate: float | str = 0.0,
    device: str = "auto",
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    use: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    model_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
) -> Predictions:
    """Predict the classes of the done rows of a cache, or of images passed through its network.

    Args:
        model: a file of `fit_zeroshot`.
        source: a cache of the same network and layers that the model was fitted to.
        images: paths of images, folders or archives, PIL images or arrays, one or several, see
            `query_images`; processed as the cache's images were. Without any, the rows of the cache
            are classified.
        classes: the candidates: `all`, `seen` or `unseen` ones of the model; or a list, as a file
            with one a line or names separated by commas.
        vectors: file with the vectors of new classes in that list.
        top: predictions for each image.
        calibrate: a bias to subtract from scores of seen classes (Chao et al. 2016), or `auto`.
        device: for images: see `query_images`.
        weights: of the network, likewise.
        use: likewise.
        model_weights: older name of `weights`.

    Raises:
        UsageError: invalid options, or classes without a vector.
        InputError: no row is done, or an image is missing.
        TooManyFailuresError: no image could be decoded.
        CacheError: the model or cache was not made by vggfeat, is damaged, or they do not match.
        WeightsError: the weights are not found and could not be downloaded.
        DeviceError: no such device.
    """
    path, cache = os.fspath(model), open_cache(source)
    cache.warn()
    chosen = _chosen(ZeroShotModel.load(path), classes, vectors)
    chosen.check(cache, path)
    if top < 1:
        raise UsageError(f"top {top}: expected 1 or more")
    bias = bias_of(chosen, calibrate)
    rank = _Ranking(chosen, min(top, len(chosen.names)), bias)
    from vggfeat.retrieval.query_images import listed_images, query_images

    asked_for = listed_images(images)
    if not asked_for:
        return _of_rows(path, cache, rank)
    layers = chosen.inputs.layers
    network = model_weights if weights is None else weights
    queries = query_images(
        cache, asked_for, layers, device=device, model_weights=network, use=as_tuple(use)
    )
    ranked = rank([queries.vectors] if queries.paths else [])
    predictions = Predictions(path, chosen.names, queries.paths, *ranked, bias, queries.failures)
    if not queries.paths:
        reasons = first_few((f"{one.path}: {one.reason}" for one in queries.failures), "; ")
        raise TooManyFailuresError(f"no image could be decoded: {reasons}", predictions)
    return predictions


def _of_rows(path: str, cache: FeatureCache, rank: _Ranking) -> Predictions:
    rows = np.flatnonzero(cache.done)
    if not len(rows):
        raise InputError(f"no image of cache {cache.path!r} is done; run vggfeat extract first")
    blocks = (layers for _, layers in blocks_of(cache, rank.model.inputs.layers, rows))
    ranked = rank(blocks)
    paths = tuple(os.fsdecode(bytes(name)) for name in cache.paths[rows])
    return Predictions(path, rank.model.names, paths, *ranked, rank.bias, ())


def bias_of(model: ZeroShotModel, calibrate: float | str) -> float:
    """Return the bias that `calibrate` stands for: a number, or `auto` for the model's own."""
    if calibrate == AUTO:
        if model.bias is None:
            raise CacheError(
                "the model has no calibration, for too few classes were seen to hold some out; "
                "give --calibrate a number"
            )
        return model.bias
    try:
        bias = float(calibrate)
    except ValueError:
        bias = float("nan")
    if not np.isfinite(bias):
        raise UsageError(f"calibrate {calibrate!r}: expected a number or {AUTO}")
    return bias


def _chosen(
    model: ZeroShotModel, classes: str, vectors: str | os.PathLike[str] | None
) -> ZeroShotModel:
    """Return the model with only the candidate classes."""
    if classes in WHICH:
        if vectors is not None:
            raise UsageError("--vectors belongs to a list of new classes; name them by --classes")
        kinds = zip(model.names, model.seen.tolist(), strict=True)
        names = [name for name, seen in kinds if classes in ("all", "seen" if seen else "unseen")]
        if not names:
            raise UsageError(
                f"the model has no {classes} classes; name new ones by --classes with --vectors"
            )
        return model.among(names)
    names = list(read_class_list(classes))
    if vectors is not None:
        known = ClassNames(model.names)
        new = [name for name in names if name not in known]
        model = model.with_classes(class_vectors(vectors, new)) if new else model
    return model.among(names)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Ranks a model's classes for images and keeps the first few."""

    model: ZeroShotModel
    top: int
    bias: float

    def __call__(
        self, blocks: Iterable[Mapping[str, Values]]
    ) -> tuple[Numbers, Values, Values | None]:
        """Return classes int64 (n, top), ties in the model's order; their scores; probabilities."""
        single = len(self.model.names) == 1  # its probability could be nothing but 1
        warmth = None if single else self.model.temperature
        classes, values = [np.empty((0, self.top), np.int64)], [np.empty((0, self.top), np.float32)]
        shares = [np.empty((0, self.top), np.float32)]
        for layers in blocks:
            scores = self.model.scores(layers)
            ranked = scores - np.float32(self.bias) * self.model.seen
            classes.append(np.argsort(-ranked, axis=1, kind="stable")[:, : self.top])
            values.append(np.take_along_axis(scores, classes[-1], 1))
            if warmth is not None:
                shares.append(np.take_along_axis(probabilities(ranked, warmth), classes[-1], 1))
        joined = None if warmth is None else np.concatenate(shares)
        return np.concatenate(classes), np.concatenate(values), joined
