"""The shape, stride and memory of every stage from a file to fc8, and where it first goes wrong.

Shapes follow from the tables in `layers`; torch is loaded only to look into a weight file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from vggfeat.config import make_settings
from vggfeat.core.isolation import isolated
from vggfeat.core.settings import SMALLEST_SIZE, Settings
from vggfeat.core.vgg_layers import CLASSES, COLOURS, GRID, Layer, layer_table, parameter_shapes
from vggfeat.errors import DecodeError, InputError, UsageError
from vggfeat.images.decode import as_decode_errors, finish
from vggfeat.images.pillow import isolated_pillow
from vggfeat.images.raw_values import read_raster
from vggfeat.images.resize import with_shorter_side
from vggfeat.images.streams import open_file
from vggfeat.network.checkpoint_reader import open_checkpoint
from vggfeat.network.weight_check import (
    Checkpoint,
    Problem,
    WeightFit,
    cannot_be_multiplied,
    check_fit,
)
from vggfeat.network.weight_metadata import LAYER
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vggfeat.core.preprocessing import Crop, Preprocess

_FLOAT32_BYTES = 4
_ADAPTER = "adapter"
_MAPS = 5  # blocks of convolutions
_FC6_INPUT = 512 * GRID**2
_FC6_WIDTH = 4096


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file, and what becomes of it before the network.

    Attributes:
        path: of the file.
        size: bytes of it.
        format: as Pillow names it; empty where it is no image.
        mode: Pillow's.
        width, height: of the stored pixels.
        upright: width and height after the EXIF orientation.
        shape: of the network's input, (H, W); None where it could not be decoded.
        reason: why not, empty if it could.
    """

    path: str
    size: int
    format: str
    mode: str
    width: int
    height: int
    upright: tuple[int, int]
    shape: tuple[int, int] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One step on the way.

    Attributes:
        name: `file`, `decoded`, `tensor`, a layer, `avgpool`, `flatten`.
        by: what computes it; for layers torchvision's module.
        shape: of the output, of the whole batch once there is one.
        stride: input pixels between neighbouring outputs, 0 where they have no position.
        params: learnt numbers.
        image_bytes: memory of the output for one image: uint8 before the tensor, then float32.
        batch_bytes: for the batch, float32.
        half_bytes: for the batch, float16 or bfloat16.
        wrong: it is the first stage of a problem.
    """

    name: str
    by: str
    shape: tuple[int, ...]
    stride: int = 0
    params: int = 0
    image_bytes: int = 0
    batch_bytes: int = 0
    half_bytes: int = 0
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """What `vggfeat trace` shows.

    Attributes:
        model: VGG variant.
        weights: name of those that were looked at, empty for none.
        batch: images at once.
        stages: up to fc8, or to the last that can be computed.
        params: learnt numbers of the whole network.
        peak_bytes: the most that one layer's input and output take together, batch, float32.
        peak_stage: that layer.
        problems: what does not fit, in the order of the stages.
        notes: what is unusual and does no harm.
    """

    model: str
    weights: str
    batch: int
    stages: tuple[Stage, ...]
    params: int
    peak_bytes: int
    peak_stage: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether no stage has a problem."""
        return not self.problems


@isolated()
def trace(
    photo: str | None = None,
    *,
    size: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    crop: Crop | None = None,
    batch: int = 1,
) -> Trace:
    """Follow an image, or an input of some size, through the network.

    Args:
        photo: an image file; None to begin with the network's input.
        size: `N`, or without a photo also `HxW`; see `Preprocess.size` for what it means with one.
        model: VGG variant; None is that of the weights where they say so, else vgg19.
        weights: whose tensors are compared with the network; None for none. What they were trained
            with is taken over: see `carried`.
        crop: see `Preprocess.crop`; with a photo only.
        batch: images at once.

    Raises:
        UsageError: a setting makes no sense.
        DecodeError: there is no such file.
        WeightsError: the weights were not found, could not be downloaded, or cannot be read.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}; expected 1 image or more")
    if photo is None and crop is not None:
        raise UsageError(f"crop {crop} is done to a photo; name one, or leave --crop out")
    given = {"layers": "fc8", "model": model, "weights": weights, "crop": crop}
    settings = make_settings(None, given)
    model = settings.model
    sides = _sides(size, square=photo is not None)
    if photo is None:
        side = settings.preprocess().size
        checkpoint = _look(weights, model)
        return trace_network(model, sides or (side, side), batch=batch, checkpoint=checkpoint)
    preprocess = _preprocess(settings, sides[0] if sides else None)
    try:
        found = read_photo(photo, preprocess, settings.max_pixels)
    except DecodeError as error:
        raise InputError(f"photo {photo!r} cannot be read: {error}") from error
    checkpoint = _look(weights, model) if not found.reason else None
    return trace_photo(found, preprocess, model, batch=batch, checkpoint=checkpoint)


def _sides(text: str | None, *, square: bool) -> tuple[int, int] | None:
    if text is None:
        return None
    words = text.lower().split("x")
    if len(words) > 2 or not all(word.isdecimal() and int(word) for word in words):  # noqa: PLR2004 H and W
        raise UsageError(f"size is {text!r}; expected pixels, such as 224, or 224x320 (HxW)")
    if square and len(words) > 1:
        raise UsageError(
            f"size is {text!r}; with a photo expected one number, the side of the network's input; "
            "how the photo comes to it is said by --crop"
        )
    return int(words[0]), int(words[-1])


def _preprocess(settings: Settings, size: int | None) -> Preprocess:
    """Return the preprocessing of `extract`, for sizes too that `extract` refuses."""
    own = settings.preprocess()
    if size is None:
        return own
    if size >= SMALLEST_SIZE:
        return dataclasses.replace(settings, size=size).preprocess()
    resize = None if own.resize is None else max(size, round(size * own.resize / own.size))
    return dataclasses.replace(own, size=size, resize=resize)


def _look(weights: str | None, model: str) -> Checkpoint | None:
    """Read the names and shapes of the tensors of a weight file."""
    if weights is None:
        return None
    known = find_weights(weights, model)
    if known.path is None:
        return Checkpoint(known.name, parameter_shapes(layer_table(model), CLASSES))
    with open_checkpoint(known.path) as file:
        end = file.contents.metadata.get(LAYER, "")
        return Checkpoint(known.name, file.shapes, known.convolutions_only, end, file.reading.notes)


def read_photo(path: str, preprocess: Preprocess, max_pixels: int) -> Photo:
    """Read an image file and decode it as a run would."""
    with open_file(os.fsencode(path)) as stream:
        data = stream.read()
    name, mode, size = "", "", (0, 0)
    # Decoding says in our own words what is wrong.
    with (
        contextlib.suppress(Exception),
        isolated_pillow(sys.maxsize),
        Image.open(io.BytesIO(data)) as image,
    ):
        name, mode, size = str(image.format), image.mode, image.size
    try:
        with as_decode_errors(io.BytesIO(data), max_pixels):
            raster = read_raster(io.BytesIO(data), preprocess, max_pixels)
            pixels = finish(raster, preprocess, max_pixels)
    except DecodeError as error:
        return Photo(path, len(data), name, mode, *size, size, None, str(error))
    height, width = pixels.shape[:2]
    upright = (raster.values.shape[1], raster.values.shape[0])
    if not name:  # no picture for Pillow
        name, _, mode = raster.kind.partition(" ")
        size = upright
    return Photo(path, len(data), name, mode, *size, upright, (height, width), "")


def trace_photo(
    photo: Photo, preprocess: Preprocess, model: str, *, batch: int, checkpoint: Checkpoint | None
) -> Trace:
    """Follow a file through the network; nothing is read."""
    kind = f"{photo.format} {photo.mode}".strip() or "no image"
    file = Stage("file", kind, (photo.height, photo.width), image_bytes=photo.size)
    if photo.shape is None:
        problem = Problem("decoded", photo.reason, "give an image that can be read")
        stages = (file, Stage("decoded", "Pillow", (), wrong=True))
        return Trace(model, "", batch, stages, 0, 0, "", (problem,), ())
    network = trace_network(model, photo.shape, batch=batch, checkpoint=checkpoint)
    notes = network.notes
    if preprocess.crop == "none" and batch > 1:
        notes += ("crop none leaves images of unequal shapes: extract batches those of one shape",)
    return dataclasses.replace(
        network, stages=(file, *_photo_stages(photo, preprocess), *network.stages), notes=notes
    )


def _photo_stages(photo: Photo, preprocess: Preprocess) -> Iterator[Stage]:

    def pixels(name: str, by: str, size: tuple[int, int]) -> Stage:
        shape = (size[1], size[0], preprocess.channels)
        return Stage(name, by, shape, image_bytes=math.prod(shape) * preprocess.depth // 8)

    kinds = {1: "grey", COLOURS: "RGB"}
    colours = kinds.get(preprocess.channels, "all channels")
    yield pixels("decoded", f"{colours}, upright", photo.upright)
    size = preprocess.size
    if preprocess.crop == "center":
        resized = with_shorter_side(photo.upright, preprocess.resize or size)
        yield pixels("resized", f"shorter side {preprocess.resize}", resized)
        yield pixels("cropped", "center", (size, size))
    elif preprocess.crop == "none":
        yield pixels("resized", f"shorter side {size}", with_shorter_side(photo.upright, size))
    else:
        yield pixels("resized", preprocess.crop, (size, size))


def trace_network(
    model: str, sides: tuple[int, int], *, batch: int, checkpoint: Checkpoint | None
) -> Trace:
    """Follow the network's input, (batch, 3, H, W), to fc8; nothing is read."""
    fit = check_fit(checkpoint, model) if checkpoint else WeightFit((), ())
    layers = checkpoint.layers(model) if checkpoint else layer_table(model)
    small = _too_small(layers, sides)
    problems = [*((small,) if small else ()), *fit.problems]
    order = [_ADAPTER, *(layer.name for layer in layers)]
    problems.sort(key=lambda problem: order.index(problem.stage))
    wrong = {problem.stage for problem in problems}
    whole = list(_network_stages(layers, (batch, *sides), checkpoint))
    stages = []
    for stage in whole:
        stages.append(dataclasses.replace(stage, wrong=stage.name in wrong))
        if small and stage.name == small.stage:
            break
    at = max(range(1, len(stages)), key=lambda i: _pair_bytes(stages, i))
    return Trace(
        model=model,
        weights=checkpoint.name if checkpoint else "",
        batch=batch,
        stages=tuple(stages),
        params=sum(stage.params for stage in whole),
        peak_bytes=_pair_bytes(stages, at),
        peak_stage=stages[at].name,
        problems=tuple(problems),
        notes=(*fit.notes, *(_notes(sides, batch, small) if layers[-1].level > _MAPS else ())),
    )


def _pair_bytes(stages: Sequence[Stage], at: int) -> int:
    return stages[at - 1].batch_bytes + stages[at].batch_bytes


def _network_stages(
    layers: Sequence[Layer], shape: tuple[int, int, int], checkpoint: Checkpoint | None
) -> Iterator[Stage]:
    """From the input, `shape` is (batch, H, W), on; by a checkpoint with its own ends."""
    batch, *sides = shape
    classes = checkpoint.classes if checkpoint else CLASSES
    channels = checkpoint.channels if checkpoint else COLOURS
    yield _tensor("tensor", "normalised", (batch, channels, *sides), stride=1)
    if checkpoint and checkpoint.has_adapter:
        adapted = (batch, COLOURS, *sides)
        yield _tensor(_ADAPTER, "1 x 1", adapted, 1, COLOURS * (channels + 1))
        channels = COLOURS
    for layer in layers:
        if layer.name == "fc6":
            yield _tensor("avgpool", f"adaptive, {GRID} x {GRID}", (batch, 512, GRID, GRID))
            yield _tensor("flatten", "", (batch, _FC6_INPUT))
        if layer.kind == "prob":
            return
        width = classes if layer.name == "fc8" else layer.channels
        out = (batch, width, *layer.grid(*sides)) if layer.is_map else (batch, width)
        by = f"{layer.container}.{layer.index}"
        params = layer.params
        if layer.name == "conv1_1":
            params += 9 * (channels - layer.in_channels) * layer.channels
        elif layer.name == "fc8":
            params = (layer.in_channels + 1) * classes
        yield _tensor(layer.name, by, out, layer.stride, params)


def _tensor(name: str, by: str, shape: tuple[int, ...], stride: int = 0, params: int = 0) -> Stage:
    batch = math.prod(shape) * _FLOAT32_BYTES
    return Stage(name, by, shape, stride, params, batch // shape[0], batch, batch // 2)


def _too_small(layers: Sequence[Layer], sides: tuple[int, int]) -> Problem | None:
    """Return the first pooling that leaves nothing of the map, in torch's words."""
    before = (0, 0)
    for layer in layers:
        if not layer.is_map:
            return None
        after = layer.grid(*sides)
        if 0 in after:
            channels = layer.channels
            return Problem(
                layer.name,
                f"the input of {sides[0]} x {sides[1]} pixels is too small: {layer.name} halves "
                f"{channels} x {before[0]} x {before[1]} to {channels} x {after[0]} x {after[1]}; "
                f'torch would say "Given input size: ({channels}x{before[0]}x{before[1]}). '
                f"Calculated output size: ({channels}x{after[0]}x{after[1]}). Output size is too "
                'small"',
                f"give both sides {SMALLEST_SIZE} pixels or more: five poolings halve them to one",
            )
        before = after
    return None


def _notes(sides: tuple[int, int], batch: int, small: Problem | None) -> list[str]:
    """Say what VGG's adaptive pooling does for an input of another size than 224."""
    rows, columns = (side // 32 for side in sides)
    if small or (rows, columns) == (GRID, GRID):
        return []
    length = 512 * rows * columns
    message = cannot_be_multiplied(batch, length, _FC6_WIDTH, _FC6_INPUT)
    here = f"pool5 is 512 x {rows} x {columns} here. Flattened as it is, it has {length} numbers"
    said = f'where a network goes without avgpool, torch says "{message}"'
    remedy = (
        f"Adaptive average pooling to {GRID} x {GRID}, as torchvision's VGG and vggfeat always "
        "have it, is the remedy: this input fits"
    )
    notes = [f"{here}, and fc6 takes 512 x {GRID} x {GRID} = {_FC6_INPUT}: {said}. {remedy}"]
    if min(rows, columns) < GRID:
        notes.append(
            f"a smaller map is stretched to {GRID} x {GRID} by repeating positions: fc6 and deeper "
            f"were not trained on that; --size {32 * GRID} or more is better for them"
        )
    return notes
