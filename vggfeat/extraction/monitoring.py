"""Files by which a run is monitored: failed images as CSV, metrics for Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vggfeat.cache.sharded import open_cache
from vggfeat.core.csv_text import csv_text, path_cell, text_cell
from vggfeat.errors import SpaceError, UsageError
from vggfeat.storage.atomic import write_bytes
from vggfeat.storage.paths import check_place, refuse_standard_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.core.records import Progress, Summary


def output_format(path: str, what: str, known: Sequence[str]) -> str:
    """Return the format, one of `known`, that the name of an output ends in, before any work."""
    refuse_standard_output(path, what)
    ending = os.path.splitext(path)[1].lower().removeprefix(".")
    if ending not in known:
        raise UsageError(f"{what} {path!r} has no known format; end it in .{' or .'.join(known)}")
    check_place(path, what)
    return ending


def publish(path: str, data: bytes) -> None:
    """Write `data` to `path` by rename, synced: a reader finds the old file or the new one."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise SpaceError(
            error.errno, f"{path!r} cannot be written: {error.strerror}; name another place"
        ) from error


def failures_csv(out: str, share: str = "") -> bytes:
    r"""Return every failed row of a cache, or of one share, as CSV (RFC 4180) in UTF-8.

    The header is `path,reason`. Bytes of a path that are not UTF-8 are escaped as `\xNN`, and no
    cell is a formula to a spreadsheet: see `vggfeat.core.csv_text`.
    """
    cache = open_cache(out, share)
    cells = (
        (path_cell(cache.name(failure.row)), text_cell(failure.reason))
        for failure in cache.failures()
    )
    return csv_text([("path", "reason"), *cells]).encode()


def metrics_text(
    out: str,
    *,
    progress: Progress | None = None,
    summary: Summary | None = None,
    exit_code: int | None = None,
    share: str = "",
) -> bytes:
    """Return metrics of a run in Prometheus' text format, for node_exporter's textfile collector.

    Give the progress of a run under way, or the summary, if any, and the exit code of one that has
    ended. `out` and `share`, if any, are labels of every metric.
    """
    place = out.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines: list[str] = []

    def add(name: str, about: str, values: Mapping[str, float] | float, by: str = "") -> None:
        lines.append(f"# HELP vggfeat_{name} {about}")
        lines.append(f"# TYPE vggfeat_{name} gauge")
        for key, value in (values if isinstance(values, Mapping) else {"": values}).items():
            part = f',{by}="{key}"' if by else ""
            part = f',share="{share}"{part}' if share else part
            lines.append(f'vggfeat_{name}{{out="{place}"{part}}} {value!r}')

    add("run_in_progress", "Whether a run is under way.", int(exit_code is None))
    add("updated_timestamp_seconds", "When this was written.", time.time())
    if exit_code is not None:
        add("last_exit_code", "Exit code of the last run.", exit_code)
    if progress is not None:
        counts = {"done": progress.done, "failed": progress.failed, "asked": progress.total}
        add("run_images", "Images of this run.", counts, by="state")
    if summary is not None:
        counts = {state: getattr(summary, state) for state in _STATES}
        add("images", "Images in the cache.", counts, by="state")
        counts = {"done": summary.new_done, "failed": summary.new_failed}
        add("run_images", "Images of this run.", counts, by="state")
        rate = summary.images_per_second
        add("images_per_second", "Rate of this run once under way.", rate)
        add("run_seconds", "Seconds of the whole run.", summary.seconds)
        seconds = {stage: getattr(summary.stages, stage) for stage in _STAGES}
        add("stage_seconds", "Seconds of the run in each stage.", seconds, by="stage")
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


_STATES = ("done", "failed", "pending", "removed")
_STAGES = ("discover", "prepare", "wait", "network", "write", "decode")
