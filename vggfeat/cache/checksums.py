"""Checksums of rows: one CRC-32 over all that a row holds.

Version 1 of the format covers the features only. In version 2 the digest, the reason and the state
follow, so that a checksum of version 1 can be gone on with, and the state is the last byte.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.format import DIGEST_BYTES, ERROR_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_RECORD_BYTES = DIGEST_BYTES + ERROR_BYTES + 1


def _table_entry(byte: int) -> int:
    """Return an entry of the CRC's table: what a last byte changes, were it exclusive-or this."""
    return zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0")


_STATE_CHANGES = np.array([_table_entry(byte) for byte in range(256)], dtype=np.uint32)


def row_checksums(features: Sequence[NDArray[np.generic]], count: int) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row's feature bytes, of one (count, …) array a layer.

    The layers are in the order of their names.
    """
    plain = [np.ascontiguousarray(array).reshape(count, -1).view(np.uint8) for array in features]
    sums = np.empty(count, dtype=np.uint32)
    for row in range(count):
        value = 0
        for array in plain:
            value = zlib.crc32(array[row], value)
        sums[row] = value
    return sums


def seal_rows(
    sums: NDArray[np.uint32],
    digests: NDArray[np.uint8],
    reasons: NDArray[np.bytes_],
    states: NDArray[np.uint8],
) -> NDArray[np.uint32]:
    """Go on with the checksums of some rows' features over the rest of these rows.

    Args:
        sums: uint32 (n,), of the features.
        digests: uint8 (n, 32).
        reasons: bytes (n,), of failed rows; empty for others.
        states: uint8 (n,).
    """
    count = len(sums)
    records = np.zeros((count, _RECORD_BYTES), dtype=np.uint8)
    records[:, :DIGEST_BYTES] = digests
    texts = np.ascontiguousarray(reasons, dtype=f"|S{ERROR_BYTES}")
    records[:, DIGEST_BYTES:-1] = texts.view(np.uint8).reshape(count, ERROR_BYTES)
    records[:, -1] = states
    each = records.view(f"V{_RECORD_BYTES}").reshape(count).tolist()
    return np.array(list(map(zlib.crc32, each, sums.tolist())), dtype=np.uint32)


def with_state(
    sums: NDArray[np.uint32], old: NDArray[np.uint8], new: NDArray[np.uint8] | int
) -> NDArray[np.uint32]:
    """Return the checksums of rows that change nothing but their state from `old` to `new`."""
    changed: NDArray[np.uint32] = sums ^ _STATE_CHANGES[old ^ np.uint8(new)]
    return changed
