"""Which layers are trained: names given by the user, and the parameters they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.choices import did_you_mean
from vggfeat.core.vgg_layers import ADAPTER, ADAPTER_BIAS, Layer, layer_table
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ADAPTER, _ALL, _FIRST = "adapter", "all", "first"
_BLOCKS = 5


@dataclass(frozen=True, slots=True)
class Trainable:
    """Layers to train; all others are frozen.

    Attributes:
        adapter: whether an adapter in front of the network is trained.
        layers: that are trained, in the order of the network.
    """

    adapter: bool
    layers: tuple[Layer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names as a user may write them, in the order of the network."""
        return (*([_ADAPTER] if self.adapter else []), *(layer.name for layer in self.layers))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters: weights and biases, also of batch normalisation.

        Its running statistics are not updated: small batches of other images would spoil them.
        """
        parts = [f"{layer.container}.{layer.index}" for layer in self.layers]
        parts += [
            f"{layer.container}.{layer.norm_index}"
            for layer in self.layers
            if layer.norm_index is not None
        ]
        adapter = (ADAPTER, ADAPTER_BIAS) if self.adapter else ()
        return (*adapter, *(f"{part}.{kind}" for part in parts for kind in ("weight", "bias")))


def parse_trainable(text: str, model: str, deepest: Layer) -> Trainable:
    """Return the layers that a list of names stands for.

    Args:
        text: names separated by commas: `adapter`, `first` (conv1_1), a layer, a block such as
            `conv3`, or `all` (layers).
        model: VGG variant.
        deepest: the layer that the head stands on; no layer behind it can be trained.
    """
    table = layer_table(model)
    within = table[: table.index(deepest) + 1]
    known = _names(table)
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in known and word != _ADAPTER]
    if wrong or not words:
        raise UsageError(
            f"unknown trainable {', '.join(map(repr, wrong or [text]))} in {model}; expected "
            "adapter, first, a layer with weights such as conv3_2, a block such as conv3, or all"
            f"{did_you_mean(wrong, [_ADAPTER, *known])}"
        )
    deep = [w for w in words if w != _ALL and not set(known.get(w, within)) & set(within)]
    if deep:
        raise UsageError(
            f"trainable {', '.join(deep)} lies behind {deepest.name}, on which the head stands and "
            "where the network ends; name a deeper --layer, or leave it out"
        )
    chosen = {layer for word in words for layer in known.get(word, ())}
    return Trainable(_ADAPTER in words, tuple(layer for layer in within if layer in chosen))


def _names(table: Sequence[Layer]) -> Mapping[str, tuple[Layer, ...]]:
    """Return the layers with weights that each name stands for."""
    trainable = tuple(layer for layer in table if layer.kind in ("conv", "fc"))
    names: dict[str, tuple[Layer, ...]] = {layer.name: (layer,) for layer in trainable}
    for block in range(1, _BLOCKS + 1):
        names[f"conv{block}"] = tuple(
            layer for layer in trainable if layer.level == block and layer.kind == "conv"
        )
    return {**names, _FIRST: trainable[:1], _ALL: trainable}
