"""Keras's VGG16 and VGG19: Caffe's weights, kernels laid out (rows, columns, in, out), BGR.

The first kernel is converted to RGB, so only mean and deviation remain different: those of the
transform `caffe`. Keras flattens the last map position by position, torch channel by channel.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import GRID, layer_table
from vggfeat.network.dialects.records import Dialect, TensorSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vggfeat.core.vgg_layers import Layer
    from vggfeat.network.dialects.records import Shape

_MODELS = ("vgg16", "vgg19")
_FC_NAMES: Mapping[str, str] = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
_NAMED = re.compile(r"block(\d)_conv(\d)")
# Keras 3 numbers layers by class in .weights.h5 and .keras: conv2d, conv2d_1, …
_NUMBERED = re.compile(r"(.*?)layers/(conv2d|dense)(?:_(\d+))?/vars/[01]")
_OPTIMIZER = ("optimizer_weights/", "optimizer/")
_MATRIX, _KERNEL = 2, 4  # axes


def _translate(shapes: Mapping[str, Shape]) -> dict[str, TensorSource] | None:
    named = {
        path: shape for path, shape in shapes.items()
        if "/" in path and not path.startswith(_OPTIMIZER)
    }  # fmt: skip
    layers = _by_name(named) or _by_number(named)
    kernels = [
        shape[2:] for name, parts in layers.items() if name.startswith("conv")
        for shape in (named[path] for path in parts) if len(shape) == _KERNEL
    ]  # fmt: skip
    for model in _MODELS:
        table = {layer.name: layer for layer in layer_table(model)}
        convolutions = [layer for layer in table.values() if layer.kind == "conv"]
        if kernels == [(layer.in_channels, layer.channels) for layer in convolutions]:
            return _sources(layers, named, table)
    return None


def _by_name(shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return layers, in order, and the paths of their kernel and bias, by the names in paths."""
    layers: dict[str, list[str]] = {}
    for path in shapes:
        for part in path.split("/")[:-1]:
            match = _NAMED.fullmatch(part)
            name = f"conv{match[1]}_{match[2]}" if match else _FC_NAMES.get(part)
            if name is not None:
                layers.setdefault(name, []).append(path)
                break
    return dict(sorted(layers.items()))


def _by_number(shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return the same from the numbers of layers, which are consecutive in VGG16 and VGG19."""
    found: dict[str, dict[int, list[str]]] = {"conv2d": {}, "dense": {}}
    prefixes = set()
    for path in shapes:
        match = _NUMBERED.fullmatch(path)
        if match:
            prefixes.add(match[1])
            found[match[2]].setdefault(int(match[3] or 0), []).append(path)
    convolutions = [found["conv2d"][number] for number in sorted(found["conv2d"])]
    for model in _MODELS:
        names = [layer.name for layer in layer_table(model) if layer.kind == "conv"]
        if len(names) == len(convolutions) and len(prefixes) == 1:
            dense = [found["dense"][number] for number in sorted(found["dense"])]
            fcs = zip(_FC_NAMES.values(), dense, strict=False)
            return {**dict(zip(names, convolutions, strict=True)), **dict(fcs)}
    return {}


def _sources(
    layers: Mapping[str, list[str]], shapes: Mapping[str, Shape], table: Mapping[str, Layer]
) -> dict[str, TensorSource]:
    sources = {}
    for name, paths in layers.items():
        layer = table[name]
        for path in paths:
            shape = shapes[path]
            part = "bias" if len(shape) == 1 else "weight"
            sources[f"{layer.container}.{layer.index}.{part}"] = _source(path, shape, layer)
    return sources


def _source(path: str, shape: Shape, layer: Layer) -> TensorSource:
    if len(shape) == _KERNEL:
        rows, columns, inputs, outputs = shape
        convert = _first_kernel if layer.name == "conv1_1" else _kernel
        return TensorSource(path, (outputs, inputs, rows, columns), convert)
    if len(shape) == _MATRIX:
        whole = layer.name == "fc6" and shape[0] == layer.in_channels
        return TensorSource(path, shape[::-1], _fc6 if whole else _matrix)
    return TensorSource(path, shape)


def _kernel(weight: Tensor) -> Tensor:
    return weight.permute(3, 2, 0, 1).contiguous()  # (rows, columns, in, out) -> (out, in, …)


def _first_kernel(weight: Tensor) -> Tensor:
    return _kernel(weight).flip(1)  # blue, green, red -> red, green, blue


def _matrix(weight: Tensor) -> Tensor:
    return weight.t().contiguous()  # (in, out) -> (out, in)


def _fc6(weight: Tensor) -> Tensor:
    maps = weight.view(GRID, GRID, -1, weight.shape[1])  # (rows, columns, channels, out)
    return maps.permute(3, 2, 0, 1).flatten(1)  # (out, channels x rows x columns)


KERAS = Dialect(
    "Keras",
    _translate,
    transform="caffe",
    note="its BGR first layer is turned to RGB, and transform caffe takes the place of "
    "preprocess_input; weights trained on other inputs need their own --mean and --std",
)
