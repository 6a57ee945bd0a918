"""The tensors that VGG's layers need: names as torchvision has them, and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vggfeat.core.vgg_layers import VARIANTS, Layer, layer_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


FirstLayer = Literal["sum", "kaiming"]
FIRST_LAYERS: tuple[FirstLayer, ...] = get_args(FirstLayer)

COLOURS = 3
CONV1_1 = "features.0.weight"
CONV1_1_BIAS = "features.0.bias"
ADAPTER = "adapter.weight"
ADAPTER_BIAS = "adapter.bias"
HEAD = ("head.weight", "head.bias")
"""A linear classifier that `adapt` writes beside the network; extraction does not look at it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What comes into the network, and how it is made to fit.

    Attributes:
        channels: of the images.
        first_layer: `sum` rebuilds the first convolution from the pretrained filters where the
            channels are not three; `kaiming` draws it anew, whatever they are.
    """

    channels: int = COLOURS
    first_layer: FirstLayer = "sum"


RGB_ENTRY = Entry()


def parameter_shapes(
    layers: Iterable[Layer], classes: int, channels: int = COLOURS
) -> dict[str, tuple[int, ...]]:
    """Names, as torchvision has them, and shapes of all that `layers` need from a weight file.

    Args:
        layers: of a variant.
        classes: outputs of fc8.
        channels: inputs of conv1_1.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        name = f"{layer.container}.{layer.index}"
        if layer.kind == "conv":
            inputs = channels if layer.name == "conv1_1" else layer.in_channels
            shapes[f"{name}.weight"] = (layer.channels, inputs, 3, 3)
            shapes[f"{name}.bias"] = (layer.channels,)
        elif layer.kind == "fc":
            out = classes if layer.name == "fc8" else layer.channels
            shapes[f"{name}.weight"] = (out, layer.in_channels)
            shapes[f"{name}.bias"] = (out,)
        if layer.norm_index is not None:
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{layer.container}.{layer.norm_index}.{part}"] = (layer.channels,)
    return shapes


def variant_of(found: Mapping[str, tuple[int, ...]]) -> str:
    """The variant whose convolutions are exactly those of a file, by names and shapes; or ''.

    The first may take any number of channels.
    """
    have = {
        name: shape
        for name, shape in found.items()
        if name.startswith("features.") and "num_batches" not in name
    }
    channels = have.get(CONV1_1, (0, COLOURS))[1:2] or (COLOURS,)
    for model in VARIANTS:
        convolutions = [layer for layer in layer_table(model) if layer.kind == "conv"]
        if parameter_shapes(convolutions, 0, channels[0]) == have:
            return model
    return ""
