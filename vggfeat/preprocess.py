"""How a file becomes the network's input, and what the published weights were trained with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Crop = Literal["center", "none", "pad", "squash"]
Exif = Literal["apply", "ignore"]
Decode = Literal["exact", "fast"]
Transform = Literal["auto", "imagenet", "features"]
Colour = tuple[float, float, float]

CROPS: tuple[Crop, ...] = get_args(Crop)
DECODES: tuple[Decode, ...] = get_args(Decode)
EXIFS: tuple[Exif, ...] = get_args(Exif)
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)


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
        mean: per channel, of values in [0, 1].
        std: likewise; input = (value / 255 - mean) / std.
        interpolation: always Pillow's antialiased bilinear, as torchvision's own transform.
        background: what shows through transparent pixels.
        decode: `exact` decodes every pixel; `fast` has libjpeg decode JPEGs far larger than needed
            at 1/2, 1/4 or 1/8 of their sides, which is other pixels by a little.
    """

    size: int = 224
    resize: int | None = 256
    crop: Crop = "center"
    exif: Exif = "apply"
    mean: Colour = (0.485, 0.456, 0.406)
    std: Colour = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear"] = "bilinear"
    background: Literal["white"] = "white"
    decode: Decode = "exact"

    def recorded(self) -> dict[str, Any]:
        """All fields as a cache records them; `decode` only where it is not `exact`.

        So files from before it was there, and those after, have the same fingerprint.
        """
        fields = dataclasses.asdict(self)
        if self.decode == "exact":
            del fields["decode"]
        return fields

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour that padding takes: the mean's, which normalisation turns into about 0."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation that a set of weights was trained with, and its own sizes."""

    mean: Colour
    std: Colour
    size: int = 224
    resize: int = 256


NORMALISATIONS: Mapping[str, Normalisation] = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "features": Normalisation((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
}
