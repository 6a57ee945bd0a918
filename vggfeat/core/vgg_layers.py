"""The layers of every VGG variant: names, torchvision indices, shapes, receptive fields and cost.

Pure tables, no torch. Configurations A, B, D and E of Simonyan & Zisserman, "Very Deep
Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015), with torchvision's module
numbering. With the tensors that the layers need: their names in torchvision's model, and shapes.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from vggfeat.core.choices import choose, did_you_mean
from vggfeat.core.foreign_names import explain_name
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    class Shaped(Protocol):
        """A tensor, as far as its shape goes."""

        @property
        def shape(self) -> Sequence[int]:
            """Return its sides."""


Kind = Literal["conv", "pool", "fc", "prob"]
FirstLayer = Literal["sum", "kaiming"]
FIRST_LAYERS: tuple[FirstLayer, ...] = get_args(FirstLayer)

COLOURS = 3
ADAPTER = "adapter.weight"
ADAPTER_BIAS = "adapter.bias"
HEAD = ("head.weight", "head.bias")
"""A linear classifier that `adapt` writes beside the network; extraction does not look at it."""

VARIANTS = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")

_CONVS_PER_BLOCK = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_BLOCK_CHANNELS = (64, 128, 256, 512, 512)
_FC_WIDTHS = (4096, 4096, 1000)
_FC_INDICES = (0, 3, 6)  # in torchvision's `classifier`, whose 1, 2, 4 and 5 are ReLU and dropout
GRID = 7
"""Side of the map that adaptive average pooling hands to fc6, whatever the image size."""

CLASSES = 1000
"""Outputs of fc8 in the ImageNet weights; a weights file may have others."""

# What the units of each level respond to: Zeiler & Fergus, "Visualizing and Understanding
# Convolutional Networks" (ECCV 2014), and Yosinski et al., "Understanding Neural Networks Through
# Deep Visualization" (2015).
_CARRIES = {
    1: "edges, colours",
    2: "corners, fine texture",
    3: "texture, patterns",
    4: "object parts",
    5: "shapes, whole objects",
    6: "concepts, scene layout",
    7: "concepts, category",
    8: "class scores",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One nameable layer of a VGG variant.

    Attributes:
        name: the usual name, `conv5_3`, `pool2`, `fc7`, `prob`.
        kind: what computes it.
        level: 1 to 5 for the convolution blocks, 6 to 8 for fc6 to fc8.
        container: the torchvision submodule it lives in, `features` or `classifier`.
        index: its position in that container; for conv and fc that of the module with the weights.
        norm_index: position of its batch normalisation, if the variant has one.
        relu_index: position of its ReLU, if it has one.
        in_channels: channels (or width) that go in.
        channels: channels (or width) that come out.
        stride: input pixels between neighbouring outputs, 0 where the output has no position.
        receptive_field: side of the square of input pixels one output sees, 0 for the whole image.
        params: learnt numbers in it, batch normalisation's weight and bias included.
    """

    name: str
    kind: Kind
    level: int
    container: Literal["features", "classifier"]
    index: int
    norm_index: int | None
    relu_index: int | None
    in_channels: int
    channels: int
    stride: int
    receptive_field: int
    params: int

    @property
    def is_map(self) -> bool:
        """Whether the output has height and width."""
        return self.kind in ("conv", "pool")

    @property
    def carries(self) -> str:
        """What the layer is known to respond to."""
        return _CARRIES[self.level] if self.kind != "prob" else "class probabilities"

    def node(self, *, pre: bool = False) -> str:
        """Return the torchvision module whose output this layer is, `features.31`.

        Args:
            pre: the module in front of the ReLU, batch normalisation if the variant has it.
        """
        if self.kind == "prob":
            raise ValueError("prob is the softmax of fc8 and no module of torchvision's model")
        before = self.norm_index if self.norm_index is not None else self.index
        after = self.relu_index if self.relu_index is not None else self.index
        return f"{self.container}.{before if pre else after}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output for an input of that size; (1, 1) for vectors."""
        return (height // self.stride, width // self.stride) if self.is_map else (1, 1)

    def multiply_adds(self, height: int, width: int) -> int:
        """Return the multiply-add operations of this layer alone for one image of that size."""
        if self.kind == "conv":
            rows, columns = self.grid(height, width)
            return 9 * self.in_channels * self.channels * rows * columns
        return self.in_channels * self.channels if self.kind == "fc" else 0


@functools.cache
def layer_table(model: str) -> tuple[Layer, ...]:
    """Return all layers of `model` in the order in which they are computed."""
    choose("model", VARIANTS, model)
    batch_norm = model.endswith("_bn")
    return (*_feature_layers(int(model[3:5]), batch_norm=batch_norm), *_classifier_layers())


def _feature_layers(depth: int, *, batch_norm: bool) -> list[Layer]:
    layers: list[Layer] = []
    index, channels, stride, field = 0, 3, 1, 1
    for block, (convs, width) in enumerate(
        zip(_CONVS_PER_BLOCK[depth], _BLOCK_CHANNELS, strict=True), start=1
    ):
        for number in range(1, convs + 1):
            field += 2 * stride
            layers.append(
                Layer(
                    name=f"conv{block}_{number}",
                    kind="conv",
                    level=block,
                    container="features",
                    index=index,
                    norm_index=index + 1 if batch_norm else None,
                    relu_index=index + 1 + batch_norm,
                    in_channels=channels,
                    channels=width,
                    stride=stride,
                    receptive_field=field,
                    params=(9 * channels + 1) * width + 2 * width * batch_norm,
                )
            )
            index, channels = index + 2 + batch_norm, width
        field += stride
        stride *= 2
        layers.append(
            Layer(
                name=f"pool{block}",
                kind="pool",
                level=block,
                container="features",
                index=index,
                norm_index=None,
                relu_index=None,
                in_channels=width,
                channels=width,
                stride=stride,
                receptive_field=field,
                params=0,
            )
        )
        index += 1
    return layers


def _classifier_layers() -> list[Layer]:
    layers: list[Layer] = []
    width = _BLOCK_CHANNELS[-1] * GRID * GRID
    for level, (index, out) in enumerate(zip(_FC_INDICES, _FC_WIDTHS, strict=True), start=6):
        layers.append(
            Layer(
                name=f"fc{level}",
                kind="fc",
                level=level,
                container="classifier",
                index=index,
                norm_index=None,
                relu_index=index + 1 if level < _CLASS_LEVEL else None,
                in_channels=width,
                channels=out,
                stride=0,
                receptive_field=0,
                params=(width + 1) * out,
            )
        )
        width = out
    layers.append(
        Layer("prob", "prob", _CLASS_LEVEL, "classifier", 6, None, None, CLASSES, CLASSES, 0, 0, 0)
    )
    return layers


_CLASS_LEVEL = 8


def find_layer(model: str, name: str) -> Layer:
    """Return the layer of `model` that `name`, or an alias of it, names.

    `relu5_3` is `conv5_3`, `relu6` is `fc6`, `logits` is `fc8`. `first(4)` and `last(4)` are the
    first and last convolution of block 4, whatever the variant has there, and `block4` is the last
    one too, the output of the block. Case does not matter. An unknown name is answered by the
    nearest ones, and the name that another tool uses by ours.
    """
    table = {layer.name: layer for layer in layer_table(model)}
    meant = _resolve_alias(name.lower(), model)
    layer = table.get(meant)
    if layer is None:
        explained = explain_name(name.lower(), tuple(table.values()))
        hint = f"; {explained}" if explained else did_you_mean([meant], table, most=3)
        raise UsageError(
            f"layer {name!r} is not in {model}{hint}; "
            f"`vggfeat layers --model {model}` lists them all"
        )
    return layer


_IN_A_BLOCK = re.compile(r"(?:(first|last)\(\s*([1-5])\s*\)|block([1-5]))")


def _resolve_alias(name: str, model: str) -> str:
    if name == "logits":
        return "fc8"
    if name in ("relu6", "relu7"):
        return name.replace("relu", "fc")
    of_block = _IN_A_BLOCK.fullmatch(name)
    if of_block:
        block = int(of_block[2] or of_block[3])
        number = 1 if of_block[1] == "first" else _CONVS_PER_BLOCK[int(model[3:5])][block - 1]
        return f"conv{block}_{number}"
    return name.replace("relu", "conv", 1) if name.startswith("relu") else name


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is VGG's own about a weight file: names of tensors and the files that were published.

    Attributes:
        first_weight: name, as torchvision has it, of the weight of conv1_1.
        first_bias: of the bias of conv1_1.
        fc6_weight: of the weight of the first fully connected layer.
        fc8_weight: of the weight of the last one, which has a row for each class.
        published: name of the weights and model → torchvision's file; the digits behind the last
            dash begin its SHA-256.
    """

    first_weight: str
    first_bias: str
    fc6_weight: str
    fc8_weight: str
    published: Mapping[tuple[str, str], str]

    def classes(self, tensors: Mapping[str, Shaped]) -> int:
        """Return the number of outputs of fc8, 0 where `tensors` end before it."""
        head = tensors.get(self.fc8_weight)
        return 0 if head is None else head.shape[0]


VGG = Architecture(
    first_weight="features.0.weight",
    first_bias="features.0.bias",
    fc6_weight="classifier.0.weight",
    fc8_weight="classifier.6.weight",
    published={
        ("imagenet", "vgg11"): "vgg11-8a719046.pth",
        ("imagenet", "vgg11_bn"): "vgg11_bn-6002323d.pth",
        ("imagenet", "vgg13"): "vgg13-19584684.pth",
        ("imagenet", "vgg13_bn"): "vgg13_bn-abd245e5.pth",
        ("imagenet", "vgg16"): "vgg16-397923af.pth",
        ("imagenet", "vgg16_bn"): "vgg16_bn-6c64b313.pth",
        ("imagenet", "vgg19"): "vgg19-dcbb9e9d.pth",
        ("imagenet", "vgg19_bn"): "vgg19_bn-c79401a0.pth",
        ("features", "vgg16"): "vgg16_features-amdegroot-88682ab5.pth",
    },
)
"""The only architecture of this package; a variant's layers are in `layer_table`."""


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
    """Return names, as torchvision has them, and shapes of all tensors that `layers` need.

    `classes` are the outputs of fc8, `channels` the inputs of conv1_1.
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
    """Return the variant whose convolutions have exactly these names and shapes; or ''.

    The first may take any number of channels.
    """
    have = {
        name: shape
        for name, shape in found.items()
        if name.startswith("features.") and "num_batches" not in name
    }
    channels = have.get(VGG.first_weight, (0, COLOURS))[1:2] or (COLOURS,)
    for model in VARIANTS:
        convolutions = [layer for layer in layer_table(model) if layer.kind == "conv"]
        if parameter_shapes(convolutions, 0, channels[0]) == have:
            return model
    return ""
