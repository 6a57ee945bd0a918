"""`vggfeat explore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from vggfeat.cli.options import Cache, ImagesNow, Json, Layers, among
from vggfeat.cli.terminal import Bar, exit_codes, say, set_up_logging, show, table
from vggfeat.core.text import counted

if TYPE_CHECKING:
    from vggfeat.visualization.explorer import ExplorerReport
    from vggfeat.visualization.projections import Projection


def explore(
    cache: Cache,
    out: Annotated[
        str, typer.Option("--out", "-o", help="The web page to write.", metavar="FILE.html")
    ],
    *,
    layers: Layers = None,
    projection: Annotated[
        str,
        typer.Option(
            help="How images are placed on the map; umap needs vggfeat[umap].",
            metavar="pca|umap",
            autocompletion=among("pca", "umap"),
        ),
    ] = "pca",
    most: Annotated[
        int,
        typer.Option(
            help="Show at most N images, spread over the cache if it has more.", metavar="N"
        ),
    ] = 5000,
    labels: Annotated[
        str | None,
        typer.Option(
            help="A CSV file of paths and labels. [default: the folder an image lies in]",
            metavar="FILE.csv",
        ),
    ] = None,
    root: ImagesNow = None,
    as_json: Json = False,
) -> None:
    """Write a web page to explore a cache by all layers.

    It shows the nearest images by each layer side by side, and a map. The page is one file that
    works offline. Click an image to see its neighbours by every layer, move sliders to weigh
    layers together, zoom into the map, filter by name and label.
    """
    with exit_codes():
        from vggfeat.core.text import byte_count
        from vggfeat.visualization.explorer import plan_explorer, write_explorer

        set_up_logging(quiet=as_json, verbose=False)
        plan = plan_explorer(
            cache, out, layers=layers, projection=cast("Projection", projection), most=most
        )
        if not as_json:
            count = counted(len(plan.rows), "image")
            of = f" of {plan.done}" if plan.done > len(plan.rows) else ""
            about = byte_count(plan.expected_bytes)
            say(f"{count}{of} by {counted(len(plan.layers), 'layer')}: about {about}")
        with Bar(quiet=as_json, unit="") as bar:
            report = write_explorer(plan, out, labels=labels, root=root, on_progress=bar.draw)
        show(report, _lines, as_json=as_json)


def _lines(report: ExplorerReport) -> list[str]:
    from vggfeat.core.text import byte_count

    rows = [["layer", "components", "nearest kept", "mean error"]]
    rows += [
        [one.layer, str(one.components), f"{one.kept:.1%}", f"{one.error:.4f}"]
        for one in report.layers
    ]
    lines = [f"{report.out}: {counted(report.images, 'image')}, {byte_count(report.bytes)}"]
    if report.pictures < report.images:
        lines.append(
            f"{report.images - report.pictures} of {counted(report.images, 'image')} without a "
            "thumbnail: file not found or unreadable; --root says where they are now"
        )
    return [*lines, *table(rows, "lrrr")]
