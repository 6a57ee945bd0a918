"""`vggfeat compare`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.terminal import exit_codes, output_width, print_json, set_up_logging, table
from vggfeat.core.text import counted, printable
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.retrieval.compare import Candidate, Comparison

_LEAST_NAME = 28
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
            help="CSV of path,label: an image is to find the others of its class. Without it and "
            "without --queries, the folder an image lies in is its label.",
            metavar="FILE.csv",
        ),
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option(
            help="Cache of altered images under the same paths: each is to find its original. "
            "May be given several times.",
            metavar="FILE.h5",
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help="cosine or l2.", metavar="NAME")] = "cosine",
    k: Annotated[
        str, typer.Option("--k", help="Ranks at which recall is measured.", metavar="K,...")
    ] = "5,10",
    fusions: Annotated[
        str,
        typer.Option(
            help="Layers of the first file together, each at unit length: all, pairs (and all) "
            "or none.",
            metavar="WHICH",
        ),
    ] = "all",
    sample: Annotated[
        int, typer.Option(help="Queries at most, spread over the images.", metavar="N")
    ] = 2000,
    chart: Annotated[
        str | None,
        typer.Option(help="Draw it too (needs vggfeat[plot]).", metavar="FILE.png|svg|pdf"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Compare layers by how well they find images of the same class, or altered images again.

    Shows mean average precision (mAP), how often the nearest image is a right one (NN), and how
    often one is among the first five and ten (R@5, R@10), best first.
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
            k=_ranks(k),
            fusions=fusions,
            sample=sample,
        )
        if chart is not None:
            publish(chart, draw(found, chart_format(chart)))
        if as_json:
            print_json(found)
        else:
            typer.echo("\n".join(_lines(found)))


def _ranks(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"k is {text!r}; expected whole numbers such as 5,10")
    return [int(word) for word in words]


def _lines(found: Comparison) -> list[str]:
    lines = _section(found.candidates, _heading(found))
    for part in found.by_queries:
        lines += ["", *_section(part.candidates, printable(part.queries))]
    return lines


def _heading(found: Comparison) -> str:
    one = found.candidates[0]
    what = f"images of its class ({found.classes})" if found.by == "labels" else "its original"
    return (
        f"{counted(one.queries, 'query')}, each for {what} among {counted(one.images, 'image')}, "
        f"by {found.metric}"
    )


def _section(candidates: Sequence[Candidate], heading: str) -> list[str]:
    ranks = [f"R@{recall.k}" for recall in candidates[0].recalls]
    figures = [("width", "mAP", "NN", *ranks), *map(_figures, candidates)]
    columns = table(figures, "r" * len(figures[0]))
    room = output_width() - len(columns[0]) - _GAPS
    names = ["layer", *(_cut(printable(one.name), room - _LEAST_BAR) for one in candidates)]
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


def _cut(name: str, width: int) -> str:
    width = max(width, _LEAST_NAME)
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _bar(share: float, room: int) -> str:
    """A bar of that share of `room` columns, to an eighth where the terminal has such blocks."""
    if room < _LEAST_BAR:
        return ""
    eighths = round(share * room * 8)
    try:
        (_EIGHTHS + _FULL).encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "#" * round(eighths / 8)
    return (_FULL * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
