"""What the commands share of the terminal: errors to exit codes, log lines, tables, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.core.exhaustion import exhaustion_of
from vggfeat.core.records import as_plain
from vggfeat.core.signals import ended_by_signals
from vggfeat.core.text import counted, duration
from vggfeat.errors import InterruptedRunError, VggfeatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vggfeat.core.records import Progress

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notices, only errors.")]

_LINE_EVERY_SECONDS = 30.0
_WITHOUT_TERMINAL = (120, 24)
_SIGINT_STATUS = 130
_LEAST_WIDTH = 40
_STATES = {"done": "green", "failed": "red", "pending": "yellow", "removed": "bright_black"}
_tracebacks: list[bool] = [False]


def show_tracebacks(*, wanted: bool) -> None:
    """Whether errors end in a traceback rather than in one line."""
    _tracebacks[0] = wanted


@contextlib.contextmanager
def exit_codes(
    interrupted: str = "stopped at once; rows up to the last checkpoint are kept",
) -> Iterator[None]:
    """Turns errors of the block into one line on stderr and the exit code of their kind.

    Args:
        interrupted: what is said where a signal ends the block.
    """
    try:
        with ended_by_signals():  # what is half written is removed, as it is after Ctrl-C
            yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise  # Typer's own ways out
    except VggfeatError as error:
        _fail(error, status_of(error))
    except KeyboardInterrupt as error:
        _fail(error, status_of(error), interrupted)
    except BrokenPipeError as error:
        # Whoever read our output has seen enough, as `| head` has. A run may have failed still.
        before: BaseException | None = error
        while before and not isinstance(before, VggfeatError | KeyboardInterrupt):
            before = before.__context__
        raise typer.Exit(status_of(before) if before else 0) from None
    except Exception as error:  # noqa: BLE001 the user gets one line, and on demand the traceback
        exhausted = exhaustion_of(error)
        if exhausted is not None:
            _fail(exhausted, status_of(exhausted))
        _fail(
            error,
            status_of(error),
            f"a defect of vggfeat, {type(error).__name__}: {error}; `vggfeat --debug` shows where, "
            "please report it",
        )


def status_of(error: BaseException) -> int:
    """The exit code with which the command line ends on an error."""
    if isinstance(error, InterruptedRunError):
        return error.exit_status
    if isinstance(error, VggfeatError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_status", _SIGINT_STATUS)
    return 0 if isinstance(error, BrokenPipeError) else VggfeatError.exit_code


def _fail(error: BaseException, status: int, message: str | None = None) -> None:
    if _tracebacks[0]:
        raise error
    tell_error(message or str(error))
    raise typer.Exit(status) from error


def tell_error(message: str) -> None:
    """Write one line to stderr."""
    text = " ".join(message.split())
    typer.echo(f"vggfeat: {text.encode(errors='backslashreplace').decode()}", err=True)


def set_up_logging(*, quiet: bool, verbose: bool) -> None:
    """Log lines to stderr, above a progress bar if there is one: warnings, and with verbose all."""
    logger = logging.getLogger("vggfeat")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in [handler for handler in logger.handlers if isinstance(handler, _AboveTheBar)]:
        logger.removeHandler(handler)
    handler = _AboveTheBar(logging.ERROR if quiet else logging.NOTSET)
    handler.setFormatter(_Plain())
    logger.addHandler(handler)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"vggfeat: {mark}{super().format(record)}"


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class Bar:
    """Progress of a run: a bar on a terminal, elsewhere now and then a line to the log.

    Args:
        quiet: whether only a log file gets to know.
        late: whether the run begins with its first rows: what it fits before is no part of their
            rate.
    """

    def __init__(self, *, quiet: bool, late: bool = False) -> None:
        self._quiet, self._late = quiet, late
        self._bar: Any = None
        self._started = self._told = time.monotonic()

    def update(self, progress: Progress) -> None:
        """Show how far the run is."""
        if self._late:
            self._late, self._started = False, time.monotonic()
            self._told = self._started
        if sys.stderr.isatty() and not self._quiet:
            self._draw(progress)
        elif time.monotonic() - self._told >= _LINE_EVERY_SECONDS:
            self._told = time.monotonic()
            self._tell(progress)

    def _draw(self, progress: Progress) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=progress.total, unit=" images", file=sys.stderr, smoothing=0.1)
        self._bar.set_postfix(failed=progress.failed, refresh=False)
        self._bar.update(progress.done + progress.failed - self._bar.n)

    def _tell(self, progress: Progress) -> None:
        seen = progress.done + progress.failed
        rate = seen / (self._told - self._started)
        left = (progress.total - seen) / rate if rate else 0
        logging.getLogger("vggfeat").info(
            "%d of %s, %d failed, %.1f images/s, %s to go",
            seen,
            counted(progress.total, "image"),
            progress.failed,
            rate,
            duration(left),
        )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def print_json(value: Any) -> None:
    """A dataclass or plain value as JSON on stdout, undecodable names escaped."""
    plain = as_plain(value) if dataclasses.is_dataclass(value) else value
    typer.echo(json.dumps(plain, indent=2))


def table(rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Lines of a table whose first row is its head.

    Args:
        rows: cells.
        right: a letter a column, `r` for right-aligned, `l` for left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def output_width() -> int:
    """Columns of the terminal; where there is none, as many as most log viewers show."""
    return shutil.get_terminal_size(_WITHOUT_TERMINAL).columns


def shape_text(shape: Sequence[int]) -> str:
    """`512` or `512 x 14 x 14`."""
    return " x ".join(map(str, shape))


def terminal_width() -> int | None:
    """Columns of the terminal; None where standard output is none, and nothing needs to fit."""
    if not sys.stdout.isatty():
        return None
    return max(_LEAST_WIDTH, shutil.get_terminal_size().columns)


def in_colour() -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def painted(text: str, colour: str, *, bold: bool = False) -> str:
    """Text in a colour, where there is any."""
    return typer.style(text, fg=colour, bold=bold or None) if in_colour() else text


def painted_state(text: str, state: str) -> str:
    """Text in the colour of a row's state."""
    return painted(text, _STATES[state]) if state in _STATES else text


def fitting_table(
    rows: Sequence[Sequence[str]], right: str, first_to_go: Sequence[str], indent: int = 2
) -> list[str]:
    """Lines of a table, without as many columns as must go for the terminal to hold it.

    Args:
        rows: cells; the first row is the head.
        right: see `table`.
        first_to_go: names of columns in the order in which they are left out.
        indent: columns in front of each line.
    """
    width = terminal_width()
    kept = list(range(len(rows[0])))
    lines = table(rows, right)
    for name in first_to_go:
        if width is None or max(map(len, lines)) + indent <= width:
            break
        kept.remove(rows[0].index(name))
        lines = table([[row[at] for at in kept] for row in rows], "".join(right[at] for at in kept))
    return [" " * indent + line for line in lines]


def folded(line: str, indent: int) -> list[str]:
    """A line as the terminal holds it, what is left of it below, indented."""
    width = terminal_width()
    if width is None or len(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.lstrip(),
        width,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
