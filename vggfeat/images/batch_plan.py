"""Plan in which batch and slot each row is computed. Pure; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMPTY = -1
"""A slot of a batch that holds no row."""


def plan_batches(
    rows: NDArray[np.int64], batch_size: int, ranks: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Assign rows to batches so that each row always gets the same slot.

    Row r goes to slot r mod `batch_size`, whatever other rows are left to do. A kernel may round
    differently in different slots; so a resumed run computes its rows exactly as an uninterrupted
    run would have. Consecutive rows fill their batches; scattered ones are assigned slot by slot,
    so that batches stay as full as they can.

    Args:
        rows: int64 (n,), ascending, each once.
        batch_size: slots of a batch.
        ranks: int64 (n,), each row's position in the order to read them in, used in place of its
            number.

    Returns:
        int64 (batches, batch_size): the row in each slot, or `EMPTY`.
    """
    ranks = rows if ranks is None else ranks
    slots = ranks % batch_size
    order = np.lexsort((ranks, slots))
    counts = np.bincount(slots, minlength=batch_size)
    starts = np.cumsum(counts) - counts
    batches = np.arange(len(rows)) - starts[slots[order]]
    plan = np.full((int(counts.max(initial=0)), batch_size), EMPTY, dtype=np.int64)
    plan[batches, slots[order]] = rows[order]
    return plan
