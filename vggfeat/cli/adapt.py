"""`vggfeat adapt`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Config, Json, Quiet, Root, given, one_layer, settings_options
from vggfeat.cli.terminal import ROWS_KEPT, Bar, exit_codes, set_up_logging, show, table
from vggfeat.core.option import RESUMING
from vggfeat.core.settings import Settings
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
EXAMPLES = (
    "vggfeat adapt classes --out adapted.safetensors",
    "vggfeat adapt scans --channels 1 --depth 16 --window 40,400 --out ct.safetensors",
    "vggfeat adapt classes --trainable conv5 --epochs 20 --out adapted.safetensors",
)


@settings_options(
    "trainable", "layers", "epochs", "lr", "weight_decay", "batch_size", "val_share", "test_share",
    "patience", "jitter", "seed", "labels", "groups", "root", "config", "model", "weights",
    "channels", "first_layer",
    "depth", "window", "clip", "clahe", "mean", "std", "transform", "size", "resize", "crop",
    "exif", "icc", "precision", "device", "workers", "max_pixels", "decode_timeout", "max_failures",
    "time_limit", "checkpoint_seconds",
    of=(AdaptSettings, Settings),
    instead={
        "weights": {
            "help": "Initial weights: imagenet, features, a .pth or .safetensors file, or "
            "random[:SEED]."
        },
        "precision": {
            "help": "Type of products in training. auto: bfloat16 if the CUDA device has it, else "
            "float32.",
            "choices": TRAINING_PRECISIONS,
        },
        "device": {"help": "auto, cpu, cuda or cuda:N.", "metavar": "NAME"},
        "max_failures": {
            "help": "End with exit code 4 if more images cannot be decoded.",
            "unset": "any number",
        },
        "time_limit": {
            "help": "Stop cleanly within this time, such as 55m, with exit code 0; the same "
            "command resumes the training."
        },
    },
)  # fmt: skip
def adapt(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders of class folders, archives or @list.txt; the folder that an image lies "
            "in is its class.",
            metavar="SOURCE...",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The weight file to create or resume, for `extract --weights`.",
            metavar="FILE.safetensors",
        ),
    ],
    *,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Last layer of the network, whose features a linear head classifies: "
            "NAME[.pre][:POOL][:NORM]. [default: the last convolution, averaged]",
            metavar="SPEC",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes of the images: a CSV file of path,label. [default: the folder that an "
            "image lies in]",
            metavar="FILE.csv",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Groups of the images, such as patients or scanners, each of which stays on one "
            "side of the split: a CSV file of path,group. [default: each image by itself]",
            metavar="FILE.csv",
        ),
    ] = None,
    root: Root = None,
    config: Config = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Resume a training that exists, or begin again.",
            rich_help_panel=RESUMING,
        ),
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Fine-tune layers on images of known classes.

    The images may be of another kind than photos. A share of each class is held out to choose
    probe and epoch by, and another for the test. The report shows the accuracy of a linear probe
    of the untouched network, and that after training, both on the test images. If the command is
    killed at any instant, the same command resumes it, to the same weights. The weight file
    records model, channels and preprocessing.
    """
    with exit_codes(ROWS_KEPT):
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.core.resources import keep_freed_memory

        values = given({**flags, "layers": one_layer(layers, "adapt ends the network at")})
        training = {name: values.pop(name) for name in TRAINING if name in values}
        settings = AdaptSettings(network_settings(config, values), **training)
        if settings.network.workers != 0:
            keep_freed_memory()
        from vggfeat.finetuning.adapt import adapt as adapt_network

        found: FinetuneReport | None = None
        try:
            with Bar(quiet=quiet or as_json) as bar:
                found = adapt_network(
                    sources, out, settings, labels=labels, groups=groups, root=root,
                    fresh=not resume, on_progress=bar.update,
                )  # fmt: skip
        except InterruptedRunError as error:
            found = error.summary
            raise
        finally:
            if found is not None:
                show(found, _lines, as_json=as_json, quiet=quiet)


def _lines(found: FinetuneReport) -> list[str]:
    trained = ", ".join(found.trained)
    parts = f"{sum(found.held_out)} for validation, {sum(found.test)} for the test"
    lines = [
        f"{found.out}: {counted(len(found.classes), 'class')}, trained {trained}",
        f"  images   {found.train_images} for training, {parts}, {found.failed} failed",
        f"  network  {found.model} up to {found.layer}, channels {found.channels}, began with "
        + found.weights,
    ]
    if found.after is not None:
        lines.append(f"  epochs   {len(found.epochs)}, of which {found.best_epoch} is written")
    if found.before is not None:
        lines += _accuracy_lines(found)
    if found.after is not None:
        lines += _class_lines(found)
    if found.stopped:
        earlier = "; the output of the earlier run is as it was" * os.path.lexists(found.out)
        lines.append(f"  UNFINISHED ({found.stopped}); the same command again resumes it{earlier}")
    said = (found.warning, *found.warnings)
    return [*lines, *(f"  WARNING  {warning}" for warning in said if warning)]


def _accuracy_lines(found: FinetuneReport) -> list[str]:
    """Return accuracy before and after, with intervals where they are known."""
    if found.before is None:
        return []
    before = f"{found.before.accuracy:.3f}{_interval(found.before_interval)}"
    after = "not yet known"
    if found.after is not None:
        after = f"{found.after.accuracy:.3f}{_interval(found.after_interval)}"
    of = "on the test images" if found.measured_on == "test" else "on the validation images"
    lines = [f"  accuracy {before} before, {after} after, chance {found.chance:.3f}, {of}"]
    if found.after is not None and found.gain_interval is not None:
        gain = found.after.accuracy - found.before.accuracy
        low, high = found.gain_interval
        of = f", by {counted(found.groups, 'group')}" if found.groups else ""
        lines.append(
            f"  gain     {gain:+.3f} ({low:+.3f} to {high:+.3f}){of}; intervals are of 95 %"
        )
    return lines


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _class_lines(found: FinetuneReport) -> list[str]:
    """Return a table of the classes with the lowest accuracy, lowest first."""
    if found.before is None or found.after is None:
        return []
    rows = sorted(
        zip(
            found.after.class_accuracy,
            found.classes,
            found.before.class_accuracy,
            found.test if found.measured_on == "test" else found.held_out,
            strict=True,
        )
    )
    cells = [
        [printable(name), str(images), f"{before:.3f}", f"{after:.3f}"]
        for after, name, before, images in rows[:_CLASSES_SHOWN]
    ]
    lines = table([["class", f"{found.measured_on} images", "before", "after"], *cells], "lrrr")
    more = len(rows) - len(cells)
    return [f"  {line}" for line in lines] + [f"  and {more} more; --json has all"] * (more > 0)
