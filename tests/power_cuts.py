"""What a disk may hold after a power cut, from the log of all calls that changed a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

SECTOR = 512

Call = tuple[str, str, int, bytes]
"""Kind, path, offset and bytes: `pwrite`, `fdatasync` as it begins, `synced` once it has ended."""


def after_power_cut(
    base: bytes, calls: Sequence[Call], at: int, keep: float, chance: random.Random
) -> bytes:
    """The file after a cut behind `at` calls: all synced, and each later sector by chance.

    A sync that has ended vouches for what was written before it began; one under way for nothing.
    """
    image = bytearray(base)
    safe = begun = 0
    for index, (kind, *_) in enumerate(calls[:at]):
        if kind == "fdatasync":
            begun = index
        elif kind == "synced":
            safe = begun
    for index, (kind, _, offset, data) in enumerate(calls[:at]):
        if kind != "pwrite":
            continue
        start = offset
        while start < offset + len(data):
            end = min((start // SECTOR + 1) * SECTOR, offset + len(data))
            if index < safe or chance.random() < keep:
                image[start:end] = data[start - offset : end - offset]
            start = end
    return bytes(image)
