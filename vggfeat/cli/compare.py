"""`vggfeat compare`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.options import Json, among, whole_numbers
from vggfeat.cli.terminal import exit_codes, output_width, set_up_logging, show, table, written
from vggfeat.core.text import counted, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.retrieval.compare import Candidate, Comparison

_LEAST_NAME, _ENOUGH_NAME = 12, 28
_LEAST_BAR = 10
_GAPS = 2 + 2 + 2 + 1  # in front of the name and between columns; and the terminal's last one
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"


def compare(
    caches: Annotated[
        list[str], typer.Argument(help="Caches of the same images.", metavar="FILE.h5...")
    ],
    *,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes of the images: a CSV file of path,label. An image is to find the others "
            "of its class. [default: without --queries, the folder that an image lies in]",
            metavar="FILE.csv",
        ),
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option(
            help="Cache of altered images under the same paths, each of which is to find its "
            "original; may be repeated.",
            metavar="FILE.h5",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Similarity: cosine, l2 (distance at unit length, which ranks as cosine does) or "
            "l2-raw.",
            metavar="cosine|l2|l2-raw",
            autocompletion=among("cosine", "l2", "l2-raw"),
        ),
    ] = "cosine",
    k: Annotated[
        str, typer.Option("--k", help="Measure recall at these ranks.", metavar="K,...")
    ] = "5,10",
    fusions: Annotated[
        str,
        typer.Option(
            help="Also compare joined layers of the first file, each at unit length: all of them, "
            "pairs (and all), or none.",
            metavar="all|pairs|none",
            autocompletion=among("all", "pairs", "none"),
        ),
    ] = "all",
    sample: Annotated[
        int, typer.Option(help="Use at most N queries, spread over the images.", metavar="N")
    ] = 2000,
    chart: Annotated[
        str | None,
        typer.Option(help="Also draw a chart (needs vggfeat[plot]).", metavar="FILE.png|svg|pdf"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare layers by how well they retrieve images.

    An image is to find the others of its class or, with --queries, an altered image its original.
    Show mean average precision (mAP), how often the nearest image is relevant (NN), and how often
    a relevant one is among the first five and ten (R@5, R@10), best layer first.
    """
    with exit_codes():
        from vggfeat.extraction.monitoring import publish
        from vggfeat.retrieval.compare import compare as compare_layers
        from vggfeat.visualization.figure_files import chart_format, check_matplotlib
        from vggfeat.visualization.plot_comparison import draw

        set_up_logging(quiet=as_json, verbose=False)
        if chart is not None:  # before the work rather than after it
            chart_format(chart)
            check_matplotlib()
        found = compare_layers(
            caches,
            labels=labels,
            queries=queries or (),
            metric=metric,
            k=whole_numbers("k", k, "5,10"),
            fusions=fusions,
            sample=sample,
        )
        if chart is not None:
            publish(chart, draw(found, chart_format(chart)))
        show(found, lambda found: [*_lines(found), *written("chart", chart)], as_json=as_json)


def _lines(found: Comparison) -> list[str]:
    one = found.candidates[0]
    what = (
        f"images of its class, of {counted(found.classes, 'class')},"
        if found.by == "labels"
        else "its original"
    )
    heading = (
        f"{counted(one.queries, 'query')}, each for {what} among {counted(one.images, 'image')}, "
        f"by {found.metric}"
    )
    lines = _section(found.candidates, heading)
    for part in found.by_queries:
        lines += ["", *_section(part.candidates, part.queries)]
    return lines


def _section(candidates: Sequence[Candidate], heading: str) -> list[str]:
    ranks = [f"R@{recall.k}" for recall in candidates[0].recalls]
    figures = [("width", "mAP", "NN", *ranks), *map(_figures, candidates)]
    columns = table(figures, "r" * len(figures[0]))
    room = output_width() - len(columns[0]) - _GAPS
    wide = max(room - _LEAST_BAR, min(_ENOUGH_NAME, room))  # bars go before names are cut short
    names = ["layer", *(_shortened(printable(one.name), wide) for one in candidates)]
    room -= max(map(len, names))
    bars = ["", *(_bar(one.mean_average_precision, room) for one in candidates)]
    rows = table(list(zip(names, columns, bars, strict=True)), "lll")
    return [heading, *(f"  {row}" for row in rows)]


def _figures(candidate: Candidate) -> tuple[str, ...]:
    shares = (
        candidate.mean_average_precision,
        candidate.nearest_neighbour,
        *(recall.value for recall in candidate.recalls),
    )
    return (str(candidate.width), *(f"{share:.3f}" for share in shares))


def _shortened(name: str, width: int) -> str:
    width = max(width, _LEAST_NAME)
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _bar(share: float, room: int) -> str:
    """Return a bar of that share of `room` columns, to an eighth if the terminal can show it."""
    if room < _LEAST_BAR:
        return ""
    eighths = round(share * room * 8)
    try:
        (_EIGHTHS + _FULL).encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "#" * round(eighths / 8)
    return (_FULL * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
