"""`vggfeat trace`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.terminal import exit_codes, output_width, print_json, shape_text, table
from vggfeat.core.choices import choose
from vggfeat.core.preprocessing import CROPS
from vggfeat.core.text import byte_count, counted, printable

if TYPE_CHECKING:
    from vggfeat.extraction.trace import Stage, Trace

_DOES_NOT_FIT = 3
_LEAST_WIDTH = 40


def trace(
    photo: Annotated[
        str | None,
        typer.Argument(
            help="An image; without one it begins with the network's input.",
            metavar="PHOTO",
            show_default=False,
        ),
    ] = None,
    *,
    size: Annotated[
        str | None,
        typer.Option(
            help="Side of the network's input in pixels; without a photo also HxW, such as "
            "160x240.  [default: 224]",
            metavar="PX",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="vgg11, 13, 16 or 19, each also with _bn.  [default: the weights', or vgg19]",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Also whether these fit: a .pth or .safetensors file, imagenet, features or "
            "random.",
            metavar="NAME|FILE",
            show_default=False,
        ),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            help="How the photo is brought to that size, as of extract: center, none, pad or "
            "squash.  [default: center]",
            metavar="HOW",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.", metavar="N")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="The stages as JSON.")] = False,
) -> None:
    """Show the shape, stride and memory of every stage from file to fc8, and why it does not fit.

    Says where it first goes wrong and what to change. Nothing is computed. Ends with exit 3 if
    the photo, its size or the weights do not fit.
    """
    with exit_codes():
        from vggfeat.extraction.trace import trace as follow

        found = follow(
            photo, size=size, model=model, weights=weights,
            crop=None if crop is None else choose("crop", CROPS, crop),
            batch=batch,
        )  # fmt: skip
        if as_json:
            print_json(found)
        else:
            typer.echo("\n".join(_lines(found, photo)))
        if not found.fits:
            raise typer.Exit(_DOES_NOT_FIT)


def _lines(found: Trace, photo: str | None) -> list[str]:
    of = f" on {printable(photo)}" if photo else ""
    lines = [f"{found.model}{of}", *(f"  {line}" for line in _stage_lines(found)), ""]
    if found.params:
        memory = (
            f"{byte_count(4 * found.params)} in float32, {byte_count(2 * found.params)} in half"
        )
        lines += _wrapped("parameters", f"{found.params:,}: {memory}")
        peak = f"{byte_count(found.peak_bytes)} in float32: what goes into {found.peak_stage} and "
        images = "image" if found.batch == 1 else "images"
        lines += _wrapped("at most", f"{peak}comes out of it, {found.batch} {images}")
    lines += [line for note in found.notes for line in _wrapped("note", note)]
    for problem in found.problems:
        lines += _wrapped("WRONG", f"{problem.stage}: {printable(problem.found)}")
        lines += _wrapped("change", printable(problem.remedy))
    if found.fits:
        lines += _wrapped("fits", f"weights {found.weights} fit" if found.weights else _UNSEEN)
    return lines


_UNSEEN = "the shapes do; --weights FILE says whether weights do"


def _wrapped(label: str, text: str) -> list[str]:
    width = max(_LEAST_WIDTH, output_width() - 1)
    return textwrap.wrap(
        text, width, initial_indent=f"  {label:<11}", subsequent_indent=" " * 13,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _stage_lines(found: Trace) -> list[str]:
    several = found.batch > 1
    head = ["stage", "by", "output", "stride", "params", "an image"]
    head += [f"{counted(found.batch, 'image')}", "in half"] if several else ["in half"]
    rows = [head, *(_cells(stage, several=several) for stage in found.stages)]
    lines = table(rows, "lllrr" + "r" * (len(head) - 5))
    marks = [False, *(stage.wrong for stage in found.stages)]
    return [
        f"{line}  <- WRONG" if wrong else line for line, wrong in zip(lines, marks, strict=True)
    ]


def _cells(stage: Stage, *, several: bool) -> list[str]:
    batch = [byte_count(stage.batch_bytes)] if several and stage.batch_bytes else []
    batch = batch or ["-"] * several
    return [
        stage.name,
        stage.by,
        shape_text(stage.shape),
        str(stage.stride) if stage.stride else "-",
        f"{stage.params:,}" if stage.params else "-",
        byte_count(stage.image_bytes) if stage.image_bytes else "-",
        *batch,
        byte_count(stage.half_bytes) if stage.half_bytes else "-",
    ]
