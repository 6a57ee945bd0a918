"""PCA with whitening, and standardization, fitted to a stream of rows.

Data is read in passes, so that it may be far larger than memory; `pca_solvers` says how the
components are found, and how exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import agree, counted
from vggfeat.errors import InputError, UsageError
from vggfeat.transforms.pca_solvers import (
    Blocks,
    Data,
    Dims,
    find_components,
    moments_of,
    rows_at_once,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHITEN_FLOOR = 1e-10
"""Variance, relative to the largest, at or below which a component cannot be whitened.

Rounding to float16 leaves a variance of about 2e-8 of the square of a value in each dimension,
which for some hundred dimensions is 1e-10 of the largest component's: what is below is noise of
storage. float32 has less of it, but a component at this floor is enlarged 1e5 times, and with it
the rounding of the projection itself, 6e-8, to a hundredth of what it stands for.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Pca:
    """Principal components of some rows, the largest variance first.

    Attributes:
        mean: float64 (D,).
        components: float32 (k, D), orthonormal; in each, the entry of largest magnitude is
            positive.
        variances: float64 (k,), of the rows along each component, over n - 1.
        total_variance: of all D dimensions together.
        rows: how many it was fitted on.
        whiten: whether `apply` brings each component to a variance of 1.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float32]
    variances: NDArray[np.float64]
    total_variance: float
    rows: int
    whiten: bool

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Centre, project, and whiten if so fitted (Jégou & Chum 2012), float32 (n, D) to (n, k).

        The result is not normalised. A row with NaN in it becomes NaN.
        """
        parts = _parts(x.shape, len(self.mean))
        projected = np.empty((len(x), len(self.components)), dtype=np.float32)
        for part in parts:
            centred = np.subtract(x[part], self.mean, dtype=np.float64).astype(np.float32)
            np.matmul(centred, self.components.T, out=projected[part])
        if self.whiten:
            projected /= np.sqrt(self.variances).astype(np.float32)
        return projected

    @property
    def explained(self) -> NDArray[np.float64]:
        """Share of the total variance along each component, float64 (k,)."""
        return self.variances / self.total_variance

    @property
    def share(self) -> float:
        """Share of the total variance along all components together, up to 1."""
        return float(self.explained.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation:
    """Mean and scale of each dimension.

    Attributes:
        mean: float64 (D,).
        scale: float64 (D,), the standard deviation, over n; 1 where the dimension is constant.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring each dimension to mean 0 and deviation 1: `(x - mean) / scale`, float32 (n, D)."""
        scaled = np.empty(x.shape, dtype=np.float32)
        for part in _parts(x.shape, len(self.mean)):
            centred = np.subtract(x[part], self.mean, dtype=np.float64)
            np.divide(centred, self.scale, out=scaled[part], casting="same_kind")
        return scaled


def fit_standardisation(blocks: Blocks) -> Standardisation:
    """Fit mean and standard deviation of each dimension, in one pass over blocks (n, D)."""
    moments = moments_of(blocks)
    scale = np.sqrt(moments.squares / moments.rows)
    scale[scale == 0] = 1  # exactly 0 if constant: float64 sums equal float32 values exactly
    return Standardisation(moments.mean, scale)


def fit_pca(blocks: Blocks, dims: Dims, *, whiten: bool = False) -> Pca:
    """Fit principal components to data that is read several times, and never held whole if large.

    For a float `dims` as few components as explain that share of the variance are kept; `whiten`
    makes `Pca.apply` divide by the deviation along each component.
    """
    if not (0 < dims < 1 if isinstance(dims, float) else dims >= 1):
        raise UsageError(
            f"dims {dims}: expected a whole number, 1 or more, or a share of the variance between "
            "0.0 and 1.0"
        )
    moments = moments_of(blocks)
    total = float(moments.squares.sum()) / (moments.rows - 1)
    data = Data(blocks, moments.rows, moments.mean, total)
    _check_possible(dims, data)
    leading = find_components(data, dims)
    if whiten:
        _check_whitening(leading.variances)
    return Pca(data.mean, _signed(leading.vectors), leading.variances, total, data.rows, whiten)


def _parts(shape: tuple[int, ...], width: int) -> list[slice]:
    """Check the shape of data, and return slices of rows that are transformed together."""
    if shape[1:] != (width,):
        raise UsageError(
            f"fitted on {counted(width, 'dimension')}: expected (n, {width}), found {shape}"
        )
    step = rows_at_once(width)
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _check_possible(dims: Dims, data: Data) -> None:
    most = min(data.rows - 1, data.width)
    if dims > most:
        raise UsageError(
            f"dims {dims}: {counted(data.rows, 'row')} of {counted(data.width, 'dimension')} "
            f"{agree(data.rows, 'has')} {counted(most, 'component')} at "
            "most; ask for fewer, or fit on more rows"
        )
    if data.total_variance == 0:
        raise InputError(
            f"all {counted(data.rows, 'row')} are the same; such data has no components"
        )


def _check_whitening(variances: NDArray[np.float64]) -> None:
    usable = int((variances > WHITEN_FLOOR * variances[0]).sum())
    if usable < len(variances):
        raise UsageError(
            f"of {counted(len(variances), 'component')} only {usable} can be whitened, the others "
            f"have at most {WHITEN_FLOOR:g} of the largest variance; ask for {usable} at most, or "
            "do not whiten"
        )


def _signed(components: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return components (k, D) as float32, each with the entry of largest magnitude positive."""
    signed = components.astype(np.float32, order="C")
    for component, exact in zip(signed, components, strict=True):
        if exact[np.abs(exact).argmax()] < 0:
            np.negative(component, out=component)
    return signed
