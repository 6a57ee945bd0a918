"""Join layers of a cache into one feature vector for each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.choices import choose
from vggfeat.core.fusion_spec import ROW_NORMS, Recipe
from vggfeat.transforms.base import blocks_of, layer_blocks
from vggfeat.transforms.fusion import (
    Attention,
    Fusion,
    fusion_arrays,
    join,
    normalise,
    unit_length,
    unpack_attention,
)
from vggfeat.transforms.model_check import check_attention, check_names, check_part, check_widths
from vggfeat.transforms.model_file import unpack
from vggfeat.transforms.pca import Standardisation, fit_standardisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.transforms.model_file import Fitted
    from vggfeat.zeroshot.settings import InputNorm

    Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Layers joined end to end, each normalised, the whole at unit length.

    Attributes:
        layers: of the cache, canonical.
        widths: layer → its dimensions.
        norm: of each layer: see `Recipe.norm`.
        standard: layer → mean and deviation if the norm is `standard`.
        attention: per-image weights of the layers; without it they are equal.
    """

    layers: tuple[str, ...]
    widths: Mapping[str, int]
    norm: InputNorm
    standard: Mapping[str, Standardisation] = field(default_factory=lambda: MappingProxyType({}))
    attention: Attention | None = None

    @property
    def width(self) -> int:
        """Dimensions of the joined vector."""
        return sum(self.widths[layer] for layer in self.layers)

    def parts(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """Return each layer normalised, float32 (n, D)."""
        return {
            name: normalise(layers[name], self.norm, self.standard.get(name))
            for name in self.layers
        }

    def __call__(self, layers: Mapping[str, Values]) -> Values:
        """Return joined vectors, float32 (n, width), of rows of each layer, float32 (n, D)."""
        parts = self.parts(layers)
        equal = [1.0] * len(parts)
        factors = equal if self.attention is None else self.attention.factors(parts)
        return unit_length(join(parts.values(), factors, add=False))

    def fusion(self) -> Fusion:
        """Return the equivalent of `vggfeat fuse`, which learns the weights of layers."""
        recipe = Recipe("attention", self.layers, self.norm)
        return Fusion(recipe, self.widths, "attention", self.standard, attention=self.attention)

    def to_parameters(self) -> dict[str, Any]:
        """Return everything except the arrays."""
        return {"layers": list(self.layers), "widths": dict(self.widths), "norm": self.norm}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return fusion_arrays(self.standard, {}, self.attention)


def inputs_from(fitted: Fitted) -> Inputs:
    """Restore what `to_parameters` and `to_arrays` returned.

    Raises KeyError if anything is missing, and ValueError or TypeError if it does not go together.
    """
    known, arrays = fitted.parameters["inputs"], fitted.arrays
    layers = tuple(known["layers"])
    standard = (
        {layer: unpack(Standardisation, f"standard {layer}", arrays) for layer in layers}
        if known["norm"] == "standard"
        else {}
    )
    attention = unpack_attention(layers, arrays)
    _check(layers, known, standard, attention)
    return Inputs(layers, known["widths"], known["norm"], standard, attention)


def _check(
    layers: tuple[str, ...],
    known: Mapping[str, Any],
    standard: Mapping[str, Standardisation],
    attention: Attention | None,
) -> None:
    check_names(layers, "layers")
    check_widths(known["widths"], layers)
    choose("norm", ROW_NORMS, known["norm"])
    for layer, part in standard.items():
        check_part(part, layer)
        if len(part.mean) != known["widths"][layer]:
            raise ValueError(f"{layer} has another width than what was fitted to it")
    check_attention(attention, layers, known["widths"])


def fit_inputs(
    cache: FeatureCache, layers: tuple[str, ...], norm: InputNorm, rows: NDArray[np.int64]
) -> Inputs:
    """Fit the normalisation of layers to some rows, without attention."""
    widths = {layer: cache.header.shapes[layer][0] for layer in layers}
    if norm != "standard":
        return Inputs(layers, widths, norm)
    standard = {
        layer: fit_standardisation(partial(layer_blocks, cache, layer, rows)) for layer in layers
    }
    return Inputs(layers, widths, norm, standard)


def joined_blocks(
    cache: FeatureCache, inputs: Inputs, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Values]]:
    """Yield blocks of rows: positions within `rows`, and joined vectors float32 (n, width)."""
    start = 0
    for part, layers in blocks_of(cache, inputs.layers, rows):
        yield np.arange(start, start + len(part)), inputs(layers)
        start += len(part)


def joined_rows(cache: FeatureCache, inputs: Inputs, rows: NDArray[np.int64]) -> Values:
    """Return the joined vectors of rows, float32 (len(rows), width)."""
    found = np.empty((len(rows), inputs.width), dtype=np.float32)
    for at, x in joined_blocks(cache, inputs, rows):
        found[at] = x
    return found
