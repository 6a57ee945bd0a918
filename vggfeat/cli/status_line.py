"""A line on the terminal that says what a command is doing until something else is shown."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from vggfeat.core import activity
from vggfeat.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_SLOW_LIBRARIES = ("torch", "matplotlib", "ray", "umap")
_ERASE = "\r\x1b[K"
_shown_by = [0]
"""The process that shows a line now; a process that is forked off shows none and erases none."""


class StatusLine(activity.Watcher):
    """Shows on standard error the step that has begun last, unless a progress bar is there."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self.beside_bar = False

    def begins(self, what: str) -> None:
        """Show a step in place of the one before."""
        if self.beside_bar or os.getpid() != self._process:
            return
        erase()
        width = shutil.get_terminal_size().columns - 1  # in the last column a line would wrap
        sys.stderr.write(printable(f"vggfeat: {what}")[:width])
        sys.stderr.flush()
        _shown_by[0] = self._process


def erase() -> None:
    """Remove the line from the terminal, if one is shown; whoever writes to it calls this first."""
    if _shown_by[0] and _shown_by[0] == os.getpid():
        _shown_by[0] = 0
        sys.stderr.write(_ERASE)
        sys.stderr.flush()


_line: list[StatusLine] = []


def show_steps(*, wanted: bool) -> None:
    """From here on show what the command does, if wanted and on a terminal; else no longer."""
    erase()
    shown = wanted and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    _line[:] = [StatusLine()] if shown else []
    activity.watch_always(_line[0] if shown else None)
    if shown and not any(isinstance(one, _Imports) for one in sys.meta_path):
        sys.meta_path.insert(0, _Imports())


def give_way(*, to_bar: bool) -> None:
    """Show no more steps while a progress bar is on the terminal; or show them again."""
    for line in _line:
        line.beside_bar = to_bar


class _Imports:
    """Finds no module; says that a library is loaded which takes seconds.

    Libraries are imported where they are first needed, which is in many places.
    """

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _SLOW_LIBRARIES:
            activity.begins(f"loading {fullname}")
        return None
