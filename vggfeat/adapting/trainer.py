"""The loop of learning: epoch after epoch, until it is over or a signal asks to stop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.adapting.augmentation import jitter
from vggfeat.adapting.finetuning import Judged
from vggfeat.adapting.state import Course, Score, plan_epoch, steps_of
from vggfeat.errors import InputError
from vggfeat.records import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.adapting.augmentation import Change
    from vggfeat.adapting.finetuning import Learner
    from vggfeat.adapting.split import Split
    from vggfeat.records import DecodedBatch
    from vggfeat.signals import StopFlag

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Rules:
    """How long is learnt, and in which steps.

    Attributes:
        epochs: at most.
        patience: epochs without a gain after which it is over; 0 for none.
        batch_size: images a step.
        seed: of the order of images and of their changes.
        changes: what is changed of them by chance.
    """

    epochs: int
    patience: int
    batch_size: int
    seed: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learnt from.

    Attributes:
        split: rows to learn from, rows that judge.
        classes: int64 (N,), the class of each row.
        load: batches of a plan, decoded, as long as the second argument says so.
        prepare: the n images of a batch as the network's input, normalised, (n, C, H, W) on the
            device.
    """

    split: Split
    classes: NDArray[np.int64]
    load: Callable[[NDArray[np.int64], Callable[[], bool]], Iterator[DecodedBatch]]
    prepare: Callable[[DecodedBatch], Tensor]


@dataclass(slots=True)
class Keeper:
    """Says when it is time to save: not so often that saving takes a tenth of the time.

    With 0 seconds that is after every batch all the same.

    Attributes:
        save: writes where learning stands.
        seconds: between two at least.
    """

    save: Callable[[Course], None]
    seconds: float
    _next: float = 0.0

    def begin(self) -> None:
        """Counts from now."""
        self._next = time.monotonic() + self.seconds

    def now_and_then(self, course: Course) -> None:
        """Saves if it is time to."""
        if time.monotonic() >= self._next:
            self.at_once(course)

    def at_once(self, course: Course) -> None:
        """Saves."""
        started = time.monotonic()
        self.save(course)
        ended = time.monotonic()
        self._next = ended + (max(self.seconds, 10 * (ended - started)) if self.seconds else 0)


@dataclass(slots=True)
class Teacher:
    """Takes a learner through its lesson.

    Attributes:
        learner: the network.
        lesson: what it learns from.
        rules: how long.
        keeper: saves where it stands.
        stop: a signal, or the end of the time there is.
        notice: called after each batch.
    """

    learner: Learner
    lesson: Lesson
    rules: Rules
    keeper: Keeper
    stop: StopFlag
    notice: Callable[[Progress], None]
    _slowest: float = 0.0
    _failed: int = 0

    def goes_on(self) -> bool:
        """Whether another batch may begin."""
        return self.stop.allows(self._slowest)

    def teach(self, course: Course) -> Course:
        """From where it stands to the end, or to where it had to stop, which is saved."""
        self.keeper.begin()
        while not course.is_over(self.rules.epochs, self.rules.patience):
            epochs = len(course.history)
            course = self._epoch(course)
            if len(course.history) == epochs:  # stopped on the way
                self.keeper.at_once(course)
                break
            self.keeper.now_and_then(course)
        return course

    def _epoch(self, course: Course) -> Course:
        """What is left of an epoch; stopped on the way it comes back unfinished."""
        rules, split = self.rules, self.lesson.split
        epoch = len(course.history)
        plan = plan_epoch(split, rules.batch_size, seed=rules.seed, epoch=epoch)
        steps = steps_of(len(split.train), rules.batch_size)
        judged = Judged.nothing(self.learner.classes)
        number = course.batches
        loaded = self.lesson.load(plan[number:], self.goes_on)
        started = time.monotonic()
        while number < len(plan):
            decoded = next(loaded, None) if self.goes_on() else None
            if decoded is None:
                return course
            if number < steps:
                course = self._learn(decoded, course, epoch * steps + number, epoch)
                self.keeper.now_and_then(course)
            else:
                judged += self._judge(decoded)
            number += 1
            self._slowest = max(self._slowest, time.monotonic() - started)
            started = time.monotonic()
            self._tell(epoch, number)
        return self._finish(course, judged)

    def _learn(self, decoded: DecodedBatch, course: Course, step: int, epoch: int) -> Course:
        self._failed += len(decoded.failures)
        if not len(decoded.rows):
            return course.after_batch(0.0, 0)
        seeds = [(self.rules.seed, epoch, row) for row in decoded.rows.tolist()]
        images = jitter(self.lesson.prepare(decoded), self.rules.changes, seeds)
        loss = self.learner.step(images, self.lesson.classes[decoded.rows], step)
        return course.after_batch(loss, len(images))

    def _judge(self, decoded: DecodedBatch) -> Judged:
        if not len(decoded.rows):
            return Judged.nothing(self.learner.classes)
        return self.learner.judge(self.lesson.prepare(decoded), self.lesson.classes[decoded.rows])

    def _finish(self, course: Course, judged: Judged) -> Course:
        if not judged.counts.sum():
            raise InputError(
                "none of the images that judge can be decoded any more; are they still there?"
            )
        score = Score.of(judged.loss, judged.hits, judged.counts)
        before, course = course.best, course.after_epoch(score)
        if before is None or score.beats(before.score):
            self.learner.keep_as_best()
        last = course.history[-1]
        best = "" if course.best == last or course.best is None else (
            f" (best {course.best.score.accuracy:.3f} in epoch {course.best.number})"
        )  # fmt: skip
        log.info(
            "epoch %d of %d: loss %.4f, held out %.4f, accuracy %.3f%s",
            last.number, self.rules.epochs, last.loss, score.loss, score.accuracy, best,
        )  # fmt: skip
        return course

    def _tell(self, epoch: int, number: int) -> None:
        split, size = self.lesson.split, self.rules.batch_size
        steps = steps_of(len(split.train), size)
        learnt = min(number * size, len(split.train))
        judged = min(max(number - steps, 0) * size, len(split.judge))
        each = len(split.train) + len(split.judge)
        done = epoch * each + learnt + judged
        self.notice(Progress(max(0, done - self._failed), self._failed, each * self.rules.epochs))
