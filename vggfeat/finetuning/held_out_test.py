"""Accuracy before and after on images that chose nothing, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import agree, counted, first_few
from vggfeat.finetuning.intervals import bootstrap, wilson
from vggfeat.finetuning.report import MetricSums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.finetuning.dataset import TrainingData
    from vggfeat.finetuning.intervals import Interval
    from vggfeat.finetuning.report import FinetuneReport, Metrics

    Numbers = NDArray[np.int64]

TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Metrics on some images, and whether each was classified correctly, bool (n,)."""

    rows: Numbers
    metrics: Metrics
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Numbers, logits: Tensor, classes: Numbers) -> Answers:
        """Return those of logits (n, classes) for images of classes int64 (n,)."""
        right = logits.detach().double().cpu().argmax(1).numpy() == classes
        return cls(rows, MetricSums.of(logits, classes).metrics(), right)


@dataclass(frozen=True, slots=True)
class BeforeAndAfter:
    """Before and after on the test images, with 95 % intervals.

    Attributes:
        before, after: metrics.
        before_interval, after_interval: of the accuracies.
        gain_interval: of accuracy after less accuracy before, on the same images.
        images: of each class.
        groups: number of groups that these images are of; 0 without groups.
    """

    before: Metrics
    after: Metrics
    before_interval: Interval
    after_interval: Interval
    gain_interval: Interval
    images: tuple[int, ...]
    groups: int


def compare_answers(data: TrainingData, before: Answers, after: Answers) -> BeforeAndAfter:
    """Compare answers to the same images.

    Accuracies have Wilson's interval, or with groups, whose images depend on each other, that of a
    bootstrap over groups; the difference has a bootstrap over images or groups.
    """
    rows, count = after.rows, len(after.rows)
    own = np.arange(count) if data.groups is None else data.groups[rows]
    gain = after.right.astype(np.float64) - before.right
    images = np.bincount(data.classes[rows], minlength=data.class_count)
    return BeforeAndAfter(
        before=before.metrics,
        after=after.metrics,
        before_interval=_interval(before.right, data.groups, own),
        after_interval=_interval(after.right, data.groups, own),
        gain_interval=bootstrap(gain, own),
        images=tuple(images.tolist()),
        groups=0 if data.groups is None else len(np.unique(own)),
    )


def _interval(right: NDArray[np.bool_], groups: Numbers | None, own: Numbers) -> Interval:
    if groups is None:
        return wilson(int(right.sum()), len(right))
    return bootstrap(right.astype(np.float64), own)


def warnings_of(report: FinetuneReport) -> tuple[str, ...]:
    """Return what a reader of the accuracies of a finished training must know."""
    before, after = report.before, report.after
    if before is None or after is None:
        return ()
    found = []
    if after.accuracy <= before.accuracy:
        found.append(
            f"the {report.measured_on} accuracy is no higher than that of a probe of the untouched "
            f"network ({after.accuracy:.3f}, before {before.accuracy:.3f}): use the original "
            "weights"
        )
    elif report.gain_interval is not None and report.gain_interval[0] <= 0:
        low, high = report.gain_interval
        found.append(
            f"the gain of {after.accuracy - before.accuracy:.3f} may be chance: its 95 % interval "
            f"is {low:+.3f} to {high:+.3f}, by {counted(sum(report.test), 'test image')}"
        )
    if report.measured_on == VALIDATION:
        found.append(
            "accuracy before and after are of the images that chose probe and epoch, for there is "
            "no test part, so both are too high"
        )
    else:
        found += _untested(report.classes, report.test)
    return tuple(found)


def _untested(classes: Sequence[str], test: Sequence[int]) -> list[str]:
    """Name the classes without a test image."""
    without = [name for name, count in zip(classes, test, strict=True) if not count]
    if not without:
        return []
    what = f"{counted(len(without), 'class')} {agree(len(without), 'has')} no test image"
    return [f"{what}, for too few are there: {first_few(map(repr, without))}"]
