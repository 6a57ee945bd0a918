"""`vggfeat bench`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Json, given, settings_options
from vggfeat.cli.terminal import exit_codes, print_json, say
from vggfeat.core.records import as_plain
from vggfeat.core.text import byte_count, counted, duration

if TYPE_CHECKING:
    from vggfeat.extraction.benchmark import Bench, Decoding, Measured

_MANY = 100_000
_LAYERS = "conv5_3,fc7"
_SECONDS = 27.0


@settings_options(
    "layers", "model", "device", "decode", "size",
    instead={
        "layers": {"help": "Layers that would be extracted.", "unset": _LAYERS},
        "device": {"help": "auto, cpu, cuda or cuda:N.", "metavar": "NAME"},
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
    seconds: Annotated[
        float,
        typer.Option(
            help="Total time to measure; each figure takes at least one pass.",
            metavar="SECONDS",
        ),
    ] = _SECONDS,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Measure this machine's speed and what limits it.

    Recommend options for extract. Decode a sample of the images, in one process and in as many
    as extract would start; write to the disk and sync; and run the network with random weights
    in several batch sizes, while there is time. Print each figure as soon as it is measured.
    Ctrl-C ends it with what there is by then.
    """
    with exit_codes("stopped; what is printed was measured by then"):
        started = time.monotonic()  # loading torch takes some of the time
        if not as_json:
            say(f"measuring for about {duration(seconds)}: decoding, the disk, the network")
        from vggfeat.core.resources import keep_freed_memory

        keep_freed_memory()
        from vggfeat.core.settings import Settings
        from vggfeat.extraction.benchmark import bench as measure

        settings = Settings(**{"layers": _LAYERS, "weights": "random:0", **given(flags)})
        told = Told(f"{settings.layers} of {settings.model}", as_json=as_json)
        if seconds > 0:  # else the library says what is expected
            seconds = max(0.0, seconds - (time.monotonic() - started))
        try:
            found = measure(settings, sources or (), folder=folder, seconds=seconds, on_figure=told)
        except KeyboardInterrupt:
            if as_json:
                print_json(told.as_plain())
            raise
        if as_json:
            print_json(found)
        else:
            say(*_conclusion(found))


class Told:
    """Prints each figure as it comes; under `--json` keeps them."""

    def __init__(self, what: str, *, as_json: bool) -> None:
        self._what, self._as_json = what, as_json
        self._figures: list[Measured] = []

    def __call__(self, figure: Measured) -> None:
        """Print a figure, or keep it."""
        if not self._as_json:
            say(self._line(figure))
        self._figures.append(figure)

    def as_plain(self) -> dict[str, Any]:
        """Return what was measured before the end came, by the names that `Bench` has."""
        from vggfeat.extraction.benchmark import Forward

        others = [figure for figure in self._figures if not isinstance(figure, Forward)]
        forward = [figure for figure in self._figures if isinstance(figure, Forward)]
        plain = {name: value for one in others for name, value in as_plain(one).items()}
        return {"stopped": True, **plain, "forward": list(map(as_plain, forward))}

    def _line(self, figure: Measured) -> str:
        from vggfeat.extraction.benchmark import Decoding, Disk, Machine

        if isinstance(figure, Machine):
            return f"machine   {counted(figure.cores, 'core')}, network on {figure.device}"
        if isinstance(figure, Decoding):
            return _decoding_line(figure)
        if isinstance(figure, Disk):
            each, rate = byte_count(figure.row_bytes), byte_count(figure.write * figure.row_bytes)
            return f"disk      {rate}/s, {figure.write:.0f} images/s of {each}"
        first = isinstance(self._figures[-1], Disk)
        subject = f"network   {self._what}, " if first else " " * 10
        rate = f"{figure.images_per_second:.1f} images/s in batches of {figure.batch_size}"
        return f"{subject}{figure.precision}: {rate}"


def _decoding_line(figure: Decoding) -> str:
    images = f"{figure.sample} of the images" if figure.sample else "synthetic photographs"
    each = byte_count(figure.sample_bytes)
    return (
        f"decoding  {figure.decode:.0f} images/s in one process, {figure.decode_together:.0f} in "
        f"{figure.workers} ({images}, {each} each, decode {figure.decoder})"
    )


def _conclusion(found: Bench) -> list[str]:
    many = duration(_MANY / found.images_per_second)
    rate = f"about {found.images_per_second:.1f} images/s, {_MANY:,} images in {many}"
    following = found.next_limit
    times = found.walls[following] / found.walls[found.limit]
    options = f"--precision {found.precision} --batch-size {found.batch_size}"
    decode = "" if found.decoder == "exact" else f" --decode {found.decoder}"
    return [
        f"limit     {found.limit}: {rate}; next is {following}, {times:.1f} times as fast",
        f"faster    {found.advice}",
        f"use       {options} --workers {found.workers}{decode}",
    ]
