"""What the commands that make one cache from another have in common: options, run, summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.terminal import Bar, print_json
from vggfeat.core.choices import choose
from vggfeat.core.settings import DTYPES
from vggfeat.core.text import counted, duration, printable
from vggfeat.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
Layers = Annotated[
    str | None,
    typer.Option(
        help="Layers of the cache, comma separated. [default: all that are vectors]",
        metavar="NAME,...",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(help=f"Type of the stored features. One of {', '.join(DTYPES)}.", metavar="TYPE"),
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
Fresh = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="Resume the cache if it exists, or fit and create it again."
    ),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Bring in images that are new in the source since, and leave out those that are gone; "
        "what was fitted stays.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The summary as JSON.")]


def run(
    command: Callable[..., TransformReport],
    settings: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    source: str,
    out: str,
    use: str | None,
    save: str | None,
    dtype: str,
    resume: bool,
    update: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Calls `fuse` or `reduce` with the settings that were given, and prints what came of it."""
    given = {name: value for name, value in given.items() if value is not None}
    if use is not None and (given or save is not None):
        flags = [*given, *(["save"] if save is not None else [])]
        named = ", ".join("--" + name.replace("_", "-") for name in flags)
        raise UsageError(f"--use applies a model with its own settings; give it without {named}")
    choose("dtype", DTYPES, dtype)
    if update and not resume:
        raise UsageError("--fresh makes all rows anew; give it without --update")
    begin = "update" if update else "resume" if resume else "fresh"
    bar = Bar(quiet=quiet or as_json, late=True)
    derived: TransformReport | None = None
    try:
        derived = command(
            source,
            out,
            settings(**given) if use is None else None,
            use=use,
            save=save,
            dtype=dtype,
            begin=begin,
            on_progress=bar.update,
        )
    except InterruptedRunError as error:
        derived = error.summary
        raise
    finally:
        bar.close()
        if derived is not None:
            _show(derived, as_json=as_json, quiet=quiet)


def _show(derived: TransformReport, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(derived)
    elif not quiet:
        for line in _lines(derived):
            typer.echo(line)


def _lines(derived: TransformReport) -> list[str]:
    counts = f"{derived.done} done, {derived.failed} failed"
    if derived.pending:
        counts += f", {derived.pending} left"
    layers = ", ".join(f"{name} ({width})" for name, width in derived.layers.items())
    this_run = (
        f"{counted(derived.new_done, 'row')} in {duration(derived.seconds)}"
        if derived.new_done
        else f"nothing left to do ({duration(derived.seconds)})"
    )
    lines = [
        f"{printable(derived.out)}: {counted(derived.rows, 'image')}, {counts}",
        f"  layers   {layers}, {derived.dtype}",
        f"  from     {printable(derived.source)}",
        f"  this run {this_run}",
    ]
    if derived.model:
        lines.append(f"  model    {printable(derived.model)}")
        lines += [f"           {note}" for note in derived.notes]
    if derived.clamped:
        lines.append(
            f"  clamped  {counted(derived.clamped, 'value')} beyond {derived.dtype}'s range"
        )
    return lines
