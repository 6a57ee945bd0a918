"""Find the class of each image of a cache: from a CSV file, or from the folder it lies in."""

from __future__ import annotations

import csv
import io
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.class_names import class_key, unify
from vggfeat.core.file_types import MEMBER_MARK, archive_suffix
from vggfeat.core.image_paths import PathIndex
from vggfeat.core.text import agree, counted, first_few, is_text, quoted
from vggfeat.errors import UsageError
from vggfeat.storage.text_files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

_log = logging.getLogger("vggfeat")

UNLABELLED = -1
"""Class number of an image that has no label."""

_COLUMNS = 2
_PATH_HEADS = frozenset({
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path",
    "imagepath", "img", "name", "image_name",
})  # fmt: skip
_SECOND_HEADS = {
    "labels": frozenset({"label", "class", "category", "target", "class_name", "classname"}),
    "groups": frozenset({"group", "groups", "group_id", "patient", "patient_id", "subject",
                         "subject_id", "scanner", "site", "case", "case_id"}),
}  # fmt: skip
_NOT_UTF8 = "is not UTF-8"
_ENCODING_REMEDY = "; save the file as UTF-8"
_OTHER_SEPARATORS = (";", "\t")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The class of each row of a cache.

    Attributes:
        classes: int64 (N,), index into `names`, or `UNLABELLED`.
        names: of the classes, sorted.
        notes: what a user should know: labels of no image, images of no label, spellings that were
            taken for one class.
    """

    classes: NDArray[np.int64]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def labels_of(
    cache: FeatureCache,
    labels_csv: str | os.PathLike[str] | None = None,
    *,
    instead: str = "",
) -> Labels:
    """Return the class of each row, whatever its state, from a CSV file: see `read_labels`.

    Without one, the name of the folder that an image lies in is its label, as in ImageNet's
    `class/image.jpg`.

    Args:
        cache: the images.
        labels_csv: the file.
        instead: what the caller takes in place of labels, for the error message.
    """
    paths = [bytes(path) for path in cache.paths]
    root = cache.header.provenance.root
    labels = labels_of_paths(paths, repr(cache.path), labels_csv, root)
    if not labels.names:
        raise UsageError(
            f"no labels: the images of {cache.path!r} lie in no folders that could name their "
            f"classes; give --labels FILE.csv{instead}"
        )
    return labels


def labels_of_paths(
    paths: Sequence[bytes],
    where: str,
    labels_csv: str | os.PathLike[str] | None = None,
    root: bytes = b"",
) -> Labels:
    """Return the class of each path, from a CSV file or else the name of the folder it lies in.

    Labels that `core.class_names` takes for one class are one, which is logged. What else a user
    should know is logged too, and in the notes.

    Args:
        paths: relative to the root of their source.
        where: what they are the images of, for errors.
        labels_csv: see `labels_of`.
        root: of the paths, for absolute ones in the file; empty if it is not known.

    Returns:
        without any names where no path lies in a folder.
    """
    if labels_csv is not None:
        labels, notes = _from_csv(where, PathIndex(paths, root), paths, os.fspath(labels_csv))
    else:
        labels, notes = [_folder(path) for path in paths], ()
    return _numbered(labels, paths, notes)


def read_labels(path: str | os.PathLike[str], what: str = "labels") -> dict[bytes, str]:
    """Return the label of each path in a CSV file (RFC 4180) of two columns, path and label.

    UTF-8, or UTF-16 with its byte order mark. Paths may hold the file system's own bytes, which
    need not be UTF-8; labels must be. A header such as `path,label` or `filename,class` and blank
    lines are skipped. With `what` as `groups` the second column is a group instead, such as that of
    `path,patient`.
    """
    path = os.fspath(path)
    text = read_text(path, what, with_paths=True)
    labels: dict[bytes, str] = {}
    wrong = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    heads = _SECOND_HEADS[what]
    filled = (cells for cells in reader if cells and not (len(cells) == 1 and cells[0].isspace()))
    try:
        for number, cells in enumerate(filled):
            if number == 0:
                _check_separator(path, cells, what)
                words = [cell.strip().lower() for cell in cells]
                if len(words) == _COLUMNS and words[0] in _PATH_HEADS and words[1] in heads:
                    continue
            problem = _take(cells, labels)
            if problem:
                wrong.append(f"line {reader.line_num}: {problem}")
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    if not labels and not wrong:
        wrong.append(f"no {what} in it")
    if wrong:
        remedy = _ENCODING_REMEDY if any(_NOT_UTF8 in problem for problem in wrong) else ""
        problems = first_few(wrong, "; ") + remedy
        line = f"path,{what.removesuffix('s')}"
        raise UsageError(f"{what} {path!r}, expected lines of {line}: {problems}")
    return labels


def _check_separator(path: str, cells: list[str], what: str) -> None:
    """Refuse a file whose first line has two columns by another separator than the comma."""
    for separator in _OTHER_SEPARATORS:
        if len(cells) == 1 and cells[0].count(separator) == 1:
            raise UsageError(f"{what} {path!r} is separated by {separator!r}; expected ','")


def _take(cells: list[str], labels: dict[bytes, str]) -> str:
    """Add a line to the labels; return what is wrong with it, or an empty string."""
    if len(cells) != _COLUMNS:
        return f"{counted(len(cells), 'column')}"
    path, label = cells
    if not path or not label:
        return f"no {'label' if path else 'path'}"
    if not is_text(label):
        return f"label {label!r} {_NOT_UTF8}"
    known = labels.setdefault(path.encode("utf-8", "surrogateescape"), label)
    if known == label or class_key(known) == class_key(label):
        return ""
    return f"{path!r} is {label!r} here and {known!r} above"


def _from_csv(
    where: str, index: PathIndex, paths: Sequence[bytes], labels_csv: str
) -> tuple[list[str], tuple[str, ...]]:
    """Return the label of each path, empty where the file has none, and notes for the user."""
    by_path = read_labels(labels_csv)
    labels = [""] * len(paths)
    taken: dict[int, bytes] = {}
    unknown, wrong = [], []
    for path, label in by_path.items():
        place = index.find(path)
        if place is None:
            unknown.append(os.fsdecode(path))
            continue
        first = taken.setdefault(place, path)
        if first is path:
            labels[place] = label
        elif class_key(labels[place]) != class_key(label):
            both = f"{os.fsdecode(first)!r} and {os.fsdecode(path)!r}"
            wrong.append(f"{both} are one image, {labels[place]!r} and {label!r}")
    _check_encoding(labels_csv, by_path, unknown)
    if len(unknown) == len(by_path):
        raise UsageError(
            f"labels {labels_csv!r} name no image of {where}: expected paths like "
            f"{os.fsdecode(paths[0])!r}, found {unknown[0]!r}"
        )
    if wrong:
        raise UsageError(
            f"labels {labels_csv!r}, expected one label for each image of {where}: "
            f"{first_few(wrong, '; ')}"
        )
    if not unknown:
        return labels, ()
    note = (
        f"{len(unknown)} of {counted(len(by_path), 'path')} in {labels_csv} "
        f"{agree(len(unknown), 'is')} not in {where}: "
        f"{first_few(map(repr, unknown))}"
    )
    return labels, (note,)


def _check_encoding(labels_csv: str, named: Iterable[bytes], unknown: Sequence[str]) -> None:
    """Refuse paths that are not UTF-8 and match no image: the file has another encoding."""
    odd = [text for text in map(os.fsdecode, named) if not is_text(text)]
    if odd and {*odd} <= {*unknown}:
        raise UsageError(
            f"labels {labels_csv!r} are not UTF-8: no image has the path {odd[0]!r}; "
            "save the file as UTF-8"
        )


def _folder(path: bytes) -> str:
    """Name of the folder that a file or a member of an archive lies in; empty for the root."""
    name = os.path.basename(os.path.dirname(path))
    before, mark, within = name.partition(MEMBER_MARK)
    return os.fsdecode(within if mark and archive_suffix(before) else name)


def _numbered(labels: Sequence[str], paths: Sequence[bytes], notes: Sequence[str]) -> Labels:
    spellings = unify(labels)
    names = sorted(set(spellings.names.values()) - {""})
    numbers = {name: number for number, name in enumerate(names)}
    number_of = {label: numbers.get(name, UNLABELLED) for label, name in spellings.names.items()}
    classes = np.array([number_of[label] for label in labels], dtype=np.int64)
    without = np.flatnonzero(classes == UNLABELLED).tolist()
    said = list(notes)
    if names and without:
        some = first_few(quoted(paths[row]) for row in without)
        said.append(
            f"{len(without)} of {counted(len(paths), 'image')} {agree(len(without), 'has')} no "
            f"label: {some}"
        )
    for note in said:
        _log.info("%s", note)
    if spellings.merged:
        said.append(f"labels taken for one class: {spellings}")
        _log.warning("%s", said[-1])
    return Labels(classes, tuple(names), tuple(said))
