"""`vggfeat merge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.options import Json
from vggfeat.cli.terminal import exit_codes, show
from vggfeat.core import activity
from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from vggfeat.cache.merge import MergeReport


def merge(
    caches: Annotated[
        list[str], typer.Argument(help="Caches: files, or folders of shards.", metavar="CACHE...")
    ],
    *,
    out: Annotated[
        str, typer.Option("--out", "-o", help="The cache to create.", metavar="FILE.h5")
    ],
    keep_paths: Annotated[
        bool,
        typer.Option(
            "--keep-paths",
            help="Treat equal paths as one image, even if they are relative to different folders.",
        ),
    ] = False,
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual",
            help="Create a small file that shows the shards of one folder to other HDF5 tools as "
            "one file; nothing is copied.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge caches that were made with the same settings.

    If an image is in several caches, a done row is preferred to a failed one, and a failed one
    to a pending one. The new cache appears whole or not at all; the others are not changed.
    """
    with exit_codes():
        activity.begins(f"writing {out}")
        if virtual:
            _view(caches, out, keep_paths=keep_paths, as_json=as_json)
            return
        from vggfeat.cache.merge import merge as merge_caches

        merged = merge_caches(caches, out, keep_paths=keep_paths)
        show(merged, _lines, as_json=as_json)


def _lines(merged: MergeReport) -> list[str]:
    shared = f", {merged.shared} of them in more than one" if merged.shared else ""
    counts = f"{merged.done} done, {merged.failed} failed, {merged.pending} pending"
    sources = f"{counted(merged.sources, 'cache')}{shared}"
    return [f"{merged.out}: {counted(merged.rows, 'image')} from {sources} ({counts})"]


def _view(caches: list[str], out: str, *, keep_paths: bool, as_json: bool) -> None:
    from vggfeat.cache.hdf5_view import view_shards

    if len(caches) != 1 or keep_paths:
        raise UsageError("--virtual is about one folder of shards; name it alone")
    rows = view_shards(caches[0], out)
    what = f"a view of {counted(rows, 'image')} in the shards of {caches[0]}"
    line = f"{out}: {what}; keep both in place"
    show({"out": out, "rows": rows}, lambda _: [line], as_json=as_json)
