"""Arithmetic on rows of features, and ranges of rows that fit in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES: Final = 1 << 24
"""Bytes of features that are read at once."""


def unit_rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1, float32 (n, D), in place; a row of zeros stays as it is."""
    length = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    length[length == 0] = 1
    x /= length.astype(np.float32)[:, None]
    return x


def inner_products(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply each row of `a` with each of `b`, (p, D), (q, D) → (p, q); cosines for unit rows."""
    products: NDArray[np.float32] = a @ b.T
    return products


def nearness(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return minus the squared distance of each row of `a` to each of `b`, (p, D), (q, D) → (p, q).

    By |a|² - 2ab + |b|², in which digits cancel where the rows are far from the origin: subtract
    what they have in common first.
    """
    products = inner_products(a, b)
    products *= 2
    products -= _squares(a)[:, None]
    products -= _squares(b)
    return products


def _squares(x: NDArray[np.float32]) -> NDArray[np.float32]:
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return squares.astype(np.float32)


def spread(items: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return all items, or `most` of them at even distances."""
    count = min(most, len(items))
    chosen: NDArray[np.int64] = items[np.arange(count) * len(items) // count]
    return chosen


def consecutive(*numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return index ranges over which all arrays, of one length, count up by one."""
    if not len(numbers[0]):
        return []
    steps = np.any([np.diff(one) != 1 for one in numbers], axis=0)
    breaks = (np.flatnonzero(steps) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(numbers[0])], strict=True))


def blocks(count: int, item_bytes: int) -> list[tuple[int, int]]:
    """Return ranges that cover `count` items, of at most about `BLOCK_BYTES` each."""
    size = max(1, BLOCK_BYTES // max(1, item_bytes))
    return [(at * size, min(count, (at + 1) * size)) for at in range(math.ceil(count / size))]
