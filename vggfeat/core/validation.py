"""What makes settings wrong: each check names its offenders, and all are told at once."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from vggfeat.core.option import options_of, problems_of
from vggfeat.core.preprocessing import (
    DEPTHS,
    RGB,
    parse_clahe,
    parse_clip,
    parse_corruptions,
    parse_mean,
    parse_std,
    parse_window,
)
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.core.settings import Settings

_DEVICE = r"(cpu|cuda(:\d+)?)"


def are_texts(settings: Settings) -> bool:
    """Return whether settings that are text are; a TOML file may hold anything."""
    return all(
        isinstance(getattr(settings, name), str)
        for name, option in options_of(type(settings)).items()
        if option.is_text
    )


def wrong_values(settings: Settings) -> list[str]:
    """Return what is wrong with each setting by itself."""
    return [*problems_of(settings), *_wrong_patterns(settings), *_wrong_words(settings)]


def _wrong_words(settings: Settings) -> list[str]:
    """Return the errors of texts that their grammar does not know."""
    channels = settings.channels if type(settings.channels) is int else RGB
    readers: dict[str, Callable[[str], object]] = {
        "augment": parse_corruptions,
        "window": parse_window,
        "clip": parse_clip,
        "clahe": parse_clahe,
        "mean": partial(parse_mean, channels=channels),
        "std": partial(parse_std, channels=channels),
    }
    wrong = []
    for name, read in readers.items():
        text: object = getattr(settings, name)
        try:
            read(text if isinstance(text, str) else "")  # else `problems_of` says so
        except UsageError as error:
            wrong.append(str(error))
    return wrong


def _wrong_patterns(settings: Settings) -> list[str]:
    wrong = []
    depth: object = settings.depth
    if type(depth) is not int or depth not in DEPTHS:
        wrong.append(f"depth is {settings.depth!r}; expected 8 or 16")
    if settings.time_limit is not None and seconds_of(settings.time_limit) is None:
        wrong.append(f"time_limit is {settings.time_limit!r}; expected for example 55m, 2h or 90s")
    for name in ("max_failures", "max_removed"):
        value: object = getattr(settings, name)
        fits = isinstance(value, str) and re.fullmatch(r"\d+|\d+(\.\d+)?%", value)
        if value is not None and not fits:
            wrong.append(f"{name} is {value!r}; expected for example 100 or 1%")
    if not re.fullmatch(rf"auto|all|{_DEVICE}(,{_DEVICE})*", str(settings.device)):
        wrong.append(
            f"device {settings.device!r} is not known; expected auto, cpu, cuda[:N], several of "
            "them separated by commas, or all"
        )
    return wrong


def wrong_combinations(settings: Settings) -> list[str]:
    """Return what does not go together, of settings that are right by themselves."""
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
    if settings.weights == "features" and settings.model != "vgg16":
        wrong.append(
            f"weights features exist for vgg16 only, not for {settings.model}; use model vgg16, "
            "or weights imagenet"
        )
    return wrong


def _wrong_domain(settings: Settings) -> list[str]:
    """Return what works on 8-bit RGB alone, of settings that request something else."""
    wrong = []
    if settings.window and settings.clip:
        wrong.append("window and clip both say what becomes black and white; give one of them")
    other = [f"channels {settings.channels}"] if settings.channels != RGB else []
    other += [f"depth {settings.depth}"] if settings.depth != DEPTHS[0] else []
    if other and settings.augment:
        wrong.append(f"augment takes 8-bit RGB alone, not {' with '.join(other)}; leave it out")
    if settings.icc == "convert" and not settings.preprocess().usual:
        wrong.append(
            "icc convert is for 8-bit RGB by its full scale alone; leave it out with channels, "
            "depth, window, clip and clahe"
        )
    set_apart = [name for name in ("augment", "window", "clip", "clahe") if getattr(settings, name)]
    set_apart += ["icc convert"] if settings.icc == "convert" else []
    if settings.decode in ("torchvision", "gpu") and (other or set_apart):
        wrong.append(
            f"decode {settings.decode} makes 8-bit RGB by its full scale, not "
            f"{' with '.join([*other, *set_apart])}; use decode pillow"
        )
    if settings.decode == "gpu" and settings.crop == "none":
        wrong.append(
            "decode gpu makes batches of images of one size, not crop none; use decode torchvision"
        )
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
    """Return the seconds of `90s`, `55m`, `1.5h`, `1h30m`; None if it is no time above 0."""
    if not isinstance(text, str) or not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        return None
    parts = re.findall(r"([\d.]+)([smhd])", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) or None


def share_of(text: str | None, images: int) -> int:
    """Return how many of `images` `N` or `P%` are; all if there is no limit."""
    if text is None:
        return images
    if text.endswith("%"):
        # Exactly: in floating point, 0.57% of 10,000 would be 56.
        return int(Fraction(text[:-1]) * images / 100)
    return int(text)
