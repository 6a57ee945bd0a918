"""Lists of images in little memory: files in the order of discovery, and the rows of a run."""

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

_AT_ONCE = 1 << 16  # numbers that are Python objects at a time


@dataclass(slots=True)
class FileList:
    """Files in the order of discovery; a path may occur more than once.

    A dictionary of tuples would need three times the memory.
    """

    paths: list[bytes] = field(default_factory=list)  # absolute
    _facts: array[int] = field(default_factory=lambda: array("q"))

    def add(self, path: bytes, size: int, mtime_ns: int) -> None:
        """Append one file; a time beyond int64 becomes the nearest that fits."""
        self.paths.append(path)
        self._facts.append(size)
        self._facts.append(clamp_ns(mtime_ns))

    def extended(self, other: FileList) -> FileList:
        """Append all files of another list, and return this list."""
        self.paths += other.paths
        self._facts += other._facts
        return self

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.paths)

    def facts(self) -> NDArray[np.int64]:
        """Return sizes in bytes and times in nanoseconds since 1970, int64 (n, 2)."""
        return np.frombuffer(self._facts, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class ImageList:
    """All images of a run, in the order of their rows.

    Attributes:
        root: absolute folder that the paths are relative to, or its address in an object store.
        paths: relative to the root, `/` as separator, sorted by their bytes, each once; those of
            members are `ARCHIVE!MEMBER`.
        sizes: int64 (N,), bytes, of members unpacked; 0 if the file's status could not be read.
        mtimes: int64 (N,), nanoseconds since 1970, a member's is the archive's; 0 likewise.
        skipped: counts of files skipped in folders and archives, by lower-case extension without
            the dot ('' for none), or by a key of `skipped.py`.
        places: of members; None if no row is a member of an archive.
    """

    root: bytes
    paths: tuple[bytes, ...]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    skipped: Mapping[str, int]
    places: Places | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the images are files or objects, which several threads may open."""
        return True

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> ImageRef:
        return ImageRef(self.paths[row], int(self.sizes[row]), int(self.mtimes[row]))

    def absolute(self, row: int) -> bytes:
        """Return the absolute path of the image of `row`, `/path/ARCHIVE!MEMBER` for a member."""
        return os.path.join(self.root, self.paths[row])

    def open(self, row: int) -> AbstractContextManager[BinaryIO]:
        """Open the image of `row` as a seekable stream; entering raises `DecodeError` if it fails.

        Any process may call it, also a forked one, but only one thread at a time.
        """
        if self.places is None or not self.places.is_member(row):
            size, mtime_ns = int(self.sizes[row]), int(self.mtimes[row])
            return open_file(self.absolute(row), size, mtime_ns)
        return self.places.open(row)

    def spread(self, count: int) -> NDArray[np.int64]:
        """Return up to `count` evenly spaced rows, the first and the last included, int64 (n,)."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)
        return np.unique(rows)

    def reading_ranks(self) -> NDArray[np.int64] | None:
        """Return each row's position in the order of reading, int64 (N,); None for row order.

        A compressed tar can be read forward only: in the order of names it would be unpacked from
        its beginning again and again.
        """
        if self.places is None or not self.places.forward_only:
            return None
        return self.places.reading_ranks()


def sorted_order(paths: list[bytes]) -> NDArray[np.int64]:
    """Return the order of paths by their bytes, int64 (n,), with only the last of equal paths."""
    names = np.empty(len(paths), dtype=object)
    names[:] = paths
    order = np.argsort(names, kind="stable")
    names = names[order]
    last = np.ones(len(names), dtype=bool)
    last[:-1] = names[1:] != names[:-1]
    return order[last]


def taken_in_order(paths: list[bytes], order: NDArray[np.int64], cut: int) -> tuple[bytes, ...]:
    """Return the paths in an order, without their first `cut` bytes; empties the list's paths."""
    taken = []
    for start in range(0, len(order), _AT_ONCE):
        for place in order[start : start + _AT_ONCE].tolist():
            taken.append(paths[place][cut:])
            paths[place] = b""
    return tuple(taken)
