"""How a file becomes the network's input, and what the published weights were trained with."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vggfeat.core.intensity_options import AS_FILES_SAY, Tones
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Crop = Literal["center", "none", "pad", "squash"]
Exif = Literal["apply", "ignore"]
Decode = Literal["exact", "fast"]
TransformName = Literal["auto", "imagenet", "features", "caffe"]
Corruption = Literal[
    "mirror", "flip", "crop", "zoom", "rotate", "grey", "recolour", "invert", "darken", "blur",
    "noise", "jpeg", "shuffle", "occlude",
]  # fmt: skip
Depth = Literal[8, 16]
Colour = tuple[float, float, float]

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
CROPS: tuple[Crop, ...] = get_args(Crop)
DECODES: tuple[Decode, ...] = get_args(Decode)
EXIFS: tuple[Exif, ...] = get_args(Exif)
TRANSFORMS: tuple[TransformName, ...] = get_args(TransformName)

RGB = 3
"""Channels of a colour image, and of what published weights were trained on."""

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
        decode: `exact` decodes every pixel; `fast` has libjpeg decode JPEGs far larger than needed
            at 1/2, 1/4 or 1/8 of their sides, which is other pixels by a little.
        augment: how the upright image is altered before it is resized, in this order; see
            `alterations.alter`. With any, `fast` decodes every pixel too.
        channels: of the network's input: 3 is RGB, 1 grey, others are taken as a file has them.
        depth: bits of a channel; with 16 nothing is rounded to 8 on the way.
        window: see `Tones`.
        clip: see `Tones`.
        clahe: see `Tones`.
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

    def recorded(self) -> dict[str, Any]:
        """All fields as a cache records them; those of `NOT_ALWAYS` only where they are set.

        So files from before they were there, and those after, have the same fingerprint.
        """
        fields = dataclasses.asdict(self)
        for name, unset in NOT_ALWAYS.items():
            if fields[name] == unset:
                del fields[name]
        return fields

    @property
    def tones(self) -> Tones:
        """What becomes of a file's values."""
        return Tones(self.window, self.clip, self.clahe)

    @property
    def white(self) -> int:
        """The value of a white pixel: 255, or 65535 in 16 bits."""
        return (1 << self.depth) - 1

    @property
    def usual(self) -> bool:
        """Whether images become 8-bit RGB by their full scale, as published weights want them."""
        return self.channels == RGB and self.depth == 8 and self.tones == AS_FILES_SAY  # noqa: PLR2004 bits

    @property
    def fill(self) -> tuple[int, ...]:
        """What padding takes: the mean's pixel, which normalisation turns into about 0."""
        return tuple(round(self.white * value) for value in self.mean)


NOT_ALWAYS: Mapping[str, Any] = {
    "decode": "exact",
    "augment": (),
    "channels": 3,
    "depth": 8,
    "window": None,
    "clip": None,
    "clahe": None,
}
"""Fields that a cache records only where they are something else than this."""


def preprocess_from(recorded: Mapping[str, Any]) -> Preprocess:
    """What a cache has recorded, read back from JSON.

    Raises:
        TypeError: it is no object, or a field is unknown.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in {**recorded}.items()
    }
    return Preprocess(**fields)


def parse_corruptions(text: str) -> tuple[Corruption, ...]:
    """The alterations that `text` names, in its order.

    Args:
        text: names separated by commas; empty for none.

    Raises:
        UsageError: names every one that is not known, and what may have been meant.
    """
    known: Mapping[str, Corruption] = {name: name for name in CORRUPTIONS}
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [_with_guess(name) for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"augment {', '.join(unknown)} is not known; expected any of {', '.join(known)}"
        )
    return tuple(known[name] for name in names)


def _with_guess(name: str) -> str:
    near = difflib.get_close_matches(name, CORRUPTIONS, n=1)
    return f"{name!r} (did you mean {near[0]}?)" if near else repr(name)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation that a set of weights was trained with, and its own sizes."""

    mean: Colour
    std: Colour
    size: int = 224
    resize: int = 256

    def mean_of(self, channels: int) -> tuple[float, ...]:
        """One a channel: of RGB their own, of others the average of those."""
        return self.mean if channels == RGB else (_average(self.mean),) * channels

    def std_of(self, channels: int) -> tuple[float, ...]:
        """Likewise."""
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
