"""Plot feature maps, with matplotlib."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vggfeat.visualization.figure_files import check_matplotlib, head
from vggfeat.visualization.thumbnails import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from vggfeat.visualization.feature_maps import Channels, FeatureMap, SeenImage

_GAP = 0.17  # above each tile, of its height; a number has room in it
_GAP_BESIDE = 0.05
_PANEL = 3.0  # inches a side
_TILES_PANEL = 5.2
_ACROSS = 4  # panels in a line, unless they fill several
_OPACITY = 0.85  # of the largest value of a map over an image; of the smallest it is 0


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Maps of one layer side by side, NaN between them; `shape` is that of one of them.

    `corners` are row and column of the upper left corner of each.
    """

    values: NDArray[np.float32]
    corners: tuple[tuple[int, int], ...]
    shape: tuple[int, int]


def resized(one: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize a map, float32 (h, w), bilinearly to float32 (height, width)."""
    image = Image.fromarray(np.ascontiguousarray(one))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def tile(maps: NDArray[np.float32]) -> Tiles:
    """Arrange maps, float32 (n, h, w), in a grid about as high as it is wide."""
    count, height, width = maps.shape
    if count == 1:
        return Tiles(maps[0], ((0, 0),), (height, width))
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    gap, beside = max(1, round(_GAP * height)), max(1, round(_GAP_BESIDE * width))
    sides = (down * (height + gap), across * (width + beside) - beside)
    whole = np.full(sides, np.nan, dtype=np.float32)
    corners = []
    for number, one in enumerate(maps):
        top = (number // across) * (height + gap) + gap
        left = (number % across) * (width + beside)
        whole[top : top + height, left : left + width] = one
        corners.append((top, left))
    return Tiles(whole, tuple(corners), (height, width))


def draw_maps(seen: SeenImage, channels: Channels, *, overlay: bool = False) -> Figure:
    """Draw the input of the network and, beside it, one panel for each layer with its own scale.

    With `overlay` maps are drawn over the image, which shows through where they are low.
    """
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height, width = seen.pixels.shape[:2]
    count, most = len(seen.maps) + 1, _ACROSS if channels.is_mean else _ACROSS // 2
    across = count if count <= most else min(most, math.ceil(count / 2))
    down = math.ceil(count / across)
    side = _PANEL if channels.is_mean else _TILES_PANEL
    tall = side * min(max(height / width, 0.4), 2.5)
    size = (across * (side + 0.55), down * (tall + 0.55) + 0.45)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    panels[0].imshow(seen.pixels)
    _name(panels[0], "input", f"3 x {height} x {width}")
    for axes, one in zip(panels[1:], seen.maps, strict=False):
        _draw_layer(axes, one, channels, seen.pixels if overlay else None)
    for axes in panels[len(seen.maps) + 1 :]:
        axes.remove()
    head(figure, f"{shortened(seen.name)}  ({seen.model}, {shortened(seen.weights)})", seen.warning)
    return figure


def _name(axes: Axes, name: str, what: str) -> None:
    axes.set_axis_off()
    axes.set_title(f"{name}   {what}", fontsize="medium", parse_math=False)


def _draw_layer(
    axes: Axes, one: FeatureMap, channels: Channels, under: NDArray[np.uint8] | None
) -> None:
    numbers = channels.of(one)
    maps = one.mean[np.newaxis] if channels.is_mean else one.values[numbers]  # (n, h, w)
    if under is not None:
        height, width = under.shape[:2]
        maps = np.stack([resized(part, height, width) for part in maps])
        # In grey, since its colours would mix with those of the map.
        grey = np.asarray(Image.fromarray(under).convert("L"), dtype=np.float32)
        below = tile(np.broadcast_to(grey, (len(maps), *grey.shape)))
        axes.imshow(below.values, cmap="gray", vmin=0, vmax=255)
    tiles = tile(maps)
    drawn = axes.imshow(
        tiles.values,
        cmap="viridis" if under is None else "plasma",
        interpolation="nearest",
        alpha=None if under is None else _alpha(tiles.values),
    )
    if not channels.is_mean:
        _number(axes, tiles, numbers)
    _name(axes, one.layer, _shape_words(one, channels))
    scale = axes.inset_axes((1.02, 0.0, 0.035, 1.0))
    bar = axes.figure.colorbar(drawn, cax=scale)
    bar.ax.tick_params(labelsize="small")
    bar.set_label("mean activation" if channels.is_mean else "activation", fontsize="small")


def _alpha(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the opacity of each value, from 0 for the least to `_OPACITY` for the largest."""
    low, high = np.nanmin(values), np.nanmax(values)
    share = (values - low) / (high - low if high > low else 1)
    opacity: NDArray[np.float32] = np.nan_to_num(share).astype(np.float32) * np.float32(_OPACITY)
    return opacity


def _number(axes: Axes, tiles: Tiles, numbers: NDArray[np.int64]) -> None:
    down, across = tiles.shape
    if len(tiles.corners) == 1:
        axes.text(0.5, -0.02, f"channel {numbers[0]}", transform=axes.transAxes, ha="center",
                  va="top", fontsize="small")  # fmt: skip
        return
    a_line = math.ceil(math.sqrt(len(numbers)))
    points = min(10.0, 72 * _TILES_PANEL / a_line * (down / across) * _GAP * 0.6)
    for (top, left), number in zip(tiles.corners, numbers.tolist(), strict=True):
        axes.text(left - 0.5 + across / 2, top - 0.5 - down * 0.02, str(number), fontsize=points,
                  ha="center", va="bottom")  # fmt: skip


def _shape_words(one: FeatureMap, channels: Channels) -> str:
    shape = " x ".join(map(str, one.values.shape))
    if channels.is_mean:
        return f"{shape}, mean"
    if channels.top:
        return f"{shape}, strongest {min(channels.top, len(one.values))}"
    return shape
