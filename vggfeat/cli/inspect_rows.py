"""What `vggfeat inspect --rows` and `--nearest` show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.cli.terminal_style import fitting_table, painted_state
from vggfeat.core.text import agree, counted, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.cache.rows import MatchingRow
    from vggfeat.retrieval.nearest_images import NearestImages

_STATE_WIDTH = 7


def row_lines(rows: Sequence[MatchingRow], pattern: str, matches: int) -> list[str]:
    """Number, path, state and reason of rows, and how many there are beside them."""
    head = ("row", "path", "state", "reason")
    cells = [(str(one.row), printable(one.path), one.state, printable(one.reason)) for one in rows]
    lines = fitting_table([head, *cells], "rlll", ("reason",))
    at = lines[0].index("state")
    coloured = [
        line[:at]
        + painted_state(line[at : at + len(one.state)], one.state)
        + line[at + len(one.state) :]
        for line, one in zip(lines[1:], rows, strict=True)
    ]
    more = matches - len(rows)
    rest = [f"  and {more} more: --most {matches}"] if more else []
    return [
        f"{counted(matches, 'image')} {agree(matches, 'matches')} {printable(pattern)}",
        lines[0],
        *coloured,
        *rest,
    ]


def nearest_lines(found: Sequence[NearestImages]) -> list[str]:
    """A table a layer."""
    lines = []
    for one in found:
        head = ("cosine", "row", "path")
        cells = [
            (f"{near.cosine:.4f}", str(near.row), printable(near.path)) for near in one.neighbours
        ]
        lines += ["", f"nearest to {printable(one.path)} by {one.layer}"]
        lines += fitting_table([head, *cells], "rrl", ("row",))
    return lines
