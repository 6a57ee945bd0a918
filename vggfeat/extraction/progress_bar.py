"""`extract(..., progress=True)`: a bar on standard error, or a widget in a notebook."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vggfeat.core.records import Progress

    OnProgress = Callable[[Progress], None]


@contextlib.contextmanager
def with_bar(on_progress: OnProgress | None) -> Iterator[OnProgress]:
    """Yield a callback that moves a bar, shown from its first call on, and calls `on_progress`."""
    bars: list[Any] = []

    def move(progress: Progress) -> None:
        from tqdm.auto import tqdm

        if not bars:
            bars.append(tqdm(total=progress.total, unit=" images", file=sys.stderr))
        bar = bars[0]
        bar.total = progress.total
        if progress.failed:
            bar.set_postfix(failed=progress.failed, refresh=False)
        bar.update(progress.done + progress.failed - bar.n)
        if on_progress is not None:
            on_progress(progress)

    try:
        yield move
    finally:
        for bar in bars:
            bar.close()
