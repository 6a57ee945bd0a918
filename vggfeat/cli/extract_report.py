"""The summary of an extraction as lines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vggfeat.cli.terminal import shape_text
from vggfeat.core.records import PLAN_ONLY
from vggfeat.core.text import counted, duration
from vggfeat.images.skipped import hidden_text

if TYPE_CHECKING:
    from vggfeat.core.records import Summary

_FAILURES_SHOWN = 10


def summary_lines(summary: Summary, *, verbose: bool) -> list[str]:
    """Return the lines of a summary."""
    layers = ", ".join(f"{spec} ({shape_text(shape)})" for spec, shape in summary.layers.items())
    share = f", share {summary.share}" if summary.share else ""
    counts = f"{summary.done} done, {summary.failed} failed"
    if summary.removed:
        counts += f", {summary.removed} removed"
    if summary.pending:
        counts += f", {summary.pending} left"
    seen = summary.new_done + summary.new_failed
    nothing = "no image" if summary.pending else "nothing left to do"
    this_run = f"{nothing} ({duration(summary.seconds)})"
    if seen:
        this_run = (
            f"{counted(seen, 'image')} in {duration(summary.seconds)} on {summary.device}, "
            f"{summary.images_per_second:.1f} images/s once under way"
        )
    split = 0 < summary.pass_images < summary.batch_size
    passes = f" in passes of {summary.pass_images}, as memory lacks for {summary.batch_size}"
    lines = [
        f"{summary.out}{share}: {counted(summary.rows, 'image')}, {counts}",
        f"  layers   {layers}, {summary.dtype}",
        f"  network  {summary.model}, weights {summary.weights}, computed in {summary.precision}"
        + passes * split,
        f"  this run {this_run}",
    ]
    if summary.added or summary.changed or summary.gone or summary.retried:
        lines.append(
            f"  update   {summary.added} new, {summary.changed} changed, {summary.gone} gone, "
            f"{summary.retried} tried again"
        )
    hidden = hidden_text(summary.skipped)
    if hidden:
        lines.append(f"  hidden   {hidden}; name them as sources to take them")
    if summary.stopped:
        lines.append(_stopped_line(summary))
    if verbose:
        lines += _where_time_went(summary)
    if summary.clamped:
        lines.append(
            f"  clamped  {counted(summary.clamped, 'value')} beyond {summary.dtype}'s range; "
            "--dtype float32 keeps them"
        )
    lines += _failure_lines(summary)
    if summary.warning:
        lines.append(f"  WARNING  {summary.warning}")
    return lines


def _stopped_line(summary: Summary) -> str:
    if summary.stopped == PLAN_ONLY:
        return "  PLANNED  the same command without --plan-only extracts the images"
    return f"  UNFINISHED ({summary.stopped}); the same command again resumes it"


def _where_time_went(summary: Summary) -> list[str]:
    stages = summary.stages
    seconds = {
        "listing": stages.discover,
        "preparing": stages.prepare,
        "waiting for decoding": stages.wait,
        "copying pixels": stages.collate,
        "network": stages.network,
        "writing": stages.write,
    }
    spent = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    decoding = f"decoding {stages.decode:.2f} s in {counted(summary.workers, 'worker')}"
    batches = f"batches of {summary.batch_size}, {summary.redone} computed again in float32"
    return [f"  time     {spent}", f"           {decoding}, {batches}"]


def _failure_lines(summary: Summary) -> list[str]:
    lines = [
        f"  failed   {failure.path}: {failure.reason}"
        for failure in summary.failures[:_FAILURES_SHOWN]
    ]
    more = summary.new_failed - len(lines)
    if more > 0:
        command = f"vggfeat inspect {os.fspath(summary.out)}"
        lines.append(f"           and {more} more; `{command}` lists all")
    return lines
