"""`vggfeat export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from vggfeat.cli.terminal import exit_codes, print_json
from vggfeat.core.text import byte_count, counted, printable
from vggfeat.exporters.registry import COMPRESSIONS, EXPORT_FORMATS

if TYPE_CHECKING:
    from vggfeat.core.layer_spec import Norm
    from vggfeat.exporters.registry import Compress, IndexMetric

_FOLDERS = [name for name, form in EXPORT_FORMATS.items() if form.is_folder]
_COMPRESSIBLE = [name for name, form in EXPORT_FORMATS.items() if form.compressions]


def export(
    cache: Annotated[
        str, typer.Argument(help="A cache, a file or a folder of shards.", metavar="FILE.h5")
    ],
    *,
    to: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(EXPORT_FORMATS)}.",
            metavar="FORMAT",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help=f"The file to create; a folder for {', '.join(_FOLDERS)}.",
            metavar="PATH",
        ),
    ],
    layers: Annotated[
        str,
        typer.Option(help="Layers of the cache; all by default.", metavar="SPEC,..."),
    ] = "",
    rows: Annotated[
        str,
        typer.Option(
            help="done, all (NaN where an image is not done), or a pattern of paths such as "
            "'cats/*'.",
            metavar="WHICH",
        ),
    ] = "done",
    compress: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(COMPRESSIONS)}; for {' and '.join(_COMPRESSIBLE)}.",
            metavar="HOW",
        ),
    ] = "none",
    metric: Annotated[
        str,
        typer.Option(
            help="Of a faiss index: cosine (rows at unit length), ip (inner product) or l2.",
            metavar="NAME",
        ),
    ] = "cosine",
    norm: Annotated[
        str | None,
        typer.Option(
            help="Bring vectors to unit length: l2, or ssr (signed square root before); or none. "
            "[default: none; for hloc's global descriptors l2, for it takes inner products]",
            metavar="NORM",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written as JSON.")] = False,
) -> None:
    """Write a cache in the format of another tool: some layers and rows, or all.

    It appears whole or not at all, and memory stays bounded however large the cache is (faiss
    holds its index in memory). float16 is kept where the format has it.
    """
    with exit_codes():
        from vggfeat.core.layer_spec import split_specs
        from vggfeat.exporters.export import export as export_cache

        made = export_cache(
            cache, out, to=to, layers=split_specs(layers), rows=rows,
            compress=cast("Compress", compress), metric=cast("IndexMetric", metric),
            norm=cast("Norm | None", norm),
        )  # fmt: skip
        if as_json:
            print_json(made)
            return
        names = ", ".join(made.layers)
        typer.echo(
            f"{printable(made.out)}: {counted(made.rows, 'image')}, {names} as {made.format}, "
            f"{byte_count(made.bytes)}"
        )
        for note in made.notes:
            typer.echo(f"  note: {note}")
