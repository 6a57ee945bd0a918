"""How a file becomes the network's input, and what the published weights were trained with."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from vggfeat.core.choices import unknown_value
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Crop = Literal["center", "none", "pad", "squash"]
Exif = Literal["apply", "ignore"]
Icc = Literal["ignore", "convert"]
Decode = Literal["exact", "torchvision", "fast", "gpu"]
DecodeName = Literal["auto", "pillow", "exact", "torchvision", "fast", "gpu"]
TransformName = Literal["auto", "imagenet", "features", "caffe"]
Corruption = Literal[
    "mirror", "flip", "crop", "zoom", "rotate", "grey", "recolour", "invert", "darken", "blur",
    "noise", "jpeg", "shuffle", "occlude",
]  # fmt: skip
Depth = Literal[8, 16]
Colour = tuple[float, float, float]

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
CROPS: tuple[Crop, ...] = get_args(Crop)
DECODES: tuple[DecodeName, ...] = get_args(DecodeName)
EXIFS: tuple[Exif, ...] = get_args(Exif)
ICCS: tuple[Icc, ...] = get_args(Icc)
TRANSFORMS: tuple[TransformName, ...] = get_args(TransformName)

RGB = 3
"""Channels of a colour image, and of what published weights were trained on."""

MOST_CHANNELS: Final = 64
"""Channels an input may have."""

DEPTHS: Final = (8, 16)
"""Bits of a pixel's channel from the file to the network."""

_MOST_TILES = 64  # along a side; beyond, a tile of a usual image has too few pixels to count
_TILES = 8  # Zuiderveld's own example, and everyone's default since
_PERCENT = 100

_DIGITS = 6  # of averages, so that they are recorded as people write them


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a file becomes the network's input. Recorded whole in the cache.

    Attributes:
        size: side in pixels of the square input; for `crop="none"` the shorter side.
        resize: for `crop="center"` the shorter side before the crop; else None.
        crop: `center` resizes the shorter side to `resize` and cuts size x size from the middle;
            `pad` fits the whole image in and fills up; `squash` ignores the aspect;
            `none` resizes the shorter side to `size` and keeps everything.
        exif: whether the EXIF orientation is applied.
        mean: one a channel, of values in [0, 1].
        std: likewise; input = (value / white - mean) / std.
        interpolation: always Pillow's antialiased bilinear, as torchvision's own transform.
        background: what shows through transparent pixels.
        decode: `exact` decodes every pixel by Pillow; `torchvision` decodes and resizes usual JPEGs
            as torchvision does with tensors, `gpu` has nvJPEG decode them and resizes them on the
            device, and `fast` has libjpeg decode JPEGs far larger than needed at 1/2, 1/4 or 1/8 of
            their sides, all of which is other pixels by a little.
        augment: corruptions of the upright image before it is resized, in this order; see
            `images.corruptions.corrupt`. With any, `fast` decodes every pixel too.
        channels: of the network's input: 3 is RGB, 1 grey, others are taken as a file has them.
        depth: bits of a channel; with 16 nothing is rounded to 8 on the way.
        window: level and width in the file's own units: level - width / 2 becomes black,
            level + width / 2 white; None for what the file says, or its full scale.
        clip: percentiles of each image that become black and white.
        clahe: clip limit and tiles along a side of contrast-limited adaptive histogram
            equalisation.
        icc: `convert` brings colours to sRGB by the profile in the file; `ignore` takes the
            numbers as they are.
    """

    size: int = 224
    resize: int | None = 256
    crop: Crop = "center"
    exif: Exif = "apply"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear"] = "bilinear"
    background: Literal["white"] = "white"
    decode: Decode = "exact"
    augment: tuple[Corruption, ...] = ()
    channels: int = 3
    depth: Depth = 8
    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    clahe: tuple[float, int] | None = None
    icc: Icc = "ignore"

    def recorded(self) -> dict[str, Any]:
        """Return all fields as a cache records them; those of `NOT_ALWAYS` only where they are set.

        So files from before a field existed have the same fingerprint as those after.
        """
        fields = dataclasses.asdict(self)
        for name, unset in NOT_ALWAYS.items():
            if fields[name] == unset:
                del fields[name]
        return fields

    @property
    def full_scale(self) -> bool:
        """Whether black and white are those of the file: no window, percentiles or equalisation."""
        return self.window is None and self.clip is None and self.clahe is None

    @property
    def white(self) -> int:
        """The value of a white pixel: 255, or 65535 in 16 bits."""
        return (1 << self.depth) - 1

    @property
    def on_tensors(self) -> bool:
        """Whether usual JPEGs are decoded to tensors and resized as such.

        With `gpu` that is so on the device; where images are decoded without one, as of a query,
        the same is done on the CPU.
        """
        return self.decode in ("torchvision", "gpu")

    @property
    def usual(self) -> bool:
        """Whether images become 8-bit RGB by their full scale, as published weights want them."""
        return self.channels == RGB and self.depth == 8 and self.full_scale  # noqa: PLR2004 bits

    @property
    def fill(self) -> tuple[int, ...]:
        """What padding takes: the mean's pixel, which normalisation turns into about 0."""
        return tuple(round(self.white * value) for value in self.mean)


AS_FILES_SAY: Final = Preprocess()
"""Full scale, or what else a file has for black and white."""


MOST_CORRUPTIONS = 32
"""Corruptions of one image."""

NOT_ALWAYS: Mapping[str, Any] = {
    "decode": "exact",
    "augment": (),
    "channels": 3,
    "depth": 8,
    "window": None,
    "clip": None,
    "clahe": None,
    "icc": "ignore",
}
"""Fields that a cache records only where they are something else than this."""


def preprocess_from(recorded: Mapping[str, Any]) -> Preprocess:
    """Return what a cache has recorded in JSON; raise TypeError if a field is unknown."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in {**recorded}.items()
    }
    return Preprocess(**fields)


def parse_corruptions(text: str) -> tuple[Corruption, ...]:
    """Return the corruptions that `text` names, separated by commas, in its order."""
    known: Mapping[str, Corruption] = {name: name for name in CORRUPTIONS}
    names = [part.strip() for part in text.split(",") if part.strip()]
    if len(names) > MOST_CORRUPTIONS:
        raise UsageError(
            f"augment has {len(names)} corruptions; at most {MOST_CORRUPTIONS} are applied, one "
            "after the other"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(unknown_value("augment", known, *unknown))
    return tuple(known[name] for name in names)


def parse_window(text: str) -> tuple[float, float] | None:
    """Return level and width of `LEVEL,WIDTH`; None for empty text."""
    expected = "level and width in the file's own units, such as 40,400, the width above 0"
    return _pair("window", text, expected, lambda _, width: width > 0)


def parse_clip(text: str) -> tuple[float, float] | None:
    """Return the two percentiles of `LOW,HIGH`; None for empty text."""
    expected = "two percentiles from 0 to 100, such as 0.5,99.5, the lower one first"
    return _pair("clip", text, expected, lambda low, high: 0 <= low < high <= _PERCENT)


def _pair(
    name: str, text: str, expected: str, fits: Callable[[float, float], bool]
) -> tuple[float, float] | None:
    values = _numbers(text)
    if values == ():
        return None
    if values is None or len(values) != 2 or not fits(*values):  # noqa: PLR2004 a pair
        raise UsageError(f"{name} is {text!r}; expected {expected}")
    return values[0], values[1]


def parse_clahe(text: str) -> tuple[float, int] | None:
    """Return clip limit and tiles along a side of `LIMIT[,TILES]`; None for empty text."""
    values = _numbers(text)
    if values == ():
        return None
    limit, tiles = (*(values or (0.0,)), float(_TILES))[:2]
    known = values is not None and len(values) <= 2  # noqa: PLR2004 limit and tiles
    if not known or limit <= 0 or tiles not in range(1, _MOST_TILES + 1):
        raise UsageError(
            f"clahe is {text!r}; expected a limit above 0 and perhaps the tiles along a side, a "
            f"whole number up to {_MOST_TILES}, such as 2 or 2,8"
        )
    return limit, int(tiles)


def parse_mean(text: str, channels: int) -> tuple[float, ...]:
    """Return means of pixels in [0, 1], one a channel; empty for empty text."""
    return _levels("mean", text, channels, "from 0 to 1", lambda value: 0 <= value <= 1)


def parse_std(text: str, channels: int) -> tuple[float, ...]:
    """Return standard deviations of pixels in [0, 1], one a channel; empty for empty text."""
    return _levels("std", text, channels, "above 0, up to 1", lambda value: 0 < value <= 1)


def _levels(
    name: str, text: str, channels: int, room: str, fits: Callable[[float], bool]
) -> tuple[float, ...]:
    values = _numbers(text)
    if values is not None and len(values) == 1:
        values *= channels
    if values is None or len(values) not in (0, channels) or not all(map(fits, values)):
        of = "one number" if channels == 1 else f"one number, or {channels} separated by commas"
        raise UsageError(f"{name} is {text!r}; expected {of}, {room}, of pixels in [0, 1]")
    return values


def _numbers(text: str) -> tuple[float, ...] | None:
    """Return finite numbers separated by commas; () for empty text, None for anything else."""
    if not text.strip():
        return ()
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation that a set of weights was trained with, and its own sizes."""

    mean: Colour
    std: Colour
    size: int = 224
    resize: int = 256

    def mean_of(self, channels: int) -> tuple[float, ...]:
        """Return a mean for each channel: RGB's own, of others the average of those."""
        return self.mean if channels == RGB else (_average(self.mean),) * channels

    def std_of(self, channels: int) -> tuple[float, ...]:
        """Return a standard deviation for each channel, likewise."""
        return self.std if channels == RGB else (_average(self.std),) * channels


def _average(colour: Colour) -> float:
    return round(sum(colour) / len(colour), _DIGITS)


NORMALISATIONS: Mapping[str, Normalisation] = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "features": Normalisation((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
    # What Caffe's deploy files and Keras's preprocess_input take off, of pixels 0 to 255.
    "caffe": Normalisation(
        (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)
    ),
}
