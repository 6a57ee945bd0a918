"""A linear probe: multinomial logistic regression on fixed features.

Its accuracy shows how linearly separable the classes are in the features (Alain & Bengio,
"Understanding intermediate layers using linear classifier probes", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vggfeat.finetuning.held_out_test import Answers
from vggfeat.finetuning.report import Metrics, MetricSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.finetuning.dataset import TrainingData

CANDIDATES_OF_C = (1.0, 0.1, 0.01, 0.001)
"""Tried in this order; few images need more regularisation."""

_MAX_STEPS = 500
_MIN_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True)
class Scaling:
    """Standardisation of each dimension to mean 0 and standard deviation 1.

    Attributes:
        mean: float32 (D,).
        deviation: float32 (D,), above 0.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scaling:
        """Fit to features (n, D); a constant dimension keeps its scale."""
        exact = features.double()
        deviation = exact.std(0, correction=0)
        floor = _MIN_DEVIATION * float(deviation.max())
        deviation = torch.where(deviation > floor, deviation, torch.ones_like(deviation))
        return cls(exact.mean(0).float(), deviation.float())

    def __call__(self, features: Tensor) -> Tensor:
        """Return standardised features, (n, D)."""
        return (features - self.mean) / self.deviation


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Class scores that are linear in the features.

    Attributes:
        weight: float32 (classes, D).
        bias: float32 (classes,).
    """

    weight: Tensor
    bias: Tensor

    def unscaled(self, scaling: Scaling) -> LinearHead:
        """Return the head that gives the same scores for features before standardisation."""
        weight = self.weight.double() / scaling.deviation.double()
        bias = self.bias.double() - weight @ scaling.mean.double()
        return LinearHead(weight.float(), bias.float())


def fit_probe(
    features: Tensor, classes: NDArray[np.int64], class_count: int, c: float = 1.0
) -> LinearHead:
    """Minimise cross-entropy with an L2 penalty by L-BFGS in float64; the minimum is unique.

    Features are float32 (n, D), standardised; classes int64 (n,). The penalty is scikit-learn's:
    half the squared weights over C and the number of images, without the biases.
    """
    x = features.double()
    targets = torch.from_numpy(classes)
    weight = torch.zeros((class_count, x.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(class_count, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_STEPS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = torch.nn.functional.linear(x, weight, bias)  # (n, classes)
        value = torch.nn.functional.cross_entropy(logits, targets)
        value = value + weight.square().sum() / (2 * c * len(x))
        value.backward()  # type: ignore[no-untyped-call] # torch has no types here
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call] # likewise
    return LinearHead(weight.detach().float(), bias.detach().float())


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear probe of the untouched network.

    Attributes:
        head: on standardised features.
        scaling: fitted to the training features.
        validation: metrics on the validation images.
    """

    head: LinearHead
    scaling: Scaling
    validation: Metrics


def probe_answers(probe: Probe, data: TrainingData, rows: NDArray[np.int64]) -> Answers:
    """Return the probe's answers to some of the test images."""
    features = data.test_features[np.searchsorted(data.split.test, rows)]
    x = probe.scaling(torch.from_numpy(features))
    logits = torch.nn.functional.linear(x, probe.head.weight, probe.head.bias)
    return Answers.of(rows, logits, data.classes[rows])


def best_probe(data: TrainingData) -> Probe:
    """Return the probe of the C with the best validation metrics.

    The best epoch is chosen by the same images, so that before and after are chosen alike.
    """
    scaling = Scaling.of(torch.from_numpy(data.train_features))
    probes = (_probe(data, scaling, c) for c in CANDIDATES_OF_C)
    return max(probes, key=lambda probe: probe.validation.rank)  # of equals the first


def _probe(data: TrainingData, scaling: Scaling, c: float) -> Probe:
    train = scaling(torch.from_numpy(data.train_features))
    validation = scaling(torch.from_numpy(data.validation_features))
    split, classes = data.split, data.classes
    head = fit_probe(train, classes[split.train], data.class_count, c)
    logits = torch.nn.functional.linear(validation, head.weight, head.bias)
    return Probe(head, scaling, MetricSums.of(logits, classes[split.validation]).metrics())
