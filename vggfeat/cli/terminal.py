"""Shared by commands: exit codes of errors, log lines, JSON, CSV, tables and progress bars."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from vggfeat.cli.status_line import erase, give_way, show_steps
from vggfeat.core.activity import watched_by
from vggfeat.core.csv_text import csv_text
from vggfeat.core.exhaustion import device_exhaustion_of, exhaustion_of
from vggfeat.core.lost_device import is_lost, lost_device
from vggfeat.core.records import Progress, as_plain
from vggfeat.core.signals import ended_by_signals
from vggfeat.core.text import counted, duration, printable
from vggfeat.errors import InterruptedRunError, UsageError, VggfeatError
from vggfeat.extraction.progress_bar import BarOfRun, ProgressBar
from vggfeat.storage.mapped_files import cut_short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

T = TypeVar("T")

_LINE_EVERY_SECONDS = 30.0
_WITHOUT_TERMINAL = (120, 24)
_SIGINT_STATUS = 130
_LEAST_WIDTH, _INDENT = 40, 2
_WIDEST_LABELS = 24
_STATES = {"done": "green", "failed": "red", "pending": "yellow", "removed": "bright_black"}
_PAINT = re.compile(r"(\x1b\[(?:0|1|31|32|33|90)m)")  # what `painted` puts around text
_tracebacks: list[bool] = [False]


def show_tracebacks(*, wanted: bool) -> None:
    """Let errors end in a traceback rather than in one line."""
    _tracebacks[0] = wanted


ROWS_KEPT = "stopped at once; rows up to the last checkpoint are kept"


@contextlib.contextmanager
def exit_codes(interrupted: str = "stopped at once; nothing is half written") -> Iterator[None]:
    """Turn errors of the block into one line on stderr and the exit code of their kind.

    Args:
        interrupted: message if a signal ends the block.
    """
    try:
        with ended_by_signals():  # what is half written is removed, as it is after Ctrl-C
            yield
            erase()
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise  # Typer's own ways out
    except VggfeatError as error:
        _fail(error)
    except KeyboardInterrupt as error:
        _fail(error, interrupted)
    except BrokenPipeError as error:
        # The reader of our output has seen enough, as `| head` has; the run may still have failed.
        before: BaseException | None = error
        while before and not isinstance(before, VggfeatError | KeyboardInterrupt):
            before = before.__context__
        raise typer.Exit(status_of(before) if before else 0) from None
    except Exception as error:  # noqa: BLE001 the user gets one line, and on demand the traceback
        known = exhaustion_of(error) or device_exhaustion_of(error) or lost_device(error)
        if known is not None:
            _fail(known)
        _fail(
            error,
            f"a defect of vggfeat, {type(error).__name__}: {error}; `vggfeat --debug` shows where, "
            "please report it",
        )


@contextlib.contextmanager
def leaving_lost_devices() -> Iterator[None]:
    """End the process behind the block at once if it has lost a device: tidying up would abort it.

    By then the command has said how it ended, and closed its files.
    """
    try:
        yield
    except BaseException as error:
        if not is_lost():
            raise
        status = VggfeatError.exit_code
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else status
        else:
            traceback.print_exception(error)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def status_of(error: BaseException) -> int:
    """Return the exit code with which the command line ends on an error."""
    if isinstance(error, InterruptedRunError):
        return error.exit_status
    if isinstance(error, VggfeatError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_status", _SIGINT_STATUS)
    return 0 if isinstance(error, BrokenPipeError) else VggfeatError.exit_code


def _fail(error: BaseException, message: str | None = None) -> None:
    if _tracebacks[0]:
        raise error
    cut = cut_short(error)
    tell_error(str(cut) if cut else message or str(error))
    raise typer.Exit(status_of(cut or error)) from error


def tell_error(message: str) -> None:
    """Write one line to stderr."""
    typer.echo(f"vggfeat: {printable(' '.join(message.split()))}", err=True)


def tell_warning(message: str) -> None:
    """Write one line to stderr, even if the log is quiet because JSON goes to standard output."""
    tell_error(f"warning: {message}")


def set_up_logging(*, quiet: bool, verbose: bool) -> None:
    """Write log lines to stderr, above a progress bar; errors only if quiet, all if verbose."""
    show_steps(wanted=not quiet)
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
        lines = super().format(record).split("\n")  # several where it shows a traceback
        return f"vggfeat: {mark}" + "\n".join(map(printable, lines))


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class Bar(BarOfRun):
    """Progress of a run in a `with` block: a bar on a terminal, elsewhere a log line now and then.

    Args:
        quiet: show nothing on a terminal; log lines still reach a log file.
        unit: plural of what is counted; empty to show percent only.
    """

    def __init__(self, *, quiet: bool, unit: str = "images") -> None:
        self._drawn = not quiet and sys.stderr.isatty()
        super().__init__(self._on_terminal if self._drawn else None)
        self._unit = unit
        self._told = time.monotonic()
        self._watching = watched_by(self)

    def __enter__(self) -> Self:
        self._watching.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.__exit__(None, None, None)
        self.close()

    def _on_terminal(self, total: int) -> ProgressBar:
        give_way(to_bar=True)
        return ProgressBar(total, self._unit)

    def draw(self, seen: int, total: int) -> None:
        """Show that `seen` of `total` are done, without a log line elsewhere."""
        super().update(Progress(seen, 0, total))

    def update(self, progress: Progress) -> None:
        """Show how far the run is."""
        super().update(progress)
        if not self._drawn and time.monotonic() - self._told >= _LINE_EVERY_SECONDS:
            self._told = time.monotonic()
            self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        seen, unit = progress.done + progress.failed, self._unit
        rate = self.rate
        logging.getLogger("vggfeat").info(
            "%d of %s, %d failed, %.1f %s/s, %s to go",
            seen,
            counted(progress.total, unit.removesuffix("s")),
            progress.failed,
            rate,
            unit,
            duration((progress.total - seen) / rate if rate else 0),
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        super().close()
        give_way(to_bar=False)


def show(
    result: T, lines: Callable[[T], Iterable[str]], *, as_json: bool, quiet: bool = False
) -> None:
    """Print a result as JSON, or as lines, or, if quiet, not at all."""
    if as_json:
        print_json(result)
    elif not quiet:
        say(*lines(result))


def written(what: str, path: str | None) -> list[str]:
    """Return lines that name a picture or page written beside a result; none if there is none."""
    return [] if path is None else ["", f"{what}: {path}"]


def say(*lines: str) -> None:
    """Print lines; control characters in them are escaped, but for the colours of `painted`.

    On a terminal, lines that are too long for it are broken between words.

    Names, reasons and attributes are others' words, which could move the cursor, set the title of a
    window, or hide what comes after them.
    """
    shown = map(_shown, lines)
    typer.echo("\n".join(part for line in shown for part in folded(line, _text_at(line))))


def _text_at(line: str) -> int:
    """Return where the text of `  layers   conv5_3, fc7` begins, behind its labels."""
    labels = re.match(r"(\s*\S+( \S+)?\s{2,}){1,2}", line)
    if labels is not None and labels.end() <= _WIDEST_LABELS:
        return labels.end()
    return len(line) - len(line.lstrip()) + 2


def _shown(line: str) -> str:
    """Return one line as a terminal may have it."""
    if line.isprintable():
        return line
    parts = _PAINT.split(line)  # text and paint in turn
    return "".join(part if at % 2 else printable(part) for at, part in enumerate(parts))


def print_json(value: Any) -> None:
    """Print a plain value, with dataclasses in it, as JSON; undecodable names are escaped."""
    typer.echo(json.dumps(value, indent=2, default=as_plain))


def check_one_form(*, as_json: bool, as_csv: bool) -> None:
    """Refuse two forms of the same output."""
    if as_json and as_csv:
        raise UsageError("--json and --csv are two forms of the same result; give one of them")


def print_csv(rows: Iterable[Sequence[object]]) -> None:
    """Print rows as CSV; see `csv_text`."""
    typer.echo(csv_text(rows), nl=False)


def table(rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Return the lines of a table whose first row is its head.

    Args:
        rows: cells.
        right: one letter for each column, `r` for right-aligned, `l` for left.
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
    """Return the columns of the terminal; without one, as many as most log viewers show."""
    return shutil.get_terminal_size(_WITHOUT_TERMINAL).columns


def shape_text(shape: Sequence[int]) -> str:
    """Return `512` or `512 x 14 x 14`."""
    return " x ".join(map(str, shape))


def terminal_width() -> int | None:
    """Return the columns of the terminal; None if standard output is not one."""
    if not sys.stdout.isatty():
        return None
    return max(_LEAST_WIDTH, shutil.get_terminal_size().columns)


def painted(text: str, colour: str, *, bold: bool = False) -> str:
    """Return text in a colour, on a terminal, unless NO_COLOR is set (no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return typer.style(text, fg=colour, bold=bold or None)


def painted_state(text: str, state: str) -> str:
    """Return text in the colour of a row's state."""
    return painted(text, _STATES[state]) if state in _STATES else text


def fitting_table(
    rows: Sequence[Sequence[str]], right: str, first_to_go: Sequence[str], indent: int = _INDENT
) -> list[str]:
    """Return the lines of a table that leaves out columns until it fits the terminal.

    Args:
        rows: see `table`.
        right: see `table`.
        first_to_go: names of columns in the order in which they are left out.
        indent: blanks in front of each line.
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
    """Wrap a line between words at the terminal's width; lines after the first are indented."""
    width = terminal_width()
    if width is None or len(_PAINT.sub("", line)) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.lstrip(),
        width,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
