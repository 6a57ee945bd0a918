"""`vggfeat sheet`."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from vggfeat.cli.terminal import exit_codes, set_up_logging
from vggfeat.core.text import counted, printable


def sheet(
    cache: Annotated[
        str, typer.Argument(help="A cache, a file or a folder of shards.", metavar="FILE.h5")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The sheet to write: a picture, or one page for a browser with all images in it.",
            metavar="FILE.png|html",
        ),
    ],
    *,
    rows: Annotated[
        str,
        typer.Option(help="Show images whose path matches, as in 'cats/*'.", metavar="PATTERN"),
    ] = "*",
    most: Annotated[int, typer.Option(help="Images at most, the first ones.", metavar="N")] = 100,
    root: Annotated[
        str | None,
        typer.Option(
            help="Where the images are now. [default: where they were]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show images of a cache as a contact sheet, each with its name and state.

    In the page, Tab and the arrow keys move, Enter shows an image large, Esc closes it.
    """
    with exit_codes():
        from vggfeat.cache.sharded import open_cache
        from vggfeat.visualization.contact_sheet import check_sheet, contact_sheet, results_of_rows

        set_up_logging(quiet=False, verbose=False)
        check_sheet(out)  # before the work rather than after it
        opened = open_cache(cache)
        results = results_of_rows(opened, rows, most=most, root=root)
        missing = sum(result.path is None for result in results)
        if missing:
            where = root if root is not None else os.fsdecode(opened.header.provenance.root)
            logging.getLogger("vggfeat").warning(
                "%d of %s not found below %s; --root says where they are now",
                missing,
                counted(len(results), "image"),
                printable(where),
            )
        title = os.path.basename(os.path.normpath(cache)) + (f": {rows}" if rows != "*" else "")
        contact_sheet(title, [], [results], out)
        typer.echo(f"{printable(out)}: {counted(len(results), 'image')} of {len(opened)}")
