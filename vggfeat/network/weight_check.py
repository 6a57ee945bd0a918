"""Check, layer by layer, that the tensors of a weight file have a network's names and shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.text import agree, counted, first_few
from vggfeat.core.vgg_layers import (
    ADAPTER,
    ADAPTER_BIAS,
    CLASSES,
    COLOURS,
    GRID,
    HEAD,
    VGG,
    Layer,
    find_layer,
    layer_table,
    parameter_shapes,
    variant_of,
)
from vggfeat.network.first_layer import adapter_problem, file_channels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One misfit between a weight file and a network."""

    stage: str  # the first stage it concerns
    found: str  # with what was expected
    remedy: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weight file as the check sees it.

    Attributes:
        name: of the weights.
        shapes: tensor name → its shape.
        convolutions_only: the classifier exists, but holds no values.
        ends: the last layer, if the file ends with it on purpose; else empty.
        told: notes on how the file is read.
    """

    name: str
    shapes: Shapes
    convolutions_only: bool = False
    ends: str = ""
    told: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Outputs of fc8; ImageNet's if the file has no fc8."""
        shapes = [shape for name, shape in self.shapes.items() if name.endswith(VGG.fc8_weight)]
        return shapes[0][0] if shapes and shapes[0] else CLASSES

    @property
    def channels(self) -> int:
        """Channels of its input; RGB's if the file has no first convolution."""
        return file_channels(_without_prefix(self.shapes)[0]) or COLOURS

    @property
    def has_adapter(self) -> bool:
        """True if an adapter precedes the network."""
        return ADAPTER in self.shapes

    def layers(self, model: str) -> tuple[Layer, ...]:
        """Return the layers of `model` that the file should have, from the first on."""
        table = layer_table(model)
        names = [layer.name for layer in table]
        return table[: names.index(self.ends) + 1] if self.ends in names else table


@dataclass(frozen=True, slots=True)
class WeightFit:
    """The result of comparing a weight file with a network."""

    problems: tuple[Problem, ...]  # in the order of the stages
    notes: tuple[str, ...]  # unusual and harmless


def _convolutions_do(model: str) -> str:
    last = [layer.name for layer in layer_table(model) if layer.kind == "conv"][-1]
    return (
        "its conv and pool layers work all the same, as nothing behind the deepest requested "
        f"layer is loaded: --layers {last}"
    )


def remedy_for(checkpoint: Checkpoint, model: str, layers: Sequence[Layer]) -> str:
    """Return the remedy that `trace` proposes for these layers; empty if they fit."""
    names = {layer.name for layer in layers}
    problems = check_fit(checkpoint, model).problems
    return next((problem.remedy for problem in problems if problem.stage in names), "")


def check_fit(checkpoint: Checkpoint, model: str) -> WeightFit:
    """Compare the tensors of a weight file with those of `model` by name and shape."""
    notes = list(checkpoint.told)
    problems: list[Problem] = []
    found, prefix = _without_prefix(checkpoint.shapes)
    if prefix:
        problems.append(_prefixed(prefix))
    if what := adapter_problem(found):
        remedy = "save both tensors of a convolution of 1 x 1 from C channels to 3, or neither"
        problems.append(Problem("adapter", what, remedy))
    problems += _convolutions(found, model, checkpoint.layers(model))
    if not checkpoint.ends:
        problems += _classifier(found, checkpoint, model)
    if VGG.fc8_weight in found and found[VGG.fc8_weight][0] != CLASSES:
        notes.append(
            f"fc8 of {checkpoint.name} has {counted(found[VGG.fc8_weight][0], 'class')} instead of "
            f"ImageNet's {CLASSES}: fine, fc8 and prob are that long"
        )
    notes += _first_layer(checkpoint)
    notes += _end(checkpoint, found)
    told = HEAD if checkpoint.ends else ()
    notes += _unexpected({n: s for n, s in found.items() if n not in told}, model, problems)
    return WeightFit(tuple(problems), tuple(notes))


def _without_prefix(shapes: Shapes) -> tuple[Shapes, str]:
    """Return shapes by torchvision's names, and the prefix removed from the file's names."""
    ends = [name for name in shapes if name.endswith(f".{VGG.first_weight}")]
    if VGG.first_weight in shapes or not ends:
        return shapes, ""
    prefix = ends[0].removesuffix(VGG.first_weight)
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()}, prefix


def _prefixed(prefix: str) -> Problem:
    return Problem(
        "conv1_1",
        f"names of tensors begin with {prefix!r}; expected torchvision's, {VGG.first_weight}",
        f"save the file without it: {{name.removeprefix({prefix!r}): value for name, value in "
        "state.items()}",
    )


def _first_layer(checkpoint: Checkpoint) -> list[str]:
    """Return a note if the network takes images of other than three channels."""
    channels, name = checkpoint.channels, checkpoint.name
    images = f"images of --channels {channels}"
    if checkpoint.has_adapter:
        return [f"an adapter of {name} takes {images} to {COLOURS} in front of conv1_1"]
    if channels != COLOURS:
        return [f"conv1_1 of {name} takes {images} instead of {COLOURS}"]
    return []


def _end(checkpoint: Checkpoint, found: Shapes) -> list[str]:
    if not checkpoint.ends:
        return []
    classes = found.get(HEAD[0], (0,))[0]
    head = (
        f"; its head tells {counted(classes, 'class')} apart and is for no layer" if classes else ""
    )
    return [f"{checkpoint.name} ends with {checkpoint.ends}: deeper layers are missing{head}"]


def _convolutions(found: Shapes, model: str, meant: Sequence[Layer]) -> list[Problem]:
    layers = [layer for layer in meant if layer.kind == "conv"]
    wrong = [layer for layer in layers if _unlike([layer], found)]
    if not wrong:
        return []
    likely = variant_of(found)
    if likely and likely != model:
        return [
            Problem(
                wrong[0].name,
                f"the convolutions are those of {likely}, not of {model}: "
                f"{_unlike(wrong, found)[0]}",
                f"--model {likely}",
            )
        ]
    return [
        Problem(
            wrong[0].name,
            first_few(_unlike(wrong, found), "; "),
            "use a file whose convolutions have torchvision's names and shapes; save the "
            "state_dict of the whole model",
        )
    ]


def _unlike(layers: Sequence[Layer], found: Shapes) -> list[str]:
    """Return a line for each tensor that is missing or has another shape."""
    classes = found[VGG.fc8_weight][0] if VGG.fc8_weight in found else CLASSES
    first = found.get(VGG.first_weight, ())
    channels = first[1] if len(first) == 4 else COLOURS  # noqa: PLR2004 (out, in, rows, columns)
    return [
        f"{name} is missing"
        if name not in found
        else f"{name} is {_shape(found[name])}, expected {_shape(shape)}"
        for name, shape in parameter_shapes(layers, classes, channels).items()
        if found.get(name) != shape
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _classifier(found: Shapes, checkpoint: Checkpoint, model: str) -> list[Problem]:
    if checkpoint.convolutions_only or not any(name.startswith("classifier.") for name in found):
        what = "holds convolutions only; fc6 to fc8 lie behind them"
        remedy = f"{_convolutions_do(model)}; for fc6 and deeper use --weights imagenet"
        return [Problem("fc6", what, remedy)]
    fc6 = find_layer(model, "fc6")
    shape = found.get(VGG.fc6_weight, ())
    if len(shape) == 2 and shape[1] != fc6.in_channels:  # noqa: PLR2004 (out, in)
        return [_other_input(fc6, shape, _convolutions_do(model))]
    layers = [layer for layer in layer_table(model) if layer.kind == "fc"]
    wrong = [layer for layer in layers if _unlike([layer], found)]
    if not wrong:
        return []
    remedy = f"a classifier of another make cannot be computed here; {_convolutions_do(model)}"
    return [Problem(wrong[0].name, first_few(_unlike(wrong, found), "; "), remedy)]


def _other_input(fc6: Layer, shape: tuple[int, ...], convolutions_do: str) -> Problem:
    """Return the problem of a classifier for another input length than VGG's 7 x 7 map has."""
    out, length = shape
    channels = fc6.in_channels // GRID**2
    message = cannot_be_multiplied(1, fc6.in_channels, out, length)
    found = (
        f"{VGG.fc6_weight} is {_shape(shape)}, expected "
        f"{_shape((fc6.channels, fc6.in_channels))}: it takes {counted(length, 'number')}, and VGG "
        f"hands it {channels} x {GRID} x {GRID} = {fc6.in_channels}; "
        f'torch would say "{message}"'
    )
    side = math.isqrt(length // channels) if length % channels == 0 else 0
    if side * side * channels != length or side == 0:
        return Problem("fc6", found, f"its network was another one behind pool5; {convolutions_do}")
    found += f"; {length} is {channels} x {side} x {side}"
    if side == 1:
        made = "its network pooled pool5 to 1 x 1; that very vector is --layers pool5:avg"
    else:
        made = (
            f"its network pooled pool5 to {side} x {side}, or flattened it as it was at "
            f"{32 * side} x {32 * side} pixels; that vector is --layers pool5:flatten "
            f"--size {32 * side}"
        )
    return Problem("fc6", found, f"{made}; {convolutions_do}")


def cannot_be_multiplied(rows: int, length: int, out: int, expected: int) -> str:
    """Return torch's error for (rows, length) features and (out, expected) weights."""
    return f"mat1 and mat2 shapes cannot be multiplied ({rows}x{length} and {expected}x{out})"


def _unexpected(found: Shapes, model: str, problems: Sequence[Problem]) -> list[str]:
    known = {*parameter_shapes(layer_table(model), CLASSES), ADAPTER, ADAPTER_BIAS}
    said = ("features.", "classifier.") if problems else ()  # a problem names these already
    names = [
        name
        for name in found
        if name not in known
        and not name.endswith("num_batches_tracked")
        and not name.startswith(said)
    ]
    if not names:
        return []
    has, are = agree(len(names), "has"), agree(len(names), "is")
    what = f"of the file {has} no place in {model} and {are} skipped"
    return [f"{counted(len(names), 'tensor')} {what}: {first_few(names)}"]
