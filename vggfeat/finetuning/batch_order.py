"""Which images make up the batches of an epoch: pure, no I/O, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggfeat.images.batch_plan import EMPTY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.finetuning.split import Split


def batch_count(images: int, batch_size: int) -> int:
    """Batches that so many images make, the last one perhaps not full."""
    return -(-images // batch_size)


def epoch_batches(split: Split, batch_size: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The batches of an epoch: training images in random order, then those for validation.

    Args:
        split: which are which.
        batch_size: B.
        seed: of the order, together with `epoch`.
        epoch: the first is 0.

    Returns:
        int64 (batches, B), rows or `EMPTY`; the first `batch_count(train, B)` are for training.
    """
    order = np.random.default_rng((seed, epoch)).permutation(split.train)
    return np.concatenate([_batched(order, batch_size), _batched(split.validation, batch_size)])


def _batched(rows: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    batches = np.full((batch_count(len(rows), batch_size), batch_size), EMPTY, dtype=np.int64)
    batches.ravel()[: len(rows)] = rows
    return batches
