"""`vggfeat bench`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Json, given, settings_options
from vggfeat.cli.terminal import exit_codes, show
from vggfeat.core.text import byte_count, counted, duration

if TYPE_CHECKING:
    from vggfeat.extraction.benchmark import Bench

_MANY = 100_000
_LAYERS = "conv5_3,fc7"


@settings_options(
    "layers", "model", "device", "size",
    instead={
        "layers": {"help": "Layers that would be extracted.", "unset": _LAYERS},
        "device": {"help": "auto, cpu, cuda, cuda:N or mps.", "metavar": "NAME"},
        "size": {"unset": "224"},
    },
)  # fmt: skip
def bench(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Images to decode. [default: synthetic ones]", metavar="SOURCE..."),
    ] = None,
    *,
    folder: Annotated[
        str, typer.Option(help="Folder whose disk is measured.", metavar="DIR")
    ] = ".",
    seconds: Annotated[float, typer.Option(help="Approximate duration of each measurement.")] = 2.0,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Measure the speed of this machine, what limits it, and recommend options for extract.

    Decode a sample of the images on one core, run the network with random weights in each
    precision and in several batch sizes, and write to the disk and sync.
    """
    with exit_codes():
        from vggfeat.core.resources import keep_freed_memory

        keep_freed_memory()
        from vggfeat.core.settings import Settings
        from vggfeat.extraction.benchmark import bench as measure

        settings = Settings(**{"layers": _LAYERS, "weights": "random:0", **given(flags)})
        found = measure(settings, sources or (), folder=folder, seconds=seconds)
        what = f"{settings.layers} of {settings.model}"
        show(found, functools.partial(_lines, what=what), as_json=as_json)


def _lines(found: Bench, what: str) -> list[str]:
    images = f"{found.sample} of the images" if found.sample else "synthetic photographs"
    best = [one for one in found.forward if one.precision == found.precision]
    precisions = {one.precision: one for one in reversed(found.forward)}
    by_precision = ", ".join(
        f"{name} {one.images_per_second:.1f}" for name, one in precisions.items()
    )
    by_size = ", ".join(
        f"{one.batch_size}: {one.images_per_second:.1f}"
        for one in sorted(best, key=lambda one: one.batch_size)
    )
    many = duration(_MANY / found.images_per_second)
    each = byte_count(found.sample_bytes)
    disk = byte_count(found.write * found.row_bytes)
    rows = f"{found.write:.0f} images/s of {byte_count(found.row_bytes)}"
    rate = f"about {found.images_per_second:.1f} images/s, {_MANY:,} images in {many}"
    options = f"--precision {found.precision} --batch-size {found.batch_size}"
    return [
        f"machine   {counted(found.cores, 'core')}, network on {found.device}",
        f"decoding  {found.decode:.0f} images/s a core ({images}, {each} each)",
        f"network   {what}: {by_precision} images/s in batches of {found.forward[0].batch_size}",
        f"          in {found.precision} by batch size: {by_size}",
        f"disk      {disk}/s, {rows}",
        f"limit     {found.limit}: {rate}",
        f"use       {options} --workers {found.workers}",
    ]
