"""The network in training: linear head, optimizer, training step, evaluation and state.

AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019). The learning rate
is relative to each tensor's own size, as in Adafactor (Shazeer & Stern, ICML 2018): the filters of
VGG's layers, and of its two scalings of the input, differ by orders of magnitude, and a step too
small for one of them would destroy another.

The head begins as the linear probe of the untouched features, so that the first steps do not
distort the features to suit a random head (Kumar et al., "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution", ICLR 2022).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 the name the whole field knows it by

from vggfeat.core.forked import note_computing
from vggfeat.core.text import counted
from vggfeat.core.vgg_layers import ADAPTER, COLOURS, HEAD, VGG, Entry
from vggfeat.errors import DeviceError, WeightsError
from vggfeat.finetuning.linear_probe import LinearHead, Scaling
from vggfeat.finetuning.report import MetricSums
from vggfeat.network.device import choose_device, cuda_has_bfloat16
from vggfeat.network.first_layer import start_adapter
from vggfeat.network.vgg import needed_layers, network_of
from vggfeat.network.weights import load_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vggfeat.finetuning.linear_probe import Probe
    from vggfeat.finetuning.settings import AdaptSettings
    from vggfeat.network.vgg import TappedVgg
    from vggfeat.network.weights import Weights


_MIN_SIZE = 1e-2  # root mean square of a tensor, so that biases of zero are trained as well
_CURRENT, _BEST = "current.", "best."
_HEAD_WEIGHT, _HEAD_BIAS = HEAD


class FineTunedNetwork:
    """A network with a linear head on one of its layers, which begins as a probe.

    Parameters named in `trainable` are replaced by trainable copies; all others are frozen, as is
    the scaling of the features. Biases have no weight decay.
    """

    def __init__(
        self,
        network: TappedVgg,
        trainable: Sequence[str],
        probe: Probe,
        schedule: LearningRateSchedule,
        *,
        weight_decay: float,
        bfloat16: bool,
    ) -> None:
        self._network, self._schedule, self._bfloat16 = network, schedule, bfloat16
        self.device = device = next(network.parameters()).device
        scaling, head = probe.scaling, probe.head
        self._scaling = Scaling(scaling.mean.to(device), scaling.deviation.to(device))
        for name in trainable:  # which is part of a memory-mapped file
            place, _, kind = name.rpartition(".")
            module = network.get_submodule(place)
            copy = getattr(module, kind).detach().clone(memory_format=torch.preserve_format)
            setattr(module, kind, nn.Parameter(copy, requires_grad=True))
        own = dict(network.named_parameters())
        self._head_weight = nn.Parameter(head.weight.to(device, copy=True))
        self._head_bias = nn.Parameter(head.bias.to(device, copy=True))
        self._trained: dict[str, nn.Parameter] = {
            **{name: own[name] for name in trainable},
            _HEAD_WEIGHT: self._head_weight,
            _HEAD_BIAS: self._head_bias,
        }
        self._sizes = [
            max(float(one.detach().double().square().mean().sqrt()), _MIN_SIZE)
            for one in self._trained.values()
        ]
        self._best: dict[str, Tensor] = {}
        self.keep_best()
        self._optimiser = torch.optim.AdamW(
            [
                {
                    "params": [parameter],
                    "weight_decay": weight_decay if parameter.dim() > 1 else 0.0,
                }
                for parameter in self._trained.values()
            ]
        )

    def logits(self, images: Tensor) -> Tensor:
        """Return class scores, float32 (n, classes), of normalised images (n, C, H, W)."""
        dtype = torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=self._bfloat16):
            features, _ = self._network(images)
        (vectors,) = features.values()  # (n, D) float32
        return F.linear(self._scaling(vectors.float()), self._head_weight, self._head_bias)

    def train_step(self, images: Tensor, classes: NDArray[np.int64], step: int) -> float:
        """Do one optimizer step; return the mean loss over the images before it.

        Args:
            images: normalised, (n, C, H, W), on the device.
            classes: int64 (n,).
            step: its number, from 0.
        """
        share = self._schedule.at(step)
        for group, size in zip(self._optimiser.param_groups, self._sizes, strict=True):
            group["lr"] = self._schedule.peak * size * share
        with _memory_errors(self.device, len(images)):
            targets = torch.from_numpy(classes).to(self.device)
            loss = F.cross_entropy(self.logits(images), targets)
            self._optimiser.zero_grad()
            note_computing()
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
            self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DeviceError(
                f"training diverged: the loss of step {step} is {value}; take a smaller --lr, or "
                "--precision float32, and --fresh"
            )
        return value

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return class scores without what training needs: see `logits`."""
        with _memory_errors(self.device, len(images)):
            return self.logits(images)

    @torch.no_grad()
    def evaluate(self, images: Tensor, classes: NDArray[np.int64]) -> MetricSums:
        """Evaluate on images, (n, C, H, W) normalised, of classes int64 (n,)."""
        return MetricSums.of(self.predict(images), classes)

    @torch.no_grad()
    def use_best(self) -> None:
        """Take the best trained parameters in place of the current ones; training is over."""
        for name, parameter in self._trained.items():
            parameter.copy_(self._best[name])

    def keep_best(self) -> None:
        """Keep a copy of the trained parameters as the best so far."""
        self._best = {name: one.detach().clone() for name, one in self._trained.items()}

    def best_tensors(self) -> dict[str, Tensor]:
        """Return the best trained parameters, with the head for features not standardised."""
        head = LinearHead(self._best[_HEAD_WEIGHT], self._best[_HEAD_BIAS])
        plain = head.unscaled(self._scaling)
        return {**self._best, _HEAD_WEIGHT: plain.weight, _HEAD_BIAS: plain.bias}

    # Not `optimizer.state_dict()`, which numbers its tensors and is made for pickle: a checkpoint
    # is safetensors, which holds tensors by name, so that a foreign file cannot run code.
    def state(self) -> dict[str, Tensor]:
        """Return the current and the best parameters, and the optimizer's state of each."""
        tensors = {_CURRENT + name: one.detach() for name, one in self._trained.items()}
        tensors |= {_BEST + name: value for name, value in self._best.items()}
        for name, parameter in self._trained.items():
            of_adam = self._optimiser.state.get(parameter, {})
            tensors |= {f"{key}.{name}": value for key, value in of_adam.items()}
        return tensors

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, parameter in self._trained.items():
            parameter.copy_(state[_CURRENT + name])
            self._best[name] = state[_BEST + name].to(self.device, copy=True)
            # Adam counts its own steps: a batch of which no image can be decoded makes none.
            if f"exp_avg.{name}" in state:
                self._optimiser.state[parameter] = {
                    "step": state[f"step.{name}"].clone(),  # on the CPU, as AdamW keeps it
                    "exp_avg": state[f"exp_avg.{name}"].to(self.device, copy=True),
                    "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(self.device, copy=True),
                }


@contextlib.contextmanager
def _memory_errors(device: torch.device, images: int) -> Iterator[None]:
    """Turn an out-of-memory error of the device into a DeviceError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device} has no memory to train on {counted(images, 'image')} of a batch at once; "
            "take a smaller --batch-size and --fresh, or train fewer layers"
        ) from error


_WARM_UP = 0.1  # of all steps


@dataclass(frozen=True, slots=True)
class LearningRateSchedule:
    """Linear warm-up over the first tenth of all steps, then half a cosine to zero.

    `peak` is relative to the initial root mean square of each tensor.
    """

    peak: float
    steps: int

    # Not torch's LambdaLR: a function of the number of the batch has no state to restore.
    def at(self, step: int) -> float:
        """Return the share of the peak in a step; the first is 0."""
        warm = math.ceil(_WARM_UP * self.steps)
        return min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def choose_training_precision(name: str, device: str) -> str:
    """Resolve `auto`: bfloat16 on a CUDA device that supports it, else float32."""
    where = choose_device(device)
    if name != "auto":
        return name
    return "bfloat16" if where.type == "cuda" and cuda_has_bfloat16() else "float32"


def initial_tensors(settings: AdaptSettings, weights: Weights) -> dict[str, Tensor]:
    """Return all tensors of the network before training, with a new adapter if one is trained."""
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
            f"{counted(tensors[VGG.first_weight].shape[1], 'channel')} already, "
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
    """Return the network with the head of the linear probe, on its device, ready for training."""
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
