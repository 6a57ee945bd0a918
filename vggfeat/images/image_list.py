"""Paths with size and time in little memory: what a listing of very many files is kept in."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.timestamps import clamp_ns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


_AT_ONCE = 1 << 16  # numbers that are Python's own objects at a time


@dataclass(slots=True)
class FileList:
    """Files in the order in which they were found; a path may come more than once.

    A dictionary of tuples would take three times as much.

    Attributes:
        paths: absolute, as bytes.
    """

    paths: list[bytes] = field(default_factory=list)
    _facts: array[int] = field(default_factory=lambda: array("q"))

    def add(self, path: bytes, size: int, mtime_ns: int) -> None:
        """Takes in one file; a date that fits in no int64 becomes the nearest that does."""
        self.paths.append(path)
        self._facts.append(size)
        self._facts.append(clamp_ns(mtime_ns))

    def extended(self, other: FileList) -> FileList:
        """Itself, having taken in all files of another list."""
        self.paths += other.paths
        self._facts += other._facts
        return self

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.paths)

    def facts(self) -> NDArray[np.int64]:
        """Sizes in bytes and times in nanoseconds since 1970, int64 (n, 2)."""
        return np.frombuffer(self._facts, dtype=np.int64).reshape(-1, 2)


def sorted_order(paths: list[bytes]) -> NDArray[np.int64]:
    """Places of the paths sorted by their bytes, int64 (n,), each path once: where it came last."""
    names = np.empty(len(paths), dtype=object)
    names[:] = paths
    order = np.argsort(names, kind="stable")
    names = names[order]
    last = np.ones(len(names), dtype=bool)
    last[:-1] = names[1:] != names[:-1]
    return order[last]


def taken_in_order(paths: list[bytes], order: NDArray[np.int64], cut: int) -> tuple[bytes, ...]:
    """The paths in an order, without their first `cut` bytes; those in the list are given up."""
    taken = []
    for start in range(0, len(order), _AT_ONCE):
        for place in order[start : start + _AT_ONCE].tolist():
            taken.append(paths[place][cut:])
            paths[place] = b""
    return tuple(taken)
