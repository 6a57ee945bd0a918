"""`vggfeat sheet`."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from vggfeat.cli.options import Cache, ImagesNow
from vggfeat.cli.terminal import exit_codes, say, set_up_logging
from vggfeat.core.text import counted


def sheet(
    cache: Cache,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The contact sheet to write: a picture, or a web page that contains all images.",
            metavar="FILE.png|html",
        ),
    ],
    *,
    rows: Annotated[
        str, typer.Option(help="Show images whose path matches, e.g. 'cats/*'.", metavar="PATTERN")
    ] = "*",
    most: Annotated[int, typer.Option(help="Show at most the first N.", metavar="N")] = 100,
    root: ImagesNow = None,
) -> None:
    """Draw a contact sheet of the images of a cache.

    Each image has its name, and its state if it is not done. On a web page, Tab and the arrow
    keys move, Enter enlarges an image, Esc closes it.
    """
    with exit_codes():
        from vggfeat.cache.sharded import open_cache
        from vggfeat.visualization.contact_sheet import (
            SheetTexts,
            check_sheet,
            contact_sheet,
            results_of_rows,
        )

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
                where,
            )
        name = os.path.basename(os.path.normpath(cache))
        shown = f"{len(results)} of {counted(len(opened), 'image')}"
        title = f"{name}: {shown}" + (f", names matching {rows}" if rows != "*" else "")
        texts = SheetTexts(title, warning=opened.warn())
        contact_sheet(texts, [], [results], out)
        say(f"{out}: {counted(len(results), 'image')} of {len(opened)}")
