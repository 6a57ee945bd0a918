"""Functions called in a forked child: their results, their errors, and children that die."""

from __future__ import annotations

import faulthandler
import os
import signal

import numpy as np
import pytest

from vggfeat.core.in_child import in_child
from vggfeat.errors import UsageError


def test_results_and_errors_come_back() -> None:
    """An array larger than a pipe comes whole, from another process; an error is raised here."""
    found, process = in_child(lambda: (np.arange(1 << 20), os.getpid()))
    assert np.array_equal(found, np.arange(1 << 20))
    assert process != os.getpid()

    def refuse() -> None:
        raise UsageError("no such thing")

    with pytest.raises(UsageError, match="no such thing"):
        in_child(refuse)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_child_that_crashes_is_an_error(number: int) -> None:
    """Its end is told by the name of the signal, and no child is left."""

    def crash() -> None:
        faulthandler.disable()
        os.kill(os.getpid(), number)

    with pytest.raises(ValueError, match=f"read it was killed by {signal.Signals(number).name}"):
        in_child(crash)


def test_a_child_that_hangs_is_ended() -> None:
    """Processor time is what counts, so a busy machine ends no child early."""

    def hang() -> None:
        while True:
            pass

    with pytest.raises(ValueError, match="was killed by SIG"):
        in_child(hang, seconds=1)
