"""What this process is doing, said to whoever shows it: long steps, and images within a batch.

The library says; only the command line and `extract(progress=True)` watch. Without a watcher a call
does nothing, and `on_progress` of a function stays what it is: called after whole batches.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Watcher:
    """Shows what a process does. Each method does nothing unless it is overridden."""

    def begins(self, what: str) -> None:
        """Show that a step begins, e.g. `loading weights`; it ends where something else is shown.

        Args:
            what: in a few words.
        """

    def expects(self, images: int) -> None:
        """Show that so many images are left to compute."""

    def computed(self, images: float) -> None:
        """Show how far the batch under way is, in images: 1.5 are one and half of another."""


# Of a context, not of the process: two threads that extract have a bar each.
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextlib.contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tell a watcher, during the block, what this thread does."""
    before = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(before)


def watch_always(watcher: Watcher | None) -> None:
    """Make a watcher the only one from here on, for a command; None for none."""
    _watchers.set(() if watcher is None else (watcher,))


def is_watched() -> bool:
    """Return whether anyone watches."""
    return bool(_watchers.get())


def begins(what: str) -> None:
    """Say that a step begins which may take longer than a moment; see `Watcher.begins`."""
    for watcher in _watchers.get():
        watcher.begins(what)


def expects(images: int) -> None:
    """Say how many images are left to compute, before the first batch."""
    for watcher in _watchers.get():
        watcher.expects(images)


def computed(images: float) -> None:
    """Say how many images of the batch under way are computed."""
    for watcher in _watchers.get():
        watcher.computed(images)
