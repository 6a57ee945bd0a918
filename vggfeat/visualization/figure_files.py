"""Files of matplotlib figures: their formats, and the check that matplotlib is installed."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Final

from vggfeat.core.optional import require
from vggfeat.extraction.monitoring import output_format

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FORMATS: Final = ("png", "svg", "pdf")

_DPI: Final = 150
_WARNING: Final = "#b04000"
_LETTERS_AN_INCH: Final = 7.5  # of the large letters
# By default these files hold the time of their making, and SVG names that are drawn anew each time.
_TIMES: Final = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def chart_format(path: str) -> str:
    """Return the one of `FIGURE_FORMATS` that the name of a chart ends in."""
    return output_format(path, "chart", FIGURE_FORMATS)


def check_matplotlib() -> None:
    """Raise a UsageError that says how to install matplotlib if it is missing."""
    require("matplotlib.figure", "plot", "a chart")


def head(figure: Figure, title: str, warning: str) -> None:
    """Write the title of a figure and, in large letters above it, what to know of the features."""
    if not warning:
        figure.suptitle(title, parse_math=False, fontsize="medium")
        return
    across = max(20, int(figure.get_figwidth() * _LETTERS_AN_INCH))
    lines = [*textwrap.wrap(warning, across), *textwrap.wrap(title, across)]
    figure.suptitle("\n".join(lines), parse_math=False, fontsize="x-large", weight="bold",
                    color=_WARNING)  # fmt: skip


def to_bytes(figure: Figure, form: str) -> bytes:
    """Return the file of a figure in one of `FIGURE_FORMATS`; equal figures give equal bytes."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "vggfeat"}):
        figure.savefig(file, format=form, dpi=_DPI, metadata=_TIMES[form])
    return file.getvalue()
