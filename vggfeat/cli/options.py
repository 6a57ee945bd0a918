"""Options that commands which read images share, above all how a file becomes the input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from vggfeat.core.preprocessing import CORRUPTIONS, CROPS, DECODES, EXIFS, TRANSFORMS
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import FIRST_LAYERS
from vggfeat.errors import UsageError

_DEFAULTS = Settings(layers="fc7")


def setting(
    flag: str,
    text: str,
    metavar: str | None = None,
    *,
    choices: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> Any:
    """An option for the setting of that name, which knows its default; None is not given."""
    default = getattr(_DEFAULTS, flag.strip("-").replace("-", "_"))
    words = [text]
    if choices:
        words.append(f"One of {', '.join(choices)}.")
    if default not in (None, "") and flag != "--layers":
        words.append(f"[default: {default}]")
    return typer.Option(flag, *also, help=" ".join(words), metavar=metavar, show_default=False)


def count(name: str, text: str | None) -> int | Literal["auto"] | None:
    """`--workers` and `--batch-size` as settings have them.

    Raises:
        UsageError: neither a whole number nor auto.
    """
    if text is None or text == "auto":
        return text  # type: ignore[return-value] # mypy does not narrow str to a literal
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}; expected a whole number or auto")
    return int(text)


Decode = Annotated[
    str | None,
    setting(
        "--decode",
        "exact decodes every pixel; fast decodes JPEGs far larger than needed at 1/2, 1/4 or "
        "1/8 of their sides.",
        "HOW",
        choices=DECODES,
    ),
]
Size = Annotated[
    int | None,
    setting("--size", "Side of the network's input in pixels. [default: the weights', 224]", "PX"),
]
Resize = Annotated[
    int | None,
    setting(
        "--resize",
        "Shorter side before a center crop. [default: the weights', 256 to a size of 224]",
        "PX",
    ),
]
Crop = Annotated[
    str | None,
    setting(
        "--crop",
        "center cuts a square from the middle, pad fits the whole image in, squash ignores "
        "the aspect, none keeps the aspect and everything, one image at a time.",
        "HOW",
        choices=CROPS,
    ),
]
Exif = Annotated[str | None, setting("--exif", "The EXIF orientation.", "HOW", choices=EXIFS)]
Augment = Annotated[
    str | None,
    setting(
        "--augment",
        f"Alter every image before it is resized, by any of {', '.join(CORRUPTIONS)}; several "
        "are applied in the order given.",
        "NAME,...",
    ),
]
Transform = Annotated[
    str | None,
    setting(
        "--transform",
        "Whose mean and deviation normalise the images. auto: those of weights features, those "
        "that a file says it was trained with or is known to want (Keras's; Caffe's VGG16), and "
        "ImageNet's for all others. caffe: pixels of 0 to 255 less Caffe's mean.",
        "NAME",
        choices=TRANSFORMS,
    ),
]
Channels = Annotated[
    int | None,
    setting(
        "--channels",
        "Of the network's input: 3 is RGB, 1 grey (of colours the luma); others as many as every "
        "file has: bands, pages of a TIFF, the last axis of an .npy array.",
        "N",
        also=("--in-channels",),
    ),
]
FirstLayer = Annotated[
    str | None,
    setting(
        "--first-layer",
        "Of weights for RGB where channels are not 3: sum rebuilds the first convolution from "
        "their filters; kaiming draws it anew, for 3 too.",
        "HOW",
        choices=FIRST_LAYERS,
    ),
]
Depth = Annotated[
    int | None,
    setting(
        "--depth",
        "Bits of a channel: with 16, pixels of 16-bit files keep them from the file to the "
        "network.",
        "8|16",
    ),
]
Window = Annotated[
    str | None,
    setting(
        "--window",
        "Level and width in the file's own units (HU, grey levels), such as 40,400: what becomes "
        "black and white. [default: the full scale; of a DICOM file its own window]",
        "LEVEL,WIDTH",
    ),
]
Clip = Annotated[
    str | None,
    setting(
        "--clip",
        "Percentiles of each image that become black and white, such as 0.5,99.5.",
        "LOW,HIGH",
    ),
]
Clahe = Annotated[
    str | None,
    setting(
        "--clahe",
        "Contrast-limited adaptive histogram equalisation: the clip limit, and the tiles along a "
        "side if not 8, such as 2 or 2,8. Of colours, their luma.",
        "LIMIT[,TILES]",
    ),
]
Mean = Annotated[
    str | None,
    setting(
        "--mean",
        "Of pixels in [0, 1], one number or one a channel; `vggfeat stats` measures it. [default: "
        "the weights' own; their average where channels are not 3]",
        "M[,...]",
    ),
]
Std = Annotated[str | None, setting("--std", "Standard deviation, likewise.", "S[,...]")]
Workers = Annotated[
    str | None, setting("--workers", "Decoding processes; 0 decodes in this one.", "N|auto")
]
MaxPixels = Annotated[
    int | None, setting("--max-pixels", "Larger images fail as decompression bombs.", "N")
]
DecodeTimeout = Annotated[
    float | None,
    setting(
        "--decode-timeout",
        "An image that takes longer to decode fails; not with 0 workers.",
        "SECONDS",
    ),
]
CheckpointSeconds = Annotated[
    float | None,
    setting("--checkpoint-seconds", "How much work a crash may cost at most.", "SECONDS"),
]
