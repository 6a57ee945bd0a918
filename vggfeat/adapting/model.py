"""The network that is adapted, brought up on its device, with its images and its probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vggfeat.adapting.augmentation import check_jitter
from vggfeat.adapting.finetuning import Judged, Learner, Pace
from vggfeat.adapting.linear_probe import CHOICES_OF_C, Linear, Scaling, fit_probe
from vggfeat.adapting.state import Score, steps_of
from vggfeat.adapting.trainer import Keeper, Lesson, Rules, Teacher
from vggfeat.batches import choose_workers, load_batches
from vggfeat.device import choose_device, cuda_has_bfloat16
from vggfeat.errors import WeightsError
from vggfeat.firstlayer import ADAPTER, COLOURS, CONV1_1, HEAD, Entry, start_adapter
from vggfeat.network import needed_layers, network_of
from vggfeat.normalising import Normaliser
from vggfeat.weights import load_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.adapting.settings import AdaptSettings
    from vggfeat.adapting.split import Split
    from vggfeat.adapting.state import Course
    from vggfeat.records import DecodedBatch, Progress
    from vggfeat.signals import StopFlag
    from vggfeat.sources import Manifest
    from vggfeat.weights import Weights


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Images, their classes, and what the untouched network says of them.

    Attributes:
        manifest: the images.
        classes: int64 (N,), of its rows.
        count: of classes.
        split: rows to learn from, and rows that judge.
        train: float32 (t, D), features of the untouched network, of the rows to learn from.
        judge: float32 (v, D), likewise, of those that judge.
    """

    manifest: Manifest
    classes: NDArray[np.int64]
    count: int
    split: Split
    train: NDArray[np.float32]
    judge: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear probe of the untouched network.

    Attributes:
        head: from scaled features.
        scaling: of the features learnt from.
        score: on the images that judge.
    """

    head: Linear
    scaling: Scaling
    score: Score


def probe(material: Material) -> Probe:
    """The best of several fitted to the features learnt from, by the images that judge.

    By these the epoch is chosen too, so that before and after are chosen alike.
    """
    scaling = Scaling.of(torch.from_numpy(material.train))
    best, *others = (_probe(material, scaling, c) for c in CHOICES_OF_C)
    for other in others:
        if other.score.beats(best.score):
            best = other
    return best


def _probe(material: Material, scaling: Scaling, c: float) -> Probe:
    split, classes = material.split, material.classes
    train, judge = (scaling(torch.from_numpy(x)) for x in (material.train, material.judge))
    head = fit_probe(train, classes[split.train], material.count, c)
    scores = torch.nn.functional.linear(judge, head.weight, head.bias)
    judged = Judged.of(scores, classes[split.judge], material.count)
    return Probe(head, scaling, Score.of(judged.loss, judged.hits, judged.counts))


def choose_learning_precision(name: str, device: str) -> str:
    """What `auto` means: bfloat16 on a CUDA device that computes in it, else float32.

    Raises:
        DeviceError: the device is not there.
    """
    where = choose_device(device)
    if name != "auto":
        return name
    return "bfloat16" if where.type == "cuda" and cuda_has_bfloat16() else "float32"


def starting_tensors(settings: AdaptSettings, weights: Weights) -> dict[str, Tensor]:
    """Those that learning begins with, with an adapter where one is to learn.

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
            f"weights {weights.name} take images of {tensors[CONV1_1].shape[1]} channels already, "
            "and an adapter stands in front of weights for three; train first instead of adapter"
        )
    return tensors


class Pupil:
    """A network that learns from images, beginning with the head of its probe.

    Args:
        settings: which network, what of it learns, and how.
        precision: `float32` or `bfloat16`.
        weights: that it begins with.
        material: images and classes.
        start: the probe.

    Raises:
        WeightsError: the weights do not fit.
        DeviceError: the device is not there.
    """

    def __init__(
        self,
        settings: AdaptSettings,
        precision: str,
        weights: Weights,
        material: Material,
        start: Probe,
    ) -> None:
        network = settings.network
        self._settings, self._material = settings, material
        self._device = choose_device(network.device)
        self._normalise = Normaliser(network.preprocess(), self._device)
        self._tensors = starting_tensors(settings, weights)
        layers = needed_layers(network.specs, network.model)
        # mypy: torch's stubs know no overload of `to` with a memory format beside a device.
        built: Any = network_of(self._tensors, layers, network.specs).to(device=self._device)
        self._steps = steps_of(len(material.split.train), settings.batch_size)
        self._learner = Learner(
            built.to(memory_format=torch.channels_last),
            settings.parts.tensors,
            start.head,
            start.scaling,
            Pace(settings.lr, settings.weight_decay, self._steps * settings.epochs),
            half=precision == "bfloat16",
        )

    def state(self) -> dict[str, Tensor]:
        """All that going on depends on, besides the course."""
        return self._learner.state()

    def restore(self, state: Mapping[str, Tensor], course: Course) -> None:
        """Brings back what `state` gave at this point of the course.

        Raises:
            KeyError, RuntimeError: it is the state of something else.
        """
        self._learner.restore(state, len(course.history) * self._steps + course.batches)

    def learn(
        self,
        course: Course,
        stop: StopFlag,
        save: Callable[[Course], None],
        notice: Callable[[Progress], None],
    ) -> Course:
        """Goes on from a point of the course to its end, or to where it is stopped and saved."""
        settings, material = self._settings, self._material
        rules = Rules(
            settings.epochs,
            settings.patience,
            settings.batch_size,
            settings.seed,
            check_jitter(settings.jitter),
        )
        keeper = Keeper(save, settings.network.checkpoint_seconds)
        teacher = Teacher(
            self._learner,
            Lesson(material.split, material.classes, self._load, self._prepare),
            rules,
            keeper,
            stop,
            notice,
        )
        return teacher.teach(course)

    def _load(self, plan: NDArray[np.int64], goes_on: Callable[[], bool]) -> Iterator[DecodedBatch]:
        network = self._settings.network
        return load_batches(
            self._material.manifest.open,
            plan,
            network,
            workers=min(plan.size, choose_workers(network, {self._device.type})),
            pin=self._device.type == "cuda",
            goes_on=goes_on,
        )

    def _prepare(self, batch: DecodedBatch) -> Tensor:
        slots = torch.from_numpy(batch.slots).to(self._device)
        images = batch.images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        # Taken from floats: not every device picks uint16 by index.
        chosen = self._normalise(images)[slots]  # (n, C, H, W)
        return chosen.contiguous(memory_format=torch.channels_last)

    def written(self) -> dict[str, Tensor]:
        """The network of the best epoch and its head, by the names they have in a file."""
        best, head = self._learner.best()
        return {**self._tensors, **best, HEAD[0]: head.weight, HEAD[1]: head.bias}
