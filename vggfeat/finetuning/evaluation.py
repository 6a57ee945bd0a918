"""Accuracy and loss on images of known classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        correct: int64 (classes,), images of each class whose class is predicted.
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
        """Return the sums of a batch.

        Args:
            logits: (n, classes).
            classes: int64 (n,), the true ones.
        """
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
