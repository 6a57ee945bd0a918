"""Sources that disappear while a run reads them, such as a folder that is unmounted.

Every image of such a source would fail within seconds. So before an image that is not found is
marked as failed, other images of its source are looked for: if none of them is found either, the
source is gone, the run ends, and its rows stay pending.
"""

from __future__ import annotations

import bisect
import os
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import counted
from vggfeat.errors import InputError
from vggfeat.images.archive_reader import MISSING
from vggfeat.storage.paths import absolute_place, remote_scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.core.records import Failure
    from vggfeat.images.image_list import ImageList

_LOOKED_FOR = 32  # images of a source, at even distances


class SourceGuard:
    """Holds back failures of images that are not found until their source is known to exist.

    Objects in a store are not looked for: a run ends by itself if the store does not answer.

    Args:
        images: as they were listed.
        sources: what was named; folders and archives among them are looked at by themselves, all
            else together.
        position: of a cache row in the image list.
    """

    def __init__(
        self,
        images: ImageList,
        sources: Sequence[str | os.PathLike[str]],
        position: Callable[[int], int],
    ) -> None:
        self._images = images
        named = {os.fsencode(absolute_place(os.fspath(one))) for one in sources}
        self._folders = sorted((one.rstrip(b"/") + b"/" for one in named), key=len)
        self._position = position
        self._held: list[Failure] = []
        self._watched = images.on_disk and not remote_scheme(images.root)

    def certain(self, failures: Sequence[Failure]) -> tuple[Failure, ...]:
        """Return the failures that say something about an image; hold back the others."""
        if not self._watched:
            return tuple(failures)
        # An image with a digest was read to its end; one that did not exist when listed is no loss.
        lost = [
            not one.digest and self._was_there(at) and not _is_readable(self._file(at))
            for one in failures
            for at in [self._position(one.row)]
        ]
        self._held += [one for one, away in zip(failures, lost, strict=True) if away]
        return tuple(one for one, away in zip(failures, lost, strict=True) if not away)

    def check(self) -> None:
        """Look for the sources of the failures held back; raise `InputError` if one is gone."""
        held = [self._position(one.row) for one in self._held]
        for source, position in {self._source_of(at): at for at in held}.items():
            self._check_source(source, position)

    def release(self) -> tuple[Failure, ...]:
        """Return the failures held back once `check` has found their sources to exist."""
        self.check()
        held, self._held = tuple(self._held), []
        return held

    def _was_there(self, position: int) -> bool:
        places = self._images.places
        if places is not None and places.is_member(position):
            return int(places.table["offset"][position]) != MISSING
        return bool(self._images.sizes[position] or self._images.mtimes[position])

    def _file(self, position: int) -> bytes:
        """Return the file that an image is, or that it is a member of."""
        places = self._images.places
        if places is not None and places.is_member(position):
            return places.archives[int(places.table["archive"][position])]
        return self._images.absolute(position)

    def _source_of(self, position: int) -> bytes:
        """Return the archive or the innermost named folder that holds an image; b"" for neither."""
        path, file = self._images.absolute(position), self._file(position)
        if path != file:
            return file
        return next((one for one in reversed(self._folders) if path.startswith(one)), b"")

    def _check_source(self, source: bytes, held: int) -> None:
        looked_for = self._some_of(source) or [held]
        if self._file(held) == source:  # an archive is there as a whole, or not
            looked_for = [held]
        if any(_is_readable(self._file(position)) for position in looked_for):
            return
        first = os.fsdecode(self._images.absolute(looked_for[0]))
        name = os.fsdecode(source.rstrip(b"/") or self._images.root)
        raise InputError(
            f"source {name!r} has gone since the run began: of "
            f"{counted(len(looked_for), 'image')} looked for "
            f"not one can be read, the first is {first!r}. Is a folder no longer mounted? No image "
            "is marked as failed for it, all that is done is kept, and the same command resumes "
            "once it is back"
        )

    def _some_of(self, source: bytes) -> list[int]:
        """Return positions, evenly spaced, of images of a folder that existed when listed."""
        images = self._images
        first, stop = 0, len(images)
        prefix = source[len(images.root.rstrip(b"/")) + 1 :]
        if prefix:
            first = bisect.bisect_left(images.paths, prefix)
            stop = bisect.bisect_left(images.paths, prefix[:-1] + b"0")  # what follows a slash
        spread = np.unique(np.linspace(first, stop - 1, _LOOKED_FOR).astype(np.int64)).tolist()
        return [position for position in spread if self._was_there(position)]


def _is_readable(path: bytes) -> bool:
    """Return whether a file can be read, or exists and only its permissions forbid it."""
    try:
        os.stat(path)
    except OSError:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return True  # of one file; a folder that may not be searched fails above
    except OSError:
        return False
    try:
        os.read(handle, 1)
    except BlockingIOError:  # a pipe in its place
        return True
    except OSError as error:
        return isinstance(error, IsADirectoryError)
    finally:
        os.close(handle)
    return True
