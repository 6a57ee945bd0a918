"""The network that fine-tuning begins with, built on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vggfeat.core.text import counted
from vggfeat.core.vgg_layers import ADAPTER, COLOURS, CONV1_1, Entry
from vggfeat.errors import WeightsError
from vggfeat.finetuning.lr_schedule import LearningRateSchedule
from vggfeat.finetuning.model import FineTunedNetwork
from vggfeat.network.device import choose_device, cuda_has_bfloat16
from vggfeat.network.first_layer import start_adapter
from vggfeat.network.vgg import needed_layers, network_of
from vggfeat.network.weights import load_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vggfeat.finetuning.linear_probe import Probe
    from vggfeat.finetuning.settings import AdaptSettings
    from vggfeat.network.weights import Weights


def choose_training_precision(name: str, device: str) -> str:
    """What `auto` means: bfloat16 on a CUDA device that computes in it, else float32.

    Raises:
        DeviceError: the device is not there.
    """
    where = choose_device(device)
    if name != "auto":
        return name
    return "bfloat16" if where.type == "cuda" and cuda_has_bfloat16() else "float32"


def initial_tensors(settings: AdaptSettings, weights: Weights) -> dict[str, Tensor]:
    """All tensors of the network before training, with a new adapter where one is trained.

    Raises:
        WeightsError: they cannot be read, do not fit, or an adapter does not go with them.
    """
    network = settings.network
    layers = needed_layers(network.specs, network.model)
    if not settings.parts.adapter:
        return load_tensors(weights, network.model, layers, network.entry)
    try:
        return {
            **load_tensors(weights, network.model, layers, Entry(COLOURS)),
            **start_adapter(network.channels),
        }
    except WeightsError:
        tensors = load_tensors(weights, network.model, layers, network.entry)
    if ADAPTER not in tensors:
        raise WeightsError(
            f"weights {weights.name} take images of "
            f"{counted(tensors[CONV1_1].shape[1], 'channel')} already, "
            "and an adapter stands in front of weights for three; train first instead of adapter"
        )
    return tensors


def build_network(
    settings: AdaptSettings,
    precision: str,
    tensors: Mapping[str, Tensor],
    probe: Probe,
    steps_per_epoch: int,
) -> FineTunedNetwork:
    """The network with the head of the linear probe, ready for training.

    Args:
        settings: device, layer, what is trained, learning rate.
        precision: `float32` or `bfloat16`.
        tensors: see `initial_tensors`.
        probe: of the untouched network.
        steps_per_epoch: training batches of an epoch.

    Raises:
        DeviceError: the device is not there.
    """
    network = settings.network
    layers = needed_layers(network.specs, network.model)
    # mypy: torch's stubs know no overload of `to` with a memory format beside a device.
    built: Any = network_of(tensors, layers, network.specs).to(device=choose_device(network.device))
    return FineTunedNetwork(
        built.to(memory_format=torch.channels_last),
        settings.parts.parameters,
        probe,
        LearningRateSchedule(settings.lr, steps_per_epoch * settings.epochs),
        weight_decay=settings.weight_decay,
        bfloat16=precision == "bfloat16",
    )
