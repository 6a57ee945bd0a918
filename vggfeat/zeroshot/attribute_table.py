"""Tables of class vectors, such as attributes: CSV and TSV, `class,number,...`, and .npz."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import counted, decode_text
from vggfeat.errors import InputError, UsageError
from vggfeat.storage.text_files import read_text
from vggfeat.zeroshot.word_vectors import Words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Values = NDArray[np.float32]

_SHOWN = 3
_NPZ = "expected arrays `names` (n,) and `vectors` (n, dims), or one array (dims,) a class"


def read_table(path: str) -> Words:
    """All classes of a `.csv`, `.tsv` or `.npz` file.

    A CSV or TSV has a class and its numbers in each line; a first line whose numbers are none is
    taken for a head. An `.npz` has `names` and `vectors`, or an array for each class.

    Raises:
        InputError: the file cannot be read.
        UsageError: it has mistakes; lines or arrays are named.
    """
    if path.endswith(".npz"):
        return _from_npz(path)
    separator = "\t" if path.endswith(".tsv") else ","
    text = read_text(path, "vectors")
    return _parse(path, io.StringIO(text, newline=""), separator)


def _parse(path: str, lines: Iterable[str], separator: str) -> Words:
    vectors: dict[str, Values] = {}
    wrong: list[str] = []
    dims = 0
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for number, cells in enumerate(filter(None, reader)):
            if number == 0 and _is_head(cells):
                continue
            dims = dims or len(cells) - 1
            problem = _take(cells, dims, vectors)
            if problem:
                wrong.append(f"line {reader.line_num}: {problem}")
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    _refuse(path, "lines of class,number,...", wrong or ([] if vectors else ["no classes in it"]))
    return Words("table", vectors, dims)


def _is_head(cells: list[str]) -> bool:
    return len(cells) > 1 and not any(_is_number(cell) for cell in cells[1:])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _take(cells: list[str], dims: int, vectors: dict[str, Values]) -> str:
    """Adds a line to the vectors; what is wrong with it, or nothing."""
    name = cells[0].strip()
    if len(cells) - 1 != dims or not dims:
        return (
            f"{counted(len(cells) - 1, 'number')}, the first line has {dims}"
            if dims
            else "no numbers"
        )
    odd = [cell for cell in cells[1:] if not _is_number(cell) or not math.isfinite(float(cell))]
    if odd or not name:
        return f"{odd[0]!r} is no number" if odd else "no class"
    if name in vectors:
        return f"{name!r} stands above already"
    vectors[name] = np.array([float(cell) for cell in cells[1:]], dtype=np.float32)
    return ""


def _refuse(path: str, expected: str, wrong: list[str]) -> None:
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UsageError(
            f"vectors {path!r}, expected {expected}: {'; '.join(wrong[:_SHOWN])}{more}"
        )


def _from_npz(path: str) -> Words:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"vectors {path!r} are no .npz of plain arrays: {words}") from error
    except OSError as error:
        raise InputError(f"vectors {path!r} cannot be read: {error.strerror or error}") from error
    if set(arrays) == {"names", "vectors"}:
        names, matrix = arrays["names"], arrays["vectors"]
        if names.ndim != 1 or matrix.ndim != 2 or len(names) != len(matrix):  # noqa: PLR2004 a matrix
            found = f"names {names.shape}, vectors {matrix.shape}"
            raise UsageError(f"vectors {path!r}: {_NPZ}; found {found}")
        texts = [_text(name, path) for name in names.tolist()]
        twice = [f"{text!r} is there twice" for text, count in Counter(texts).items() if count > 1]
        _refuse(path, "names that differ", twice)
        arrays = dict(zip(texts, matrix, strict=True))
    shapes = {array.shape for array in arrays.values()}
    shape = next(iter(shapes)) if len(shapes) == 1 else ()
    kinds = {array.dtype.kind for array in arrays.values()}
    if len(shape) != 1 or not kinds <= set("fiub"):
        raise UsageError(f"vectors {path!r}: {_NPZ}; found shapes {sorted(shapes)[:_SHOWN]}")
    vectors = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Words("table", vectors, shape[0])


def _text(name: str | bytes, path: str) -> str:
    if isinstance(name, bytes):
        return decode_text(name, f"a name in vectors {path!r}").strip()
    return str(name).strip()
