"""What the commands share of the terminal: errors to exit codes, log lines, tables, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.core.exhaustion import exhaustion_of
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
    """Progress of a run: a bar on a terminal, elsewhere now and then a line to the log."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._started = time.monotonic()
        self._told = self._started

    def update(self, progress: Progress) -> None:
        """Shows how far the run is; quiet, only a log file gets to know."""
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
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type] # an instance, never the class
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
