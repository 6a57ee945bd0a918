"""The rows of a cache as objects of pandas, Arrow and xarray, without a copy where that can be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from vggfeat.core.optional import require
from vggfeat.core.sequences import as_tuple
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

Rows: TypeAlias = Literal["done", "all"]

_VECTOR = 2  # axes of a layer of vectors, (N, D)


def to_pandas(cache: FeatureCache, layers: str | Sequence[str], rows: Rows) -> Any:
    """See `FeatureCache.to_pandas`."""
    pandas = require("pandas", "pandas", "to_pandas")
    chosen = _chosen(cache, layers) or [one for one in cache if len(cache[one].shape) == _VECTOR]
    maps = [layer for layer in chosen if len(cache[layer].shape) != _VECTOR]
    if maps or not chosen:
        raise UsageError(
            f"{', '.join(maps) or 'every layer'} of cache {cache.path!r} holds maps, which are no "
            "columns; name layers of vectors, or use to_xarray"
        )
    taken = _rows(cache, rows)
    index = pandas.Index(_names(cache, taken), name="path", dtype=object)
    frames = {
        layer: pandas.DataFrame(_features(cache, layer, taken), index=index, copy=False)
        for layer in chosen
    }
    if isinstance(layers, str) and layers:
        return frames[chosen[0]]
    return pandas.concat(frames, axis=1, names=["layer", "dimension"])


def to_arrow(cache: FeatureCache, layers: str | Sequence[str], rows: Rows) -> Any:
    """See `FeatureCache.to_arrow`."""
    pyarrow = require("pyarrow", "arrow", "to_arrow")
    taken = _rows(cache, rows)
    fields = [pyarrow.field("path", pyarrow.string())]
    columns = [pyarrow.array(_names(cache, taken), pyarrow.string())]
    for layer in _chosen(cache, layers) or cache.layers:
        features = _features(cache, layer, taken)
        shape = features.shape[1:]
        column = _fixed_size_lists(pyarrow, np.ascontiguousarray(features))
        about = {"shape": json.dumps(list(shape))}
        fields.append(pyarrow.field(layer, column.type, metadata=about))
        columns.append(column)
    return pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields))


def to_xarray(cache: FeatureCache, layers: str | Sequence[str], rows: Rows) -> Any:
    """See `FeatureCache.to_xarray`."""
    xarray = require("xarray", "xarray", "to_xarray")
    taken = _rows(cache, rows)
    variables = {}
    for layer in _chosen(cache, layers) or cache.layers:
        features = _features(cache, layer, taken)
        axes = ("channel", "height", "width") if features.ndim > _VECTOR else ("dimension",)
        # Of each layer its own, since layers differ in widths.
        variables[layer] = (("path", *(f"{layer} {axis}" for axis in axes)), features)
    identity = cache.header.identity
    about = {"model": identity.model, "weights": identity.weights, "cache": cache.path}
    names = np.array(_names(cache, taken), dtype=object)
    return xarray.Dataset(variables, coords={"path": names}, attrs=about)


def _chosen(cache: FeatureCache, layers: str | Sequence[str]) -> list[str]:
    """Return canonical names of the layers; raise CacheError for one that is not in the cache."""
    wanted = as_tuple(layers) if layers else ()
    for layer in wanted:
        cache[layer]  # which says what there is
    return [cache.canonical(layer) for layer in wanted]


def _rows(cache: FeatureCache, rows: Rows) -> slice | NDArray[np.int64]:
    """Return a slice where the rows follow one another, which needs no copy."""
    if rows not in ("done", "all"):
        raise UsageError(f"unknown rows {rows!r}; expected done or all")
    if rows == "all":
        return slice(0, len(cache))
    done: NDArray[np.int64] = np.flatnonzero(cache.done)
    if not len(done):
        return slice(0, 0)
    first, last = int(done[0]), int(done[-1])
    return slice(first, last + 1) if last - first + 1 == len(done) else done


def _features(
    cache: FeatureCache, layer: str, rows: slice | NDArray[np.int64]
) -> NDArray[np.generic]:
    """Return features of some rows as stored, but of int8 codes what they stand for."""
    if cache.header.scales:
        return cache.values(layer, rows)
    return np.asarray(cache[layer][rows])


def _names(cache: FeatureCache, rows: slice | NDArray[np.int64]) -> list[str]:
    r"""Return paths as text; bytes that are no UTF-8 as `\xNN`, since Arrow has none of these."""
    return [path.decode("utf-8", "backslashreplace") for path in cache.paths[rows].tolist()]


def _fixed_size_lists(pyarrow: Any, features: NDArray[Any]) -> Any:
    """Return an Arrow array of one list a row, over the memory of the features."""
    kind = pyarrow.from_numpy_dtype(features.dtype)
    width = int(np.prod(features.shape[1:]))
    buffer = pyarrow.py_buffer(features.reshape(-1).view(np.uint8))
    flat = pyarrow.Array.from_buffers(kind, features.size, [None, buffer])
    return pyarrow.FixedSizeListArray.from_arrays(flat, width)
