"""Fit the first layer to images of any number of channels.

VGG was trained on three. Its first convolution is rebuilt from the pretrained filters, or an
adapter, a convolution of 1 x 1 from C channels to 3, precedes the unchanged network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.core.text import counted
from vggfeat.core.vgg_layers import ADAPTER, ADAPTER_BIAS, COLOURS, VGG, Entry
from vggfeat.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Shapes = Mapping[str, tuple[int, ...]]


def file_channels(shapes: Shapes) -> int | None:
    """Return the channels of a weight file's input; None if it has no first convolution."""
    name = ADAPTER if ADAPTER in shapes else VGG.first_weight
    shape = shapes.get(name, ())
    return shape[1] if len(shape) == 4 else None  # noqa: PLR2004 (out, in, rows, columns)


def adapter_problem(shapes: Shapes) -> str:
    """Return what is wrong with the adapter of a weight file; empty if it is right or missing."""
    weight, bias = shapes.get(ADAPTER), shapes.get(ADAPTER_BIAS)
    if weight is None and bias is None:
        return ""
    found = ["missing" if part is None else str(list(part)) for part in (weight, bias)]
    right = weight is not None and (weight[:1], weight[2:], bias) == (
        (COLOURS,), (1, 1), (COLOURS,),
    )  # fmt: skip
    expected = "expected [3, C, 1, 1] and [3]"
    return "" if right else f"{ADAPTER} is {found[0]}, {ADAPTER_BIAS} {found[1]}; {expected}"


def check_channels(name: str, shapes: Shapes, entry: Entry) -> None:
    """Refuse images that the network of the weights `name` cannot take.

    Filters for three channels can be rebuilt for any number; filters for others, and an adapter,
    take only the channels that they were learnt for.
    """
    problem = adapter_problem(shapes)
    if problem:
        raise WeightsError(f"weights {name}: {problem}")
    found, adapter = file_channels(shapes), ADAPTER in shapes
    if adapter and entry.first_layer == "kaiming":
        raise WeightsError(
            f"weights {name} have an adapter, learnt for the first layer they hold; leave "
            "--first-layer kaiming out, or take other weights"
        )
    learnt_for_these = adapter or (found != COLOURS and entry.first_layer == "sum")
    if found is not None and learnt_for_these and found != entry.channels:
        raise WeightsError(
            f"weights {name} take images of {counted(found, 'channel')}, not {entry.channels}: "
            f"--channels {found}, or weights whose first layer takes {COLOURS}, which is rebuilt "
            "for any number"
        )


def inflate(weight: Tensor, channels: int) -> Tensor:
    """Return filters (o, C, 3, 3) made from filters for colours, (o, 3, 3, 3).

    For one channel, sum them over the colours: the features are those of the grey image copied to
    all three channels, if inputs are normalised alike. For C channels, repeat the mean filter and
    scale it by 3 / C, after Carreira & Zisserman ("Quo Vadis, Action Recognition?", CVPR 2017), who
    repeat filters along time and divide by their number: C equal channels give the features of one.
    """
    if channels == weight.shape[1]:
        return weight
    total = weight.sum(1, keepdim=True)  # (o, 1, 3, 3)
    return (total / channels).repeat(1, channels, 1, 1)


def start_adapter(channels: int) -> dict[str, Tensor]:
    """Return an untrained adapter: the identity for three channels, else the channels' mean.

    Before the unchanged network it gives the features that `inflate` gives. `adapter.weight` is
    float32 (3, C, 1, 1), `adapter.bias` (3,).
    """
    import torch

    even = torch.full((COLOURS, channels), 1 / channels)
    weight = torch.eye(COLOURS) if channels == COLOURS else even
    return {ADAPTER: weight.view(COLOURS, channels, 1, 1), ADAPTER_BIAS: torch.zeros(COLOURS)}
