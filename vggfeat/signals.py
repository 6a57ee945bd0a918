"""SIGINT, SIGTERM and the time limit as a flag that the loop looks at between batches."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Set by the first SIGINT or SIGTERM; a second SIGINT is a KeyboardInterrupt at once.

    In a thread other than the main one nothing is installed: signals go to the main thread.

    Args:
        seconds: from now until the run should be over; None for no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.signum = 0
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signum != 0

    @property
    def reason(self) -> str:
        """A signal's name, or `time limit`: of what asked to stop, or else might have."""
        return signal.Signals(self.signum).name if self.signum else "time limit"

    def allows(self, seconds: float) -> bool:
        """Whether there is leave, and time, to begin something that takes so many seconds."""
        return not self.signum and time.monotonic() + seconds < self._deadline

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in _CAUGHT}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
