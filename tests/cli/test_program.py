"""The program around its commands: signals while it is loaded, and once its command has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vggfeat.core.signals import TerminatedError, ended_by_signals

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])

PROGRAM = """
import atexit, os, signal, sys

number, when = int(sys.argv[1]), sys.argv[2]
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nohup, or a shell, may ignore some
    handler = signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL
    signal.signal(one, signal.SIG_IGN if when == "ignored" else handler)

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), number)

if when == "after":
    atexit.register(os.kill, os.getpid(), number)
else:
    sys.meta_path.insert(0, Importing())
sys.argv[1:] = ["layers", "--model", "vgg11"]
from vggfeat.__main__ import main
main()
"""


def program(number: signal.Signals, when: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), when],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@SIGNALS
def test_a_signal_while_the_program_is_loaded(number: signal.Signals) -> None:
    """Between the start and the command a signal is one line and its exit code, no traceback."""
    done = program(number, "loading")
    assert done.returncode == 128 + number
    assert done.stderr == "vggfeat: stopped before it began; nothing was written\n"
    assert done.stdout == ""


@SIGNALS
def test_a_signal_after_the_command(number: signal.Signals) -> None:
    """A command that has done its work and said so ends with its own exit code."""
    done = program(number, "after")
    assert (done.returncode, done.stderr) == (0, "")
    assert "conv1_1" in done.stdout


@SIGNALS
def test_signals_that_were_ignored_stay_so(number: signal.Signals) -> None:
    """Under nohup, or behind `&` in a script, a signal that is ignored does nothing."""
    done = program(number, "ignored")
    assert (done.returncode, done.stderr) == (0, "")
    assert "conv1_1" in done.stdout


def test_a_signal_that_a_library_takes_for_an_error() -> None:
    """What matplotlib's C code says of a KeyboardInterrupt in it is no defect of ours."""

    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("Invalid affine transformation matrix") from None

    with pytest.raises(TerminatedError, match="SIGTERM") as caught, ended_by_signals():
        library()
    assert caught.value.exit_status == 143
