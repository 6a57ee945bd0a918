"""Where learning stands, and which images come when: pure, no I/O, no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.plan import EMPTY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.adapting.split import Split


@dataclass(frozen=True, slots=True)
class Score:
    """How well images are told apart that nothing was learnt from.

    Attributes:
        accuracy: share of the images that are recognised.
        loss: mean cross-entropy.
        classes: accuracy of each class.
    """

    accuracy: float
    loss: float
    classes: tuple[float, ...]

    @classmethod
    def of(cls, loss: float, hits: NDArray[np.int64], counts: NDArray[np.int64]) -> Score:
        """From a summed loss, and of each class, int64 (classes,), the hits and the images."""
        each = hits / np.maximum(counts, 1)
        return cls(
            float(hits.sum() / counts.sum()),
            float(loss / counts.sum()),
            tuple(each.tolist()),
        )

    def beats(self, other: Score) -> bool:
        """Whether it is better: more is recognised, or as much at a lower loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the images that are learnt from.

    Attributes:
        number: 1 for the first.
        loss: mean cross-entropy of the images learnt from, each before its step.
        score: afterwards, on the images that judge.
    """

    number: int
    loss: float
    score: Score


@dataclass(frozen=True, slots=True)
class Course:
    """Where learning stands.

    Attributes:
        batches: done of the epoch under way.
        loss: summed over its images so far.
        seen: how many these are.
        history: epochs that are over.
    """

    batches: int = 0
    loss: float = 0.0
    seen: int = 0
    history: tuple[Epoch, ...] = ()

    @property
    def best(self) -> Epoch | None:
        """The first epoch that no other beats; None before any is over."""
        found: Epoch | None = None
        for epoch in self.history:
            if found is None or epoch.score.beats(found.score):
                found = epoch
        return found

    def is_over(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or `patience` of them (0: any number) brought no gain."""
        best = self.best
        done = len(self.history)
        return done >= epochs or bool(patience and best and done - best.number >= patience)

    def after_batch(self, loss: float, count: int) -> Course:
        """One batch on, with the mean loss of its images."""
        return dataclasses.replace(
            self, batches=self.batches + 1, loss=self.loss + loss * count, seen=self.seen + count
        )

    def after_epoch(self, score: Score) -> Course:
        """At the beginning of the next epoch."""
        number = len(self.history) + 1
        epoch = Epoch(number, self.loss / max(self.seen, 1), score)
        return Course(history=(*self.history, epoch))

    def to_json(self) -> str:
        """As text; `course_from` reads it."""
        return json.dumps(dataclasses.asdict(self))


def course_from(text: str) -> Course:
    """What `Course.to_json` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    fields: dict[str, Any] = json.loads(text)
    return Course(**{**fields, "history": epochs_from(fields["history"])})


def epochs_from(history: list[dict[str, Any]]) -> tuple[Epoch, ...]:
    """Epochs read back from JSON."""
    return tuple(
        Epoch(epoch["number"], epoch["loss"], score_from(epoch["score"])) for epoch in history
    )


def score_from(fields: dict[str, Any]) -> Score:
    """A score read back from JSON."""
    return Score(fields["accuracy"], fields["loss"], tuple(fields["classes"]))


def steps_of(images: int, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-images // batch_size)


def plan_epoch(split: Split, batch_size: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The images of an epoch: those learnt from in an order of chance, then those that judge.

    Args:
        split: which are which.
        batch_size: B.
        seed: of the order, together with `epoch`.
        epoch: the first is 0.

    Returns:
        int64 (batches, B), rows or `EMPTY`; the first `steps_of(train, B)` batches are learnt from.
    """
    order = np.random.default_rng((seed, epoch)).permutation(split.train)
    return np.concatenate([_dealt(order, batch_size), _dealt(split.judge, batch_size)])


def _dealt(rows: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    plan = np.full((steps_of(len(rows), batch_size), batch_size), EMPTY, dtype=np.int64)
    plan.ravel()[: len(rows)] = rows
    return plan
