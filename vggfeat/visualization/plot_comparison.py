"""Plot a comparison of layers, with matplotlib."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import counted
from vggfeat.visualization.figure_files import check_matplotlib, head, to_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vggfeat.retrieval.compare import Candidate, Comparison

_LABEL_WIDTH = 34
_LABEL_LINES = 3
_BAR = 0.38
_COLOURS = ("#0072b2", "#e69f00")  # of Okabe and Ito, told apart by all eyes and in grey


def draw(comparison: Comparison, form: str) -> bytes:
    """Draw bars of mean average precision and of relevance of the nearest neighbour.

    Return the bytes of a file of a format, one of `FIGURE_FORMATS`; the best candidate is on top.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    labels = [_label(candidate) for candidate in comparison.candidates]
    lines = sum(max(2, label.count("\n") + 1) for label in labels)
    tall = 1.6 + 0.24 * lines + (0.4 if comparison.warning else 0)
    figure = Figure(figsize=(9, tall), layout="constrained")
    head(figure, "", comparison.warning)
    axes = figure.add_subplot()
    _draw_bars(axes, comparison.candidates)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(_title(comparison), parse_math=False, fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return to_bytes(figure, form)


def _draw_bars(axes: Axes, candidates: tuple[Candidate, ...]) -> None:
    places = np.arange(len(candidates))
    series = {
        "mean average precision": [one.mean_average_precision for one in candidates],
        "nearest neighbour is relevant": [one.nearest_neighbour for one in candidates],
    }
    for number, (name, values) in enumerate(series.items()):
        offset = (number - 0.5) * _BAR
        bars = axes.barh(places + offset, values, _BAR, label=name, color=_COLOURS[number])
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize="small")


def _label(candidate: Candidate) -> str:
    """Return name and width of a candidate on a few lines."""
    text = candidate.name.encode(errors="backslashreplace").decode().replace(",", ", ")
    lines = textwrap.wrap(
        text, _LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder=" ...", break_on_hyphens=False
    )
    return "\n".join([*lines[:-1], f"{lines[-1]}  ({candidate.width})"])


def _title(comparison: Comparison) -> str:
    one = comparison.candidates[0]
    what = (
        f"images of the same class, {counted(comparison.classes, 'class')}"
        if comparison.by == "labels"
        else "the image that a query was made of"
    )
    return (
        f"Finding {what}\n{comparison.metric}, {counted(one.queries, 'query')}, "
        f"{counted(one.images, 'image')}"
    )
