"""Files of class vectors such as attributes: CSV, TSV, `.npz`, `.npy`, and those of data sets.

Animals with Attributes (Lampert et al., 2009 and Xian et al., 2018) has `predicate-matrix-*.txt`,
one line a class and one column an attribute, with the names in `classes.txt` and `predicates.txt`
beside it. The splits of Xian et al. (CVPR 2017) are `att_splits.mat`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import os
import re
import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from vggfeat.core.in_child import in_child
from vggfeat.core.optional import require
from vggfeat.core.text import counted, decode_text, first_few
from vggfeat.errors import InputError, UsageError
from vggfeat.storage.damage import DAMAGE
from vggfeat.storage.foreign_arrays import read_hdf5_array, read_npy, read_npz
from vggfeat.storage.foreign_files import check_regular, open_foreign
from vggfeat.storage.text_files import read_text
from vggfeat.zeroshot.word_vectors import Words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Values = NDArray[np.float32]

_MISSING: Final = -1
_CLASSES, _PREDICATES = "classes.txt", "predicates.txt"
_ATTRIBUTES, _NAMES = "att", "allclasses_names"
_NUMBERED = re.compile(r"\d+\s+")
_LARGEST_MAT = 1 << 30  # bytes
_MAT_HEAD, _COMPRESSED = 128, 15  # bytes before the first element, and the type of a packed one
_MOST_SCANNED = 1 << 26  # unpacked bytes of an element
_MOST_CELLS = 100
# Flags of a cell, structure or object, in files of either byte order.
_CELLS = re.compile(
    rb"\x06\x00\x00\x00\x08\x00\x00\x00[\x01-\x03]|\x00\x00\x00\x06\x00\x00\x00\x08...[\x01-\x03]",
    re.DOTALL,
)
_MOST_VALUES = 1 << 27  # in the matrix of a MATLAB file
_LOOKED_AT = 1 << 16  # bytes in which the first line ends
_FEWEST = 3  # columns; two numbers are the first line of word2vec

_NPZ = "expected arrays `names` (n,) and `vectors` (n, dims), or one array (dims,) a class"

log = logging.getLogger("vggfeat")


def read_table(path: str) -> Words:
    """Read all classes of a `.csv`, `.tsv`, `.npz` or `.npy` file.

    A line of CSV or TSV has a class and its numbers; a first line without numbers is a header. An
    `.npz` has `names` and `vectors`, or one array for each class. An `.npy` has one row for each
    line of the `.txt` of the same name beside it.
    """
    if path.endswith(".npy"):
        return _from_npy(path)
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
            if number == 0 and len(cells) > 1 and not any(map(_is_number, cells[1:])):
                continue  # a header
            dims = dims or len(cells) - 1
            problem = _take(cells, dims, vectors)
            if problem:
                wrong.append(f"line {reader.line_num}: {problem}")
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    _refuse(path, "lines of class,number,...", wrong or ([] if vectors else ["it has no classes"]))
    return Words("table", vectors, dims)


def _take(cells: list[str], dims: int, vectors: dict[str, Values]) -> str:
    """Add a line to the vectors; return what is wrong with it, or ''."""
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
        return f"{name!r} occurs above already"
    vectors[name] = np.array([float(cell) for cell in cells[1:]], dtype=np.float32)
    return ""


def _refuse(path: str, expected: str, wrong: list[str]) -> None:
    if wrong:
        raise UsageError(f"vectors {path!r}, expected {expected}: {first_few(wrong, '; ')}")


@contextlib.contextmanager
def _told(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        words = " ".join(str(error).split())
        raise UsageError(f"vectors {path!r} are no {kind} of plain arrays: {words}") from error
    except OSError as error:
        raise InputError(f"vectors {path!r} cannot be read: {error.strerror or error}") from error


def _from_npy(path: str) -> Words:
    with _told(path, ".npy"):
        matrix = read_npy(path)
    names = f"{path.removesuffix('.npy')}.txt"
    if not os.path.isfile(names):
        raise UsageError(
            f"vectors {path!r} have no names; expected {names!r} beside it, with the class of each "
            "row on a line"
        )
    texts = [line.strip() for line in read_text(names, "classes").splitlines()]
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub" or len(texts) != len(matrix):  # noqa: PLR2004 a matrix
        raise UsageError(
            f"vectors {path!r}: expected numbers (n, dims), and {names!r} with n lines; found "
            f"{matrix.dtype} of shape {matrix.shape}, and {counted(len(texts), 'line')}"
        )
    rows = _by_name(path, texts, matrix.astype(np.float32))
    return Words("table", rows, matrix.shape[1])


def _by_name(path: str, texts: list[str], matrix: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the rows of a matrix by their names, each of which may occur once."""
    wrong = [f"{text!r} occurs twice" for text, count in Counter(texts).items() if count > 1]
    _refuse(path, "names that differ", wrong)
    return dict(zip(texts, matrix, strict=True))


def _from_npz(path: str) -> Words:
    with _told(path, ".npz"):
        arrays = read_npz(path)
    if set(arrays) == {"names", "vectors"}:
        names, matrix = arrays["names"], arrays["vectors"]
        if names.ndim != 1 or matrix.ndim != 2 or len(names) != len(matrix):  # noqa: PLR2004 a matrix
            found = f"names {names.shape}, vectors {matrix.shape}"
            raise UsageError(f"vectors {path!r}: {_NPZ}; found {found}")
        arrays = _by_name(path, [_text(name, path) for name in names.tolist()], matrix)
    shapes = {array.shape for array in arrays.values()}
    shape = next(iter(shapes)) if len(shapes) == 1 else ()
    kinds = {array.dtype.kind for array in arrays.values()}
    if len(shape) != 1 or not kinds <= set("fiub"):
        raise UsageError(
            f"vectors {path!r}: {_NPZ}; found shapes {first_few(map(str, sorted(shapes)))}"
        )
    vectors = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Words("table", vectors, shape[0])


def _text(name: str | bytes, path: str) -> str:
    if isinstance(name, bytes):
        return decode_text(name, f"a name in vectors {path!r}").strip()
    return str(name).strip()


def is_matrix(path: str) -> bool:
    """Return whether a file is a matrix whose names stand in `classes.txt` beside it."""
    name = os.path.basename(path)
    if name.startswith("predicate-matrix") and name.endswith(".txt"):
        return True
    if not name.endswith(".txt") or not os.path.isfile(_beside(path, _CLASSES)):
        return False
    try:
        with open_foreign(path) as file:
            fields = file.read(_LOOKED_AT).partition(b"\n")[0].split()
    except OSError:
        return False
    return len(fields) >= _FEWEST and all(map(_is_number, fields))


def read_matrix(path: str) -> Words:
    """Read all classes of a matrix of attributes."""
    matrix = _numbers(path)
    names = _numbered_names(_beside(path, _CLASSES), "classes")
    expected = [len(names), matrix.shape[1]]
    if os.path.lexists(_beside(path, _PREDICATES)):
        expected[1] = len(_numbered_names(_beside(path, _PREDICATES), "predicates"))
    if list(matrix.shape) != expected:
        raise UsageError(
            f"vectors {path!r} are {' x '.join(map(str, matrix.shape))} numbers; {_CLASSES} and "
            f"{_PREDICATES} beside name {counted(expected[0], 'class')} and "
            f"{counted(expected[1], 'attribute')}"
        )
    return _as_words(path, names, fill_missing(path, matrix))


def _numbers(path: str) -> Matrix:
    """Read the numbers of a text file, float64 (lines, columns)."""
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(path, "vectors").splitlines(), 1):
        try:
            row = [float(cell) for cell in line.split()]
        except ValueError as error:
            raise UsageError(f"vectors {path!r}, line {number}: {error}") from error
        if row and rows and len(row) != len(rows[0]):
            raise UsageError(
                f"vectors {path!r}, line {number}: {counted(len(row), 'number')}, the first line "
                f"has {len(rows[0])}"
            )
        if row:
            rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)


def _is_number(field: str | bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbered_names(path: str, what: str) -> list[str]:
    """Read the names of lines such as `  7  grizzly+bear`."""
    lines = (line.strip() for line in read_text(path, what).splitlines())
    return [_NUMBERED.sub("", line, count=1) for line in lines if line]


def fill_missing(path: str, matrix: Matrix) -> Matrix:
    """Replace missing values of attributes, (classes, attributes), by the mean over other classes.

    AwA writes -1 where nobody rated a class. It is taken for missing only if nothing else is
    negative and something is above 1, so not in codes of -1 and 1.
    """
    missing = matrix == _MISSING
    others = matrix[~missing]
    if not missing.any() or not others.size or others.min() < 0 or others.max() <= 1:
        return matrix
    nothing = np.flatnonzero(missing.all(axis=0))
    if len(nothing):
        raise UsageError(
            f"vectors {path!r}: attribute {int(nothing[0]) + 1} is missing (-1) for every class"
        )
    log.info(
        "%s: %s (-1) replaced by the mean of the other classes",
        path,
        counted(int(missing.sum()), "missing value"),
    )
    means = np.nanmean(np.where(missing, np.nan, matrix), axis=0)
    filled: Matrix = np.where(missing, means, matrix)
    return filled


def read_mat(path: str) -> Words:
    """Read all classes of `att_splits.mat`: the vectors `att`, which papers use."""
    try:
        check_regular(path, _LARGEST_MAT)
        # In a child, since libhdf5 and SciPy crash or hang on some damaged files.
        found = in_child(lambda: _hdf5(path) if h5py.is_hdf5(path) else _matlab_5(path))
    except OSError as error:
        raise InputError(f"vectors {path!r} cannot be read: {error.strerror or error}") from error
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"vectors {path!r} are no MATLAB file: {error}") from error
    if set(found) != {_ATTRIBUTES, _NAMES}:
        raise UsageError(
            f"vectors {path!r} lack {' and '.join(sorted({_ATTRIBUTES, _NAMES} - set(found)))}; "
            "expected att_splits.mat as Xian et al. publish it, not the features (res101.mat)"
        )
    names, matrix = found[_NAMES], np.asarray(found[_ATTRIBUTES])
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or matrix.shape[1] != len(names):  # noqa: PLR2004 a matrix
        raise UsageError(
            f"vectors {path!r}: {_ATTRIBUTES} is {matrix.shape} and there are "
            f"{counted(len(names), 'name')}; expected a column of numbers a class"
        )
    return _as_words(path, names, matrix.T.astype(np.float64))


def _matlab_5(path: str) -> dict[str, Any]:
    require("scipy.io", "mat", f"the MATLAB file {path!r}")
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        _check_nesting(path)
        for name, shape, _ in whosmat(path):  # unpacks no values
            if name in (_ATTRIBUTES, _NAMES) and math.prod(shape) > _MOST_VALUES:
                raise ValueError(f"{name} has shape {shape}")
        found = loadmat(path, variable_names=[_ATTRIBUTES, _NAMES])
    except OSError:
        raise
    except (MatReadError, *DAMAGE) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"vectors {path!r} are no MATLAB file: {words}") from error
    kept = {name: found[name] for name in (_ATTRIBUTES, _NAMES) if name in found}
    if _NAMES in kept:
        texts = [np.ravel(cell)[:1].tolist() for cell in np.ravel(kept[_NAMES])]
        if not all(len(text) == 1 and isinstance(text[0], str) for text in texts):
            raise UsageError(f"vectors {path!r} are no MATLAB file: {_NAMES} is no list of texts")
        kept[_NAMES] = [text[0] for text in texts]
    return kept


def _check_nesting(path: str) -> None:
    """Raise ValueError for cells within cells, on which SciPy crashes if they nest deep."""
    with open_foreign(path) as file:
        order = "<" if file.read(_MAT_HEAD).endswith(b"IM") else ">"
        while len(tag := file.read(8)) == 8:  # noqa: PLR2004 type and length of an element
            kind, length = struct.unpack(f"{order}II", tag)
            data = file.read(min(length, _LARGEST_MAT))
            if kind == _COMPRESSED:
                data = zlib.decompressobj().decompress(data, _MOST_SCANNED)
            if len(_CELLS.findall(data)) > _MOST_CELLS:
                raise ValueError(f"more than {_MOST_CELLS} cells or structures")


def _hdf5(path: str) -> dict[str, Any]:
    """Read a MATLAB file of version 7.3: arrays are transposed, texts are references to UTF-16."""
    found: dict[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            if _ATTRIBUTES in file:
                found[_ATTRIBUTES] = read_hdf5_array(file[_ATTRIBUTES], _ATTRIBUTES).T
            if _NAMES in file:
                references = file[_NAMES][()].ravel()
                cells = (read_hdf5_array(file[one], _NAMES) for one in references)
                found[_NAMES] = ["".join(map(chr, cell.ravel().tolist())) for cell in cells]
    except DAMAGE as error:
        words = " ".join(str(error).split())
        raise UsageError(f"vectors {path!r} are no MATLAB file: {words}") from error
    return found


def _as_words(path: str, names: Sequence[str], matrix: Matrix) -> Words:
    texts = [name.replace("+", " ").strip() for name in names]
    twice = sorted({name for name in texts if texts.count(name) > 1})
    if twice:
        raise UsageError(f"vectors {path!r}: the name {twice[0]!r} stands for two classes")
    with np.errstate(over="ignore"):
        values = matrix.astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"vectors {path!r}: some are not finite in float32")
    vectors = dict(zip(texts, values, strict=True))
    return Words("table", vectors, matrix.shape[1])
