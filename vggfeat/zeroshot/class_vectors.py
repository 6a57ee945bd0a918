"""A vector for each class by its name, from word vectors or from a table such as attributes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.class_names import class_key
from vggfeat.core.text import counted, first_few
from vggfeat.errors import UsageError
from vggfeat.zeroshot.attribute_files import is_matrix, read_mat, read_matrix, read_table
from vggfeat.zeroshot.name_matching import ClassIndex, all_words, listed, nearest_names
from vggfeat.zeroshot.word_vectors import Words, read_words, similar_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float32]

_TABLES = (".csv", ".tsv", ".npz", ".npy")
_MATLAB = ".mat"
_SHORTEST = 1e-5  # of a centred vector: less is rounding of a vector that is the mean


@dataclass(frozen=True, slots=True, eq=False)
class ClassVectors:
    """Classes and their vectors.

    Attributes:
        names: of the z classes.
        vectors: float32 (z, dims), as in the file.
        found_as: for each class, the words of the file whose vector, or mean of vectors, it has.
        form: of the file: `table`, `word2vec text`, `word2vec binary` or `GloVe text`.
    """

    names: tuple[str, ...]
    vectors: Values
    found_as: tuple[tuple[str, ...], ...]
    form: str

    @property
    def unit(self) -> Values:
        """The vectors at unit length, float32 (z, dims)."""
        length = np.linalg.norm(self.vectors.astype(np.float64), axis=1, keepdims=True)
        unit: Values = (self.vectors / length).astype(np.float32)
        return unit

    def about(self, center: Values | None) -> Values:
        """The vectors at unit length as a model compares them, float32 (z, dims).

        Args:
            center: float32 (dims,), subtracted from the vectors at unit length, which then get unit
                length again; None for neither.

        Raises:
            UsageError: a vector is the center itself.
        """
        if center is None:
            return self.unit
        moved = self.unit.astype(np.float64) - center
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        if (length < _SHORTEST).any():
            bad = [name for name, one in zip(self.names, length, strict=True) if one < _SHORTEST]
            raise UsageError(
                f"class vectors of {first_few(map(repr, bad))} are the mean of those of all seen "
                "classes, so nothing is left of them when it is subtracted; fit with --no-center"
            )
        about: Values = (moved / length).astype(np.float32)
        return about

    @property
    def sha256(self) -> str:
        """Digest of names and vectors."""
        digest = hashlib.sha256(f"{self.names} {self.vectors.shape}".encode(errors="replace"))
        digest.update(np.ascontiguousarray(self.vectors).tobytes())
        return digest.hexdigest()

    @property
    def notes(self) -> list[str]:
        """Remarks for the user on how names were matched."""
        means = [
            f"{name} ({' + '.join(words)})"
            for name, words in zip(self.names, self.found_as, strict=True)
            if len(words) > 1
        ]
        return [f"means of several words: {', '.join(means)}"] if means else []


def class_vectors(path: str | os.PathLike[str], names: Sequence[str]) -> ClassVectors:
    """Return the vector of each class from a file.

    A name is looked up as it is, then without an identifier in front, then with its words joined by
    `_`, `-`, a space and nothing, each ignoring case; of names separated by commas, each in turn;
    in tables finally behind an identifier. In word vectors, not in tables, a name that is not found
    whole gets the mean of the vectors of its words.

    Args:
        path: word2vec text or binary, or GloVe text, also `.gz`; or a table: `.csv`, `.tsv`,
            `.npz`, `.npy` with the names of its rows in a `.txt` beside it, `att_splits.mat`, or
            AwA's `predicate-matrix-*.txt` with `classes.txt` beside it.
        names: of the classes.

    Raises:
        InputError: the file cannot be read.
        UsageError: it is malformed or lacks classes; all are named, with similar names.
    """
    path = os.fspath(path)
    read = _reader_of(path)
    table = read is not None
    words = read_words(path, all_words(names)) if read is None else read(path)
    index = ClassIndex(words.vectors)
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        whole = index.find_whole(name)
        rest = index.find_bare(name)[:1] if table else index.find_parts(name)
        found[name] = (whole,) if whole is not None else rest
    if table:
        _refuse_ambiguous(path, words, found, index)
    missing = [name for name in names if not found[name]]
    if missing:
        known = list(words.vectors) if table else similar_words(path, all_words(missing))
        near = {name: nearest_names(name, known) for name in missing}
        raise UsageError(
            f"vectors {path!r} have none for {len(missing)} of {counted(len(names), 'class')}: "
            f"{listed(missing, near)}; rename them, add them to the table, or leave them out"
        )
    return _checked(path, words, found)


def _refuse_ambiguous(
    path: str, words: Words, found: Mapping[str, tuple[str, ...]], index: ClassIndex
) -> None:
    """Refuse classes for which a table has two rows that differ, neither of exactly that name."""
    by_key: dict[str, list[str]] = {}
    for word in words.vectors:
        by_key.setdefault(class_key(word), []).append(word)
    wrong = []
    for name, whole in found.items():
        rivals = by_key[class_key(whole[0])] if whole and whole[0] != name else []
        bare = index.find_bare(name)
        rivals = list(dict.fromkeys((*rivals, *bare))) if whole and whole[0] in bare else rivals
        if any((words.vectors[one] != words.vectors[whole[0]]).any() for one in rivals):
            wrong.append(f"{name!r} may be {' or '.join(map(repr, rivals))}")
    if wrong:
        raise UsageError(
            f"vectors {path!r}: {'; '.join(wrong)}, whose numbers differ; keep one of the lines"
        )


def _reader_of(path: str) -> Callable[[str], Words] | None:
    """Return the reader of a table; None for word vectors, which are not read whole."""
    if path.endswith(_MATLAB):
        return read_mat
    if path.endswith(_TABLES):
        return read_table
    return read_matrix if is_matrix(path) else None


def _checked(path: str, words: Words, found: Mapping[str, tuple[str, ...]]) -> ClassVectors:
    rows = [np.mean([words.vectors[word] for word in some], axis=0) for some in found.values()]
    vectors = np.array(rows, dtype=np.float32).reshape(len(found), words.dims)
    usable = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    bad = [name for name, good in zip(found, usable.tolist(), strict=True) if not good]
    if bad:
        raise UsageError(
            f"vectors {path!r} are all zero or not finite for {', '.join(map(repr, bad))}; such a "
            "class cannot be told from others"
        )
    return ClassVectors(tuple(found), vectors, tuple(found.values()), words.form)
