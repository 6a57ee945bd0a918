"""The network's first step for images of any number of channels.

VGG was trained on three. Its first convolution is rebuilt from the pretrained filters, or an
adapter, a convolution of 1 x 1 from C channels to 3, stands in front of the untouched network.
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
    """Channels that the network in a weight file takes; None if it has no first convolution.

    Args:
        shapes: of the file's tensors by name.
    """
    name = ADAPTER if ADAPTER in shapes else VGG.first_weight
    shape = shapes.get(name, ())
    return shape[1] if len(shape) == 4 else None  # noqa: PLR2004 (out, in, rows, columns)


def adapter_problem(shapes: Shapes) -> str:
    """Return what is wrong with the adapter of a weight file; empty if nothing, or no adapter."""
    weight, bias = shapes.get(ADAPTER), shapes.get(ADAPTER_BIAS)
    if weight is None and bias is None:
        return ""
    found = [_shape(part) for part in (weight, bias)]
    right = weight is not None and (weight[:1], weight[2:], bias) == (
        (COLOURS,), (1, 1), (COLOURS,),
    )  # fmt: skip
    expected = "expected [3, C, 1, 1] and [3]"
    return "" if right else f"{ADAPTER} is {found[0]}, {ADAPTER_BIAS} {found[1]}; {expected}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def check_channels(name: str, shapes: Shapes, entry: Entry) -> None:
    """Refuse images that the network of a weight file cannot take.

    Three channels are no obstacle, for those filters can be rebuilt; others, and an adapter, were
    learnt for just these.

    Args:
        name: of the weights.
        shapes: of the file's tensors by name.
        entry: requested channels and first layer.
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
            f"weights {name} take images of {_count(found)}, and {entry.channels} asked for: "
            f"--channels {found}, or weights whose first layer takes {COLOURS}, which is rebuilt "
            "for any number"
        )


def _count(channels: int) -> str:
    return counted(channels, "channel")


def inflate(weight: Tensor, channels: int) -> Tensor:
    """First filters for another number of channels, from those for colours.

    For one channel they are summed over the colours: the features are those of the grey image
    copied to all three, for inputs normalised alike. For C channels the mean filter is repeated
    and scaled by 3 / C, after the inflation of Carreira & Zisserman ("Quo Vadis, Action
    Recognition?", CVPR 2017), who repeat filters along time and divide by how often: channels
    that are all alike give what one of them gives alone.

    Args:
        weight: (o, 3, 3, 3).
        channels: C.

    Returns:
        (o, C, 3, 3); for three channels `weight` itself.
    """
    if channels == weight.shape[1]:
        return weight
    total = weight.sum(1, keepdim=True)  # (o, 1, 3, 3)
    return (total / channels).repeat(1, channels, 1, 1)


def start_adapter(channels: int) -> dict[str, Tensor]:
    """Return an untrained adapter: the identity for three channels, else their mean.

    In front of the untouched network it gives what `inflate` gives.

    Args:
        channels: C.

    Returns:
        `adapter.weight` (3, C, 1, 1) and `adapter.bias` (3,), float32.
    """
    import torch

    even = torch.full((COLOURS, channels), 1 / channels)
    weight = torch.eye(COLOURS) if channels == COLOURS else even
    return {ADAPTER: weight.view(COLOURS, channels, 1, 1), ADAPTER_BIAS: torch.zeros(COLOURS)}
