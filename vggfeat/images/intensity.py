"""Map the values in a file to levels between black and white: windows, percentiles, full scale.

Values are in the file's units (Hounsfield units, counts, grey levels); levels are integers from 0
to 255 or 65535, the pixels of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vggfeat.core.preprocessing import RGB
from vggfeat.core.text import counted
from vggfeat.errors import DecodeError
from vggfeat.images.clahe import equalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess

BYTE: Final = 255
WORD: Final = 65535

_TABLE_BYTES = 2  # integers of so many bytes are looked up in a table of all their levels
# Weights of red, green and blue in the luma of ITU-R BT.601, in 65,536ths: Pillow's, to the bit.
_LUMA = (19595, 38470, 7471)
_LUMA_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """The values that become black and white, with all below and above them."""

    black: float
    white: float


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """The values of an image as its file stores them, upright.

    Attributes:
        values: (H, W, C), any integers or floats; colours in the order red, green, blue.
        scale: black and white by the file or its format; None if neither states them.
        kind: format and kind of pixels, such as `PNG I;16`.
        bits: of a value in the file.
        inverted: small values are bright.
        padding: bool (H, W), true where values are not part of the image; None for nowhere.
    """

    values: NDArray[Any]
    scale: Range | None
    kind: str
    bits: int
    inverted: bool = False
    padding: NDArray[np.bool_] | None = None

    @property
    def own(self) -> NDArray[Any]:
        """Values without padding: (H, W, C), or (n, C) if there is padding."""
        return self.values if self.padding is None else self.values[~self.padding]


def in_native_order(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values in the byte order of this machine."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def develop(raster: Raster, preprocess: Preprocess) -> NDArray[Any]:
    """Map values to levels, uint8 or uint16 (H, W, `preprocess.channels`).

    The raster has as many channels, or one instead of RGB, or RGB instead of one. The result may be
    read-only.
    """
    raster = with_channels(raster, preprocess.channels)
    values, own = raster.values, raster.own
    # Colours have one range, or they would be tinted; other bands have nothing in common.
    count = 1 if values.shape[2] in (1, RGB) else values.shape[2]
    parts = zip(np.split(values, count, axis=2), np.split(own, count, axis=-1), strict=True)
    levels = [
        to_levels(part, find_range(shown, raster.scale, preprocess), preprocess.white)
        for part, shown in parts
    ]
    found = levels[0] if len(levels) == 1 else np.concatenate(levels, axis=2)
    if raster.inverted:
        found = preprocess.white - found
    if preprocess.clahe is not None:
        found = equalise(found, *preprocess.clahe)
    if raster.padding is not None:  # black, whatever the values mean
        found = np.where(raster.padding[..., None], found.dtype.type(0), found)
    if found.shape[2] != preprocess.channels:  # grey, repeated last so that CLAHE runs once
        found = np.repeat(found, preprocess.channels, axis=2)
    return found


def with_channels(raster: Raster, channels: int) -> Raster:
    """Return the raster, or its luma if one channel is requested of RGB.

    Grey is returned unchanged if RGB is requested. Raises DecodeError for any other mismatch.
    """
    have = raster.values.shape[2]
    if have == channels or (have == 1 and channels == RGB):
        return raster
    if have == RGB and channels == 1:
        return replace(raster, values=luma(raster.values))
    raise DecodeError(
        f"{raster.kind} of {counted(have, 'channel')}; expected {channels} (--channels)"
    )


def luma(values: NDArray[Any]) -> NDArray[Any]:
    """Return ITU-R BT.601's luma of RGB, (H, W, 3) to (H, W, 1) of the same type.

    Integers of up to 32 bits are rounded as Pillow rounds 8 bits.
    """
    if values.dtype.kind == "f":
        weighted = sum(values[..., band] * (part / 65536) for band, part in enumerate(_LUMA))
        return np.asarray(weighted, values.dtype)[..., None]
    total = np.full(values.shape[:2], 1 << (_LUMA_BITS - 1), np.int64)
    for band, part in enumerate(_LUMA):
        total += values[..., band].astype(np.int64) * part
    return (total >> _LUMA_BITS).astype(values.dtype)[..., None]


def find_range(values: NDArray[Any], scale: Range | None, preprocess: Preprocess) -> Range:
    """Return black and white: by the window, by percentiles, by the file, or by the values."""
    if preprocess.window is not None:
        level, width = preprocess.window
        return Range(level - width / 2, level + width / 2)
    if preprocess.clip is not None:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low, high = np.percentile(finite, preprocess.clip) if finite.size else (0.0, 0.0)
        return Range(float(low), float(high))
    return scale or by_values(values)


def by_values(values: NDArray[Any]) -> Range:
    """Return black and white of values whose file does not state them.

    Floats within [0, 1] go from 0 to 1; anything within [0, 255] from 0 to 255; integers within [0,
    65535] from 0 to 65535; anything else from its least to its largest finite value.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return Range(0.0, 0.0)
    low, high, whole = float(finite.min()), float(finite.max()), values.dtype.kind in "iu"
    if low >= 0:
        if high <= 1 and not whole:
            return Range(0.0, 1.0)
        if high <= BYTE:
            return Range(0.0, float(BYTE))
        if high <= WORD and whole:
            return Range(0.0, float(WORD))
    return Range(low, high)


def to_levels(values: NDArray[Any], found: Range, top: int) -> NDArray[Any]:
    """Map values of any shape to levels from 0 to `top`, 255 or 65535, rounded to the nearest.

    NaN becomes 0, infinities become the finite extremes. Returns uint8 or uint16.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= _TABLE_BYTES:
        kind = np.iinfo(values.dtype)
        if (found.black, found.white, top) == (0, BYTE, kind.max):
            return values
        table = _exact_levels(np.arange(kind.min, kind.max + 1), found, top)
        taken: NDArray[Any] = table[values.astype(np.int32) - kind.min]
        return taken
    return _exact_levels(values, found, top)


def _exact_levels(values: NDArray[Any], found: Range, top: int) -> NDArray[Any]:
    exact: NDArray[Any] = values.astype(np.float64)
    nothing = np.isnan(exact)
    finite = exact[np.isfinite(exact)]
    if not finite.size:
        nothing[...] = True
    elif finite.size < exact.size:
        exact = exact.clip(finite.min(), finite.max())
    if found.white > found.black:
        exact = (exact.clip(found.black, found.white) - found.black) * (
            top / (found.white - found.black)
        )
    else:
        exact = (exact > found.black) * float(top)
    exact = np.rint(exact)
    exact[nothing] = 0
    return exact.astype(np.uint8 if top == BYTE else np.uint16)


def grey_bytes(values: NDArray[Any], scale: Range | None, *, inverted: bool) -> NDArray[np.uint8]:
    """Map values of one channel, (H, W), to 8-bit grey by the file's scale or by the values."""
    levels: NDArray[np.uint8] = to_levels(values, scale or by_values(values), BYTE)
    return BYTE - levels if inverted else levels
