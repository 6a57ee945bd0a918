"""The protocol of transforms, and reading the layers of a cache block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from vggfeat.core.layer_spec import split_specs
from vggfeat.core.quantization import Scales
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.steps import Step

    Values = NDArray[np.float32]

READ_BYTES = 1 << 25
"""Of features, as float32, that are held at once."""


class Transform(Protocol):
    """Makes new features of old ones, row by row."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Layers that it reads."""

    @property
    def outputs(self) -> Mapping[str, int]:
        """Name of each new layer → its width."""

    @property
    def step(self) -> Step:
        """What a cache records of it."""

    def __call__(self, layers: Mapping[str, Values]) -> Mapping[str, Values]:
        """Return new layers, (n, width) float32, of old ones, (n, D) float32."""


def vector_layers(cache: FeatureCache) -> tuple[str, ...]:
    """Return the layers of a cache that are vectors, (N, D), and not maps."""
    return tuple(spec for spec, shape in cache.header.shapes.items() if len(shape) == 1)


def chosen_layers(cache: FeatureCache, text: str | None) -> tuple[str, ...]:
    """Return the layers that `text` names, separated by commas; for None all that are vectors."""
    known = vector_layers(cache)
    if text is None:
        return known
    names = [cache.canonical(word) for word in split_specs(text)]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise UsageError(
            f"cache {cache.path!r} has no vectors of {', '.join(wrong) or 'no layer'}; it has "
            f"{', '.join(known) or 'maps only'}"
        )
    return tuple(dict.fromkeys(names))


def blocks_of(
    source: FeatureCache, layers: tuple[str, ...], rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], dict[str, Values]]]:
    """Yield rows of several layers in blocks: their numbers, and layer → (n, D) float32."""
    width = sum(source.header.feature(layer).shape[1] for layer in layers)
    size = max(1, READ_BYTES // (4 * width))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, {layer: source.values(layer, part) for layer in layers}


def layer_blocks(
    source: FeatureCache,
    layer: str,
    rows: NDArray[np.int64],
    prepare: Callable[[Values], Values] | None = None,
) -> Iterator[Values]:
    """Yield rows of one layer in blocks, float32 (n, D), as `prepare` returns them."""
    for _, layers in blocks_of(source, (layer,), rows):
        yield layers[layer] if prepare is None else prepare(layers[layer])


def find_scales(source: FeatureCache, transform: Transform) -> dict[str, Scales]:
    """Return scales over the real range of each dimension of the new features."""
    low: dict[str, Values] = {}
    high: dict[str, Values] = {}
    for _, layers in blocks_of(source, transform.inputs, np.flatnonzero(source.done)):
        for name, values in transform(layers).items():
            low[name] = np.minimum(low.get(name, np.inf), values.min(0))
            high[name] = np.maximum(high.get(name, -np.inf), values.max(0))
    if not low:
        raise UsageError(
            f"cache {source.path!r} has no row that is done, from which int8 would take its "
            "ranges; extract first, or use another --dtype"
        )
    return {name: Scales.over(low[name], high[name]) for name in low}
