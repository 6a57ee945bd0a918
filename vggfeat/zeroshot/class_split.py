"""Seen and unseen classes, the rows of each, and keys that identify images across caches."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.labels import UNLABELLED
from vggfeat.core.class_names import ClassNames, class_key, clean
from vggfeat.core.text import counted
from vggfeat.errors import UsageError
from vggfeat.storage.text_files import read_text
from vggfeat.zeroshot.name_matching import listed, nearest_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.labels import Labels
    from vggfeat.cache.reader import FeatureCache

    Numbers = NDArray[np.int64]

_KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Classes:
    """Seen classes, with training images, and unseen ones, with vectors only; each sorted."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, seen ones first."""
        return (*self.seen, *self.unseen)


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Done rows, int64 (n,), ascending, and their classes, indices into the names of a task."""

    rows: Numbers
    classes: Numbers

    def where(self, which: NDArray[np.bool_]) -> Labelled:
        """Return the rows chosen by a mask, bool (n,)."""
        return Labelled(self.rows[which], self.classes[which])

    def __len__(self) -> int:
        return len(self.rows)


def read_class_list(text: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names: one a line of a file, or separated by commas if no such file exists.

    The file is UTF-8, or UTF-16 with a byte order mark. Blank lines are skipped; of several
    spellings of one class the first is kept.

    Raises:
        InputError: the file cannot be read.
        UsageError: it has another encoding, or no names.
    """
    path = os.fspath(text)
    lines = path.split(",")
    if os.path.lexists(path):
        lines = io.StringIO(read_text(path, "classes"), newline=None).readlines()
    by_key: dict[str, str] = {}
    for line in lines:
        by_key.setdefault(class_key(line), clean(line))
    names = tuple(filter(None, by_key.values()))
    if not names:
        raise UsageError(f"classes {path!r}: it has no names; expected one on each line")
    return names


def split_classes(
    labelled: Sequence[str], seen: Sequence[str] | None, unseen: Sequence[str] | None
) -> Classes:
    """Split classes into seen and unseen, given the names of one part or neither.

    Names are matched as in `core.class_names` and returned as the images spell them.

    Args:
        labelled: classes that have images.
        seen: all others of `labelled` are unseen.
        unseen: may lack images; all others of `labelled` are seen. Without both, all are seen.
    """
    if seen is not None and unseen is not None:
        raise UsageError("--seen and --unseen name the same split; give one of them")
    known = ClassNames(labelled)
    without = [name for name in seen or () if name not in known]
    if without:
        near = {name: nearest_names(name, labelled) for name in without}
        raise UsageError(
            f"no image of {listed(without, near)} in the cache; seen classes are learnt from images"
        )
    if seen is not None:
        seen = [known.find(name) or name for name in seen]
    if unseen is not None:
        unseen = [known.find(name) or name for name in unseen]
    kept = set(labelled) - set(unseen or ()) if seen is None else set(seen)
    if len(kept) < 2:  # noqa: PLR2004 one cannot be told from another
        raise UsageError(
            f"{counted(len(kept), 'seen class')} with images, expected two or more; name other "
            "classes by --seen or --unseen, or give --labels"
        )
    rest = set(labelled) - kept if unseen is None else set(unseen)
    return Classes(tuple(sorted(kept)), tuple(sorted(rest)))


def labelled_classes(cache: FeatureCache, found: Labels) -> tuple[str, ...]:
    """Return the classes of the done rows of a cache, sorted."""
    present = np.unique(found.classes[cache.done])
    return tuple(found.names[number] for number in present.tolist() if number != UNLABELLED)


def labelled_rows(cache: FeatureCache, found: Labels, names: Sequence[str]) -> Labelled:
    """Return the done rows of some classes, numbered as in `names`."""
    index = ClassNames(names)
    numbers = {name: number for number, name in enumerate(names)}
    meant = [index.find(name) for name in found.names]
    translated = np.array(
        [UNLABELLED if name is None else numbers[name] for name in meant], dtype=np.int64
    )
    classes = np.where(found.classes == UNLABELLED, UNLABELLED, translated[found.classes])
    rows = np.flatnonzero(cache.done & (classes != UNLABELLED))
    return Labelled(rows, classes[rows])


def image_keys(cache: FeatureCache, rows: Numbers) -> NDArray[np.uint64]:
    """Return a key for each image that is the same in any cache, uint64 (n,).

    It is the first eight bytes of the SHA-256 of the image file, or of its path if the cache
    records none.
    """
    digests = np.array(cache.digests[rows][:, :_KEY_BYTES])
    for at in np.flatnonzero(~digests.any(1)).tolist():
        path = bytes(cache.paths[rows[at]])
        digests[at] = np.frombuffer(hashlib.sha256(path).digest()[:_KEY_BYTES], dtype=np.uint8)
    keys: NDArray[np.uint64] = np.ascontiguousarray(digests).view("<u8")[:, 0]
    return keys


def held_out(classes: Numbers, share: float, noise: np.random.Generator) -> NDArray[np.bool_]:
    """Choose rows to hold out, bool (n,): a share of each class, but never all of it."""
    chosen = np.zeros(len(classes), dtype=bool)
    for number in np.unique(classes).tolist():
        members = noise.permutation(np.flatnonzero(classes == number))
        chosen[members[: min(round(share * len(members)), len(members) - 1)]] = True
    return chosen
