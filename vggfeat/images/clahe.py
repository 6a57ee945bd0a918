"""Contrast-limited adaptive histogram equalisation.

Zuiderveld 1994, "Contrast limited adaptive histogram equalization", Graphics Gems IV. Each tile of
an image gets the mapping that spreads its levels evenly, of limited steepness so that noise in flat
areas stays faint; mappings are blended between the centres of tiles. Tiles, clip limit and rounding
are those of OpenCV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.preprocessing import RGB

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float32]

_BINS = 256
_ROWS_AT_ONCE = 256  # so that a large image needs little memory besides itself


def equalise(levels: NDArray[Any], limit: float, tiles: int) -> NDArray[Any]:
    """Equalise levels tile by tile.

    In RGB, the luma (ITU-R BT.601) is equalised, and each channel moves by as much as the luma, so
    that differences of colour stay. Other channels are equalised independently.

    Args:
        levels: uint8 or uint16 (H, W, C). Histograms of both have 256 bins; 16 bits are
            interpolated between bins.
        limit: most pixels in a bin, as a multiple of the mean; the excess is spread over all bins.
        tiles: along either side.
    """
    if levels.shape[2] != RGB:
        planes = [_equalise_plane(plane, limit, tiles) for plane in np.moveaxis(levels, 2, 0)]
        return np.stack(planes, axis=2)
    top = np.iinfo(levels.dtype).max
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    before = np.rint(levels.astype(np.float32) @ weights)  # (H, W)
    after = _equalise_plane(before.astype(levels.dtype), limit, tiles)
    moved = np.rint(levels + (after - before)[..., None]).clip(0, top)
    return np.asarray(moved, levels.dtype)


def _equalise_plane(plane: NDArray[Any], limit: float, tiles: int) -> NDArray[Any]:
    """Equalise one channel, (H, W)."""
    top = int(np.iinfo(plane.dtype).max)
    step = top // (_BINS - 1)  # levels a bin: 1 or 257
    padded = _padded(plane, tiles)
    height, width = (side // tiles for side in padded.shape)
    mappings = _mappings(_histograms(padded, tiles, step), height * width, limit)  # (t, t, 256)
    if step == 1:
        mappings = np.rint(mappings)
    out = np.empty_like(plane)
    for start in range(0, len(plane), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(plane)))
        blended = _blended(plane[rows], mappings, rows, (height, width), step)
        out[rows] = np.rint(blended * step).clip(0, top)
    return out


def _padded(plane: NDArray[Any], tiles: int) -> NDArray[Any]:
    """Mirror a plane to the right and below, to sides that the tiles divide."""
    height, width = plane.shape
    if height % tiles == 0 and width % tiles == 0:
        return plane
    return np.pad(plane, ((0, tiles - height % tiles), (0, tiles - width % tiles)), mode="reflect")


def _histograms(padded: NDArray[Any], tiles: int, step: int) -> NDArray[np.int64]:
    """Count the pixels in each bin of each tile, (tiles, tiles, 256)."""
    height, width = (side // tiles for side in padded.shape)
    bins = (padded.astype(np.int64) + step // 2) // step
    rows = np.arange(padded.shape[0]) // height * tiles
    columns = np.arange(padded.shape[1]) // width
    places = (rows[:, None] + columns) * _BINS + bins
    counts = np.bincount(places.ravel(), minlength=tiles * tiles * _BINS)
    return counts.reshape(tiles, tiles, _BINS)


def _mappings(counts: NDArray[np.int64], pixels: int, limit: float) -> Values:
    """Return the new level, 0 to 255, of each bin in each tile, float32 (tiles, tiles, 256)."""
    most = max(int(limit * pixels / _BINS), 1)
    excess = (counts - most).clip(0).sum(axis=2)  # (t, t)
    counts = np.minimum(counts, most) + (excess // _BINS)[..., None]
    left = excess % _BINS  # so many bins, evenly spread, get one more each
    spread = np.maximum(_BINS // np.maximum(left, 1), 1)[..., None]
    bins = np.arange(_BINS)
    counts += (bins % spread == 0) & (bins // spread < left[..., None])
    below = counts.cumsum(axis=2).astype(np.float32)
    return np.asarray(below * np.float32((_BINS - 1) / pixels), np.float32)


def _blended(
    plane: NDArray[Any],
    mappings: Values,
    rows: NDArray[np.int64],
    tile: tuple[int, int],
    step: int,
) -> Values:
    """Map each pixel of some rows, (h, W), through the four tiles around it, to 0 to 255."""
    down, across = (
        _neighbours(places, side, len(mappings))
        for places, side in ((rows, tile[0]), (np.arange(plane.shape[1]), tile[1]))
    )
    bins, rest = np.divmod(plane.astype(np.int32), step)
    share = rest.astype(np.float32) / step
    following = np.minimum(bins + 1, _BINS - 1)
    total = np.zeros(plane.shape, np.float32)
    for above, down_share in down:
        for beside, across_share in across:
            became = mappings[above[:, None], beside, bins]  # (h, W)
            if step > 1:
                became += (mappings[above[:, None], beside, following] - became) * share
            total += became * (down_share[:, None] * across_share)
    return total


def _neighbours(
    places: NDArray[np.int64], side: int, tiles: int
) -> tuple[tuple[NDArray[np.int64], Values], ...]:
    """Return the tiles before and after each position by their centres, and their weights."""
    position = places.astype(np.float32) / np.float32(side) - np.float32(0.5)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    return (
        (first.clip(0), 1 - share),
        ((first + 1).clip(max=tiles - 1), share),
    )
