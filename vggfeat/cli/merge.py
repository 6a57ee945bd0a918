"""`vggfeat merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from vggfeat.cli.terminal import exit_codes, print_json
from vggfeat.core.text import counted
from vggfeat.errors import UsageError


def merge(
    caches: Annotated[
        list[str],
        typer.Argument(help="The caches, files or folders of shards.", metavar="CACHE..."),
    ],
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="The cache to make.", metavar="FILE.h5")],
    keep_paths: Annotated[
        bool,
        typer.Option(
            "--keep-paths",
            help="Paths as recorded, though relative to different folders: the same images at "
            "another place.",
        ),
    ] = False,
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual",
            help="Of one folder of shards: a small file in which other HDF5 tools see all of them "
            "as one, with nothing copied.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The counts as JSON.")] = False,
) -> None:
    """Make one cache of several that were made with the same settings.

    An image that several have is taken from where it is done, else failed, else pending. The
    caches stay as they are; the new one appears whole or not at all.
    """
    with exit_codes():
        if virtual:
            _view(caches, out, keep_paths=keep_paths, as_json=as_json)
            return
        from vggfeat.cache.merge import merge as merge_caches

        merged = merge_caches(caches, out, keep_paths=keep_paths)
        if as_json:
            print_json(merged)
            return
        shared = f", {merged.shared} of them in more than one" if merged.shared else ""
        typer.echo(
            f"{merged.out}: {counted(merged.rows, 'image')} from "
            f"{counted(merged.sources, 'cache')}{shared} "
            f"({merged.done} done, {merged.failed} failed, {merged.pending} pending)"
        )


def _view(caches: list[str], out: str, *, keep_paths: bool, as_json: bool) -> None:
    from vggfeat.cache.hdf5_view import view_shards

    if len(caches) != 1 or keep_paths:
        raise UsageError("--virtual is about one folder of shards; name it alone")
    rows = view_shards(caches[0], out)
    if as_json:
        print_json({"out": out, "rows": rows})
        return
    typer.echo(
        f"{out}: a view of {counted(rows, 'image')} in the shards of {caches[0]}; keep both in "
        "place"
    )
