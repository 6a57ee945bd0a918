"""Several layers as one vector an image, from a cache into another.

Layers differ in range by orders of magnitude, so each is normalised by itself before they are
fused. What a method needs fitted, means, projections or learnt weights, is kept in a model file
that can be applied to other caches.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.arrays import unit_rows
from vggfeat.core.steps import Step
from vggfeat.errors import UsageError
from vggfeat.transforms.base import blocks_of
from vggfeat.transforms.pca import fit_pca, fit_standardisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.fusion_spec import Recipe, RowNorm
    from vggfeat.transforms.pca import Pca, Standardisation

    Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Weights of the layers that each image decides itself.

    A layer's score is linear in its normalised vector, `score = gate · x + bias`; the weights are
    the softmax of the scores over the layers, as in additive attention (Bahdanau et al., ICLR
    2015) with one output a layer. All gates 0 are equal weights.

    Attributes:
        gates: layer → float32 (D,).
        bias: float32 (layers,), in the order of the recipe.
    """

    gates: Mapping[str, Values]
    bias: Values

    def weights(self, layers: Mapping[str, Values]) -> Values:
        """Weight of each layer for each image, float32 (n, layers), each row adding up to 1."""
        scores = np.stack([layers[name] @ gate for name, gate in self.gates.items()], 1) + self.bias
        powers = np.exp(scores - scores.max(1, keepdims=True))
        weights: Values = powers / powers.sum(1, keepdims=True)
        return weights


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """A recipe with all that was fitted for it: turns rows of several layers into one vector each.

    Attributes:
        recipe: method, layers, normalisation, weights.
        widths: layer → length of its vectors.
        name: of the new layer.
        standard: layer → mean and deviation, where the norm is `standard`.
        projections: layer → what brings it to a common width, where they are added.
        attention: of the method `attention`.
        model: digest of the model file; empty where nothing was fitted.
    """

    recipe: Recipe
    widths: Mapping[str, int]
    name: str
    standard: Mapping[str, Standardisation] = field(default_factory=lambda: MappingProxyType({}))
    projections: Mapping[str, Pca] = field(default_factory=lambda: MappingProxyType({}))
    attention: Attention | None = None
    model: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Layers that it reads."""
        return self.recipe.layers

    @property
    def outputs(self) -> dict[str, int]:
        """The new layer and its width."""
        projected = {layer: len(one.components) for layer, one in self.projections.items()}
        widths = {**self.widths, **projected}
        return {self.name: self.recipe.width(widths)}

    @property
    def step(self) -> Step:
        """What a cache records of it."""
        step = self.recipe.step()
        return Step({**step.record, "model_sha256": self.model}) if self.model else step

    def __call__(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """The fused vectors, float32 (n, width), of rows of each layer, float32 (n, D)."""
        parts = self.normalised(layers)
        factors: Sequence[Any] = self.recipe.factors
        if self.attention is not None:
            weights = self.attention.weights(parts)  # (n, layers)
            # As for fixed weights: the root, so that a cosine is a weighted mean of cosines.
            factors = [np.sqrt(weights[:, at, None]) for at in range(len(parts))]
        scaled = [
            part * np.asarray(factor, dtype=np.float32)
            for part, factor in zip(parts.values(), factors, strict=True)
        ]
        joined = sum_of(scaled) if self.recipe.method == "sum" else np.concatenate(scaled, 1)
        fused = unit_length(joined) if self.recipe.final_norm == "l2" else joined
        return {self.name: fused}

    def normalised(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """Each layer as it goes into the fusion, before any weight: normalised and projected."""
        parts = {
            name: normalise(layers[name], self.recipe.norm, self.standard.get(name))
            for name in self.recipe.layers
        }
        return {
            name: self.projections[name].apply(part) if name in self.projections else part
            for name, part in parts.items()
        }


def sum_of(parts: Sequence[Values]) -> Values:
    """Sum of arrays of one shape."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def normalise(x: Values, norm: RowNorm, standard: Standardisation | None = None) -> Values:
    """Rows of one layer, float32 (n, D), normalised as `Recipe.norm` says."""
    if norm == "standard":
        if standard is None:
            raise UsageError("norm standard has nothing fitted; use a model that has")
        values: Values = standard.apply(x) / np.float32(math.sqrt(x.shape[1]))
        return values
    if norm == "ssr":
        return unit_length(np.sign(x) * np.sqrt(np.abs(x)))
    return unit_length(x) if norm == "l2" else x


def unit_length(x: Values) -> Values:
    """Rows divided by their Euclidean length, float32 (n, D); zero rows stay zero."""
    return unit_rows(np.array(x, dtype=np.float32))


def fit_fusion(
    source: FeatureCache, recipe: Recipe, *, width: int | None = None, name: str | None = None
) -> Fusion:
    """Everything a recipe needs but learnt weights, fitted to the done rows of a cache.

    Args:
        source: the features.
        recipe: what is wanted.
        width: for `sum`, the width that each layer is projected to by PCA; without it layers must
            have one width.
        name: of the new layer; the method's by default.

    Raises:
        UsageError: a width with another method, or more than the layers or rows give.
        InputError: too few rows to fit to.
    """
    if width is not None and recipe.method != "sum":
        raise UsageError(f"--width belongs to the method sum, not {recipe.method}")
    widths = {layer: source.header.shapes[layer][0] for layer in recipe.layers}
    fusion = Fusion(recipe, widths, name or recipe.method)
    if recipe.norm == "standard":
        standard = {
            layer: fit_standardisation(partial(_rows_of, source, layer, None))
            for layer in recipe.layers
        }
        fusion = dataclasses.replace(fusion, standard=standard)
    if width is not None:
        projections = {
            layer: fit_pca(partial(_rows_of, source, layer, fusion), width)
            for layer in recipe.layers
        }
        fusion = dataclasses.replace(fusion, projections=projections)
    _ = fusion.outputs  # refuses widths that do not fit
    return fusion


def _rows_of(source: FeatureCache, layer: str, fusion: Fusion | None) -> Iterator[Values]:
    """Done rows of one layer in blocks, normalised as `fusion` says, or as they are."""
    rows = np.flatnonzero(source.done)
    for _, layers in blocks_of(source, (layer,), rows):
        if fusion is None:
            yield layers[layer]
        else:
            yield normalise(layers[layer], fusion.recipe.norm, fusion.standard.get(layer))
