"""Queries that are vectors already, such as those of an `Extractor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.errors import UsageError
from vggfeat.retrieval.query_images import NO_DIGEST, Queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.query_images import Values


def query_vectors(cache: FeatureCache, vectors: Any, layers: Sequence[str]) -> Queries:
    """Return queries of vectors of the layers that are searched.

    Args:
        cache: to be searched.
        vectors: numbers (q, D), or (D,) for one query, of the only layer that is searched; or a
            mapping from layers, each by any of its names, to as many of each. Arrays, tensors on
            any device, lists.
        layers: of the cache, canonical; all are needed, further ones are ignored.

    Raises:
        UsageError: a layer is missing, the widths are not the cache's, the layers have not equally
            many, or values are not finite.
    """
    given = vectors if isinstance(vectors, Mapping) else {layers[0]: vectors}
    if not isinstance(vectors, Mapping) and len(layers) > 1:
        raise UsageError(
            f"vectors are of one layer, and {', '.join(layers)} are searched; expected a mapping "
            "from each of these to its vectors"
        )
    named = {cache.canonical(layer): values for layer, values in given.items()}
    missing = [layer for layer in layers if layer not in named]
    if missing:
        raise UsageError(
            f"no vectors for {', '.join(missing)}; there are some for {', '.join(named) or 'none'}"
        )
    checked = {layer: _checked(cache, layer, named[layer]) for layer in layers}
    counts = {layer: len(values) for layer, values in checked.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} for {layer}" for layer, count in counts.items())
        raise UsageError(f"vectors are {each}; expected equally many for each layer")
    count = counts[layers[0]]
    names = tuple(f"vectors[{number}]" for number in range(count))
    return Queries(names, checked, (), (b"",) * count, (NO_DIGEST,) * count)


def _checked(cache: FeatureCache, layer: str, given: Any) -> Values:
    """Return vectors of a layer as float32 (q, D)."""
    held = given.detach().cpu().float() if hasattr(given, "detach") else given  # a tensor
    try:
        values = np.atleast_2d(np.asarray(held, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise UsageError(f"vectors for {layer} are no array of numbers: {error}") from error
    width = cache[layer].shape[1]
    if values.ndim != 2 or values.shape[1] != width:  # noqa: PLR2004 (q, D)
        raise UsageError(
            f"vectors for {layer} have shape {np.shape(held)}; expected (queries, {width})"
        )
    if not np.isfinite(values).all():
        raise UsageError(f"vectors for {layer} hold values that are not finite")
    return values
