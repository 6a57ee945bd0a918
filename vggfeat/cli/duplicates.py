"""`vggfeat duplicates`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vggfeat.cli.terminal import exit_codes, print_json, set_up_logging
from vggfeat.core.text import counted, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.retrieval.duplicates import Duplicates
    from vggfeat.retrieval.similarity import Metric


def duplicates(
    cache: Annotated[
        str,
        typer.Argument(
            help="The cache to look through, a file or a folder of shards.", metavar="FILE.h5"
        ),
    ],
    *,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer to compare by; may be left out where the cache has one only.",
            metavar="LAYER",
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            help="Least cosine of a pair; with --metric l2 its largest distance.", metavar="X"
        ),
    ] = 0.95,
    metric: Annotated[str, typer.Option(help="cosine or l2.", metavar="NAME")] = "cosine",
    as_json: Annotated[bool, typer.Option("--json", help="The groups as JSON.")] = False,
) -> None:
    """Find images that are nearly alike: all pairs, and the groups they form.

    In a group each image is near another. Files that are the same to the byte are marked.
    """
    with exit_codes():
        from vggfeat.retrieval.duplicates import duplicates as find_duplicates

        set_up_logging(quiet=as_json, verbose=False)
        show, close = _bar(quiet=as_json)
        try:
            found = find_duplicates(
                cache, layer, threshold=threshold, metric=cast("Metric", metric), on_progress=show
            )
        finally:
            close()
        if as_json:
            print_json(found)
        else:
            typer.echo("\n".join(_lines(found)))


def _bar(*, quiet: bool) -> tuple[Callable[[int, int], None], Callable[[], None]]:
    """A bar on a terminal, from when the first part is done; and what takes it away."""
    from tqdm import tqdm

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if quiet or not sys.stderr.isatty():
            return
        if not bars:
            bars.append(tqdm(total=total, unit=" pairs", unit_scale=True, leave=False))
        bars[0].update(done - bars[0].n)

    def close() -> None:
        for bar in bars:
            bar.close()

    return show, close


def _lines(found: Duplicates) -> list[str]:
    what = "cosine" if found.metric == "cosine" else "distance"
    sign = ">=" if found.metric == "cosine" else "<="
    heading = (
        f"{counted(found.images, 'image')} by {printable(found.layer)}: "
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
            f"  {member.score:.4f}  {printable(member.path)}"
            f"{'  (identical file)' if member.identical else ''}"
            for member in group.members
        ]
    return lines
