"""The actors of one run on a Ray cluster, some of which start, are free, work, or have died."""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vggfeat.errors import DeviceError
from vggfeat.extraction.ray_worker import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOST = "lost"
"""`Outcome.kind` of a task whose worker or node died."""

_POLL_SECONDS = 0.3


@dataclass(slots=True)
class ActorPool:
    """The actors: those that start, those that are free, and what the others do."""

    ray: Any
    actors: Sequence[Any]
    _starting: dict[Any, Any] = field(default_factory=dict)
    _free: deque[Any] = field(default_factory=deque)
    _under_way: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    _started: bool = False

    def __post_init__(self) -> None:
        for actor in self.actors:
            self._await(actor)

    @property
    def free(self) -> bool:
        """Whether an actor runs and has nothing to do."""
        return bool(self._free)

    @property
    def busy(self) -> bool:
        """Whether any task is under way."""
        return bool(self._under_way)

    def begin(self, task: Callable[[Any], Any], key: int) -> None:
        """Give a free actor something to do.

        Args:
            task: makes the reference of a task from an actor.
            key: comes back with what the task came to.
        """
        actor = self._free.popleft()
        self._under_way[task(actor)] = (actor, key)

    def wait(self) -> list[tuple[int, Outcome]]:
        """Wait a moment for tasks to end and for actors to start.

        Returns:
            key and outcome of each task that ended.

        Raises:
            DeviceError: not one actor can start.
        """
        pending = [*self._starting, *self._under_way]
        if not pending:
            return []
        ended = []
        for done in self.ray.wait(pending, timeout=_POLL_SECONDS)[0]:
            if done in self._starting:
                self._see_started(done, self._starting.pop(done))
                continue
            actor, key = self._under_way.pop(done)
            outcome = self._outcome(done)
            if outcome.kind == LOST:
                self._await(actor)  # Ray restarts it where there is room, which may take long
            else:
                self._free.append(actor)
            ended.append((key, outcome))
        return ended

    def _await(self, actor: Any) -> None:
        self._starting[actor.__ray_ready__.remote()] = actor

    def _see_started(self, ready: Any, actor: Any) -> None:
        try:
            self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            if not self._started:
                raise DeviceError(
                    f"a worker cannot start: {last_line(error)}; is vggfeat installed on every "
                    "node, in this version?"
                ) from error
            time.sleep(_POLL_SECONDS)  # its node is gone, and Ray has not found that out yet
            self._await(actor)
            return
        self._started = True
        self._free.append(actor)

    def _outcome(self, task: Any) -> Outcome:
        """Return what a task came to; its worker or its node may have died."""
        try:
            outcome: Outcome = self.ray.get(task)
        except self.ray.exceptions.RayTaskError:
            raise  # a defect
        except self.ray.exceptions.RayError as error:
            return Outcome(None, LOST, _why(error))
        return outcome


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text that is not blank."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [""])[-1]


def _why(error: BaseException) -> str:
    """Return why a worker ended, without the numbers by which Ray knows it."""
    text = re.sub(r"The actor [0-9a-f]{16,} ", "it ", last_line(error))
    unsure = "The task may or may not have been executed on the actor."
    return text.removesuffix(unsure).rstrip(" .")
