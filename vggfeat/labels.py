"""Which class each image of a cache belongs to: from a CSV file, or from the folder it lies in."""

from __future__ import annotations

import csv
import io
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import is_text
from vggfeat.errors import UsageError
from vggfeat.names import MEMBER_MARK, archive_suffix
from vggfeat.storage.text_files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from vggfeat.reader import FeatureCache

_log = logging.getLogger("vggfeat")

UNLABELLED = -1
"""Class number of an image that has no label."""

_HEADER = ["path", "label"]
_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The class of each row of a cache.

    Attributes:
        classes: int64 (N,), index into `names`, or `UNLABELLED`.
        names: of the classes, sorted.
    """

    classes: NDArray[np.int64]
    names: tuple[str, ...]


def labels_of(cache: FeatureCache, labels_csv: str | os.PathLike[str] | None = None) -> Labels:
    """The class of each row, from a CSV file or else from folders.

    Args:
        cache: whose rows; their state does not matter.
        labels_csv: a file as `read_labels` takes it; without it, the name of the folder that an
            image lies in is its label, as in ImageNet's `class/image.jpg`.

    Raises:
        UsageError: the file has mistakes or names no image of the cache, or no image lies in a
            folder.
        InputError: the file cannot be read.
    """
    paths = [bytes(path) for path in cache.paths]
    labels = labels_of_paths(paths, repr(cache.path), labels_csv)
    if not labels.names:
        raise UsageError(
            f"no labels: the images of {cache.path!r} lie in no folders that could name their "
            "classes; give --labels FILE.csv, or --queries with a cache of altered images"
        )
    return labels


def labels_of_paths(
    paths: Sequence[bytes], where: str, labels_csv: str | os.PathLike[str] | None = None
) -> Labels:
    """The class of each path, from a CSV file or else the name of the folder it lies in.

    Args:
        paths: relative to the root of their source.
        where: what they are the images of, for errors.
        labels_csv: see `labels_of`.

    Returns:
        without any names where no path lies in a folder.

    Raises:
        UsageError: the file has mistakes or names none of the paths.
        InputError: the file cannot be read.
    """
    if labels_csv is not None:
        return _numbered(_from_csv(where, paths, os.fspath(labels_csv)))
    return _numbered([_folder(path) for path in paths])


def read_labels(path: str | os.PathLike[str]) -> dict[bytes, str]:
    """The label of each path in a CSV file (RFC 4180) of two columns, path and label.

    UTF-8, or UTF-16 with its byte order mark. Paths may hold the file system's own bytes, which
    need not be UTF-8; labels must be. A header `path,label` and blank lines are passed over.

    Args:
        path: the CSV file.

    Returns:
        Label by path, the path as bytes, as caches have it.

    Raises:
        UsageError: a line has not two columns or no label, a path has two labels, or there is no
            line; lines are named.
        InputError: the file cannot be read.
    """
    path = os.fspath(path)
    text = read_text(path, "labels", with_paths=True)
    return _parse(path, io.StringIO(text, newline=""))


def _parse(path: str, lines: Iterable[str]) -> dict[bytes, str]:
    labels: dict[bytes, str] = {}
    wrong = []
    reader = csv.reader(lines, strict=True)
    try:
        for number, cells in enumerate(filter(None, reader)):
            if number == 0 and [cell.strip().lower() for cell in cells] == _HEADER:
                continue
            problem = _take(cells, labels)
            if problem:
                wrong.append(f"line {reader.line_num}: {problem}")
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    if not labels and not wrong:
        wrong.append("no labels in it")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UsageError(
            f"labels {path!r}, expected lines of path,label: {'; '.join(wrong[:_SHOWN])}{more}"
        )
    return labels


def _take(cells: list[str], labels: dict[bytes, str]) -> str:
    """Adds a line to the labels; what is wrong with it, or nothing."""
    if len(cells) != len(_HEADER):
        return f"{len(cells)} columns"
    path, label = cells
    if not path or not label:
        return f"no {'label' if path else 'path'}"
    if not is_text(label):
        return f"label {label!r} is not UTF-8; save the file as UTF-8"
    known = labels.setdefault(path.encode("utf-8", "surrogateescape"), label)
    return "" if known == label else f"{path!r} is {label!r} here and {known!r} above"


def _from_csv(where: str, paths: Sequence[bytes], labels_csv: str) -> list[str]:
    """The label of each path, empty where the file has none."""
    by_path = read_labels(labels_csv)
    labels = [by_path.get(path, "") for path in paths]
    unknown = len(by_path) - sum(map(bool, labels))
    _check_encoding(labels_csv, by_path, paths)
    if unknown == len(by_path):
        raise UsageError(
            f"labels {labels_csv!r} name no image of {where}: expected paths like "
            f"{os.fsdecode(paths[0])!r}, found {os.fsdecode(next(iter(by_path)))!r}"
        )
    if unknown:
        _log.info("%d of %d paths in %s are not in %s", unknown, len(by_path), labels_csv, where)
    return labels


def _check_encoding(labels_csv: str, named: Iterable[bytes], paths: Sequence[bytes]) -> None:
    """Refuse paths that are not UTF-8 if no image has one of them: the file is in another encoding.

    Raises:
        UsageError: such as Latin-1.
    """
    odd = [path for path in named if not is_text(path.decode("utf-8", "surrogateescape"))]
    if odd and not {*odd} & {*paths}:
        raise UsageError(
            f"labels {labels_csv!r} are not UTF-8: no image has the path {os.fsdecode(odd[0])!r}; "
            "save the file as UTF-8"
        )


def _folder(path: bytes) -> str:
    """Name of the folder that a file or a member of an archive lies in; empty for the root."""
    name = os.path.basename(os.path.dirname(path))
    before, mark, within = name.partition(MEMBER_MARK)
    return os.fsdecode(within if mark and archive_suffix(before) else name)


def _numbered(labels: Sequence[str]) -> Labels:
    names = sorted(set(labels) - {""})
    numbers = {name: number for number, name in enumerate(names)}
    classes = np.array([numbers.get(label, UNLABELLED) for label in labels], dtype=np.int64)
    return Labels(classes, tuple(names))
