"""The one kind of progress bar, of commands and of `extract(..., progress=True)`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from vggfeat.core.activity import Watcher, watched_by
from vggfeat.core.records import Progress
from vggfeat.core.text import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OnProgress = Callable[[Progress], None]


_DRAW_EVERY_SECONDS = 0.1


class ProgressBar:
    """A bar of tqdm that shows the rate it is given, not one of tqdm's own.

    A run reports its rate without the time that it took to begin, and its summary ends with the
    same figure. tqdm's own would count from the first call on, and smooth.

    Args:
        unit: plural of what is counted; empty to show percent only.
        auto: also as a widget in a notebook.
    """

    def __init__(self, total: int, unit: str, *, auto: bool = False) -> None:
        if auto:
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
        count = f" {{n_fmt}}/{{total_fmt}} {unit}" if unit else ""
        self._unit = unit
        self._drawn = -math.inf
        self._bar: Any = tqdm(
            total=total,
            file=sys.stderr,
            dynamic_ncols=True,
            leave=bool(unit),
            bar_format="{percentage:3.0f}%|{bar}|" + count + " [{elapsed}{postfix}]",
        )

    def move(self, seen: int, total: int, rate: float = 0.0, failed: int = 0) -> None:
        """Show that `seen` of `total` are done, at `rate` a second; 0 is a rate not yet known."""
        facts = []
        if rate and self._unit:
            facts.append(f"{rate:.1f} {self._unit}/s")
        if rate and seen < total:
            facts.append(f"{duration((total - seen) / rate)} to go")
        if failed:
            facts.append(f"{failed} failed")
        self._bar.total = total
        self._bar.set_postfix_str(", ".join(facts), refresh=False)
        self._bar.n = seen
        if time.monotonic() - self._drawn >= _DRAW_EVERY_SECONDS:
            self._drawn = time.monotonic()
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands, drawn for the last time."""
        self._bar.close()


class BarOfRun(Watcher):
    """Moves a bar by the progress of a run, and between its reports by what is computed.

    Args:
        make: returns the bar of a total; called once there is something to show.
    """

    def __init__(self, make: Callable[[int], ProgressBar] | None) -> None:
        self._make = make
        self._bar: ProgressBar | None = None
        self._progress = Progress(0, 0, 0)
        self._within = 0
        self._began: tuple[float, int] | None = None  # when, and how many were done by then

    def expects(self, images: int) -> None:
        """Show the bar before the first batch."""
        known = self._progress
        total = max(known.total, known.done + known.failed + images)
        self._progress = dataclasses.replace(known, total=total)
        self._show()

    def computed(self, images: float) -> None:
        """Move the bar within a batch; a batch that is computed but not yet reported stays."""
        self._within = max(self._within, int(images))
        if self._bar is not None:
            self._show()

    def update(self, progress: Progress) -> None:
        """Show how far the run is."""
        self._progress, self._within = progress, 0
        self._show()

    @property
    def rate(self) -> float:
        """Images a second: the run's own figure, or else those since the bar was first shown."""
        seen, seconds = self._progress.done + self._progress.failed, 0.0
        if self._began is not None:
            seconds, seen = time.monotonic() - self._began[0], seen - self._began[1]
        return self._progress.images_per_second or (seen / seconds if seconds else 0.0)

    def _show(self) -> None:
        known = self._progress
        seen = known.done + known.failed
        if self._began is None:
            self._began = time.monotonic(), seen
        if self._bar is None and self._make is not None:
            self._bar = self._make(known.total)
        if self._bar is not None:
            self._bar.move(
                min(seen + self._within, known.total), known.total, self.rate, known.failed
            )

    def close(self) -> None:
        """Leave the bar, if there is one, as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def with_bar(on_progress: OnProgress | None) -> Iterator[OnProgress]:
    """Yield a callback that moves a bar, which is shown meanwhile, and calls `on_progress`."""
    bar = BarOfRun(lambda total: ProgressBar(total, "images", auto=True))

    def move(progress: Progress) -> None:
        bar.update(progress)
        if on_progress is not None:
            on_progress(progress)

    with watched_by(bar), contextlib.closing(bar):
        yield move
