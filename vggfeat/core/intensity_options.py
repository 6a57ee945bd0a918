"""Settings of grey levels and channels as text: `window`, `clip`, `clahe`, `mean` and `std`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from vggfeat.errors import UsageError

MOST_CHANNELS: Final = 64
"""Channels an input may have."""

DEPTHS: Final = (8, 16)
"""Bits of a pixel's channel from the file to the network."""

_MOST_TILES = 64  # along a side; beyond, a tile of a usual image has too few pixels to count
_TILES = 8  # Zuiderveld's own example, and everyone's default since
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Tones:
    """What becomes of the values in a file before they are resized.

    Attributes:
        window: level and width in the file's own units: level - width / 2 becomes black,
            level + width / 2 white; None for what the file says, or its full scale.
        clip: percentiles of each image that become black and white.
        clahe: clip limit and tiles along a side of contrast-limited adaptive histogram
            equalisation.
    """

    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    clahe: tuple[float, int] | None = None


AS_FILES_SAY: Final = Tones()
"""Full scale, or what else a file has for black and white."""


def parse_window(text: str) -> tuple[float, float] | None:
    """Level and width of `LEVEL,WIDTH`; None for empty text.

    Raises:
        UsageError: not two numbers, or no width above 0.
    """
    values = _numbers(text)
    if values == ():
        return None
    if values is None or len(values) != 2 or values[1] <= 0:  # noqa: PLR2004 level and width
        raise UsageError(
            f"window is {text!r}; expected level and width in the file's own units, such as "
            "40,400, the width above 0"
        )
    return values[0], values[1]


def parse_clip(text: str) -> tuple[float, float] | None:
    """The two percentiles of `LOW,HIGH`; None for empty text.

    Raises:
        UsageError: not two numbers from 0 to 100, the first below the second.
    """
    values = _numbers(text)
    if values == ():
        return None
    if values is None or len(values) != 2 or not 0 <= values[0] < values[1] <= _PERCENT:  # noqa: PLR2004 low and high
        raise UsageError(
            f"clip is {text!r}; expected two percentiles from 0 to 100, such as 0.5,99.5, the "
            "lower one first"
        )
    return values[0], values[1]


def parse_clahe(text: str) -> tuple[float, int] | None:
    """Clip limit and tiles along a side of `LIMIT[,TILES]`; None for empty text.

    Raises:
        UsageError: the limit is not above 0, or the tiles no whole number from 1 to 64.
    """
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
    """Means of pixels in [0, 1], one a channel; empty for empty text.

    Raises:
        UsageError: not one number or one a channel, or not within [0, 1].
    """
    values = _each(text, channels)
    if values is None or not all(0 <= value <= 1 for value in values):
        raise UsageError(_no_levels("mean", text, channels, "from 0 to 1, of pixels in [0, 1]"))
    return values


def parse_std(text: str, channels: int) -> tuple[float, ...]:
    """Standard deviations of pixels in [0, 1], one a channel; empty for empty text.

    Raises:
        UsageError: not one number or one a channel, or not above 0 and up to 1.
    """
    values = _each(text, channels)
    if values is None or not all(0 < value <= 1 for value in values):
        raise UsageError(_no_levels("std", text, channels, "above 0, up to 1, of pixels in [0, 1]"))
    return values


def _no_levels(name: str, text: str, channels: int, expected: str) -> str:
    of = "one number" if channels == 1 else f"one number, or {channels} separated by commas"
    return f"{name} is {text!r}; expected {of}, {expected}"


def _each(text: str, channels: int) -> tuple[float, ...] | None:
    values = _numbers(text)
    if values is not None and len(values) == 1:
        return values * channels
    return values if values is not None and len(values) in (0, channels) else None


def _numbers(text: str) -> tuple[float, ...] | None:
    """Finite numbers separated by commas; none for empty text, None for anything else."""
    if not text.strip():
        return ()
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None
