"""Fuse the vectors of several layers into one vector an image, in NumPy.

Layers differ in range by orders of magnitude, so each is normalised by itself before they are
fused. What a method needs fitted, means, projections or learnt weights, is kept in a model file
that can be applied to other caches.

`network.pooling.fuse_vectors` does the same for tensors, while `extract` runs: it stays on their
device and needs torch, which is not loaded for `fuse`; the two round differently.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial, reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vggfeat.core.arrays import unit_rows
from vggfeat.core.steps import Step
from vggfeat.errors import UsageError
from vggfeat.transforms.base import layer_blocks
from vggfeat.transforms.model_file import pack, unpack
from vggfeat.transforms.pca import fit_pca, fit_standardisation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.fusion_spec import Recipe, RowNorm
    from vggfeat.transforms.pca import Pca, Standardisation

    Values = NDArray[np.float32]
    Factor = float | Values

T = TypeVar("T")


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
        """Return each layer's weight for each image, float32 (n, layers); rows add up to 1."""
        scores = np.stack([layers[name] @ gate for name, gate in self.gates.items()], 1) + self.bias
        powers = np.exp(scores - scores.max(1, keepdims=True))
        weights: Values = powers / powers.sum(1, keepdims=True)
        return weights

    def factors(self, layers: Mapping[str, Values]) -> list[Values]:
        """Return what each layer is multiplied by, float32 (n, 1) each.

        It is the root of the weight, as for fixed weights, so that the cosine of two fused vectors
        is a weighted mean of their layers' cosines.
        """
        roots = np.sqrt(self.weights(layers))  # (n, layers)
        return [roots[:, at, None] for at in range(len(self.gates))]


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """A recipe with all that was fitted for it; fuses rows of several layers.

    Attributes:
        recipe: method, layers, norms, weights.
        widths: layer → length of its vectors.
        name: of the new layer.
        standard: layer → mean and deviation, for the norm `standard`.
        projections: layer → projection to a common width, for the method `sum`.
        attention: for the method `attention`.
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
        """Return the fused vectors, float32 (n, width), of rows of each layer, float32 (n, D)."""
        parts = self.normalised(layers)
        factors: Sequence[Factor] = self.recipe.factors
        if self.attention is not None:
            factors = self.attention.factors(parts)
        joined = join(parts.values(), factors, add=self.recipe.method == "sum")
        return {self.name: unit_length(joined) if self.recipe.final_norm == "l2" else joined}

    def normalised(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """Return each layer normalised and projected, before any weight."""
        parts = {
            name: normalise(layers[name], self.recipe.norm, self.standard.get(name))
            for name in self.recipe.layers
        }
        return {
            name: self.projections[name].apply(part) if name in self.projections else part
            for name, part in parts.items()
        }


def join(parts: Iterable[Values], factors: Sequence[Factor], *, add: bool) -> Values:
    """Multiply layers by their factors, then add them or join them end to end."""
    scaled = [
        part if isinstance(factor, float) and factor == 1 else part * np.asarray(factor, np.float32)
        for part, factor in zip(parts, factors, strict=True)
    ]
    return reduce(np.add, scaled) if add else np.concatenate(scaled, 1)


def normalise(x: Values, norm: RowNorm, standard: Standardisation | None = None) -> Values:
    """Normalise rows of one layer, float32 (n, D), as `Recipe.norm` says."""
    if norm == "standard":
        if standard is None:
            raise UsageError("norm standard has nothing fitted; use a model that has")
        values: Values = standard.apply(x) / np.float32(math.sqrt(x.shape[1]))
        return values
    if norm == "ssr":
        return unit_length(np.sign(x) * np.sqrt(np.abs(x)))
    return unit_length(x) if norm == "l2" else x


def unit_length(x: Values) -> Values:
    """Divide rows by their Euclidean length, float32 (n, D); zero rows stay zero."""
    return unit_rows(np.array(x, dtype=np.float32))


def fit_fusion(
    source: FeatureCache, recipe: Recipe, *, width: int | None = None, name: str | None = None
) -> Fusion:
    """Fit all that a recipe needs but learnt weights to the done rows of a cache.

    For `sum` each layer is projected to `width` by PCA; without it layers must have one width.
    """
    if width is not None and recipe.method != "sum":
        raise UsageError(f"--width belongs to the method sum, not {recipe.method}")
    widths = {layer: source.header.shapes[layer][0] for layer in recipe.layers}
    fusion = Fusion(recipe, widths, name or recipe.method)
    done = np.flatnonzero(source.done)
    if recipe.norm == "standard":
        standard = {
            layer: fit_standardisation(partial(layer_blocks, source, layer, done))
            for layer in recipe.layers
        }
        fusion = dataclasses.replace(fusion, standard=standard)
    if width is not None:
        projections = {}
        for layer in recipe.layers:
            prepare = partial(normalise, norm=recipe.norm, standard=fusion.standard.get(layer))
            blocks = partial(layer_blocks, source, layer, done, prepare)
            projections[layer] = fit_pca(blocks, width)
        fusion = dataclasses.replace(fusion, projections=projections)
    _ = fusion.outputs  # refuses widths that do not fit
    return fusion


def fusion_arrays(
    standard: Mapping[str, Standardisation],
    projections: Mapping[str, Pca],
    attention: Attention | None,
) -> dict[str, NDArray[Any]]:
    """Return what was fitted to layers as arrays of a model file."""
    arrays: dict[str, NDArray[Any]] = {}
    for layer, one in standard.items():
        arrays |= pack(f"standard {layer}", one)
    for layer, pca in projections.items():
        arrays |= pack(f"projection {layer}", pca)
    if attention is not None:
        arrays |= {f"gate {layer}": gate for layer, gate in attention.gates.items()}
        arrays["bias"] = attention.bias
    return arrays


def unpack_layers(
    kind: type[T], prefix: str, layers: Sequence[str], arrays: Mapping[str, NDArray[Any]]
) -> dict[str, T]:
    """Return what was fitted to each layer that has it; raise KeyError if a part is missing."""
    return {
        layer: unpack(kind, f"{prefix} {layer}", arrays)
        for layer in layers
        if any(name.startswith(f"{prefix} {layer}.") for name in arrays)
    }


def unpack_attention(layers: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Attention | None:
    """Return the attention of a model file, if it has any."""
    if "bias" not in arrays:
        return None
    return Attention({layer: arrays[f"gate {layer}"] for layer in layers}, arrays["bias"])
