"""Lists of images: as files are found, and sorted, as the rows of a run. In little memory."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vggfeat.core.records import ImageRef
from vggfeat.core.timestamps import clamp_ns
from vggfeat.images.streams import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from vggfeat.images.archives import Places

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


@dataclass(frozen=True, slots=True, eq=False)
class ImageList:
    """All images of a run, in the order of their rows.

    Attributes:
        root: absolute folder that the paths are relative to, or its address in an object store.
        paths: relative to the root, `/` as separator, sorted by their bytes, each once; those of
            members are `ARCHIVE!MEMBER`.
        sizes: int64 (N,), bytes, of members unpacked; 0 where the file could not be looked at.
        mtimes: int64 (N,), nanoseconds since 1970, of members that of the archive; 0 likewise.
        skipped: how many files in folders and archives were skipped, by lower-case extension
            without the dot ('' for none); `NOT_REGULAR` counts what is no file at all,
            `UNSAFE_NAME` members whose names lead out of the archive, `HIDDEN_IMAGE` and
            `HIDDEN_FOLDER` images and folders whose names begin with a dot.
        places: where members lie; None if all rows are files of their own.
    """

    root: bytes
    paths: tuple[bytes, ...]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    skipped: Mapping[str, int]
    places: Places | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> ImageRef:
        return ImageRef(self.paths[row], int(self.sizes[row]), int(self.mtimes[row]))

    def absolute(self, row: int) -> bytes:
        """Where the image of `row` lies, `/path/ARCHIVE!MEMBER` for a member."""
        return os.path.join(self.root, self.paths[row])

    def open(self, row: int) -> AbstractContextManager[BinaryIO]:
        """The bytes of the image of `row` as a stream that can seek.

        Entering raises `DecodeError` where they cannot be had. It may be called in any process,
        also a forked one, but by one thread at a time.
        """
        if self.places is None or not self.places.is_member(row):
            size, mtime_ns = int(self.sizes[row]), int(self.mtimes[row])
            return open_file(self.absolute(row), size, mtime_ns)
        return self.places.open(row)

    def spread(self, count: int) -> NDArray[np.int64]:
        """Rows at even distances from the first to the last, int64 (n,), up to `count` of them."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)
        return np.unique(rows)

    def reading_ranks(self) -> NDArray[np.int64] | None:
        """The place of each row, int64 (N,), in the order to read them in; None for their own.

        A compressed tar can be read forward only: taken in the order of its names it would be
        unpacked from its beginning again and again.
        """
        if self.places is None or not self.places.forward_only:
            return None
        return self.places.reading_ranks()


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
