"""Scores of blocks of rows against queries, and their error bounds.

All on the CPU, whatever device computes query images: a scan reads each row once from the memory
map, at the speed of memory, and a copy to a GPU alone would take longer.
Blocks are small enough that their float32 values stay in a core's cache, so that a scan reads what
is stored once and writes nothing. NumPy widens float16 value by value; here the bits are shifted
to their place in float32, which vectorizes: seven times as fast, the same values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from vggfeat.core.choices import choose
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.quantization import Scales

    Values = NDArray[np.float32]
    Rows = NDArray[np.int64]

Metric = Literal["cosine", "l2", "l2-raw", "dot"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)

DISTANCES: Final[tuple[Metric, ...]] = ("l2", "l2-raw")
"""Metrics of which less is nearer: of vectors at unit length, and as they are stored."""

BLOCK_VALUES = 1 << 20
"""Values of a block: 4 MiB as float32."""

_SIGN_AND_REST = np.int32(-0x70002000)  # 0x8fffe000
_EXPONENT_MOVED = np.float32(2.0**112)  # float32's bias of 127 less float16's of 15
_UNIT = 2.0**-24  # rounding error of float32


@dataclass(frozen=True, slots=True, eq=False)
class LayerQuery:
    """Queries by one layer of vectors, not normalized, with its weight among several layers."""

    layer: str
    vectors: Values  # (q, D)
    weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class PreparedQuery:
    """Queries by one layer, checked and ready to be multiplied with.

    If `unit`, rows are compared at unit length. The shares of all layers add up to 1.
    """

    layer: str
    vectors: Values  # (q, D)
    exact: NDArray[np.float64]  # the same
    squares: NDArray[np.float64]  # (q,), squared lengths of `exact`
    share: float
    unit: bool
    metric: Metric


def check_layers(
    cache: FeatureCache, layers: Sequence[str], weights: Sequence[float], metric: Metric
) -> None:
    """Raise UsageError for an unknown metric, weights that are no shares, or a layer of maps."""
    choose("metric", METRICS, metric)
    total = math.fsum(weights)
    if not (all(0 <= weight < math.inf for weight in weights) and 0 < total < math.inf):
        named = ", ".join(f"{weight:g}" for weight in weights) or "none"
        raise UsageError(f"weights {named} must be numbers of 0 or more, and not all 0")
    for layer in layers:
        if len(cache[layer].shape) != 2:  # noqa: PLR2004 (N, D)
            raise UsageError(
                f"{layer} of cache {cache.path!r} holds maps, not vectors; search a layer "
                "extracted with a pool such as avg or gem"
            )


def prepare_queries(
    cache: FeatureCache, queries: Sequence[LayerQuery], metric: Metric
) -> tuple[PreparedQuery, ...]:
    """Check queries, one or more layers with as many vectors each, and normalize them.

    The similarity by several layers is the mean of their cosines or of their inner products with
    the layers' weights. For `l2`, by one layer or several, it is the distance of the layers at unit
    length, joined with the roots of their shares as `fuse --method weighted` joins them; for
    `l2-raw` that of the layers as they are, joined likewise, of which the longest decides.
    """
    weights = [query.weight for query in queries]
    check_layers(cache, [query.layer for query in queries], weights, metric)
    total = math.fsum(weights)
    unit = metric in ("cosine", "l2")
    return tuple(
        _prepared(cache, query, query.weight / total, metric, unit=unit) for query in queries
    )


def _prepared(
    cache: FeatureCache, query: LayerQuery, share: float, metric: Metric, *, unit: bool
) -> PreparedQuery:
    width = cache[query.layer].shape[1]
    if query.vectors.ndim != 2 or query.vectors.shape[1] != width:  # noqa: PLR2004 (q, D)
        raise UsageError(
            f"queries for {query.layer} have shape {query.vectors.shape}; expected "
            f"(queries, {width})"
        )
    exact = query.vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        raise UsageError(f"queries for {query.layer} hold values that are not finite")
    if unit:
        exact = _at_unit_length(exact)
    squares = np.sum(exact * exact, axis=1)
    name = cache.canonical(query.layer)
    return PreparedQuery(name, exact.astype(np.float32), exact, squares, share, unit, metric)


def _at_unit_length(x: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    scaled: NDArray[np.float64] = x / np.where(length > 0, length, 1)
    return scaled


def final_scores(similarities: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    """Return similarities as scores are shown, float32: of `DISTANCES`, distances."""
    if metric in DISTANCES:
        return np.sqrt(np.maximum(-2 * similarities, 0)).astype(np.float32)
    return similarities.astype(np.float32)


def block_rows(cache: FeatureCache, layers: Sequence[str]) -> int:
    """Return the number of rows of a block of the widest of these layers."""
    widest = max(cache[layer].shape[1] for layer in layers)
    return max(1, BLOCK_VALUES // widest)


class Kernel:
    """Similarities of blocks of rows to all queries, for one thread.

    A similarity is a cosine, an inner product or, for a distance, minus half its square, so
    that more is nearer throughout. A block has `size` rows at most.
    """

    def __init__(self, cache: FeatureCache, queries: Sequence[PreparedQuery], size: int) -> None:
        self._cache = cache
        self._queries = queries
        self._buffers = {
            query.layer: np.empty((size, cache[query.layer].shape[1]), np.float32)
            for query in queries
        }
        self._signed: set[str] = set()  # layers known to hold negative numbers

    def __call__(self, start: int, stop: int) -> tuple[Values, float]:
        """Return similarities, float32 (n, q), of all rows of a block, done or not.

        The second result is how far each may be off.
        """
        total: Values | None = None
        error = 0.0
        for query in self._queries:
            products, squares = self._products(query, start, stop)
            part, off = similarities(products, squares, query)
            if len(self._queries) > 1:
                part *= np.float32(query.share)
            total = part if total is None else np.add(total, part, out=total)
            error += query.share * off + 2 * _UNIT
        if total is None:
            raise UsageError("no layer to search by; name one")
        return total, error

    def _products(self, query: PreparedQuery, start: int, stop: int) -> tuple[Values, Values]:
        """Return inner products with the queries, float32 (n, q), and the rows' squared lengths."""
        x, squares = self._load(query.layer, start, stop)  # (n, D), (n,)
        return x @ query.vectors.T, squares

    def _load(self, layer: str, start: int, stop: int) -> tuple[Values, Values]:
        """Return rows as float32 (n, D), and their squared lengths (n,)."""
        stored = self._cache[layer][start:stop]
        out = self._buffers[layer][: stop - start]
        scales = self._cache.header.scales.get(layer)
        # Values behind a ReLU are never negative, and looking for signs would read all once more.
        if layer not in self._signed:
            x = to_float32(stored, out, scales, signed=False)
            squares = row_squares(x)
            if stored.dtype != np.float16 or math.isfinite(squares.max(initial=0)):
                return x, squares
            self._signed.add(layer)
        x = to_float32(stored, out, scales)
        return x, row_squares(x)


def to_float32(
    stored: NDArray[Any], out: Values, scales: Scales | None = None, *, signed: bool = True
) -> Values:
    """Widen stored rows into `out`; return float32 rows as they are.

    Args:
        stored: float16, float32, or int8 codes (n, D). float16 infinities and NaNs become finite
            values; rows that are done hold none.
        out: float32 (n, D).
        scales: of codes.
        signed: whether float16 may be negative; if not, whatever has its sign set, -0 too, becomes
            infinite or NaN.
    """
    if stored.dtype == np.float32:
        return np.asarray(stored)
    if scales is not None:
        np.multiply(stored, scales.scale, out=out)
        np.add(out, scales.offset, out=out)
        return out
    bits = out.view(np.int32)
    halves = stored.view(np.int16)
    np.copyto(bits, halves)
    np.left_shift(bits, 13, out=bits)
    if signed:  # widening filled the three bits behind the sign with it
        np.bitwise_and(bits, _SIGN_AND_REST, out=bits)
    np.multiply(out, _EXPONENT_MOVED, out=out)
    return out


def row_squares(x: Values) -> Values:
    """Return the squared length of each row of (n, D), float32 (n,)."""
    squares: Values = np.matmul(x[:, None, :], x[:, :, None])[:, 0, 0]
    return squares


def similarities(products: Values, squares: Values, query: PreparedQuery) -> tuple[Values, float]:
    """Return similarities from inner products (n, q), which are overwritten, and an error bound.

    An inner product of width D is off by D u |a| |b| at most, to first order, in whatever order it
    is summed, u the unit roundoff (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
    3.1); twice that with some room also covers the lengths and the last roundings.
    """
    relative = 2 * (query.vectors.shape[1] + 16) * _UNIT
    most = float(squares.max(initial=0))
    if not math.isfinite(most):  # rows that are not done may hold anything
        most = float(squares[np.isfinite(squares)].max(initial=0))
    longest = math.sqrt(most)
    longest_query = math.sqrt(float(query.squares.max())) if len(query.squares) else 0.0
    if query.unit:
        lengths = np.sqrt(squares)
        nonzero = lengths > 0
        products /= np.where(nonzero, lengths, np.float32(1))[:, None]
        squares, longest = nonzero.astype(np.float32), 1.0
    if query.metric not in DISTANCES:
        return products, relative * longest * longest_query
    products -= (squares / 2)[:, None]
    products -= (query.squares / 2).astype(np.float32)
    return products, relative * (longest + longest_query) ** 2


def exact_similarities(
    cache: FeatureCache, queries: Sequence[PreparedQuery], which: Rows, rows: Rows
) -> NDArray[np.float64]:
    """Return similarities of pairs of query `which` and row `rows`, (p,) each: float64 (p,).

    Each pair is summed by itself, so that equal rows have equal similarities wherever they lie,
    which no blocked product promises.
    """
    total = np.zeros(len(rows))
    for query in queries:
        step = max(1, 4 * BLOCK_VALUES // query.exact.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            x = cache.values(query.layer, rows[part]).astype(np.float64)  # (p, D)
            total[part] += query.share * exact_pairs(x, query.exact[which[part]], query)
    return total


def exact_pairs(
    x: NDArray[np.float64], queries: NDArray[np.float64], query: PreparedQuery
) -> NDArray[np.float64]:
    """Return the similarity of each row of `x` to the row of `queries` beside it, (p, D): (p,)."""
    if query.unit:
        x = _at_unit_length(x)
    if query.metric in DISTANCES:
        x = x - queries
        return np.asarray(np.sum(x * x, axis=1) / -2)
    return np.asarray(np.sum(x * queries, axis=1))
