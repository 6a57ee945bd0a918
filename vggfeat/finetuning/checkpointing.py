"""When the state of training is saved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.finetuning.progress import TrainingState


@dataclass(slots=True)
class Checkpointer:
    """Saves now and then: not so often that saving takes a tenth of the time.

    With 0 seconds that is after every batch all the same.

    Attributes:
        write: writes a checkpoint.
        seconds: between two at least.
    """

    write: Callable[[TrainingState], None]
    seconds: float
    _due: float = 0.0

    def start(self) -> None:
        """Counts from now."""
        self._due = time.monotonic() + self.seconds

    def save_if_due(self, state: TrainingState) -> None:
        """Saves if it is time to."""
        if time.monotonic() >= self._due:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Saves at once."""
        started = time.monotonic()
        self.write(state)
        ended = time.monotonic()
        self._due = ended + (max(self.seconds, 10 * (ended - started)) if self.seconds else 0)
