"""`vggfeat inspect`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import Cache, Json
from vggfeat.cli.terminal import (
    exit_codes,
    fitting_table,
    folded,
    painted,
    painted_state,
    print_json,
    say,
    shape_text,
)
from vggfeat.core.records import as_plain
from vggfeat.core.text import agree, byte_count, counted, first_few, printable
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.cache.rows import MatchingRow
    from vggfeat.cache.summary import CacheSummary, LayerSummary
    from vggfeat.retrieval.exact_search import NearestImages
    from vggfeat.retrieval.quantization_loss import LayerLoss

_FAILURES_SHOWN = 20
_FIRST_TO_GO = ("std", "size", "zeros", "min", "mean", "max")


def inspect(
    cache: Cache,
    *,
    as_json: Json = False,
    loss: Annotated[
        bool,
        typer.Option(
            "--loss",
            help="Also show what each narrower dtype would cost: cosines and changed neighbours of "
            "up to 1000 rows.",
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="With --loss: show what the dtype of this cache has cost, against a cache of the "
            "same images in a wider dtype.",
            metavar="FILE.h5",
        ),
    ] = None,
    failures: Annotated[
        bool, typer.Option("--failures", help="List all failed images, not only the first 20.")
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Show instead the rows whose path matches a pattern such as 'cats/*'.",
            metavar="PATTERN",
        ),
    ] = None,
    most: Annotated[int, typer.Option(help="With --rows: show at most N.", metavar="N")] = 50,
    near: Annotated[
        str | None,
        typer.Option(
            "--nearest",
            help="Show instead the ten images nearest to this one of the cache, by cosine in each "
            "layer of vectors.",
            metavar="PATH",
        ),
    ] = None,
) -> None:
    """Show what a cache holds and how it was made.

    Show rows by state, layers and their values, settings, and failed images. Works while a run
    is writing to the cache, and reads the values of a sample of rows only. A narrow terminal
    shows fewer columns; --json has everything.
    """
    with exit_codes():
        # NumPy's linear algebra is not used here, and starting its threads is a fifth of the time.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from vggfeat.cache.sharded import open_cache
        from vggfeat.cache.summary import summarise

        opened = open_cache(cache)
        if rows is not None or near is not None:
            _find(opened, rows, most, near, as_json=as_json)
            return
        summary = summarise(opened)
        losses = _losses(opened, against, wanted=loss)
        if as_json:
            print_json({**as_plain(summary), "loss": losses})
        else:
            lines = _lines(summary, all_failures=failures)
            say(*lines, *_loss_lines(losses))


def _find(
    cache: FeatureCache, pattern: str | None, most: int, near: str | None, *, as_json: bool
) -> None:
    from vggfeat.cache.rows import matching, matching_rows
    from vggfeat.retrieval.exact_search import nearest_images

    if most < 1:
        raise UsageError(f"most is {most}; expected 1 row or more")
    numbers = matching(cache, pattern) if pattern is not None else None
    found = nearest_images(cache, near) if near is not None else ()
    if as_json:
        everything = matching_rows(cache, numbers) if numbers is not None else ()
        print_json({"path": cache.path, "matching": everything, "nearest": found})
        return
    lines = []
    if pattern is not None and numbers is not None:
        lines = _row_lines(matching_rows(cache, numbers[:most]), pattern, len(numbers))
    say(*lines, *_nearest_lines(found)[pattern is None :])


def _losses(cache: FeatureCache, against: str | None, *, wanted: bool) -> tuple[LayerLoss, ...]:
    from vggfeat.cache.sharded import open_cache

    if not wanted:
        if against is not None:
            raise UsageError("--against says what --loss compares with; give both")
        return ()
    from vggfeat.retrieval.quantization_loss import measure_loss

    return measure_loss(cache, against=open_cache(against) if against is not None else None)


def _loss_lines(losses: tuple[LayerLoss, ...]) -> list[str]:
    if not losses:
        return []
    head = ("layer", "dtype", "bytes a row", "cosine least", "median", "nearest changed",
            "ten nearest kept")  # fmt: skip
    rows = [
        (
            one.layer,
            one.dtype,
            str(one.row_bytes),
            f"{one.cosine_least:.7f}",
            f"{one.cosine_median:.7f}",
            f"{one.nearest_changed:.1%}",
            f"{one.nearest_kept:.1%}",
        )
        for one in losses
    ]
    first = losses[0]
    return [
        "",
        f"  cost against {first.reference}, {counted(first.rows, 'row')}, each as a query",
        *fitting_table([head, *rows], "llrrrrr", ("bytes a row", "median", "ten nearest kept")),
    ]


def _lines(summary: CacheSummary, *, all_failures: bool) -> list[str]:
    states = ", ".join(
        painted_state(f"{count} {name}", name) for name, count in summary.states.items() if count
    )
    sizes = f"{byte_count(summary.size)}, {byte_count(summary.on_disk)} on disk"
    made = f"made {summary.created_utc} by vggfeat {summary.tool_version}"
    lines = [
        f"{summary.path}: {counted(summary.rows, 'image')}: {states}",
        *folded(f"  {sizes}; {made} from {printable(summary.root)}", 4),
    ]
    if summary.warning:
        warning = folded(f"  WARNING: {summary.warning}", 4)
        lines += [painted(line, "yellow", bold=True) for line in warning]
    lines += _shard_lines(summary)
    lines += ["", *_layer_lines(summary.layers), "", *_making_lines(summary)]
    return lines + _failure_lines(summary, show_all=all_failures)


def _shard_lines(summary: CacheSummary) -> list[str]:
    if not summary.shards:
        return []
    missing = [shard.name for shard in summary.shards if not shard.there]
    pending = sum(shard.there and shard.pending > 0 for shard in summary.shards)
    lines = [f"  {counted(len(summary.shards), 'shard')}, {pending} of them with images left to do"]
    if missing:
        what = f"{counted(len(missing), 'shard')} {agree(len(missing), 'is')} missing"
        lines.append(painted(f"  {what}: {first_few(missing)}", "yellow"))
    return lines


def _layer_lines(layers: tuple[LayerSummary, ...]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("layer", "shape", "dtype", "size", "min", "max", "mean", "std", "zeros")
    ]
    for layer in layers:
        known = (layer.minimum, layer.maximum, layer.mean, layer.std)
        values = ["-" if value is None else f"{value:.4g}" for value in known]
        zeros = "-" if layer.zeros is None else f"{layer.zeros:.0%}"
        size = byte_count(layer.size)
        rows.append((layer.spec, shape_text(layer.shape), layer.dtype, size, *values, zeros))
    lines = fitting_table(rows, "lrlrrrrrr", _FIRST_TO_GO)
    for layer in layers:
        if layer.saturated:
            count = f"{counted(layer.saturated, 'value')} {agree(layer.saturated, 'is')}"
            line = f"  {layer.spec}: {count} clamped to the limit of {layer.dtype}"
            lines.append(painted(line, "yellow"))
    sampled = min(layer.sampled for layer in layers)
    return [*lines, f"  (values of {counted(sampled, 'row')})"]


def _making_lines(summary: CacheSummary) -> list[str]:
    preprocess = ", ".join(f"{name} {_plain(value)}" for name, value in summary.preprocess.items())
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    made_by = [f"  made by     {_step_text(step)}" for step in summary.steps]
    lines = [
        *made_by,
        f"  model       {summary.model}, computed in {summary.precision}{_passes_text(summary)}",
        f"  weights     {summary.weights} (sha256 {summary.weights_sha256[:16]})",
        f"  preprocess  {preprocess}",
        f"  versions    {versions}",
        f"  fingerprint {summary.fingerprint[:16]}",
    ]
    return [part for line in lines for part in folded(line, 14)]


def _passes_text(summary: CacheSummary) -> str:
    """Tell of the passes of a cache where they are smaller than its batches; else ''."""
    batch = summary.config.get("batch_size", 0)
    images = summary.config.get("pass_images", batch)
    if images == batch:
        return ""
    return f" in passes of {images}, as memory lacked for batches of {batch}"


def _step_text(step: Mapping[str, Any]) -> str:
    """Describe a step of a derived cache: the transform, its settings, and the file it read."""
    shown = {name: value for name, value in step.items() if value not in ("", [], None, False)}
    read = shown.pop("read", {})
    model, source = shown.pop("model_sha256", ""), shown.pop("source", "")
    words = [str(shown.pop("step"))]
    first = [name for name in ("method", "layers", "outputs") if name in shown]
    for name in dict.fromkeys([*first, *shown]):
        value = shown[name]
        text = " + ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"{name} {text}")
    if model:
        words.append(f"model {model[:16]}")
    if source:
        words.append(f"from {printable(read.get('path', 'a cache'))} ({source[:16]})")
    return ", ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        words = [item if isinstance(item, str) else f"{item:.5g}" for item in value]
        return "/".join(words) or "-"
    return "-" if value is None else str(value)


def _failure_lines(summary: CacheSummary, *, show_all: bool) -> list[str]:
    if not summary.failures:
        return []
    shown = summary.failures if show_all else summary.failures[:_FAILURES_SHOWN]
    lines = ["", painted("  failed images", "red")]
    for item in shown:
        lines += folded(f"    {printable(item.path)}: {printable(item.reason)}", 8)
    if len(shown) < len(summary.failures):
        lines.append(f"    and {len(summary.failures) - len(shown)} more: --failures")
    return lines


def _row_lines(rows: Sequence[MatchingRow], pattern: str, matches: int) -> list[str]:
    """Return a table of rows, and the number of rows that are not shown."""
    head = ("row", "path", "state", "reason")
    cells = [(str(one.row), printable(one.path), one.state, printable(one.reason)) for one in rows]
    lines = fitting_table([head, *cells], "rlll", ("reason",))
    at = lines[0].index("state")
    coloured = [
        line[:at]
        + painted_state(line[at : at + len(one.state)], one.state)
        + line[at + len(one.state) :]
        for line, one in zip(lines[1:], rows, strict=True)
    ]
    more = matches - len(rows)
    rest = [f"  and {more} more: --most {matches}"] if more else []
    return [
        f"{counted(matches, 'image')} {agree(matches, 'matches')} {pattern}",
        lines[0],
        *coloured,
        *rest,
    ]


def _nearest_lines(found: Sequence[NearestImages]) -> list[str]:
    """Return a table for each layer."""
    lines = []
    for one in found:
        head = ("cosine", "row", "path")
        cells = [
            (f"{near.cosine:.4f}", str(near.row), printable(near.path)) for near in one.neighbours
        ]
        lines += ["", f"nearest to {one.path} by {one.layer}"]
        lines += fitting_table([head, *cells], "rrl", ("row",))
    return lines
