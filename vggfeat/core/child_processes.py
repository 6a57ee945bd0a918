"""Forked children: how they leave signals to their parent, and how they come to an end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
import warnings

from vggfeat.core.exhaustion import PROCESSES, told
from vggfeat.core.resources import give_freed_memory_back

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h: a signal for when the parent dies
_REAP_SECONDS = 5.0


def fork() -> int:
    """Fork this process, whatever threads it has; raise ResourceError if there is no room.

    Python 3.12 warns of that. A child that computes in no threads waits for none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*use of fork.*", DeprecationWarning)
        try:
            return os.fork()
        except BlockingIOError as error:
            raise told(PROCESSES, error) from error


def detach(parent: int) -> None:
    """Leave signals to the main process, which ends what it began, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    give_freed_memory_back()  # one huge image must not stay with each of many processes
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def is_stopped(pid: int) -> bool:
    """Return whether a child was stopped by a signal, as by SIGSTOP, and not continued since."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return False
    try:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return found is not None and found.si_code == os.CLD_STOPPED


def end(pid: int) -> str:
    """Kill a process unless it is dead already; say how it ended.

    A process that hangs in the kernel is not waited for longer than a few seconds.
    """
    until = time.monotonic() + _REAP_SECONDS
    killed = False
    while time.monotonic() < until:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return "ended"
        if found:
            code = os.waitstatus_to_exitcode(status)
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        if not killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.001)
    return "hangs"
