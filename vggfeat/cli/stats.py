"""`vggfeat stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Config, Json, Quiet, given, settings_options
from vggfeat.cli.terminal import Bar, exit_codes, set_up_logging, show, table
from vggfeat.config import make_settings
from vggfeat.core.text import first_few
from vggfeat.errors import UsageError
from vggfeat.storage.paths import check_place, refuse_standard_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.images.statistics import PixelStats

_SHOWN = 5  # failures
_ENDING = ".toml"
EXAMPLES = (
    "vggfeat stats photos",
    "vggfeat stats scans --channels 1 --depth 16 --out scans.toml",
    "vggfeat stats photos --sample 1000 --json",
)


@settings_options(
    "config", "size", "resize", "crop", "exif", "icc", "decode", "augment", "channels", "depth",
    "window", "clip", "clahe", "sample", "workers", "max_pixels", "decode_timeout",
)  # fmt: skip
def stats(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders, image files, tar and zip archives, @list.txt, or - for a list on stdin.",
            metavar="SOURCE...",
        ),
    ],
    *,
    config: Config = None,
    sample: Annotated[
        int | None,
        typer.Option(help="Images at most, spread over all. [default: all]", metavar="N"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the preprocessing, with the measured mean and std, as a file for --config.",
            metavar="FILE.toml",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Measure mean and standard deviation of images.

    The images are preprocessed as extract does it. Show values for --mean, --std and --window,
    and types, bits and values of the image files.
    """
    with exit_codes("stopped; nothing was measured"):
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.extraction.monitoring import publish
        from vggfeat.images.statistics import as_config
        from vggfeat.images.statistics import stats as measure

        _check(out, sample)
        settings = make_settings(config, {**given(flags), "layers": "fc7"})
        with Bar(quiet=quiet or as_json) as bar:
            found = measure(sources, settings, sample=sample, on_progress=bar.update)
        if out is not None:
            publish(out, as_config(found).encode())
        show(found, _lines, as_json=as_json)


def _check(out: str | None, sample: int | None) -> None:
    if out is not None:
        refuse_standard_output(out)
        if not out.endswith(_ENDING):
            raise UsageError(f"out is {out!r}; expected a name that ends in {_ENDING}")
        check_place(out)
    if sample is not None and sample < 1:
        raise UsageError(f"sample is {sample}; expected 1 image or more")


def _lines(found: PixelStats) -> Iterator[str]:
    failed = f", {found.failed} failed" if found.failed else ""
    yield f"images    {found.images:,}{failed}"
    for failure in found.failures[:_SHOWN]:
        yield f"          {failure.path}: {failure.reason}"
    if found.failed > _SHOWN:
        yield f"          and {found.failed - _SHOWN} more: --json"
    values = found.values
    kinds = [f"{kind} {number:,}" for kind, number in values.kinds.items()]
    yield f"files     {first_few(kinds)}"
    yield f"bits      {', '.join(f'{bits}: {number:,}' for bits, number in values.bits.items())}"
    yield f"values    {values.minimum:.6g} to {values.maximum:.6g}, in the files' own units"
    about = "" if values.exact else ", of a sample"
    yield f"          percentiles{about}: " + ", ".join(
        f"{at}% {value:.6g}" for at, value in values.percentiles.items()
    )
    level, width = found.window
    if width > 0:
        yield f"window    --window {level:.6g},{width:.6g} goes from 0.5% to 99.5%"
    yield from _pixel_lines(found)


def _pixel_lines(found: PixelStats) -> Iterator[str]:
    rows = [["channel", "mean", "std", "least", "most"]]
    rows += [
        [str(at), *(f"{value:.6f}" for value in (one.mean, one.std, one.minimum, one.maximum))]
        for at, one in enumerate(found.channels)
    ]
    yield f"pixels    {found.pixels:,} of a channel, as the network gets them, from 0 to 1"
    yield from (f"  {line}" for line in table(rows, "rrrrr"))
    mean, std = (
        ",".join(f"{getattr(one, name):.6g}" for one in found.channels) for name in ("mean", "std")
    )
    if all(one.std > 0 for one in found.channels):
        yield f"use       --mean {mean} --std {std}"
    else:
        yield "use       nothing of this: a channel is the same everywhere, and no deviation is 0"
