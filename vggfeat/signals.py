"""SIGINT and SIGTERM as a flag that the loop looks at between batches."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Set by the first SIGINT or SIGTERM; a second SIGINT is a KeyboardInterrupt at once.

    In a thread other than the main one nothing is installed: signals go to the main thread.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signum != 0

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
