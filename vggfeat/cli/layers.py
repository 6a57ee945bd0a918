"""`vggfeat layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.cli.options import Json, given, settings_options
from vggfeat.cli.terminal import exit_codes, fitting_table, print_json, say, shape_text
from vggfeat.config import make_settings
from vggfeat.core.vgg_layers import layer_table

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class _Row:
    """A layer of the table."""

    name: str
    index: str
    shape: tuple[int, ...]
    channels: int
    params: int
    stride: int
    receptive_field: int
    cost: float
    carries: str


@settings_options("model", "size", instead={"size": {"unset": "224"}})
def layers(
    *,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """List the layers that can be extracted.

    `cost` is the share of the network's multiply-adds that are computed if this is the deepest
    layer. Write NAME[.pre][:POOL][:NORM] to choose what is stored of one: .pre is before its ReLU;
    pools of a map are avg (the default), max, gem, rmac, regions, spp, std (standard deviation of
    each channel), flatten and map (all positions); norms are none, l2 and ssr.
    """
    with exit_codes():
        settings = make_settings(None, {**given(flags), "layers": "pool5"})
        model, size = settings.model, settings.preprocess().size
        rows = list(_rows(model, size))
        if as_json:
            print_json({"model": model, "size": size, "layers": rows})
            return
        say(f"{model} at {size} x {size}", *_lines(rows))


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


def _lines(rows: list[_Row]) -> list[str]:
    head = (
        "layer", "torchvision", "output", "channels", "params", "stride", "sees", "cost", "carries",
    )  # fmt: skip
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
    first = ("channels", "stride", "params", "torchvision", "sees")
    return fitting_table([head, *cells], "llrrrrrrl", first, indent=0)
