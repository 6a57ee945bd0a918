"""`vggfeat export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from vggfeat.cli.options import Cache, Json, Layers, among
from vggfeat.cli.terminal import exit_codes, show
from vggfeat.core import activity
from vggfeat.core.text import byte_count, counted
from vggfeat.exporters.registry import COMPRESSIONS, EXPORT_FORMATS

if TYPE_CHECKING:
    from vggfeat.core.layer_spec import Norm
    from vggfeat.exporters.export import ExportReport
    from vggfeat.exporters.registry import Compress, IndexMetric

_FOLDERS = [name for name, form in EXPORT_FORMATS.items() if form.is_folder]
_COMPRESSIBLE = [name for name, form in EXPORT_FORMATS.items() if form.compressions]


def export(
    cache: Cache,
    *,
    to: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(EXPORT_FORMATS)}.",
            metavar="FORMAT",
            autocompletion=among(*EXPORT_FORMATS),
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
    layers: Layers = None,
    rows: Annotated[
        str,
        typer.Option(
            help="Rows to export: done, all (NaN for images that are not done), or a pattern of "
            "paths such as 'cats/*'.",
            metavar="WHICH",
        ),
    ] = "done",
    compress: Annotated[
        str,
        typer.Option(
            help=f"Compression of {' and '.join(_COMPRESSIBLE)}: {', '.join(COMPRESSIONS)}.",
            metavar="HOW",
            autocompletion=among(*COMPRESSIONS),
        ),
    ] = "none",
    metric: Annotated[
        str,
        typer.Option(
            help="Metric of a faiss index: cosine (rows at unit length), ip (inner product) or l2.",
            metavar="cosine|ip|l2",
            autocompletion=among("cosine", "ip", "l2"),
        ),
    ] = "cosine",
    norm: Annotated[
        str | None,
        typer.Option(
            help="Normalization of vectors: none, l2 (to unit length) or ssr (signed square root "
            "before). [default: none; for global descriptors of hloc, which takes inner "
            "products, l2]",
            metavar="none|l2|ssr",
            autocompletion=among("none", "l2", "ssr"),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write layers and rows in another tool's format.

    The output appears whole or not at all. Memory does not grow with the cache, except for faiss,
    which holds its index in memory. float16 is kept if the format has it.
    """
    with exit_codes():
        activity.begins(f"writing {out}")
        from vggfeat.core.layer_spec import split_specs
        from vggfeat.exporters.export import export as export_cache

        made = export_cache(
            cache, out, to=to, layers=split_specs(layers or ""), rows=rows,
            compress=cast("Compress", compress), metric=cast("IndexMetric", metric),
            norm=cast("Norm | None", norm),
        )  # fmt: skip
        show(made, _lines, as_json=as_json)


def _lines(made: ExportReport) -> list[str]:
    names = ", ".join(made.layers)
    size = byte_count(made.bytes)
    return [
        f"{made.out}: {counted(made.rows, 'image')}, {names} as {made.format}, {size}",
        *(f"  note: {note}" for note in made.notes),
    ]
