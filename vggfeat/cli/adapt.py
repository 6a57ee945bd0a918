"""`vggfeat adapt`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import given, settings_options
from vggfeat.cli.terminal import Bar, Quiet, exit_codes, print_json, set_up_logging, table
from vggfeat.core.settings import Settings
from vggfeat.core.signals import how_to_resume
from vggfeat.core.text import counted, printable
from vggfeat.errors import InterruptedRunError
from vggfeat.finetuning.settings import (
    TRAINING,
    TRAINING_PRECISIONS,
    AdaptSettings,
    network_settings,
)

if TYPE_CHECKING:
    from vggfeat.finetuning.report import FinetuneReport

_CLASSES_SHOWN = 20


@settings_options(
    "trainable", "layer", "epochs", "lr", "weight_decay", "batch_size", "val_share", "patience",
    "jitter", "seed", "labels", "root", "config", "model", "weights", "channels", "first_layer",
    "depth", "window", "clip", "clahe", "mean", "std", "transform", "size", "resize", "crop",
    "exif", "precision", "device", "workers", "max_pixels", "decode_timeout", "max_failures",
    "time_limit", "checkpoint_seconds",
    of=(AdaptSettings, Settings),
    instead={
        "weights": {
            "help": "To begin with: imagenet, features, a .pth or .safetensors file, or "
            "random[:SEED]."
        },
        "precision": {
            "help": "Type of products in training. auto: bfloat16 on CUDA that has it, else "
            "float32.",
            "choices": TRAINING_PRECISIONS,
        },
        "device": {"help": "auto, cpu, cuda, cuda:N or mps.", "metavar": "NAME"},
        "max_failures": {
            "help": "More images that cannot be decoded than that end in exit 4.",
            "unset": "any number",
        },
        "time_limit": {
            "help": "Stop cleanly within this time, such as 55m, with exit 0; the same command "
            "goes on."
        },
    },
)  # fmt: skip
def adapt(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders of class folders, archives, @list.txt: the folder that an image lies in "
            "is its class.",
            metavar="SOURCE...",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The weights to create or resume; `extract --weights` takes them.",
            metavar="FILE.safetensors",
        ),
    ],
    *,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Where the network ends and a linear head tells the classes apart: "
            "NAME[.pre][:POOL][:NORM]. [default: the last convolution, averaged]",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Lines of path,label instead of folders; paths are relative to the source.",
            metavar="FILE.csv",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            help="Directory that these paths are relative to. [default: the source folder, or "
            "what all sources have in common]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="A TOML file as of extract; flags override what it says.",
            metavar="FILE.toml",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on with what is there, or begin again."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Train parts of a network on images of known classes, for images unlike photographs.

    A share of each class is held out; the report says how many of these are recognised by a linear
    probe of the untouched network, and afterwards. Killed at any instant, the same command goes
    on, to the same weights. They say themselves which model, channels and preprocessing they want.
    """
    with exit_codes():
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.core.resources import keep_freed_memory

        values = given({**flags, "layers": layer})
        training = {name: values.pop(name) for name in TRAINING if name in values}
        settings = AdaptSettings(network_settings(config, values), **training)
        if settings.network.workers != 0:
            keep_freed_memory()
        _run(
            sources, out, settings, labels=labels, root=root, fresh=not resume,
            quiet=quiet, as_json=as_json,
        )  # fmt: skip


def _run(
    sources: list[str],
    out: str,
    settings: AdaptSettings,
    *,
    labels: str | None,
    root: str | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from vggfeat.finetuning.adapt import adapt as adapt_network

    bar = Bar(quiet=quiet or as_json)
    found: FinetuneReport | None = None
    try:
        found = adapt_network(
            sources, out, settings, labels=labels, root=root, fresh=fresh, on_progress=bar.update
        )
    except InterruptedRunError as error:
        found = error.summary
        raise
    finally:
        bar.close()
        _show(found, fresh=fresh, quiet=quiet, as_json=as_json)


def _show(found: FinetuneReport | None, *, fresh: bool, quiet: bool, as_json: bool) -> None:
    if found is None:
        return
    if as_json:
        print_json(found)
    elif not quiet:
        typer.echo("\n".join(_lines(found, fresh=fresh)))


def _lines(found: FinetuneReport, *, fresh: bool) -> list[str]:
    held_out, trained = sum(found.held_out), ", ".join(found.trained)
    lines = [
        f"{printable(found.out)}: {counted(len(found.classes), 'class')}, trained {trained}",
        f"  images   {found.train_images} for training, {held_out} held out, {found.failed} failed",
        f"  network  {found.model} up to {found.layer}, channels {found.channels}, began with "
        + found.weights,
    ]
    if found.after is not None:
        lines.append(f"  epochs   {len(found.epochs)}, of which {found.best_epoch} is written")
    if found.before is not None:
        after = f"{found.after.accuracy:.3f}" if found.after else "not yet known"
        lines.append(
            f"  accuracy {found.before.accuracy:.3f} before, {after} after (chance "
            f"{found.chance:.3f}), on the images held out"
        )
    if found.after is not None:
        lines += _class_lines(found)
    if found.stopped:
        kept = os.path.lexists(found.out)
        again = (
            how_to_resume(fresh=fresh, kept=kept) if fresh else "the same command again resumes it"
        )
        lines.append(f"  UNFINISHED ({found.stopped}); {again}")
    if found.warning:
        lines.append(f"  WARNING  {found.warning}")
    return lines


def _class_lines(found: FinetuneReport) -> list[str]:
    """A line a class, those recognised least first, as far as they are shown."""
    if found.before is None or found.after is None:
        return []
    rows = sorted(
        zip(
            found.after.class_accuracy,
            found.classes,
            found.before.class_accuracy,
            found.held_out,
            strict=True,
        )
    )
    cells = [
        [printable(name), str(images), f"{before:.3f}", f"{after:.3f}"]
        for after, name, before, images in rows[:_CLASSES_SHOWN]
    ]
    lines = table([["class", "held out", "before", "after"], *cells], "lrrr")
    more = len(rows) - len(cells)
    return [f"  {line}" for line in lines] + [f"  and {more} more; --json has all"] * (more > 0)
