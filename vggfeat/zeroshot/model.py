"""A zero-shot model: scores of classes for images, also of classes known only by a vector."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.arrays import unit_rows
from vggfeat.core.choices import choose
from vggfeat.core.class_names import ClassNames
from vggfeat.core.isolation import isolated
from vggfeat.core.text import counted
from vggfeat.errors import UsageError
from vggfeat.transforms.model_check import check_array, check_names, told_as_damage
from vggfeat.transforms.model_file import Fitted, check_complete, check_network, load_fitted
from vggfeat.zeroshot.class_tree import ClassTree, no_tree
from vggfeat.zeroshot.features import Inputs, inputs_from
from vggfeat.zeroshot.nearest import USUAL_NEIGHBORS, NearestWords

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.zeroshot.class_vectors import ClassVectors
    from vggfeat.zeroshot.torch_model import ZeroShotNetwork

    Values = NDArray[np.float32]

ZEROSHOT_KIND = "zeroshot"
FITTED_METHODS = ("eszsl", "ridge", "nearest", "devise")
_ARRAYS = ("map", "ridge", "center", "seen", "vectors", "means", "counts", "trained")
"""Arrays of a model that are not of its layers; the file lists those that it has."""


@dataclass(frozen=True, slots=True, eq=False)
class ZeroShotModel:
    """A map from images to class vectors, with everything needed to use it.

        model = vggfeat.ZeroShotModel.load("model.h5")
        model.scores({"fc7": cache.values("fc7", rows)})    # (n, classes)

    Attributes:
        method: `eszsl`, `ridge`, `nearest` or `devise`.
        inputs: layers, and how they are joined.
        map: V, float32 (d, a); None for `nearest`.
        nearest: the map of `nearest`, with which `evaluate` compares the other methods.
        ridge: V of ridge regression, likewise; None in models of earlier versions, and if it is
            too large to be fitted for this only.
        names: of the z classes, seen ones first.
        seen: whether each class had training images, bool (z,).
        center: what was subtracted from class vectors at unit length, float32 (a,): the mean of
            those of the seen classes; None for nothing.
        vectors: of the classes, without the center, at unit length, float32 (z, a).
        means: of the joined rows of each seen class, float32 (seen, d).
        counts: training images of each seen class, int64 (seen,).
        trained: keys of the training images, sorted, uint64 (m,): see `image_keys`.
        bias: to subtract from scores of seen classes, found on held-out classes; None if none were.
        temperature: that scores are divided by before softmax gives probabilities, found on
            held-out classes; None if none were, and in models of earlier versions.
        tree: over the classes; without parents if none was given.
        network: that a cache must come from: see `network_record`.
        record: of the fit: `asked`, `notes`, regularisers, figures.
    """

    method: str
    inputs: Inputs
    map: Values | None
    nearest: NearestWords
    ridge: Values | None
    names: tuple[str, ...]
    seen: NDArray[np.bool_]
    center: Values | None
    vectors: Values
    means: Values
    counts: NDArray[np.int64]
    trained: NDArray[np.uint64]
    bias: float | None
    temperature: float | None
    tree: ClassTree
    network: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ZeroShotModel:
        """Read a model from its file.

        Raises:
            CacheError: it is missing, damaged, or no zero-shot model.
        """
        return model_from(load_fitted(str(path), ZEROSHOT_KIND))

    @isolated()
    def embed(self, layers: Mapping[str, Values]) -> Values:
        """Map images into the space of class vectors, float32 (n, a).

        Args:
            layers: each layer as `FeatureCache.values` returns it, float32 (n, D).
        """
        return self.embed_joined(self.inputs(layers))

    def embed_joined(self, x: Values) -> Values:
        """Map joined layers at unit length, float32 (n, d), likewise.

        The result of `ridge` and `nearest` has unit length, so that their scores are cosines.
        """
        if self.map is None:
            return self.nearest(x)
        embedded: Values = x @ self.map
        return unit_rows(embedded) if self.method == "ridge" else embedded

    @isolated()
    def scores(self, layers: Mapping[str, Values]) -> Values:
        """Return the score of each class for each image, float32 (n, z)."""
        scores: Values = self.embed(layers) @ self.vectors.T
        return scores

    def with_classes(self, more: ClassVectors) -> ZeroShotModel:
        """Return the model with further classes, of which only vectors are known.

        Raises:
            UsageError: their vectors have other dimensions.
        """
        known = ClassNames(self.names)
        new = [at for at, name in enumerate(more.names) if name not in known]
        dims = self.vectors.shape[1]
        if more.vectors.shape[1] != dims:
            raise UsageError(
                f"the new class vectors have {counted(more.vectors.shape[1], 'dimension')}, the "
                f"model's {dims}; take them from the file that the model was fitted with"
            )
        return dataclasses.replace(
            self,
            names=(*self.names, *(more.names[at] for at in new)),
            seen=np.append(self.seen, np.zeros(len(new), dtype=bool)),
            vectors=np.concatenate([self.vectors, more.about(self.center)[new]]),
        )

    def among(self, names: Sequence[str]) -> ZeroShotModel:
        """Return the model with only some of its classes.

        Args:
            names: in any spelling; the model's own is kept.

        Raises:
            UsageError: names all classes that it lacks.
        """
        known = ClassNames(self.names)
        missing = [name for name in names if name not in known]
        if missing:
            raise UsageError(
                f"the model has no vector of {', '.join(map(repr, missing))}; --vectors FILE gives "
                "one to new classes"
            )
        found = dict.fromkeys(known.find(name) or name for name in names)
        places = [self.names.index(name) for name in found]
        kept = np.array([place for place in places if self.seen[place]], dtype=np.int64)
        return dataclasses.replace(
            self,
            names=tuple(found),
            seen=self.seen[places],
            vectors=self.vectors[places],
            means=self.means[kept],
            counts=self.counts[kept],
        )

    @isolated()
    def module(self) -> ZeroShotNetwork:
        """Return the model as a `torch.nn.Module`: layers in, scores out."""
        from vggfeat.zeroshot.torch_model import ZeroShotNetwork

        attention = self.inputs.attention is not None
        map_ = self.nearest if self.map is None else self.map
        return ZeroShotNetwork(
            self.inputs, map_, self.vectors, attention=attention, cosine=self.method == "ridge"
        )

    def check(self, cache: FeatureCache, path: str) -> None:
        """Refuse a cache of another network, or without the layers.

        Raises:
            CacheMismatchError: names all differences.
        """
        check_network(cache, self.network, path)

    def to_fitted(self) -> Fitted:
        """Return the model in the form that is saved."""
        arrays = {
            name: getattr(self, name)
            for name in _ARRAYS
            if name != "ridge" and getattr(self, name) is not None
        }
        if self.ridge is not None and self.method != "ridge":  # whose map it is
            arrays["ridge"] = self.ridge
        parameters = {
            **self.record,
            "arrays": sorted(arrays),
            "method": self.method,
            "inputs": self.inputs.to_parameters(),
            "names": list(self.names),
            "calibration": self.bias,
            "temperature": self.temperature,
            "neighbors": self.nearest.count,
            "tree": dict(self.tree.parents),
            "network": self.network,
        }
        return Fitted(
            ZEROSHOT_KIND, parameters, {**self.inputs.to_arrays(), **arrays}, self._version
        )

    @property
    def _version(self) -> int:
        """Of the format: the first would take other vectors for new classes, and no cosines."""
        return 1 if self.center is None and self.method in ("eszsl", "devise") else 2


def model_from(fitted: Fitted) -> ZeroShotModel:
    """Restore a model from its saved form; a CacheError if something is missing or does not fit."""
    known, arrays = fitted.parameters, fitted.arrays
    own = {
        "arrays", "method", "inputs", "names", "calibration", "temperature", "neighbors", "tree",
        "network",
    }  # fmt: skip
    check_complete(known, "the zero-shot model")
    with told_as_damage("the zero-shot model"):
        _check_arrays(known, arrays)
        map_ = None if known["method"] == "nearest" else arrays["map"]
        model = ZeroShotModel(
            known["method"],
            inputs_from(fitted),
            map_,
            NearestWords.of(
                arrays["means"],
                arrays["vectors"][arrays["seen"].astype(bool)],
                known.get("neighbors", USUAL_NEIGHBORS),
            ),
            map_ if known["method"] == "ridge" else arrays.get("ridge"),
            tuple(known["names"]),
            arrays["seen"].astype(bool),
            arrays.get("center"),
            arrays["vectors"],
            arrays["means"],
            arrays["counts"],
            arrays["trained"],
            known["calibration"],
            known.get("temperature"),
            ClassTree(known["tree"]),
            known["network"],
            {name: value for name, value in known.items() if name not in own},
        )
        _check(model)
    return model


def _check_arrays(known: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless arrays and numbers of a file go together."""
    present = sorted(arrays.keys() & set(_ARRAYS))
    listed = known.get("arrays", present)  # models of earlier versions do not list them
    for name in listed if isinstance(listed, list) else ():
        if name not in arrays:
            raise ValueError(f"{name!r} is missing")
    if listed != present:
        raise ValueError(f"arrays is {listed!r}, and it holds {present}")
    choose("method", FITTED_METHODS, known["method"])
    check_array(arrays["seen"], "seen", (None,), "b")
    classes, seen = len(arrays["seen"]), int(arrays["seen"].sum())
    check_array(arrays["vectors"], "vectors", (classes, None))
    check_array(arrays["means"], "means", (seen, None))
    (_, width), (_, dims) = arrays["means"].shape, arrays["vectors"].shape
    shapes = {"map": (width, dims), "ridge": (width, dims), "center": (dims,)}
    for name in shapes.keys() & arrays.keys():
        check_array(arrays[name], name, shapes[name])
    check_array(arrays["counts"], "counts", (seen,), "iu")
    check_array(arrays["trained"], "trained", (None,), "u")
    neighbors, temperature = known.get("neighbors", 1), known.get("temperature")
    if type(neighbors) is not int or neighbors < 1:
        raise ValueError(f"neighbors is {neighbors!r}, expected a whole number from 1")
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature!r}, expected a number above 0")


def _check(model: ZeroShotModel) -> None:
    """Raise ValueError unless arrays and parameters go together."""
    check_names(model.names, "names")
    check_array(model.vectors, "vectors", (len(model.names), None))
    check_array(model.means, "means", (None, model.inputs.width))
    if model.bias is not None and not math.isfinite(model.bias):
        raise ValueError("calibration is no number")
    parents = model.tree.parents
    if not isinstance(parents, dict) or not all(isinstance(up, str) for up in parents.values()):
        raise ValueError("tree is no table of child and parent")
    if wrong := no_tree(parents):
        raise ValueError(f"tree: {wrong[0]}")
