"""One network that learns: its head, its optimiser, a step, a judgement, and all of it as tensors.

AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019), the rate rising
in a line over the first tenth of the steps and falling along half a cosine to zero. It is a share
of each tensor's own size, as in Adafactor (Shazeer & Stern, ICML 2018): the filters of VGG's
layers, and of its two scalings of the input, differ by orders of magnitude, and a step that one of
them hardly feels would destroy another.

The head begins where the linear probe of the untouched features ended, so that the first steps do
not distort the features to please a head that knows nothing (Kumar et al., "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 the name the whole field knows it by

from vggfeat.adapting.linear_probe import Linear, Scaling
from vggfeat.device import full_float32
from vggfeat.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.network import TappedVgg

_SMALLEST_SIZE = 1e-2  # of a tensor, so that biases of zero learn as well
_WARM_UP = 0.1  # of all steps
_NOW, _BEST, _FIRST, _SECOND = "now.", "best.", "first.", "second."


@dataclass(frozen=True, slots=True)
class Judged:
    """How a network and its head do on images whose classes are known.

    Attributes:
        loss: summed cross-entropy.
        hits: int64 (classes,), images of each class that were recognised.
        counts: int64 (classes,), images of each class.
    """

    loss: float
    hits: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def nothing(cls, count: int) -> Judged:
        """Of so many classes no image."""
        return cls(0.0, np.zeros(count, np.int64), np.zeros(count, np.int64))

    @classmethod
    def of(cls, scores: Tensor, classes: NDArray[np.int64], count: int) -> Judged:
        """From class scores.

        Args:
            scores: (n, classes).
            classes: int64 (n,), the true ones.
            count: of classes.
        """
        exact = scores.detach().double().cpu()
        targets = torch.from_numpy(classes)
        loss = float(F.cross_entropy(exact, targets, reduction="sum"))
        hit = exact.argmax(1).numpy() == classes
        return cls(
            loss,
            np.bincount(classes[hit], minlength=count),
            np.bincount(classes, minlength=count),
        )

    def __add__(self, other: Judged) -> Judged:
        return Judged(self.loss + other.loss, self.hits + other.hits, self.counts + other.counts)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a network learns.

    Attributes:
        lr: largest change of a number in a step, as a share of its tensor's root mean square at
            the beginning.
        weight_decay: of weights; biases have none.
        steps: of the whole course, over which the rate rises and falls to zero.
    """

    lr: float
    weight_decay: float
    steps: int

    def at(self, step: int) -> float:
        """Share of the largest rate in step `step`, the first is 0."""
        warm = math.ceil(_WARM_UP * self.steps)
        return min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Learner:
    """A network with a linear head on one of its layers.

    Args:
        network: in float32 on its device; its parameters of the names in `learning` are replaced
            by copies that learn, and all others stay as they are.
        learning: names of those parameters.
        head: class scores from scaled features.
        scaling: of the features; it does not learn.
        pace: how fast it learns.
        half: whether products are computed in bfloat16.
    """

    def __init__(
        self,
        network: TappedVgg,
        learning: Sequence[str],
        head: Linear,
        scaling: Scaling,
        pace: Pace,
        *,
        half: bool,
    ) -> None:
        self._network, self._pace, self._half = network, pace, half
        self.device = next(network.parameters()).device
        self._scaling = Scaling(scaling.mean.to(self.device), scaling.deviation.to(self.device))
        for name in learning:
            _make_learn(network, name)
        own = dict(network.named_parameters())
        self._head = nn.ParameterDict(
            {name: nn.Parameter(part.to(self.device, copy=True))
             for name, part in (("weight", head.weight), ("bias", head.bias))}
        )  # fmt: skip
        self._learning: dict[str, nn.Parameter] = {
            **{name: own[name] for name in learning},
            "head.weight": self._head["weight"],
            "head.bias": self._head["bias"],
        }
        self._sizes = [_size(one) for one in self._learning.values()]
        self._best = self.parameters()
        self._optimiser = torch.optim.AdamW(
            [
                {
                    "params": [parameter],
                    "weight_decay": pace.weight_decay if parameter.dim() > 1 else 0.0,
                }
                for parameter in self._learning.values()
            ]
        )

    @property
    def classes(self) -> int:
        """How many the head tells apart."""
        return len(self._head["bias"])

    def scores(self, images: Tensor) -> Tensor:
        """Class scores, float32 (n, classes), of normalised images (n, C, H, W)."""
        dtype = torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=self._half):
            features, _ = self._network(images)
        (vectors,) = features.values()  # (n, D) float32
        return F.linear(self._scaling(vectors.float()), self._head["weight"], self._head["bias"])

    def step(self, images: Tensor, classes: NDArray[np.int64], number: int) -> float:
        """One step of learning.

        Args:
            images: normalised, (n, C, H, W), on the device.
            classes: int64 (n,).
            number: of the step; the first is 0.

        Returns:
            the loss before the step, a mean over the images.

        Raises:
            DeviceError: out of memory, or the loss is no number any more.
        """
        share = self._pace.at(number)
        for group, size in zip(self._optimiser.param_groups, self._sizes, strict=True):
            group["lr"] = self._pace.lr * size * share
        with _memory_errors(self.device, len(images)), full_float32(self.device):
            targets = torch.from_numpy(classes).to(self.device)
            loss = F.cross_entropy(self.scores(images), targets)
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
            self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DeviceError(
                f"learning diverged: the loss of step {number} is {value}; take a smaller --lr, or "
                "--precision float32, and --fresh"
            )
        return value

    @torch.no_grad()
    def judge(self, images: Tensor, classes: NDArray[np.int64]) -> Judged:
        """How it does on images, (n, C, H, W) normalised, of classes int64 (n,)."""
        with _memory_errors(self.device, len(images)), full_float32(self.device):
            scores = self.scores(images)
        return Judged.of(scores, classes, self.classes)

    def parameters(self) -> dict[str, Tensor]:
        """Copies of all that learns, by name, the head's in front of scaled features."""
        return {name: one.detach().clone() for name, one in self._learning.items()}

    def keep_as_best(self) -> None:
        """Remembers what was learnt so far."""
        self._best = self.parameters()

    def best(self) -> tuple[dict[str, Tensor], Linear]:
        """What was remembered last: tensors of the network, and the head for unscaled features."""
        network = {
            name: value for name, value in self._best.items() if not name.startswith("head.")
        }
        head = Linear(self._best["head.weight"], self._best["head.bias"])
        return network, head.unscaled(self._scaling)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on but its number, and what was remembered."""
        tensors = {_NOW + name: one.detach() for name, one in self._learning.items()}
        tensors |= {_BEST + name: value for name, value in self._best.items()}
        for name, parameter in self._learning.items():
            moments = self._optimiser.state.get(parameter)
            if moments:
                tensors[_FIRST + name] = moments["exp_avg"]
                tensors[_SECOND + name] = moments["exp_avg_sq"]
        return tensors

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Brings back what `state` gave after so many steps.

        Raises:
            KeyError, RuntimeError: it is the state of something else.
        """
        for name, parameter in self._learning.items():
            parameter.copy_(state[_NOW + name])
            self._best[name] = state[_BEST + name].to(self.device, copy=True)
            if steps:
                self._optimiser.state[parameter] = {
                    "step": torch.tensor(float(steps)),
                    "exp_avg": state[_FIRST + name].to(self.device, copy=True),
                    "exp_avg_sq": state[_SECOND + name].to(self.device, copy=True),
                }


def _size(tensor: Tensor) -> float:
    """Root mean square, or what stands for it where that is next to nothing."""
    return max(float(tensor.detach().double().square().mean().sqrt()), _SMALLEST_SIZE)


def _make_learn(network: nn.Module, name: str) -> None:
    """Puts a copy that learns in the place of a parameter that is part of a mapped file."""
    place, _, kind = name.rpartition(".")
    module = network.get_submodule(place)
    copy = getattr(module, kind).detach().clone(memory_format=torch.preserve_format)
    setattr(module, kind, nn.Parameter(copy, requires_grad=True))


@contextlib.contextmanager
def _memory_errors(device: torch.device, images: int) -> Iterator[None]:
    """Turns running out of a device's memory into a DeviceError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device} has no memory to learn from {images} images of a batch at once; take a "
            "smaller --batch-size and --fresh, or train fewer layers"
        ) from error
