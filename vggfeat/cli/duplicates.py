"""`vggfeat duplicates`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from vggfeat.cli.options import Cache, ImagesNow, Json, among, one_layer
from vggfeat.cli.terminal import Bar, exit_codes, set_up_logging, show, written
from vggfeat.core.text import counted

if TYPE_CHECKING:
    from vggfeat.retrieval.duplicates import Duplicates
    from vggfeat.retrieval.similarity import Metric


def duplicates(
    cache: Cache,
    *,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="The one layer to compare by. [default: the only one of the cache]",
            metavar="NAME",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Report pairs of at least this cosine, or of at most this distance. [default: "
            "0.95, or with --metric l2 the same as a distance, 0.316]",
            metavar="X",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="cosine, l2 (distance at unit length) or l2-raw (distance of vectors as stored).",
            metavar="cosine|l2|l2-raw",
            autocompletion=among("cosine", "l2", "l2-raw"),
        ),
    ] = "cosine",
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Also write the groups as a contact sheet: a picture, or a web page that contains "
            "all images.",
            metavar="FILE.png|html",
        ),
    ] = None,
    root: ImagesNow = None,
    as_json: Json = False,
) -> None:
    """Find pairs and groups of near-duplicate images.

    Pairs that share an image form a group, so each image of a group is near at least one other.
    Identical files are marked.
    """
    with exit_codes():
        from vggfeat.retrieval.duplicates import duplicates as find_duplicates

        set_up_logging(quiet=as_json, verbose=False)
        layer = one_layer(layers, "duplicates compares by")
        if sheet is not None:
            from vggfeat.visualization.contact_sheet import check_sheet, sheet_of_duplicates

            check_sheet(sheet)  # before the work rather than after it
        with Bar(quiet=as_json, unit="") as bar:
            found = find_duplicates(
                cache,
                layer,
                threshold=threshold,
                metric=cast("Metric", metric),
                on_progress=bar.draw,
            )
        if sheet is not None:
            sheet_of_duplicates(found, sheet, root=root)
        show(
            found,
            lambda found: [*_lines(found), *written("contact sheet", sheet)],
            as_json=as_json,
        )


def _lines(found: Duplicates) -> list[str]:
    what = "cosine" if found.metric == "cosine" else "distance"
    sign = ">=" if found.metric == "cosine" else "<="
    heading = (
        f"{counted(found.images, 'image')} by {found.layer}: "
        f"{counted(found.pairs, 'pair')} with {what} "
        f"{sign} {found.threshold:g}, {counted(len(found.groups), 'group')}, "
        f"{counted(found.spare, 'redundant image')}"
    )
    lines = [heading]
    for number, group in enumerate(found.groups, 1):
        lines += [
            "",
            f"group {number}: {counted(len(group.members), 'image')}, nearest {group.score:.4f}",
        ]
        lines += [
            f"  {member.score:.4f}  {member.path}{'  (identical file)' if member.identical else ''}"
            for member in group.members
        ]
    return lines
