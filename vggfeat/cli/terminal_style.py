"""What the terminal can show: how wide it is, and whether in colour."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import typer

from vggfeat.cli.terminal import table

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_WIDTH = 40
_STATES = {"done": "green", "failed": "red", "pending": "yellow", "removed": "bright_black"}


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
        right: see `console.table`.
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
