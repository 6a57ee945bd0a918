"""`vggfeat inspect`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.console import exit_codes, print_json, printable, shape_text, table
from vggfeat.units import byte_count

if TYPE_CHECKING:
    from vggfeat.summary import CacheSummary, LayerSummary

_FAILURES_SHOWN = 20


def inspect(
    cache: Annotated[str, typer.Argument(help="A cache.", metavar="FILE.h5")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="Name every failed image, not only the first 20.")
    ] = False,
) -> None:
    """Show what a cache holds: rows by state, layers and their values, how it was made, failures.

    Works while a run is filling the cache, and reads no more than a sample of it.
    """
    with exit_codes():
        # NumPy's linear algebra is not used here, and starting its threads is a fifth of the time.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from vggfeat.reader import FeatureCache
        from vggfeat.summary import summarise

        summary = summarise(FeatureCache(cache))
        if as_json:
            print_json(summary)
            return
        for line in _lines(summary, all_failures=failures):
            typer.echo(line)


def _lines(summary: CacheSummary, *, all_failures: bool) -> list[str]:
    states = ", ".join(f"{count} {name}" for name, count in summary.states.items() if count)
    sizes = f"{byte_count(summary.size)}, {byte_count(summary.on_disk)} on disk"
    made = f"made {summary.created_utc} by vggfeat {summary.tool_version}"
    lines = [
        f"{printable(summary.path)}: {summary.rows} images: {states}",
        f"  {sizes}; {made} from {printable(summary.root)}",
    ]
    if summary.warning:
        lines.append(f"  WARNING: {summary.warning}")
    lines += ["", *_layer_lines(summary.layers), "", *_making_lines(summary)]
    return lines + _failure_lines(summary, show_all=all_failures)


def _layer_lines(layers: tuple[LayerSummary, ...]) -> list[str]:
    head = ("layer", "shape", "dtype", "size", "min", "max", "mean", "std", "zeros")
    rows = [head, *(_layer_row(layer) for layer in layers)]
    lines = [f"  {line}" for line in table(rows, "lrlrrrrrr")]
    lines += [
        f"  {layer.spec}: {layer.saturated} values stand at the limit of {layer.dtype}, clamped"
        for layer in layers
        if layer.saturated
    ]
    sampled = min(layer.sampled for layer in layers)
    return [*lines, f"  (values of {sampled} rows)"]


def _layer_row(layer: LayerSummary) -> tuple[str, ...]:
    known = (layer.minimum, layer.maximum, layer.mean, layer.std)
    values = ["-" if value is None else f"{value:.4g}" for value in known]
    zeros = "-" if layer.zeros is None else f"{layer.zeros:.0%}"
    return (
        layer.spec,
        shape_text(layer.shape),
        layer.dtype,
        byte_count(layer.size),
        *values,
        zeros,
    )


def _making_lines(summary: CacheSummary) -> list[str]:
    preprocess = ", ".join(f"{name} {_plain(value)}" for name, value in summary.preprocess.items())
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    return [
        f"  model       {summary.model}, computed in {summary.precision}",
        f"  weights     {summary.weights} (sha256 {summary.weights_sha256[:16]})",
        f"  preprocess  {preprocess}",
        f"  versions    {versions}",
        f"  fingerprint {summary.fingerprint[:16]}",
    ]


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return "/".join(f"{number:.5g}" for number in value)
    return "-" if value is None else str(value)


def _failure_lines(summary: CacheSummary, *, show_all: bool) -> list[str]:
    if not summary.failures:
        return []
    shown = summary.failures if show_all else summary.failures[:_FAILURES_SHOWN]
    lines = ["", "  failed images"]
    lines += [f"    {printable(item.path)}: {printable(item.reason)}" for item in shown]
    if len(shown) < len(summary.failures):
        lines.append(f"    and {len(summary.failures) - len(shown)} more: --failures")
    return lines
