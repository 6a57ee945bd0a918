"""How far training is: pure, no I/O, no torch."""

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
