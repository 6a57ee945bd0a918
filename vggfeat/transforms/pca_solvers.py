"""Solvers of PCA: passes over data, its moments, principal components.

All sums are float64. Data is worked on in pieces of one size, whatever blocks it comes in: how rows
are cut into blocks changes no bit of what is computed. Principal components are found in one of
three ways, by rows n, dimensions D and wanted k:

- n < D and few rows: by the Gram matrix (n, n), exact, in two passes, the data held as float32.
- D up to 8192: by the covariance (D, D), exact, in two passes. At the limit it takes 512 MB, its
  decomposition five times as much.
- above: the leading ones alone, by iteration, in 3 to 33 passes. Memory is about eight matrices
  (D, k + 10) of float64.

The iteration starts from a random block of k + 10 vectors, as the randomised range finder does
(Halko, Martinsson & Tropp 2011, "Finding structure with randomness"), and keeps the last blocks
beside the new one (Musco & Musco 2015, "Randomized block Krylov methods"; restarted as in Wu &
Simon 2000, "Thick-restart Lanczos method"). It ends when each component is within an angle of 0.01
of the exact one, a cosine of 1 - 5e-5, as estimated from residuals and gaps. With the first pass,
for the mean, that took 5 passes for 16 components and 6 for 128 of data whose i-th variance is
1 / i^2, 7 and 13 where it is 1 / i, 10 and 19 where it is 1 / sqrt(i); plain power iterations would
take more than 24 for 128 of any. What is not reached in 33 is logged; the variances are right long
before the components.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vggfeat.core.text import counted
from vggfeat.errors import InputError, UsageError

Blocks: TypeAlias = Callable[[], Iterator[NDArray[np.float32]]]
"""Starts a pass over the data: float32 blocks (n, D) of any n, the same rows each time."""

Dims: TypeAlias = int | float
"""How many components; or, a float in (0, 1), which share of the variance they are to explain."""

Matrix: TypeAlias = NDArray[np.float64]

COVARIANCE_LIMIT = 8192
"""Dimensions up to which the covariance is made."""

GRAM_ROWS = 4096
"""Rows up to which the Gram matrix is made, for data of more dimensions than rows."""

GRAM_BYTES = 1 << 30
"""Of float32 data that may be held for it."""

_CHUNK_BYTES = 1 << 26  # of float64, worked on at once
_TILE = 1024  # columns multiplied at once, so that no product is as large as the covariance
_OVERSAMPLING = 10
_KEPT_BLOCKS = 4  # of the iteration; with three it takes up to half as many passes more
_MOST_PASSES = 32
_ANGLE = 1e-2  # to the exact component, in radians
_SAME = 1e-3  # of a variance: others nearer to it count as equal, and their components as one

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Rows, their mean (D,), and the sums of their squared distances to it (D,)."""

    rows: int
    mean: Matrix
    squares: Matrix

    def plus(self, other: Moments) -> Moments:
        """Combine the moments of two parts (Chan, Golub & LeVeque 1983, the pairwise update)."""
        rows = self.rows + other.rows
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.rows / rows)
        between = apart**2 * (self.rows * other.rows / rows)
        return Moments(rows, mean, self.squares + other.squares + between)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Data for later passes, with mean (D,) and total variance, over rows - 1, of the first."""

    blocks: Blocks
    rows: int
    mean: Matrix
    total_variance: float

    @property
    def width(self) -> int:
        """Dimensions."""
        return len(self.mean)

    def centred(self) -> Iterator[Matrix]:
        """Yield the rows minus their mean, as `chunks` does."""
        rows = 0
        for chunk in chunks(self.blocks, self.mean):
            rows += len(chunk)
            yield chunk
        self._check_same(rows)

    def held(self) -> NDArray[np.float32]:
        """Return all rows as they are, float32 (n, D)."""
        held = np.empty((self.rows, self.width), dtype=np.float32)
        rows = 0
        for block in self.blocks():
            room = held[rows : rows + len(block)]
            room[:] = block[: len(room)]
            rows += len(block)
        self._check_same(rows)
        return held

    def _check_same(self, rows: int) -> None:
        if rows != self.rows:
            raise InputError(
                f"the data changed while it was read: {counted(self.rows, 'row')} at first, then "
                f"{rows}"
            )

    def times_covariance(self, vectors: Matrix) -> Matrix:
        """Multiply the covariance, which is never made, by vectors (D, m), in a pass."""
        product = np.zeros_like(vectors)
        for chunk in self.centred():
            product += chunk.T @ (chunk @ vectors)
        product /= self.rows - 1
        return product

    def count(self, dims: Dims, variances: Matrix) -> int:
        """Return how many components `dims` means, given the variances of all, largest first."""
        if not isinstance(dims, float):
            return dims
        reached = np.cumsum(variances) / self.total_variance
        most = min(self.rows - 1, self.width)  # rounding may leave the sum just below the share
        return min(int(np.searchsorted(reached, dims)) + 1, most)


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Variances (k,), largest first, and the components (k, D) they are along, of either sign."""

    variances: Matrix
    vectors: Matrix


def rows_at_once(width: int) -> int:
    """Return the number of rows of some width that are worked on together."""
    return max(_CHUNK_BYTES // (8 * max(width, 1)), 1)


def chunks(blocks: Blocks, shift: Matrix | float = 0.0) -> Iterator[Matrix]:
    """Yield the data minus `shift`, in pieces (n, D) of one size but for the last.

    All pieces are one buffer, valid until the next is requested.
    """
    buffer: Matrix | None = None
    filled = 0
    for block in blocks():
        if buffer is None:
            buffer = np.empty((rows_at_once(block.shape[-1]), block.shape[-1]))
        if block.shape[1:] != buffer.shape[1:]:
            raise UsageError(
                f"a block of shape {block.shape}; expected (rows, {buffer.shape[1]}), as the first"
            )
        start = 0
        while start < len(block):
            part = block[start : start + len(buffer) - filled]
            np.subtract(part, shift, out=buffer[filled : filled + len(part)], dtype=np.float64)
            start, filled = start + len(part), filled + len(part)
            if filled == len(buffer):
                yield buffer
                filled = 0
    if buffer is not None and filled:
        yield buffer[:filled]


def moments_of(blocks: Blocks) -> Moments:
    """Return the moments of the data, by a first pass; refuse values that are not finite."""
    total: Moments | None = None
    for chunk in chunks(blocks):
        with np.errstate(invalid="ignore"):  # infinities of both signs
            mean = chunk.sum(axis=0) / len(chunk)
        if not np.isfinite(mean).all():
            before = total.rows if total else 0
            row, dimension = np.argwhere(~np.isfinite(chunk))[0].tolist()
            raise InputError(
                f"row {before + row} of the data holds {chunk[row, dimension]} in dimension "
                f"{dimension}; expected finite numbers, leave such rows out"
            )
        np.subtract(chunk, mean, out=chunk)
        part = Moments(len(chunk), mean, np.einsum("nd,nd->d", chunk, chunk))
        total = total.plus(part) if total else part
    if total is None or total.rows == 1:
        raise InputError(
            f"the data has {counted(total.rows if total else 0, 'row')}; expected two or more"
        )
    return total


def find_components(data: Data, dims: Dims) -> Components:
    """Return the leading components, in whichever of the three ways fits the data's shape."""
    few = data.rows < data.width and data.rows <= GRAM_ROWS
    if few and data.rows * data.width * 4 <= GRAM_BYTES:
        return _by_gram(data, dims)
    if data.width <= COVARIANCE_LIMIT:
        return _by_covariance(data, dims)
    return _by_iteration(data, _countable(data, dims))


def _eigh(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return eigenvalues (n,), none below 0, and eigenvectors (n, n), largest first.

    Only the upper triangle is read.
    """
    values, vectors = np.linalg.eigh(matrix, UPLO="U")
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _by_covariance(data: Data, dims: Dims) -> Components:
    covariance = np.zeros((data.width, data.width))
    for chunk in data.centred():
        for start in range(0, data.width, _TILE):
            tile, behind = slice(start, start + _TILE), slice(start + _TILE, None)
            covariance[tile, tile] += chunk[:, tile].T @ chunk[:, tile]
            covariance[tile, behind] += chunk[:, tile].T @ chunk[:, behind]
    covariance /= data.rows - 1
    variances, vectors = _eigh(covariance)
    k = data.count(dims, variances)
    return Components(variances[:k], vectors[:, :k].T)


def _by_gram(data: Data, dims: Dims) -> Components:
    held = data.held()
    step = rows_at_once(data.rows)
    tiles = [slice(start, start + step) for start in range(0, data.width, step)]
    gram = np.zeros((data.rows, data.rows))
    for tile in tiles:
        centred = held[:, tile] - data.mean[tile]
        gram += centred @ centred.T
    squares, left = _eigh(gram)
    variances = squares / (data.rows - 1)
    k = data.count(dims, variances)
    vectors = np.empty((data.width, k))
    for tile in tiles:
        np.matmul((held[:, tile] - data.mean[tile]).T, left[:, :k], out=vectors[tile])
    # They are orthogonal but for rounding, which is all that is left where the variance is 0.
    if variances[k - 1] > 1e-10 * variances[0]:
        vectors /= np.linalg.norm(vectors, axis=0)
    else:
        vectors = np.linalg.qr(vectors)[0]
    return Components(variances[:k], vectors.T)


def _countable(data: Data, dims: Dims) -> int:
    """Return `dims` if the iteration can find so many."""
    if isinstance(dims, float):
        raise UsageError(
            f"dims {dims}: a share needs all variances, which are computed up to "
            f"{COVARIANCE_LIMIT} dimensions; the data has {data.width}, ask for a whole number"
        )
    # The kept blocks and the next one must be orthogonal to each other.
    most = data.width // (_KEPT_BLOCKS + 1) - _OVERSAMPLING
    if dims > most:
        raise UsageError(
            f"dims {dims}: of {counted(data.width, 'dimension')}, more than {COVARIANCE_LIMIT}, "
            f"at most {counted(most, 'component')} are computed"
        )
    return dims


def _by_iteration(data: Data, dims: int) -> Components:
    size = dims + _OVERSAMPLING
    noise = np.random.default_rng(0).standard_normal((data.width, size))
    block = np.linalg.qr(noise)[0]
    basis = block  # (D, s), orthonormal; its last columns are the block
    projected = np.zeros((0, 0))  # the covariance as seen in the basis, (s, s)
    passes = 0
    while True:
        image = data.times_covariance(block)  # (D, size)
        passes += 1
        inner = basis.T @ image  # (s, size)
        above, below = np.split(inner, [len(projected)])
        projected = np.block([[projected, above], [above.T, below]])
        variances, turn = _eigh(projected)
        # Orthonormal columns, orthogonal to the basis, and the rest of the image in terms of them.
        block, first = np.linalg.qr(image - basis @ inner)
        block -= basis @ (basis.T @ block)  # once more, for where the rest is small
        block, second = np.linalg.qr(block)
        coupling = second @ first
        residuals = np.linalg.norm(coupling @ turn[-size:, : dims + 1], axis=0)
        angle = _worst_angle(variances, residuals)
        if angle <= _ANGLE or passes == _MOST_PASSES:
            break
        if len(projected) == _KEPT_BLOCKS * size:
            basis, projected = basis @ turn[:, :size], np.diag(variances[:size])
        basis = np.hstack([basis, block])
    if angle > _ANGLE:
        log.warning(
            "components of nearly the same variance are mixed, by an angle of up to %.2g, after "
            "%d passes; fewer dims are told apart sooner",
            angle,
            passes + 1,
        )
    return Components(variances[:dims], (basis @ turn[:, :dims]).T)


def _worst_angle(variances: Matrix, residuals: Matrix) -> float:
    """Estimate the largest angle between any of the leading components and the exact one.

    Out of the basis it is the residual over the distance to the variances that are left there, at
    most the last of the block. Within the basis components are orthogonal; those of near variances
    mix only as far as both lean out of it.

    Args:
        variances: (s,), s >= k + 10, as seen in the basis.
        residuals: (k + 1,), of the leading ones.
    """
    k = len(residuals) - 1
    leading = variances[:k]
    floor = np.maximum(_SAME * leading, 1e-12 * variances[0])
    outside = residuals[:k] / np.maximum(leading - variances[k + _OVERSAMPLING - 1], floor)
    gaps = -np.diff(variances[: k + 1])
    gaps[1:] = np.minimum(gaps[1:], gaps[:-1])
    mixing = np.maximum(residuals[:k], residuals[1:]) / np.maximum(gaps, floor)
    return float((outside * np.hypot(1, mixing)).max())
