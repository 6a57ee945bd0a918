"""A zero-shot model: scores of classes for images, also of classes known only by a vector."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.class_names import ClassNames
from vggfeat.core.isolation import isolated
from vggfeat.core.text import counted
from vggfeat.errors import UsageError
from vggfeat.transforms.model_check import check_array, check_names, told_as_damage
from vggfeat.transforms.model_file import Fitted, check_complete, check_network, load_fitted
from vggfeat.zeroshot.class_tree import ClassTree, no_tree
from vggfeat.zeroshot.features import Inputs, inputs_from

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.zeroshot.class_vectors import ClassVectors
    from vggfeat.zeroshot.torch_model import ZeroShotNetwork

    Values = NDArray[np.float32]

ZEROSHOT_KIND = "zeroshot"


@dataclass(frozen=True, slots=True, eq=False)
class ZeroShotModel:
    """A bilinear map between images and class vectors, with everything needed to use it.

        model = vggfeat.ZeroShotModel.load("model.h5")
        model.scores({"fc7": cache.values("fc7", rows)})    # (n, classes)

    Attributes:
        method: `eszsl` or `devise`.
        inputs: layers, and how they are joined.
        map: V, float32 (d, a).
        names: of the z classes, seen ones first.
        seen: whether each class had training images, bool (z,).
        vectors: of the classes at unit length, float32 (z, a).
        means: of the joined rows of each seen class, float32 (seen, d).
        counts: training images of each seen class, int64 (seen,).
        trained: keys of the training images, sorted, uint64 (m,): see `image_keys`.
        bias: to subtract from scores of seen classes, found on held-out classes; None if none were.
        tree: over the classes; without parents if none was given.
        network: that a cache must come from: see `network_record`.
        record: of the fit: `asked`, `notes`, regularisers, figures.
    """

    method: str
    inputs: Inputs
    map: Values
    names: tuple[str, ...]
    seen: NDArray[np.bool_]
    vectors: Values
    means: Values
    counts: NDArray[np.int64]
    trained: NDArray[np.uint64]
    bias: float | None
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
        embedded: Values = self.inputs(layers) @ self.map
        return embedded

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
        if more.vectors.shape[1] != len(self.map.T):
            raise UsageError(
                f"the new class vectors have {counted(more.vectors.shape[1], 'dimension')}, the "
                f"model's {len(self.map.T)}; take them from the file that the model was fitted with"
            )
        return dataclasses.replace(
            self,
            names=(*self.names, *(more.names[at] for at in new)),
            seen=np.append(self.seen, np.zeros(len(new), dtype=bool)),
            vectors=np.concatenate([self.vectors, more.unit[new]]),
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
        return ZeroShotNetwork(self.inputs, self.map, self.vectors, attention=attention)

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
            for name in ("map", "seen", "vectors", "means", "counts", "trained")
        }
        parameters = {
            **self.record,
            "method": self.method,
            "inputs": self.inputs.to_parameters(),
            "names": list(self.names),
            "calibration": self.bias,
            "tree": dict(self.tree.parents),
            "network": self.network,
        }
        return Fitted(ZEROSHOT_KIND, parameters, {**self.inputs.to_arrays(), **arrays})


def model_from(fitted: Fitted) -> ZeroShotModel:
    """Restore a model from its saved form; a CacheError if something is missing or does not fit."""
    known, arrays = fitted.parameters, fitted.arrays
    own = {"method", "inputs", "names", "calibration", "tree", "network"}
    check_complete(known, "the zero-shot model")
    with told_as_damage("the zero-shot model"):
        check_array(arrays["seen"], "seen", (None,), "b")
        model = ZeroShotModel(
            known["method"],
            inputs_from(fitted),
            arrays["map"],
            tuple(known["names"]),
            arrays["seen"].astype(bool),
            arrays["vectors"],
            arrays["means"],
            arrays["counts"],
            arrays["trained"],
            known["calibration"],
            ClassTree(known["tree"]),
            known["network"],
            {name: value for name, value in known.items() if name not in own},
        )
        _check(model)
    return model


def _check(model: ZeroShotModel) -> None:
    """Raise ValueError unless arrays and parameters go together."""
    check_names(model.names, "names")
    classes, seen = len(model.names), int(model.seen.sum())
    check_array(model.map, "map", (model.inputs.width, None))
    check_array(model.vectors, "vectors", (classes, model.map.shape[1]))
    check_array(model.seen, "seen", (classes,), "b")
    check_array(model.means, "means", (seen, model.inputs.width))
    check_array(model.counts, "counts", (seen,), "iu")
    check_array(model.trained, "trained", (None,), "u")
    if model.bias is not None and not math.isfinite(model.bias):
        raise ValueError("calibration is no number")
    parents = model.tree.parents
    if not isinstance(parents, dict) or not all(isinstance(up, str) for up in parents.values()):
        raise ValueError("tree is no table of child and parent")
    if wrong := no_tree(parents):
        raise ValueError(f"tree: {wrong[0]}")
