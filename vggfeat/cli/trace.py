"""`vggfeat trace`."""

from __future__ import annotations

import functools
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Json, settings_options
from vggfeat.cli.terminal import exit_codes, fitting_table, output_width, shape_text, show
from vggfeat.core.text import byte_count, counted, printable

if TYPE_CHECKING:
    from vggfeat.extraction.trace import Stage, Trace

_DOES_NOT_FIT = 3
_LEAST_WIDTH = 40


@settings_options(
    "size", "model", "weights", "crop",
    instead={
        "size": {
            "help": "Side of the network's input in pixels; without a photo also HxW, such as "
            "160x240.",
            "kind": str,
            "unset": "224",
        },
        "model": {"default": None, "unset": "the weights', or vgg19"},
        "weights": {
            "help": "Also check whether these weights fit: a .pth or .safetensors file, imagenet, "
            "features or random.",
            "default": None,
        },
        "crop": {"help": "How the photo becomes a square of that size."},
    },
)  # fmt: skip
def trace(
    photo: Annotated[
        str | None,
        typer.Argument(
            help="An image file. [default: begin with the network's input]", metavar="PHOTO"
        ),
    ] = None,
    *,
    batch: Annotated[int, typer.Option(help="Batch size.", metavar="N")] = 1,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Show shape and memory of every stage of a network.

    The stages go from the file to fc8; none is computed. If the photo, its size or the weights
    do not fit the network, show the first stage that goes wrong and what to change, and end
    with exit code 3.
    """
    with exit_codes():
        from vggfeat.extraction.trace import trace as follow

        found = follow(photo, **flags, batch=batch)
        show(found, functools.partial(_lines, photo=photo), as_json=as_json)
        if not found.fits:
            raise typer.Exit(_DOES_NOT_FIT)


def _lines(found: Trace, photo: str | None) -> list[str]:
    of = f" on {printable(photo)}" if photo else ""
    lines = [f"{found.model}{of}", *_stage_lines(found), ""]
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
    last = ("in half", "an image", "stride", "by") if several else ("in half", "stride", "by")
    lines = fitting_table(rows, "lllrr" + "r" * (len(head) - 5), last)
    marks = [False, *(stage.wrong for stage in found.stages)]
    return [
        f"{line}  <- WRONG" if wrong else line for line, wrong in zip(lines, marks, strict=True)
    ]


def _cells(stage: Stage, *, several: bool) -> list[str]:
    sizes = [stage.image_bytes, *([stage.batch_bytes] if several else []), stage.half_bytes]
    return [
        stage.name,
        stage.by,
        shape_text(stage.shape),
        str(stage.stride or "-"),
        f"{stage.params:,}" if stage.params else "-",
        *(byte_count(size) if size else "-" for size in sizes),
    ]
