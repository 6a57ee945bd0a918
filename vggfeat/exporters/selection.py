"""Select the layers and rows to export, and read them in blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.cache.rows import matching
from vggfeat.core.arrays import blocks
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.layer_spec import Norm


_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class ExportPart:
    """A block of rows of the export: number of the first there, and what belongs to each row."""

    start: int
    rows: list[int]  # in the cache
    paths: list[str]
    states: list[str]
    values: Mapping[str, NDArray[np.floating[Any]]]  # layer → (n, …) float16 or float32


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Layers and rows of a cache that are exported.

    Attributes:
        cache: to read from.
        layers: canonical specs, in the requested order.
        rows: numbers of the rows, ascending, int64 (n,).
        norm: of every vector: see `normalised`.
    """

    cache: FeatureCache
    layers: tuple[str, ...]
    rows: NDArray[np.int64]
    norm: Norm = "none"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def row_shape(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one row, (D,) or (C, H, W)."""
        return self.cache.header.shapes[layer]

    @property
    def is_one_vector(self) -> bool:
        """Whether a row is one vector, of one layer."""
        return len(self.layers) == 1 and len(self.row_shape(self.layers[0])) == 1

    def width(self, layer: str) -> int:
        """Return the number of values in one row."""
        return math.prod(self.row_shape(layer))

    def dtype(self, layer: str) -> np.dtype[np.floating[Any]]:
        """Return little-endian float16 if that is stored, else float32."""
        stored = np.dtype(self.cache.header.feature(layer).dtype)
        return np.dtype("<f2" if stored == np.float16 else "<f4")

    def blocks(self, layers: Sequence[str]) -> list[tuple[int, int]]:
        """Return first row and end of the blocks in which these layers are read."""
        return blocks(len(self), sum(map(self.width, layers)) * _FLOAT32_BYTES)

    def of(self, layer: str) -> Iterator[NDArray[np.floating[Any]]]:
        """Yield all rows of one layer in blocks (n, …); NaN where a row is not done."""
        for start, stop in self.blocks([layer]):
            yield self.read(layer, self.rows[start:stop])

    def parts(self) -> Iterator[ExportPart]:
        """Yield all rows with all layers, in blocks."""
        for start, stop in self.blocks(self.layers):
            rows = self.rows[start:stop]
            values = {layer: self.read(layer, rows) for layer in self.layers}
            yield ExportPart(start, rows.tolist(), self.paths(rows), self.states(rows), values)

    def read(self, layer: str, rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Read rows of the cache, int64 (n,), as they are exported, (n, …); NaN where not done."""
        # Consecutive rows are read as one slice, several times as fast.
        together = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
        wanted = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        if layer in self.cache.header.scales:
            values: NDArray[np.floating[Any]] = self.cache.values(layer, wanted)
        else:
            values = np.array(self.cache[layer][wanted], dtype=self.dtype(layer))
        values[self.cache.state[rows] != RowState.DONE] = np.nan
        return normalised(values, self.norm)

    def paths(self, rows: NDArray[np.int64]) -> list[str]:
        r"""Return the paths of rows as UTF-8 text; other bytes and control characters as `\xNN`."""
        return [text_of(bytes(path)) for path in self.cache.paths[rows]]

    def states(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the names of the states of rows, lower case."""
        return [RowState(int(state)).name.lower() for state in self.cache.state[rows]]

    def not_utf8(self) -> int:
        """Count the paths that `paths` escapes."""
        paths = self.cache.paths[self.rows]
        return sum(text_of(bytes(path)).encode() != bytes(path) for path in paths)


def text_of(path: bytes) -> str:
    r"""Return a path as printable UTF-8; other bytes and control characters as `\xNN`."""
    text = path.decode(errors="backslashreplace")
    return "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in text)


def select(cache: FeatureCache, layers: Sequence[str], rows: str) -> Content:
    """Select layers and rows of a cache.

    Args:
        cache: to export.
        layers: specs or aliases; empty for all.
        rows: `done`, `all`, or a shell pattern of paths, of whose matches the done ones are taken.
    """
    for layer in layers:
        _ = cache[layer]  # says which there are
    names = tuple(dict.fromkeys(map(cache.canonical, layers))) or cache.layers
    if rows == "all":
        return Content(cache, names, np.arange(len(cache)))
    wanted = np.arange(len(cache)) if rows == "done" else matching(cache, rows)
    wanted = wanted[cache.done[wanted]]
    if not len(wanted):
        raise UsageError(
            f"rows {rows!r} of cache {cache.path!r}: none of them is done; run its extract again, "
            "or export --rows all"
        )
    return Content(cache, names, wanted)


def normalised(values: NDArray[np.floating[Any]], norm: Norm) -> NDArray[np.floating[Any]]:
    """Normalise rows, (n, D) or, at each position, (n, C, H, W), as a layer spec's norms do.

    Computed in float64, where no square overflows, and rounded once. Zero vectors stay zero, rows
    of NaN stay NaN.
    """
    if norm == "none":
        return values
    x = values.astype(np.float64)
    if norm == "ssr":
        x = np.sign(x) * np.sqrt(np.abs(x))
    length = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    length[length == 0] = 1
    unit: NDArray[np.floating[Any]] = (x / length).astype(values.dtype)
    return unit
