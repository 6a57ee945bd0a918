"""What makes settings wrong: each check names its offenders, and all are told at once."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from vggfeat.core.preprocessing import (
    CROPS,
    DECODES,
    DEPTHS,
    EXIFS,
    MOST_CHANNELS,
    RGB,
    TRANSFORMS,
    parse_clahe,
    parse_clip,
    parse_corruptions,
    parse_mean,
    parse_std,
    parse_window,
)
from vggfeat.core.vgg_layers import FIRST_LAYERS
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggfeat.core.settings import Settings

OnError = Literal["skip", "stop"]
Dtype = Literal["float16", "float32", "int8"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]

ON_ERRORS: tuple[OnError, ...] = get_args(OnError)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SMALLEST_SIZE = 32
"""Five poolings halve 32 pixels to one; with fewer there is no pool5."""

LARGEST_SIZE = 4096


def wrong_values(settings: Settings) -> list[str]:
    """What is wrong with each setting by itself."""
    return [
        *wrong_texts(settings),
        *_wrong_choices(settings),
        *_wrong_numbers(settings),
        *_wrong_words(settings),
    ]


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "transform": TRANSFORMS,
    "crop": CROPS,
    "exif": EXIFS,
    "decode": DECODES,
    "on_error": ON_ERRORS,
    "first_layer": FIRST_LAYERS,
    "dtype": DTYPES,
    "precision": PRECISIONS,
}


def _wrong_choices(settings: Settings) -> list[str]:
    return [
        f"{name} {getattr(settings, name)!r} is not known; expected one of {', '.join(known)}"
        for name, known in _CHOICES.items()
        if getattr(settings, name) not in known
    ]


_DEVICE = r"(cpu|mps|cuda(:\d+)?)"
_TEXTS = (
    "layers", "fuse", "model", "weights", "pool", "norm", "augment", "device", "window", "clip",
    "clahe", "mean", "std",
)  # fmt: skip

# Name, least, most, and what it may be besides a number.
_NUMBERS: tuple[tuple[str, int, int, tuple[str | None, ...]], ...] = (
    ("size", SMALLEST_SIZE, LARGEST_SIZE, (None,)),
    ("resize", SMALLEST_SIZE, 2 * LARGEST_SIZE, (None,)),
    ("batch_size", 1, 65_536, ("auto",)),
    ("workers", 0, 1024, ("auto",)),
    ("max_pixels", 1, 2**40, ()),
    ("channels", 1, MOST_CHANNELS, ()),
)
_LONGEST_SECONDS = 3600


def wrong_texts(settings: Settings) -> list[str]:
    """Which of the settings that are text are something else; a TOML file may hold anything."""
    return [
        f"{name} is {getattr(settings, name)!r}; expected text"
        for name in _TEXTS
        if not isinstance(getattr(settings, name), str)
    ]


# What is text here and has a grammar of its own, with what reads it.
_GRAMMARS: Mapping[str, Callable[[str], object]] = {
    "augment": parse_corruptions,
    "window": parse_window,
    "clip": parse_clip,
    "clahe": parse_clahe,
}


def _wrong_words(settings: Settings) -> list[str]:
    """Texts that their grammar does not know."""
    channels = settings.channels if type(settings.channels) is int else RGB
    readers: dict[str, Callable[[str], object]] = {
        **_GRAMMARS,
        "mean": partial(parse_mean, channels=channels),
        "std": partial(parse_std, channels=channels),
    }
    wrong = []
    for name, read in readers.items():
        text: object = getattr(settings, name)
        try:
            read(text if isinstance(text, str) else "")  # else `wrong_texts` says so
        except UsageError as error:
            wrong.append(str(error))
    return wrong


def _wrong_numbers(settings: Settings) -> list[str]:
    wrong = []
    for name, least, most, others in _NUMBERS:
        value = getattr(settings, name)
        if value not in others and not (type(value) is int and least <= value <= most):
            other = ", or auto" if "auto" in others else ""
            wrong.append(
                f"{name} is {value!r}; expected a whole number from {least} to {most}{other}"
            )
    for name, begin in (("checkpoint_seconds", "from 0"), ("decode_timeout", "above 0, up")):
        seconds = getattr(settings, name)
        if not _is_seconds(seconds) or (seconds == 0 and name == "decode_timeout"):
            wrong.append(f"{name} is {seconds!r}; expected a number {begin} to {_LONGEST_SECONDS}")
    depth: object = settings.depth
    if type(depth) is not int or depth not in DEPTHS:
        wrong.append(f"depth is {settings.depth!r}; expected 8 or 16")
    if settings.time_limit is not None and seconds_of(settings.time_limit) is None:
        wrong.append(f"time_limit is {settings.time_limit!r}; expected for example 55m, 2h or 90s")
    wrong += [
        f"{name} is {getattr(settings, name)!r}; expected for example 100 or 1%"
        for name in ("max_failures", "max_removed")
        if not _is_allowance(getattr(settings, name))
    ]
    if not re.fullmatch(rf"auto|all|{_DEVICE}(,{_DEVICE})*", str(settings.device)):
        wrong.append(
            f"device {settings.device!r} is not known; expected auto, cpu, cuda[:N], mps, several "
            "of them separated by commas, or all"
        )
    return wrong


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= _LONGEST_SECONDS


def _is_allowance(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, str) and re.fullmatch(r"\d+|\d+(\.\d+)?%", value) is not None


def wrong_combinations(settings: Settings) -> list[str]:
    """What does not go together, of settings that are right by themselves."""
    wrong = []
    if settings.crop != "center" and settings.resize is not None:
        wrong.append(
            f"resize {settings.resize} belongs to crop center; crop {settings.crop} goes by size"
        )
    size = settings.preprocess().size
    if settings.crop == "center" and settings.resize is not None and settings.resize < size:
        wrong.append(f"resize {settings.resize} is below size {size}; the crop would show borders")
    kept = [str(spec) for spec in settings.specs if spec.pool and spec.pool.keeps_positions]
    if settings.crop == "none" and kept:
        wrong.append(
            f"{', '.join(kept)} has a row size that varies with the image under crop none; "
            "use another pool, or crop center, pad or squash"
        )
    wrong += _wrong_fusion(settings)
    wrong += _wrong_domain(settings)
    if settings.crop == "none" and settings.batch_size not in ("auto", 1):
        wrong.append("crop none leaves images of unequal shapes, which only batch size 1 takes")
    if settings.weights == "features" and settings.model != "vgg16":
        wrong.append(
            f"weights features exist for vgg16 only, not for {settings.model}; use model vgg16, "
            "or weights imagenet"
        )
    return wrong


def _wrong_domain(settings: Settings) -> list[str]:
    """What is made for 8-bit RGB alone, of settings that ask for something else."""
    wrong = []
    if settings.window and settings.clip:
        wrong.append("window and clip both say what becomes black and white; give one of them")
    other = [f"channels {settings.channels}"] if settings.channels != RGB else []
    other += [f"depth {settings.depth}"] if settings.depth != DEPTHS[0] else []
    if other and settings.augment:
        wrong.append(f"augment alters 8-bit RGB alone, not {' with '.join(other)}; leave it out")
    if other and settings.precision == "int8":
        wrong.append(
            f"precision int8 computes with 8-bit RGB alone, not {' with '.join(other)}; use "
            "another precision"
        )
    return wrong


def _wrong_fusion(settings: Settings) -> list[str]:
    if not settings.fuse:
        return []
    maps = [str(spec) for spec in settings.specs if spec.pool and spec.pool.name == "map"]
    if maps:
        return [f"{', '.join(maps)} keep maps, and vectors are fused; use another pool or flatten"]
    try:
        _ = settings.recipe
    except UsageError as error:
        return [str(error)]
    return []


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: object) -> float | None:
    """Seconds of `90s`, `55m`, `1.5h`, `1h30m`; None if it is no time above 0."""
    if not isinstance(text, str) or not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        return None
    parts = re.findall(r"([\d.]+)([smhd])", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) or None


def share_of(text: str | None, images: int) -> int:
    """How many of `images` `N` or `P%` are; all where there is no limit."""
    if text is None:
        return images
    if text.endswith("%"):
        # Exactly: in floating point, 0.57% of 10,000 would be 56.
        return int(Fraction(text[:-1]) * images / 100)
    return int(text)
