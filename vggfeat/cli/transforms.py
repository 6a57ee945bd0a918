"""`vggfeat fuse` and `vggfeat reduce`: options, run and summary of a cache made from another."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Json, Quiet, settings_options
from vggfeat.cli.terminal import ROWS_KEPT, Bar, exit_codes, print_json, say, set_up_logging
from vggfeat.core.option import RESUMING, options_of
from vggfeat.core.settings import SETTINGS, Settings
from vggfeat.core.text import counted, duration
from vggfeat.errors import InterruptedRunError, UsageError
from vggfeat.transforms.settings import FuseSettings, ReduceSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vggfeat.transforms.derive import TransformReport

Source = Annotated[
    str,
    typer.Argument(
        help="The cache with the layers, a file or a folder of shards.", metavar="FILE.h5"
    ),
]
Out = Annotated[
    str, typer.Option("--out", "-o", help="The cache to create or resume.", metavar="FILE.h5")
]
Use = Annotated[
    str | None,
    typer.Option(
        help="Apply this model of an earlier run as it is, instead of fitting.",
        metavar="MODEL.h5",
        show_default=False,
    ),
]
Save = Annotated[
    str | None,
    typer.Option(
        help="Where to keep what is fitted. [default: beside the new cache, as *.model.h5]",
        metavar="MODEL.h5",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh",
        help="Resume the cache if it exists, or fit and create it again.",
        rich_help_panel=RESUMING,
    ),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Bring in images that are new in the source since, and leave out those that are gone; "
        "what was fitted stays.",
        rich_help_panel=RESUMING,
    ),
]

EXAMPLES = (
    "vggfeat fuse feats.h5 --layers conv4_4,fc7 --out fused.h5",
    "vggfeat fuse feats.h5 --method weighted --layer-weights 2,1 --out fused.h5",
    "vggfeat reduce feats.h5 --layers fc7 --dims 128 --whiten --out small.h5",
)
_DTYPE = {"dtype": {"help": "Type of the stored features."}}


@settings_options(
    *options_of(FuseSettings), "dtype", of=(FuseSettings, Settings), instead=_DTYPE
)  # fmt: skip
def fuse(
    source: Source,
    out: Out,
    *,
    use: Use = None,
    save: Save = None,
    resume: Resume = True,
    update: Update = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Fuse several layers into one vector per image.

    Each layer is normalised by itself first, so that its range does not decide. The new cache has
    the same images, and the same command again does what is left.
    """
    files = {"source": source, "out": out, "use": use, "save": save}
    with _begun(resume=resume, update=update, quiet=quiet or as_json) as begin:
        from vggfeat.transforms.fuse import fuse as command

        _run(command, FuseSettings, files, flags, begin, as_json=as_json, quiet=quiet)


@settings_options(
    *options_of(ReduceSettings), "dtype", of=(ReduceSettings, Settings), instead=_DTYPE
)  # fmt: skip
def reduce(
    source: Source,
    out: Out,
    *,
    use: Use = None,
    save: Save = None,
    resume: Resume = True,
    update: Update = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Shorten vectors by PCA, or standardize them.

    Fitted in a stream to every layer by itself; the cache may be larger than memory. What was
    fitted is kept in a model file, and --use applies it to other caches.
    """
    files = {"source": source, "out": out, "use": use, "save": save}
    with _begun(resume=resume, update=update, quiet=quiet or as_json) as begin:
        from vggfeat.transforms.reduce import reduce as command

        _run(command, ReduceSettings, files, flags, begin, as_json=as_json, quiet=quiet)


@contextlib.contextmanager
def _begun(*, resume: bool, update: bool, quiet: bool) -> Iterator[str]:
    """Turn errors into exit codes, set up logging, and yield how to begin."""
    with exit_codes(ROWS_KEPT):
        set_up_logging(quiet=quiet, verbose=False)
        if update and not resume:
            raise UsageError("--fresh makes all rows anew; give it without --update")
        yield "update" if update else "resume" if resume else "fresh"


def _run(
    command: Callable[..., TransformReport],
    record: type,
    files: Mapping[str, str | None],
    flags: Mapping[str, Any],
    begin: str,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Call `fuse` or `reduce` with the settings that were given, and show its report."""
    options = options_of(record)
    texts = {
        name: flags[name]
        for name in options
        if not (flags[name] is None or flags[name] is False or flags[name] == [])
    }
    if files["use"] is not None and (texts or files["save"] is not None):
        named = ", ".join(
            [*(options[name].flag_of(name) for name in texts)]
            + ["--save"] * (files["save"] is not None)
        )
        raise UsageError(f"--use applies a model with its own settings; give it without {named}")
    dtype = flags["dtype"] or SETTINGS["dtype"].default
    if problem := SETTINGS["dtype"].problem("dtype", dtype):
        raise UsageError(problem)
    settings = None
    if files["use"] is None:
        settings = record(**{name: options[name].read(text) for name, text in texts.items()})
    report: TransformReport | None = None
    try:
        with Bar(quiet=quiet or as_json, unit="rows") as bar:
            report = command(
                **files, settings=settings, dtype=dtype, begin=begin, on_progress=bar.update
            )
    except InterruptedRunError as error:
        report = error.summary
        raise
    finally:
        if report is not None and as_json:
            print_json(report)
        elif report is not None and not quiet:
            say(*_lines(report))


def _lines(report: TransformReport) -> list[str]:
    counts = f"{report.done} done, {report.failed} failed"
    if report.pending:
        counts += f", {report.pending} left"
    layers = ", ".join(f"{name} ({width})" for name, width in report.layers.items())
    nothing = "nothing new is done in the source" if report.pending else "nothing left to do"
    this_run = (
        f"{counted(report.new_done, 'row')} in {duration(report.seconds)}, "
        f"{report.rows_per_second:.1f} rows/s once under way"
        if report.new_done
        else f"{nothing} ({duration(report.seconds)})"
    )
    lines = [
        f"{report.out}: {counted(report.rows, 'image')}, {counts}",
        f"  layers   {layers}, {report.dtype}",
        f"  from     {report.source}",
        f"  this run {this_run}",
    ]
    if report.model:
        lines.append(f"  model    {report.model}")
        lines += [f"           {note}" for note in report.notes]
    if report.clamped:
        lines.append(f"  clamped  {counted(report.clamped, 'value')} beyond {report.dtype}'s range")
    return lines
