"""`vggfeat layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.terminal import exit_codes, print_json, shape_text, table
from vggfeat.core.settings import LARGEST_SIZE, SMALLEST_SIZE
from vggfeat.core.vgg_layers import layer_table
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table."""

    name: str
    index: str
    shape: tuple[int, ...]
    channels: int
    params: int
    stride: int
    receptive_field: int
    cost: float
    carries: str


def layers(
    *,
    model: Annotated[
        str, typer.Option("--model", help="vgg11, 13, 16 or 19, each also with _bn.")
    ] = "vgg19",
    size: Annotated[
        int, typer.Option("--size", help="Side of the network's input in pixels.", metavar="PX")
    ] = 224,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """List the layers of a network: what to ask `extract` for, and what it costs.

    `cost` is the share of the whole network's multiply-adds up to and with the layer: asking for
    nothing deeper computes no more than that.
    """
    with exit_codes():
        if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
            raise UsageError(f"size is {size}; expected {SMALLEST_SIZE} to {LARGEST_SIZE} pixels")
        rows = list(_rows(model, size))
        if as_json:
            print_json({"model": model, "size": size, "layers": [_as_dict(row) for row in rows]})
            return
        typer.echo(f"{model} at {size} x {size}")
        for line in _lines(rows):
            typer.echo(line)


def _rows(model: str, size: int) -> Iterator[_Row]:
    table_of_model = layer_table(model)
    total = sum(layer.multiply_adds(size, size) for layer in table_of_model)
    spent = 0
    for layer in table_of_model:
        spent += layer.multiply_adds(size, size)
        grid = layer.grid(size, size) if layer.is_map else ()
        yield _Row(
            name=layer.name,
            index=f"{layer.container}.{layer.index}",
            shape=(layer.channels, *grid),
            channels=layer.channels,
            params=layer.params,
            stride=layer.stride,
            receptive_field=layer.receptive_field,
            cost=spent / total,
            carries=layer.carries,
        )


def _as_dict(row: _Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in _Row.__slots__}


def _lines(rows: list[_Row]) -> list[str]:
    head = (
        "layer",
        "torchvision",
        "output",
        "channels",
        "params",
        "stride",
        "sees",
        "cost",
        "carries",
    )
    cells = [
        (
            row.name,
            "softmax" if row.name == "prob" else row.index,
            shape_text(row.shape),
            str(row.channels),
            f"{row.params:,}",
            str(row.stride) if row.stride else "-",
            f"{row.receptive_field} px" if row.receptive_field else "all",
            f"{row.cost:.1%}",
            row.carries,
        )
        for row in rows
    ]
    return table([head, *cells], "llrrrrrrl")
