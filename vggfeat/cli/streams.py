"""Standard output and standard error that cannot be written, e.g. because a pipe was closed."""

from __future__ import annotations

import io
import os
import sys

from vggfeat.cli.status_line import erase
from vggfeat.errors import SpaceError


class OutputError(SpaceError):
    """Standard output cannot be written, e.g. because the disk of the file it goes to is full."""


class ReaderGoneError(BrokenPipeError):
    """The reader of standard output has closed it, as `| head` does.

    It has no error number, on which Typer would end the process with exit code 1.
    """


class _Output(io.TextIOWrapper):
    """Standard output that says why it cannot be written."""

    def write(self, text: str, /) -> int:
        erase()
        try:
            return super().write(text)
        except BrokenPipeError:
            discard(self)
            raise ReaderGoneError from None
        except OSError as error:
            raise self._given_up(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            discard(self)
            raise ReaderGoneError from None
        except OSError as error:
            raise self._given_up(error) from error

    def _given_up(self, error: OSError) -> OutputError:
        discard(self)
        return OutputError(
            error.errno,
            f"standard output cannot be written: {error.strerror}; nothing else is lost, make room "
            "there and run the command again",
        )


class _Notices(io.TextIOWrapper):
    """Standard error that drops what cannot be written: a notice must not end a run."""

    def write(self, text: str, /) -> int:
        erase()
        try:
            return super().write(text)
        except OSError:
            discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            discard(self)


def discard(stream: io.TextIOWrapper) -> None:
    """Send what a stream still buffers, and all later output, to `/dev/null`."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, stream.fileno())
    os.close(handle)


def install() -> None:
    """Replace `sys.stdout` and `sys.stderr` if they are those that Python created."""
    for name, kind in (("stdout", _Output), ("stderr", _Notices)):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            encoding, errors = stream.encoding, stream.errors
            # Notices are seen when they are written, in unbuffered Python (-u) too.
            notices = name == "stderr"
            lines = stream.line_buffering or notices
            whole = kind(
                stream.detach(), encoding, errors, line_buffering=lines, write_through=notices
            )
            setattr(sys, name, whole)
            setattr(sys, f"__{name}__", whole)
