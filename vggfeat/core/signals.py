"""Signals and the time limit: a flag that the loop looks at, and outside it an end at once."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from typing_extensions import Self

_LATEST = 64  # batches, the slowest of which the next one is expected to be like
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class TerminatedError(KeyboardInterrupt):
    """A signal where there is no loop to finish a batch: like Ctrl-C, an end at once."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_status = 128 + signum


def how_to_resume() -> str:
    """Say which command resumes an interrupted run, also one with `--fresh`."""
    return "run the same command again to resume"


@contextlib.contextmanager
def process_of_a_command() -> Iterator[None]:
    """Be a program: a signal ends it before its command begins, and changes nothing afterwards.

    Loading the program takes longer than many commands do, and whoever stops it then should get one
    line and no traceback. Unloading torch takes seconds, after the command has said how it ended.
    Signals that were ignored when the process began stay ignored.
    """
    taken = [one for one in _CAUGHT if signal.getsignal(one) not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, _end_before_beginning)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_IGN)


def _end_before_beginning(signum: int, _frame: FrameType | None) -> None:
    # Not by an exception: import machinery and the parser of options would make it another one.
    with contextlib.suppress(OSError):
        os.write(2, b"vggfeat: stopped before it began; nothing was written\n")
    os._exit(128 + signum)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `TerminatedError`, so that what must be tidied up is.

    SIGINT does so too in a `process_of_a_command`; elsewhere it is the KeyboardInterrupt it is.
    """
    caught: list[int] = []

    def end(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)
        raise TerminatedError(signum)

    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGHUP)
    if signal.getsignal(signal.SIGINT) is _end_before_beginning:
        numbers = (*numbers, signal.SIGINT)
    before = _install(end, numbers)
    try:
        yield
    except Exception as error:
        if caught:  # code in C, as matplotlib's, makes an error of its own of what was raised
            raise TerminatedError(caught[0]) from error
        raise
    finally:
        over = {one: signal.SIG_IGN for one in before if before[one] is _end_before_beginning}
        _give_back({**before, **over})


def _install(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[signal.Signals, ...]
) -> dict[signal.Signals, Any]:
    """Catches signals, and returns what caught them before; in other threads than the main, none.

    A SIGHUP that is ignored stays so: that is what nohup is for.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [
        number
        for number in numbers
        if signal.getsignal(number) is not None  # else a C library catches it, and would not again
        and (number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)
    ]
    return {number: signal.signal(number, handler) for number in wanted}


def _give_back(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


class StopFlag:
    """Set by the first SIGINT, SIGTERM or SIGHUP; a second SIGINT is a KeyboardInterrupt at once.

    In a thread other than the main one nothing is installed: signals go to the main thread.

    Args:
        seconds: from now until the run should be over; None for no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.signum = 0
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds
        self._out_of_time = False
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signum != 0

    @property
    def reason(self) -> str:
        """What asked to stop: a signal's name, `time limit`, or '' if nothing did."""
        if self.signum:
            return signal.Signals(self.signum).name
        return "time limit" if self._out_of_time else ""

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit; infinite without one."""
        return self._deadline - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Return whether something that takes so many seconds may begin."""
        self._out_of_time = time.monotonic() + seconds >= self._deadline
        return not self.signum and not self._out_of_time

    def __enter__(self) -> Self:
        self._before = _install(self._caught, _CAUGHT)
        return self

    def __exit__(self, *_: object) -> None:
        _give_back(self._before)

    def _caught(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


class Pace:
    """Estimate how long the next batch takes: as long as the slowest of the latest ones.

    A cold batch, such as the first on a device, which loads cuDNN, counts only until there is
    another: after it a run with minutes left would stop for a start of seconds.
    """

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._cold = 0.0

    def note(self, seconds: float, *, cold: bool = False) -> None:
        """Add the seconds of a batch."""
        if cold:
            self._cold = max(self._cold, seconds)
        else:
            self._latest.append(seconds)

    @property
    def slowest(self) -> float:
        """Seconds that the next batch may take."""
        return max(self._latest, default=self._cold)
