"""Rows of a cache against queries, a block at a time: similarities, and how wrong they may be.

Blocks are small enough that their float32 values stay in a core's cache, so that a scan costs one
reading of what is stored and no writing. NumPy turns float16 into float32 one by one; here its bits
are moved to where float32 has them, which is done in vectors: seven times as fast, the same values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.quantization import Scales

    Values = NDArray[np.float32]
    Rows = NDArray[np.int64]

Metric = Literal["cosine", "l2", "dot"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)

BLOCK_VALUES = 1 << 20
"""Numbers of a block: 4 MiB as float32."""

_SIGN_AND_REST = np.int32(-0x70002000)  # 0x8fffe000
_EXPONENT_MOVED = np.float32(2.0**112)  # float32's bias of 127 less float16's of 15
_UNIT = 2.0**-24  # rounding error of float32


@dataclass(frozen=True, slots=True, eq=False)
class LayerQuery:
    """Queries by one layer.

    Attributes:
        layer: a layer of vectors.
        vectors: float32 (q, D), as they are.
        weight: of this layer among several, not negative.
    """

    layer: str
    vectors: Values
    weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One layer's queries, ready to be multiplied with.

    Attributes:
        layer: name in the cache.
        vectors: float32 (q, D); of unit length if `unit`.
        exact: float64 (q, D), likewise.
        squares: float64 (q,), squared lengths of `exact`.
        share: of this layer; all add up to 1.
        unit: whether rows are compared at unit length.
        metric: what is computed.
    """

    layer: str
    vectors: Values
    exact: NDArray[np.float64]
    squares: NDArray[np.float64]
    share: float
    unit: bool
    metric: Metric


def sides(cache: FeatureCache, asked: Sequence[LayerQuery], metric: Metric) -> tuple[Side, ...]:
    """Checks queries and makes them ready.

    Args:
        cache: what is searched.
        asked: one or more layers, each with as many queries.
        metric: `cosine`; `dot`, the inner product; `l2`. Of several layers, the mean of cosines or
            of inner products with the layers' weights, or the distance of the layers at unit
            length joined with the roots of their shares, as `fuse --method weighted` joins them.

    Raises:
        UsageError: an unknown metric, maps, queries of another width or that are not finite, or
            weights that are no shares.
        CacheError: the cache has no such layer.
    """
    if metric not in METRICS:
        raise UsageError(f"metric {metric!r} is none; expected one of {', '.join(METRICS)}")
    weights = [one.weight for one in asked]
    total = math.fsum(weights)
    if not (all(0 <= weight < math.inf for weight in weights) and 0 < total < math.inf):
        named = ", ".join(f"{weight:g}" for weight in weights) or "none"
        raise UsageError(f"weights {named} must be numbers of 0 or more, and not all 0")
    unit = metric == "cosine" or (metric == "l2" and len(asked) > 1)
    return tuple(_side(cache, one, one.weight / total, metric, unit=unit) for one in asked)


def _side(
    cache: FeatureCache, asked: LayerQuery, share: float, metric: Metric, *, unit: bool
) -> Side:
    shape = cache[asked.layer].shape[1:]
    if len(shape) != 1:
        raise UsageError(
            f"{asked.layer} of cache {cache.path!r} holds maps, not vectors; search a layer "
            "extracted with a pool such as avg or gem"
        )
    if asked.vectors.ndim != 2 or asked.vectors.shape[1] != shape[0]:  # noqa: PLR2004 (q, D)
        raise UsageError(
            f"queries for {asked.layer} have shape {asked.vectors.shape}; expected "
            f"(queries, {shape[0]})"
        )
    exact = asked.vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        raise UsageError(f"queries for {asked.layer} hold values that are not finite")
    if unit:
        exact = _at_unit_length(exact)
    squares = np.sum(exact * exact, axis=1)
    name = cache.canonical(asked.layer)
    return Side(name, exact.astype(np.float32), exact, squares, share, unit, metric)


def _at_unit_length(x: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    scaled: NDArray[np.float64] = x / np.where(length > 0, length, 1)
    return scaled


def final_scores(similarities: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    """What similarities stand for: cosines, inner products, or of `l2` distances, as float32."""
    if metric == "l2":
        return np.sqrt(np.maximum(-2 * similarities, 0)).astype(np.float32)
    return similarities.astype(np.float32)


def block_rows(cache: FeatureCache, layers: Sequence[str]) -> int:
    """Rows of a block of the widest of these layers."""
    widest = max(cache[layer].shape[1] for layer in layers)
    return max(1, BLOCK_VALUES // widest)


class Kernel:
    """Similarities of blocks of rows to all queries, for one thread.

    A similarity is a cosine or an inner product, or of `l2` minus half the squared distance, so
    that more is nearer throughout.

    Args:
        cache: what is searched.
        queries: see `sides`.
        size: most rows of a block.
    """

    def __init__(self, cache: FeatureCache, queries: Sequence[Side], size: int) -> None:
        self._cache = cache
        self._queries = queries
        self._buffers = {
            side.layer: np.empty((size, cache[side.layer].shape[1]), np.float32) for side in queries
        }
        self._signed: set[str] = set()  # layers known to hold negative numbers

    def __call__(self, start: int, stop: int) -> tuple[Values, float]:
        """Similarities of the rows from `start` to `stop`, done or not.

        Returns:
            float32 (n, q), and how far each may be off at most.
        """
        total: Values | None = None
        error = 0.0
        for side in self._queries:
            x, squares = self._load(side.layer, start, stop)  # (n, D), (n,)
            products = x @ side.vectors.T  # (n, q)
            part, off = similarities(products, squares, side, x.shape[1])
            if len(self._queries) > 1:
                part *= np.float32(side.share)
            total = part if total is None else np.add(total, part, out=total)
            error += side.share * off + 2 * _UNIT
        if total is None:
            raise UsageError("no layer to search by; name one")
        return total, error

    def _load(self, layer: str, start: int, stop: int) -> tuple[Values, Values]:
        """Rows as float32 (n, D), and their squared lengths (n,).

        What lies behind a ReLU is never negative; looking for signs would cost a reading of it.
        """
        stored = self._cache[layer][start:stop]
        out = self._buffers[layer][: stop - start]
        scales = self._cache.header.scales.get(layer)
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
    """Stored rows as finite numbers in `out`, or as they are where they are float32 already.

    Args:
        stored: float16, float32, or int8 codes (n, D). What is not finite in float16 becomes
            another number; rows that are done are finite.
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
    if signed:  # widening filled three bits behind the sign with it
        np.bitwise_and(bits, _SIGN_AND_REST, out=bits)
    np.multiply(out, _EXPONENT_MOVED, out=out)
    return out


def row_squares(x: Values) -> Values:
    """Squared length of each row, (n, D): float32 (n,)."""
    squares: Values = np.matmul(x[:, None, :], x[:, :, None])[:, 0, 0]
    return squares


def similarities(products: Values, squares: Values, side: Side, width: int) -> tuple[Values, float]:
    """Similarities from inner products, and their largest error.

    An inner product of width D is off by D u |a| |b| at most, to first order, in whatever order it
    is summed, u the unit roundoff (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
    3.1); twice that with some room also covers the lengths and the last roundings.

    Args:
        products: (n, q), overwritten.
        squares: (n,), of the rows.
        side: the queries.
        width: D.
    """
    relative = 2 * (width + 16) * _UNIT
    longest = _longest(squares)
    asked = math.sqrt(float(side.squares.max())) if len(side.squares) else 0.0
    if side.unit:
        lengths = np.sqrt(squares)
        there = lengths > 0
        products /= np.where(there, lengths, np.float32(1))[:, None]
        squares, longest = there.astype(np.float32), 1.0
    if side.metric != "l2":
        return products, relative * longest * asked
    products -= (squares / 2)[:, None]
    products -= (side.squares / 2).astype(np.float32)
    return products, relative * (longest + asked) ** 2


def _longest(squares: Values) -> float:
    """The greatest finite length."""
    most = float(squares.max(initial=0))
    if not math.isfinite(most):  # rows that are not done may hold anything
        most = float(squares[np.isfinite(squares)].max(initial=0))
    return math.sqrt(most)


def exact_similarities(
    cache: FeatureCache, queries: Sequence[Side], which: Rows, rows: Rows
) -> NDArray[np.float64]:
    """Similarities of pairs of query and row in float64, each by itself: float64 (p,).

    Equal rows have equal ones wherever they lie, which no blocked product promises.

    Args:
        cache: what is searched.
        queries: see `sides`.
        which: int64 (p,), the query of each pair.
        rows: int64 (p,), its row.
    """
    total = np.zeros(len(rows))
    for side in queries:
        step = max(1, 4 * BLOCK_VALUES // side.exact.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            x = cache.values(side.layer, rows[part]).astype(np.float64)  # (p, D)
            total[part] += side.share * exact_pairs(x, side.exact[which[part]], side)
    return total


def exact_pairs(
    x: NDArray[np.float64], queries: NDArray[np.float64], side: Side
) -> NDArray[np.float64]:
    """Similarity of each row of `x` with the one of `queries` beside it, (p, D): (p,)."""
    if side.unit:
        x = _at_unit_length(x)
    if side.metric == "l2":
        x = x - queries
        return np.asarray(np.sum(x * x, axis=1) / -2)
    return np.asarray(np.sum(x * queries, axis=1))
