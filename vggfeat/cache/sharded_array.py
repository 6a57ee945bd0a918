"""Concatenate the rows of several arrays lazily: nothing is joined before it is indexed."""

from __future__ import annotations

import math
import operator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from vggfeat.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray


class ShardedArray(NDArrayOperatorsMixin):
    """Several arrays as the one that `np.concatenate` would make of them, but lazily.

    Indexing gives what it gives on that array: a view where all rows lie in one part and numbers or
    slices select them, else a copy of what was selected. Arithmetic, comparisons and NumPy's
    functions take it as an array, and then read all of it.

    Args:
        firsts: int64 (parts + 1,), the first row of each part, and at last the number of rows.
        row_shape: shape of one row.
        dtype: of all parts.
        part: a part by its number, of shape (rows, *row_shape); requested again each time.
    """

    def __init__(
        self,
        firsts: Sequence[int] | NDArray[np.int64],
        row_shape: tuple[int, ...],
        dtype: DTypeLike,
        part: Callable[[int], NDArray[Any]],
    ) -> None:
        self._firsts = np.asarray(firsts, dtype=np.int64)
        self.shape = (int(self._firsts[-1]), *row_shape)
        self.dtype = np.dtype(dtype)
        self._part = part

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        parts = len(self._firsts) - 1
        return f"ShardedArray({self.shape}, {self.dtype}, {counted(parts, 'part')})"

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self._firsts) - 1):
            if self._firsts[number] < self._firsts[number + 1]:
                yield from self._part(number)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows of several files are one array only as a copy")
        joined = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for number in range(len(self._firsts) - 1):
            start, stop = self._firsts[number : number + 2].tolist()
            if start < stop:
                joined[start:stop] = self._part(number)
        return joined

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(one) if isinstance(one, ShardedArray) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        rows, *rest = _from_the_rows_on(key, self.ndim)
        if rows is None or rows is Ellipsis or isinstance(rows, bool | np.bool_):
            return np.asarray(self)[key]
        if isinstance(rows, slice):
            return self._slice(rows, tuple(rest))
        if not isinstance(rows, np.ndarray | list | tuple | ShardedArray):
            return self._one(operator.index(rows), tuple(rest))
        picked = np.asarray(rows)
        if picked.dtype == np.bool_:
            if picked.ndim != 1:
                return np.asarray(self)[key]
            if len(picked) != len(self):
                raise IndexError(
                    f"a mask of {counted(len(picked), 'row')} for an array of {len(self)}"
                )
            picked = np.flatnonzero(picked)
        return self._pick(picked, tuple(rest))

    def copy(self) -> NDArray[Any]:
        """Return all of it as a NumPy array."""
        return np.asarray(self)

    def astype(self, dtype: DTypeLike) -> NDArray[Any]:
        """Return all of it as a NumPy array of another type."""
        return np.asarray(self, dtype=dtype)

    def tolist(self) -> list[Any]:
        """Return all of it as nested lists."""
        values: list[Any] = np.asarray(self).tolist()
        return values

    def tobytes(self) -> bytes:
        """Return all of its bytes."""
        return np.asarray(self).tobytes()

    def _where(self, row: int) -> int:
        """Return the index of the part that holds a row."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def _one(self, row: int, rest: tuple[Any, ...]) -> Any:
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"row {row} of an array of {len(self)}")
        number = self._where(at)
        key = (at - int(self._firsts[number]), *rest)
        return self._part(number)[key]

    def _slice(self, rows: slice, rest: tuple[Any, ...]) -> NDArray[Any]:
        start, stop, step = rows.indices(len(self))
        key = (slice(None), *rest)
        if step != 1:
            picked = self._take(np.arange(start, stop, step))
        elif all(one is ... or _is_basic(one) for one in rest):
            return self._range(start, stop, key)
        else:
            picked = self._range(start, stop, key[:1])
        return picked[key] if rest else picked

    def _range(self, start: int, stop: int, key: tuple[Any, ...]) -> NDArray[Any]:
        """Return consecutive rows, indexed by `key`: a view of one part, or parts joined."""
        if start >= stop:
            nothing: NDArray[Any] = np.empty((0, *self.shape[1:]), self.dtype)[key]
            return nothing
        pieces: list[NDArray[Any]] = []
        for number in range(self._where(start), self._where(stop - 1) + 1):
            begin, end = (
                max(start, min(stop, int(at))) for at in self._firsts[number : number + 2]
            )
            if begin < end:
                offset = int(self._firsts[number])
                pieces.append(self._part(number)[begin - offset : end - offset][key])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _pick(self, rows: NDArray[Any], rest: tuple[Any, ...]) -> NDArray[Any]:
        """Return rows by an integer array of any shape, as NumPy's own indexing does."""
        if not rows.size and rows.dtype.kind == "f":  # what an empty list becomes
            rows = rows.astype(np.int64)
        if rows.dtype.kind not in "iu":
            raise IndexError(f"rows of type {rows.dtype}; expected whole numbers or a mask")
        wanted = rows.astype(np.int64)
        beyond = wanted[(wanted < -len(self)) | (wanted >= len(self))]
        if beyond.size:
            raise IndexError(f"row {beyond.flat[0]} of an array of {len(self)}")
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if not rest:
            return self._take(wanted.reshape(-1)).reshape(*wanted.shape, *self.shape[1:])
        each, back = np.unique(wanted, return_inverse=True)
        key = (back.reshape(wanted.shape), *rest)
        picked: NDArray[Any] = self._take(each)[key]
        return picked

    def _take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows by number, int64 (n,), in any order: a copy."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        bounds = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1)).tolist()
        for start, stop in pairwise(bounds):
            places = order[start:stop]
            number = int(numbers[places[0]])
            taken[places] = self._part(number)[rows[places] - self._firsts[number]]
        return taken


def _is_basic(one: Any) -> bool:
    """Return whether an index is an integer, a slice or a new axis: NumPy's basic indexing."""
    return one is None or (isinstance(one, slice | int | np.integer) and not isinstance(one, bool))


def _from_the_rows_on(key: Any, ndim: int) -> tuple[Any, ...]:
    """Return a key as a tuple that begins with the rows; spell out a leading ellipsis."""
    keys = key if isinstance(key, tuple) else (key,)
    if not keys:
        return (slice(None),)
    if keys[0] is not Ellipsis or not all(_is_basic(one) for one in keys[1:]):
        return keys
    spared = ndim - sum(one is not None for one in keys[1:])
    return (*(slice(None),) * spared, *keys[1:]) if spared > 0 else keys
