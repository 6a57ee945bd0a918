"""The way from the network's features to those of a cache that fuse and reduce made, once more."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.core.fusion_spec import recipe_from, recipe_of
from vggfeat.errors import CacheError, CacheMismatchError
from vggfeat.transforms.fuse import default_model, from_fitted
from vggfeat.transforms.fusion import Fusion
from vggfeat.transforms.model_file import load_fitted
from vggfeat.transforms.reduce import Kept, Reduction, reduction_from

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.transforms.base import Transform
    from vggfeat.transforms.model_file import Fitted

    Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How the features of a cache come from the network's.

    Attributes:
        specs: layers that the network has to give; empty for the cache's own.
        transforms: what is made of them afterwards, one after the other.
    """

    specs: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] = ()

    def __call__(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """The cache's layers, float32 (n, D), of the network's."""
        vectors = dict(layers)
        for transform in self.transforms:
            vectors = dict(transform(vectors))
        return vectors


def way_to(cache: FeatureCache, models: Sequence[str | os.PathLike[str]] = ()) -> Way:
    """The way to a cache.

    Args:
        cache: as it was made, in any number of steps.
        models: files with what was fitted, where they are not beside the caches that the steps
            made. Which belongs to which step is found out by its digest.

    Raises:
        CacheError: a file is not there, or not a model of that kind.
        CacheMismatchError: none is what the cache was made with.
    """
    steps = cache.header.identity.steps
    if not steps:
        return Way()
    records = [json.loads(step) for step in steps]
    specs = tuple(records[0]["layers"])
    first = 1 if recipe_of(steps[:1]) is not None else 0  # extract itself fused
    return Way(
        specs,
        tuple(_transform(cache, records, at, models) for at in range(first, len(records))),
    )


def _transform(
    cache: FeatureCache,
    records: Sequence[Mapping[str, Any]],
    at: int,
    models: Sequence[str | os.PathLike[str]],
) -> Transform:
    """A step, from its record or from the file with what was fitted."""
    record, last = records[at], at == len(records) - 1
    if "model_sha256" in record:
        fitted = _fitted(
            cache, record, [os.fspath(model) for model in models] or [_beside(cache, at)]
        )
        return from_fitted(fitted) if record["step"] == "fuse" else reduction_from(fitted)
    if record["step"] == "fuse":
        return Fusion(
            recipe_from(record), {}, cache.layers[0] if last else records[at + 1]["layers"][0]
        )
    # What is kept keeps its name and its width, so far as the cache still has it.
    shapes = cache.header.shapes
    kept = {layer: Kept(shapes.get(layer, (0,))[0]) for layer in record["layers"]}
    return Reduction(record["norm"], record["final_norm"], kept, "")


def _beside(cache: FeatureCache, at: int) -> str:
    """Where the model of a step is if nobody moved it: beside the cache that the step made."""
    sources = cache.header.provenance.sources
    made = sources[at + 1].get("path") if at + 1 < len(sources) else None
    return default_model(made or cache.path)


def _fitted(cache: FeatureCache, record: Mapping[str, Any], paths: Sequence[str]) -> Fitted:
    """The one of these models that a step was made with."""
    refused: list[CacheError] = []
    for path in paths:
        try:
            return _same(cache, load_fitted(path, record["step"]), record, path)
        except CacheError as error:
            refused.append(error)
    raise refused[0]


def _same(cache: FeatureCache, fitted: Fitted, record: Mapping[str, Any], path: str) -> Fitted:
    if fitted.sha256 != record["model_sha256"]:
        raise CacheMismatchError(
            f"model {path!r} is not the one that cache {cache.path!r} was made with: SHA-256 "
            f"{fitted.sha256[:8]}, expected {record['model_sha256'][:8]}; name it with --use"
        )
    return fitted
