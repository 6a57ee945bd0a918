"""The group of each image, such as its patient or scanner: a group stays on one side of a split."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.labels import UNLABELLED, read_labels
from vggfeat.core.image_paths import PathIndex
from vggfeat.core.text import agree, counted, first_few, quoted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The group of each image.

    Attributes:
        of: int64 (N,), of each image; `UNLABELLED` for images that take no part.
        names: of the groups, sorted.
    """

    of: Numbers
    names: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of which images belong together."""
        digest = hashlib.sha256(self.of.astype("<i8").tobytes())
        digest.update("\0".join(self.names).encode(errors="surrogateescape"))
        return digest.hexdigest()


def read_groups(
    path: str | os.PathLike[str], paths: Sequence[bytes], root: bytes, classes: Numbers
) -> Groups:
    """Read the group of each image that has a class from a CSV file of path,group.

    Args:
        path: the file, in the form of `read_labels`.
        paths: of the images, relative to `root`.
        root: for absolute paths in the file.
        classes: int64 (N,), `UNLABELLED` for images that take no part.

    Raises:
        InputError: the file cannot be read.
        UsageError: it is malformed, or an image with a class has no group.
    """
    path = os.fspath(path)
    index, named = PathIndex(paths, root), read_labels(path, "groups")
    texts = [""] * len(paths)
    for name, group in named.items():
        place = index.find(name)
        if place is not None:
            texts[place] = group
    without = [at for at, text in enumerate(texts) if not text and classes[at] != UNLABELLED]
    if without:
        some = first_few(quoted(paths[at]) for at in without)
        raise UsageError(
            f"groups {path!r}: {counted(len(without), 'image')} with a class "
            f"{agree(len(without), 'has')} no group: {some}; name one for each, or images of one "
            "group may be on both sides of the split"
        )
    names = sorted({*texts} - {""})
    numbers = {name: number for number, name in enumerate(names)}
    return Groups(
        np.array([numbers.get(text, UNLABELLED) for text in texts], np.int64), tuple(names)
    )
