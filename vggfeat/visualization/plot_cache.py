"""Plot histograms of a cache's values and projections of its images, with matplotlib."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from vggfeat.core.choices import choose
from vggfeat.core.text import counted, printable
from vggfeat.errors import DecodeError
from vggfeat.visualization.figure_files import check_matplotlib, head
from vggfeat.visualization.thumbnails import image_file, load_picture, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL import Image

    from vggfeat.visualization.projections import CacheView, LayerView

Marks = Literal["thumbnails", "folders"]
MARKS: tuple[Marks, ...] = get_args(Marks)

# Of Okabe and Ito, told apart by all eyes; the last is shared by all further folders.
_COLOURS: Final = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#777777",
)  # fmt: skip
_OTHERS: Final = "other folders"
_NO_FOLDER: Final = "(no folder)"
_BARS: Final = "#0072b2"

_PLANE_WIDTH = 6.6  # inches
_PLANE_HEIGHT = 5.6
_HISTOGRAM_HEIGHT = 1.9
_LARGEST = 0.55  # inches of the longer side of a thumbnail
_SMALLEST = 0.28
_AT_LARGEST = 30  # images; of four times as many a thumbnail's side is half of that
_PIXELS_AN_INCH = 300
_NEAREST = 0.8  # of a thumbnail's side; what would lie nearer to another one is a dot
_MOST_THUMBNAILS = 400
_MARGIN = 0.08


@dataclass(frozen=True, slots=True)
class Colouring:
    """The colour of each image, and of each folder, or of none if all are in one folder."""

    colours: tuple[str, ...]
    legend: dict[str, str]


def check_marks(name: str) -> Marks:
    """Return the name as one of `MARKS`."""
    return choose("marks", MARKS, name)


def colour_by_folder(paths: list[str]) -> Colouring:
    """Give each of the folders with most images a colour, and all others one together."""
    folders = [printable(os.path.dirname(path)) or _NO_FOLDER for path in paths]
    common = [name for name, _ in sorted(Counter(folders).items(), key=lambda item: -item[1])]
    own = len(_COLOURS) if len(common) <= len(_COLOURS) else len(_COLOURS) - 1
    legend = dict(zip(sorted(common[:own]), _COLOURS, strict=False))
    colours = tuple(legend.get(folder, _COLOURS[-1]) for folder in folders)
    if len(common) > own:
        legend[_OTHERS] = _COLOURS[-1]
    return Colouring(colours, legend if len(common) > 1 else {})


def draw_cache(view: CacheView, *, marks: Marks = "thumbnails", root: str | None = None) -> Figure:
    """Draw for each layer the images in a plane, and below it a histogram of its values, in a grid.

    Marks `thumbnails` are images whose files exist, and dots for others and where images would
    overlap; `folders` are dots alone. Both are coloured by folder. `root` is that of the images
    now, by default that of the extraction.
    """
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(view.layers)
    across = math.ceil(math.sqrt(count))
    down = -(-count // across)
    size = (across * _PLANE_WIDTH, down * (_PLANE_HEIGHT + _HISTOGRAM_HEIGHT) + 0.6)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    heights = (_PLANE_HEIGHT, _HISTOGRAM_HEIGHT) * down
    grid = figure.subplots(2 * down, across, squeeze=False, gridspec_kw={"height_ratios": heights})
    colouring = colour_by_folder([view.cache.name(row) for row in view.rows.tolist()])
    thumbnails = _thumbnails(view, root) if marks == "thumbnails" else {}
    for place in range(across * down):
        above, below = grid[2 * (place // across) : 2 * (place // across) + 2, place % across]
        if place < count:
            _draw_plane(above, view.layers[place], colouring, thumbnails)
            _draw_histogram(below, view.layers[place])
        else:
            above.remove()
            below.remove()
    _draw_legend(figure, colouring)
    identity = view.cache.header.identity
    network = f"{identity.model}, {shortened(identity.weights)}"
    name = shortened(os.path.basename(view.cache.path))
    images = f"{len(view.rows)} of {counted(len(view.cache), 'image')} in the planes"
    head(figure, f"{name}  ({network}), {images}", view.cache.header.provenance.warning)
    return figure


def _draw_legend(figure: Figure, colouring: Colouring) -> None:
    from matplotlib.lines import Line2D

    if not colouring.legend:
        return
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour)
        for colour in colouring.legend.values()
    ]
    names = [shortened(name) for name in colouring.legend]
    columns = max(1, min(len(names), 110 // (max(map(len, names)) + 6)))
    drawn = figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize="small"
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def _draw_histogram(axes: Axes, layer: LayerView) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if layer.histogram is None:
        _say(axes, "no row is done")
        return
    histogram = layer.histogram
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=_BARS)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.6)  # a single value is a bar
    span = f"{histogram.edges[0]:.4g} to {histogram.edges[-1]:.4g}, {histogram.zeros:.1%} zeros"
    axes.set_xlabel(f"value, of {counted(histogram.rows, 'image')}: {span}")
    axes.set_ylabel("how many")


def _say(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", wrap=True,
              parse_math=False)  # fmt: skip


def _draw_plane(
    axes: Axes, layer: LayerView, colouring: Colouring, thumbnails: dict[int, Image.Image]
) -> None:
    plane, shape = layer.plane, " x ".join(map(str, layer.shape))
    axes.set_title(
        f"{shortened(layer.layer)}   {shape}, {layer.dtype}", fontsize="large", parse_math=False
    )
    if plane.note:
        _say(axes, plane.note)
        return
    points = plane.points
    axes.set_xlabel(f"{plane.axes[0]}: similar images are near one another")
    axes.set_ylabel(plane.axes[1])
    axes.margins(_MARGIN)
    side = _side(len(points))
    chosen = _apart(points, sorted(thumbnails), side)
    hidden = np.isin(np.arange(len(points)), chosen)
    # All points give the axes their range; those under a thumbnail have no size.
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=np.where(hidden, 0, 24),
        c=list(colouring.colours),
        linewidths=0.5,
        edgecolors="white",
        zorder=4,
    )
    for at in chosen:
        colour = colouring.colours[at] if colouring.legend else "#999999"
        _draw_thumbnail(axes, points[at], thumbnails[at], side, colour)


def _side(images: int) -> float:
    """Return the longer side of thumbnails among so many images, in inches."""
    return float(np.clip(_LARGEST * (_AT_LARGEST / max(images, 1)) ** 0.5, _SMALLEST, _LARGEST))


def _apart(points: NDArray[np.float32], candidates: list[int], side: float) -> list[int]:
    """Choose candidates that do not hide one another, earlier ones first.

    Distances are those on paper, as far as they are known before the axes are laid out.
    """
    span = np.ptp(points, axis=0)
    paper = np.array([_PLANE_WIDTH, _PLANE_HEIGHT]) * 0.85 / np.where(span > 0, span, 1)
    places = points * paper
    chosen: list[int] = []
    for at in candidates:
        far = np.abs(places[chosen] - places[at]).max(axis=1) > _NEAREST * side
        if far.all() and len(chosen) < _MOST_THUMBNAILS:
            chosen.append(at)
    return chosen


def _draw_thumbnail(
    axes: Axes, point: NDArray[np.float32], image: Image.Image, side: float, colour: str
) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    zoom = 72 * side / max(image.size)
    picture = OffsetImage(np.asarray(image), zoom=zoom)
    box = AnnotationBbox(
        picture,
        (float(point[0]), float(point[1])),
        pad=0.08,
        bboxprops={"edgecolor": colour, "linewidth": 1.4, "boxstyle": "square,pad=0.08"},
    )
    axes.add_artist(box)


def _thumbnails(view: CacheView, root: str | None) -> dict[int, Image.Image]:
    """Load the images whose files exist, by their place in `view.rows`."""
    longest = round(_side(len(view.rows)) * _PIXELS_AN_INCH)
    preprocess = view.cache.header.identity.preprocess
    images = {}
    for at, row in enumerate(view.rows.tolist()):
        path = image_file(view.cache, row, root)
        if path is None:
            continue
        try:
            images[at] = load_picture(path, longest, preprocess)
        except DecodeError:  # changed since; then it is a dot
            continue
    return images
