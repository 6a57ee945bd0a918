"""Accuracy and loss, the state of training and its final report; the last two also as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well images are classified.

    Attributes:
        accuracy: share of the images whose class is predicted.
        loss: mean cross-entropy.
        class_accuracy: accuracy of each class.
    """

    accuracy: float
    loss: float
    class_accuracy: tuple[float, ...]

    @property
    def rank(self) -> tuple[float, float]:
        """Accuracy, then the negative loss: larger is better."""
        return self.accuracy, -self.loss


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Sums over batches that metrics are computed from.

    Attributes:
        loss: summed cross-entropy.
        correct: int64 (classes,), correctly classified images of each class.
        counts: int64 (classes,), images of each class.
    """

    loss: float
    correct: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def zero(cls, class_count: int) -> MetricSums:
        """Return the sums of no images."""
        return cls(0.0, np.zeros(class_count, np.int64), np.zeros(class_count, np.int64))

    @classmethod
    def of(cls, logits: Tensor, classes: NDArray[np.int64]) -> MetricSums:
        """Return the sums of a batch: logits (n, classes), true classes int64 (n,)."""
        import torch

        exact = logits.detach().double().cpu()
        targets = torch.from_numpy(classes)
        loss = float(torch.nn.functional.cross_entropy(exact, targets, reduction="sum"))
        correct = exact.argmax(1).numpy() == classes
        count = exact.shape[1]
        return cls(
            loss,
            np.bincount(classes[correct], minlength=count),
            np.bincount(classes, minlength=count),
        )

    def __add__(self, other: MetricSums) -> MetricSums:
        return MetricSums(
            self.loss + other.loss, self.correct + other.correct, self.counts + other.counts
        )

    def metrics(self) -> Metrics:
        """Return the metrics of all images summed, at least one."""
        images = self.counts.sum()
        each = self.correct / np.maximum(self.counts, 1)
        return Metrics(
            float(self.correct.sum() / images), float(self.loss / images), tuple(each.tolist())
        )


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        number: from 1.
        train_loss: mean cross-entropy of the training images, each before its step.
        validation: metrics after the epoch.
    """

    number: int
    train_loss: float
    validation: Metrics


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Progress of training.

    Attributes:
        batches: done in the current epoch.
        loss: summed over the images of these batches.
        images: number of images in these batches.
        epochs: complete ones.
    """

    batches: int = 0
    loss: float = 0.0
    images: int = 0
    epochs: tuple[Epoch, ...] = ()

    @property
    def best(self) -> Epoch | None:
        """The first epoch with the best validation metrics; None before any is complete."""
        return max(self.epochs, key=lambda epoch: epoch.validation.rank, default=None)

    def is_finished(self, max_epochs: int, patience: int) -> bool:
        """Return whether all epochs are done, or `patience` (0: any) passed without a gain."""
        best, done = self.best, len(self.epochs)
        return done >= max_epochs or bool(patience and best and done - best.number >= patience)

    def after_batch(self, loss: float, count: int) -> TrainingState:
        """Return the state one batch later, given the mean loss of its images."""
        return dataclasses.replace(
            self,
            batches=self.batches + 1,
            loss=self.loss + loss * count,
            images=self.images + count,
        )

    def after_epoch(self, validation: Metrics) -> TrainingState:
        """Return the state at the beginning of the next epoch."""
        number = len(self.epochs) + 1
        epoch = Epoch(number, self.loss / max(self.images, 1), validation)
        return TrainingState(epochs=(*self.epochs, epoch))

    def to_json(self) -> str:
        """Return the state as JSON, which `state_from_json` reads."""
        return json.dumps(dataclasses.asdict(self))


def state_from_json(text: str) -> TrainingState:
    """Read what `TrainingState.to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    return TrainingState(**{**fields, "epochs": _epochs(fields["epochs"])})


def _epochs(epochs: list[dict[str, Any]]) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(epoch["number"], epoch["train_loss"], _metrics(epoch["validation"]))
        for epoch in epochs
    )


def _metrics(fields: dict[str, Any]) -> Metrics:
    return Metrics(fields["accuracy"], fields["loss"], tuple(fields["class_accuracy"]))


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """What `adapt` did.

    Attributes:
        out: the weight file.
        model: VGG variant.
        weights: name of the weights that training began with.
        warning: about these weights, or empty.
        layer: the last layer of the network, which the head stands on.
        channels: of the images.
        trained: names of the trained layers.
        classes: their names, sorted.
        train_images: number of training images.
        held_out: number of validation images of each class.
        test: number of test images of each class, which neither probe nor epoch was chosen by.
        measured_on: `test`, or `validation` where there is no test part.
        failed: images that could not be decoded and were left out.
        groups: number of groups that the test images are of; 0 without groups.
        chance: accuracy of always predicting the most frequent class of the images measured on.
        before: metrics of a linear probe of the untouched network; None if not yet known.
        after: metrics of the network and head that were written; None if none were.
        before_interval, after_interval: 95 % intervals of both accuracies on the test images.
        gain_interval: of their difference, on the same images.
        before_validation: metrics of the probe on the validation images; those of each epoch are
            with `epochs`.
        warnings: what a reader of the accuracies must know, such as that nothing was gained.
        epochs: that are complete.
        best_epoch: the one whose network was written; 0 for none.
        precision: that training computed in.
        stopped: why training ended early: the name of a signal, `time limit`, or empty.
    """

    out: str
    model: str
    weights: str
    warning: str
    layer: str
    channels: int
    trained: tuple[str, ...]
    classes: tuple[str, ...]
    train_images: int
    held_out: tuple[int, ...]
    failed: int
    chance: float
    before: Metrics | None
    after: Metrics | None
    epochs: tuple[Epoch, ...]
    best_epoch: int
    precision: str
    stopped: str = ""
    test: tuple[int, ...] = ()
    measured_on: str = "validation"
    groups: int = 0
    before_interval: tuple[float, float] | None = None
    after_interval: tuple[float, float] | None = None
    gain_interval: tuple[float, float] | None = None
    before_validation: Metrics | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the report as JSON for a file's metadata; `report_from_json` reads it."""
        fields = dataclasses.asdict(self)
        del fields["out"]  # a file may be moved
        return json.dumps(fields)


def report_from_json(out: str, text: str) -> FinetuneReport:
    """Read what `FinetuneReport.to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    validation = fields.get("before_validation")  # absent in files of earlier versions
    known |= {
        "out": out,
        "before": _metrics(fields["before"]),
        "after": _metrics(fields["after"]),
        "epochs": _epochs(fields["epochs"]),
        "before_validation": None if validation is None else _metrics(validation),
    }
    return FinetuneReport(**known)
