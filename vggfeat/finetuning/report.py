"""How far training is, and the report of it, both as JSON too: no I/O, no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vggfeat.finetuning.evaluation import Metrics


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        number: 1 for the first.
        train_loss: mean cross-entropy of the training images, each before its step.
        validation: metrics afterwards, on the images held out.
    """

    number: int
    train_loss: float
    validation: Metrics


@dataclass(frozen=True, slots=True)
class TrainingState:
    """How far training is.

    Attributes:
        batches: done of the current epoch.
        loss: summed over its images so far.
        images: how many these are.
        epochs: those that are complete.
    """

    batches: int = 0
    loss: float = 0.0
    images: int = 0
    epochs: tuple[Epoch, ...] = ()

    @property
    def best(self) -> Epoch | None:
        """The first epoch that none is better than; None before any is complete."""
        best: Epoch | None = None
        for epoch in self.epochs:
            if best is None or epoch.validation.is_better_than(best.validation):
                best = epoch
        return best

    def is_finished(self, max_epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or `patience` (0: any number) went by since the best."""
        best, done = self.best, len(self.epochs)
        return done >= max_epochs or bool(patience and best and done - best.number >= patience)

    def after_batch(self, loss: float, count: int) -> TrainingState:
        """The state one batch later, from the mean loss of its images."""
        return dataclasses.replace(
            self,
            batches=self.batches + 1,
            loss=self.loss + loss * count,
            images=self.images + count,
        )

    def after_epoch(self, validation: Metrics) -> TrainingState:
        """The state at the beginning of the next epoch."""
        number = len(self.epochs) + 1
        epoch = Epoch(number, self.loss / max(self.images, 1), validation)
        return TrainingState(epochs=(*self.epochs, epoch))

    def to_json(self) -> str:
        """As text; `state_from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))


def state_from_json(text: str) -> TrainingState:
    """What `TrainingState.to_json` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    fields: dict[str, Any] = json.loads(text)
    return TrainingState(**{**fields, "epochs": epochs_from(fields["epochs"])})


def epochs_from(epochs: list[dict[str, Any]]) -> tuple[Epoch, ...]:
    """Epochs read back from JSON."""
    return tuple(
        Epoch(epoch["number"], epoch["train_loss"], metrics_from(epoch["validation"]))
        for epoch in epochs
    )


def metrics_from(fields: dict[str, Any]) -> Metrics:
    """Metrics read back from JSON."""
    return Metrics(fields["accuracy"], fields["loss"], tuple(fields["class_accuracy"]))


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """What `adapt` did.

    Attributes:
        out: the weight file.
        model: VGG variant.
        weights: name of the weights it began with.
        warning: what a user of them must know, empty if nothing.
        layer: on which the head stands, and where the network ends.
        channels: of the images.
        trained: the parts of the network that were trained.
        classes: their names, sorted.
        train_images: how many were trained on.
        held_out: images of each class that were held out for validation.
        failed: images that could not be decoded, and take no part.
        chance: accuracy of always predicting the most frequent class.
        before: of a linear probe of the untouched network, on the images held out; None before it
            is known.
        after: of the network and the head that are written; None as long as none are.
        epochs: those that are complete.
        best_epoch: the one whose network is written, 0 for none.
        precision: in which was trained.
        stopped: why it ended before it was done: a signal's name, `time limit`, or empty.
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

    def to_json(self) -> str:
        """As text for the metadata of the file; `report_from_json` reads it."""
        fields = dataclasses.asdict(self)
        del fields["out"]  # a file may be moved
        return json.dumps(fields)


def report_from_json(out: str, text: str) -> FinetuneReport:
    """What `FinetuneReport.to_json` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    fields: dict[str, Any] = json.loads(text)
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    known |= {
        "out": out,
        "before": metrics_from(fields["before"]),
        "after": metrics_from(fields["after"]),
        "epochs": epochs_from(fields["epochs"]),
    }
    return FinetuneReport(**known)
