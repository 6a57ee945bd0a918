"""Measure the loss by a narrower dtype: cosines to the wider features, changed neighbours.

Rows are rounded in memory and lie in no cache, which the engine of `similarity` reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.rows import match_paths
from vggfeat.core.arrays import inner_products, spread, unit_rows
from vggfeat.core.isolation import isolated
from vggfeat.core.quantization import Scales, decode_codes, encode, to_float16
from vggfeat.core.text import counted
from vggfeat.errors import CacheMismatchError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

    Values = NDArray[np.float32]

LOSS_SAMPLE = 1000
"""Number of rows that are compared by default."""

NEIGHBOURS = 10

_SAMPLE_BYTES = 1 << 28  # of a layer, as float32
_NARROWER = {"float32": ("float16", "int8"), "float16": ("int8",), "int8": ()}


@dataclass(frozen=True, slots=True)
class LayerLoss:
    """Loss of one layer by one dtype.

    Attributes:
        layer: canonical spec.
        dtype: that the features are stored in.
        reference: dtype of the features they are compared with.
        row_bytes: of one row in `dtype`.
        rows: compared; each is a query among the others.
        cosine_least, cosine_median: of a row to itself as it was.
        nearest_changed: share of the rows whose nearest neighbour, by cosine, is another one.
        nearest_kept: share of each row's ten nearest that still are, on average.
    """

    layer: str
    dtype: str
    reference: str
    row_bytes: int
    rows: int
    cosine_least: float
    cosine_median: float
    nearest_changed: float
    nearest_kept: float


@isolated()
def measure_loss(
    cache: FeatureCache, *, against: FeatureCache | None = None, sample: int = LOSS_SAMPLE
) -> tuple[LayerLoss, ...]:
    """Measure the loss by the dtype of a cache, or by every narrower one.

    Args:
        cache: whose layers are measured.
        against: a cache of the same images and layers in a wider dtype, which the features of
            `cache` are compared with. Without it they are compared with themselves in every dtype
            narrower than their own.
        sample: rows to compare, spread evenly over those that are done.

    Raises:
        UsageError: nothing is narrower than the cache, or it has too few rows that are done.
        CacheMismatchError: `against` has other images or layers.
    """
    dtype = cache.header.identity.dtype
    if against is None and not _NARROWER[dtype]:
        raise UsageError(
            f"cache {cache.path!r} is in {dtype} and does not know what it was before; extract the "
            "images once more with --dtype float32 and name that cache with --against"
        )
    rows, others = _rows(cache, against, sample)
    if len(rows) < 2:  # noqa: PLR2004 a row and another
        raise UsageError(
            f"{counted(len(rows), 'row')} of {cache.path!r} can be compared, being done; two are "
            "needed"
        )
    losses: list[LayerLoss] = []
    for layer in cache.layers:
        most = max(2, _SAMPLE_BYTES // (4 * int(np.prod(cache.header.shapes[layer]))))
        some, other = rows[:most], others[:most]
        if against is None:
            wide = cache.values(layer, some).reshape(len(some), -1)
            losses += [
                _compare(layer, narrower, dtype, wide, _narrowed(wide, narrower))
                for narrower in _NARROWER[dtype]
            ]
        else:
            wide = against.values(layer, other).reshape(len(other), -1)
            narrow = cache.values(layer, some).reshape(len(some), -1)
            losses.append(_compare(layer, dtype, against.header.identity.dtype, wide, narrow))
    return tuple(losses)


def _rows(
    cache: FeatureCache, against: FeatureCache | None, sample: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows done in both, evenly spread, shuffled so that any first few are spread too."""
    rows = np.flatnonzero(cache.done)
    others = rows
    if against is not None:
        missing = [layer for layer in cache.layers if layer not in against.layers]
        if missing:
            raise CacheMismatchError(
                f"cache {against.path!r} has no {', '.join(missing)}, which {cache.path!r} has; "
                "extract the same layers"
            )
        match = match_paths(against.paths, cache.paths[rows])
        done = against.done[match.rows]
        rows, others = rows[match.listed[done]], match.rows[done]
    order = np.random.default_rng(0).permutation(spread(np.arange(len(rows)), sample))
    return rows[order], others[order]


def _narrowed(wide: Values, dtype: str) -> Values:
    """Round values to `dtype`; int8 over the range of these very rows."""
    if dtype == "float16":
        return to_float16(wide)[0].astype(np.float32)
    scales = Scales.over(wide.min(0), wide.max(0))
    return decode_codes(encode(wide, scales)[0], scales)


def _compare(layer: str, dtype: str, reference: str, wide: Values, narrow: Values) -> LayerLoss:
    before, after = unit_rows(np.array(wide)), unit_rows(np.array(narrow))
    cosines = np.einsum("nd,nd->n", before, after, dtype=np.float64)
    nearest = [_nearest(rows) for rows in (before, after)]
    kept = [
        len(set(one) & set(other)) / len(one)
        for one, other in zip(*(ranks.tolist() for ranks in nearest), strict=True)
    ]
    return LayerLoss(
        layer=layer,
        dtype=dtype,
        reference=reference,
        row_bytes=wide.shape[1] * np.dtype(dtype).itemsize,
        rows=len(wide),
        cosine_least=float(cosines.min()),
        cosine_median=float(np.median(cosines)),
        nearest_changed=float((nearest[0][:, 0] != nearest[1][:, 0]).mean()),
        nearest_kept=float(np.mean(kept)),
    )


def _nearest(unit: Values) -> NDArray[np.int64]:
    """Return the positions of each row's nearest others by cosine, (n, up to 10)."""
    cosines = inner_products(unit, unit)
    np.fill_diagonal(cosines, -np.inf)
    count = min(NEIGHBOURS, len(unit) - 1)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]
