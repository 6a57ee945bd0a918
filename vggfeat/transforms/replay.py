"""Replay the transforms of a derived cache on new features, e.g. of a query image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.fusion_spec import recipe_from, recipe_of
from vggfeat.errors import CacheError, CacheMismatchError
from vggfeat.transforms.fuse import from_fitted
from vggfeat.transforms.fusion import Fusion
from vggfeat.transforms.model_file import default_model, load_fitted
from vggfeat.transforms.reduce import Kept, Reduction, reduction_from

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.steps import Step
    from vggfeat.transforms.base import Transform
    from vggfeat.transforms.model_file import Fitted

    Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """The transforms that a cache went through.

    Attributes:
        specs: layers that the network must compute; empty for the cache's layers.
        transforms: applied to them in order.
    """

    specs: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] = ()

    def __call__(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """Return the cache's layers, float32 (n, D), of those of the network."""
        vectors = dict(layers)
        for transform in self.transforms:
            vectors = dict(transform(vectors))
        return vectors


def replay_to(cache: FeatureCache, models: Sequence[str | os.PathLike[str]] = ()) -> Replay:
    """Return the replay of a cache's transforms.

    `models` are files with what was fitted, where they are not beside the caches that the steps
    made; each belongs to the step that records its digest.
    """
    steps = cache.header.identity.steps
    if not steps:
        return Replay()
    first = 1 if recipe_of(steps[:1]) is not None else 0  # extract itself fused
    return Replay(
        steps[0].layers,
        tuple(_transform(cache, at, models) for at in range(first, len(steps))),
    )


def _transform(cache: FeatureCache, at: int, models: Sequence[str | os.PathLike[str]]) -> Transform:
    """Return a step's transform, from its record or from the file with what was fitted."""
    steps, shapes = cache.header.identity.steps, cache.header.shapes
    step, last = steps[at], at == len(steps) - 1
    if step.model_sha256 is not None:
        # By default a step's model is beside the cache that the step made.
        sources = cache.header.provenance.sources
        made = sources[at + 1].get("path") if at + 1 < len(sources) else None
        paths = [os.fspath(one) for one in models] or [default_model(made or cache.path)]
        fitted = _fitted(cache, step, paths)
        return from_fitted(fitted) if step.name == "fuse" else reduction_from(fitted)
    if step.name == "fuse":
        name = cache.layers[0] if last else steps[at + 1].layers[0]
        return Fusion(recipe_from(step.record), {}, name)
    # What is kept keeps its name and its width, so far as the cache still has it.
    kept = {layer: Kept(shapes.get(layer, (0,))[0]) for layer in step.layers}
    return Reduction(step.record["norm"], step.record["final_norm"], kept, "")


def _fitted(cache: FeatureCache, step: Step, paths: Sequence[str]) -> Fitted:
    """Return the one of these models that a step was made with."""
    refused: list[CacheError] = []
    expected = str(step.model_sha256)
    for path in paths:
        try:
            fitted = load_fitted(path, step.name)
        except CacheError as error:
            refused.append(error)
            continue
        if fitted.sha256 == expected:
            return fitted
        refused.append(
            CacheMismatchError(
                f"model {path!r} is not the one that cache {cache.path!r} was made with: SHA-256 "
                f"{fitted.sha256[:8]}, expected {expected[:8]}; name it with --use"
            )
        )
    raise refused[0]
