"""ESZSL: a bilinear map between features and class vectors in closed form.

Romera-Paredes & Torr, "An embarrassingly simple approach to zero-shot learning", ICML 2015:
V = (X Xᵀ + gI)⁻¹ X Y Sᵀ (S Sᵀ + λI)⁻¹ minimises ‖XᵀVS - Y‖² + g‖VS‖² + λ‖XᵀV‖² + gλ‖V‖², g for
gamma. X (d, m) has an image in each column, S (a, z) a class, and Y (m, z) is 1 for the right class
and -1 for others. Only X Xᵀ and the sum of each class's columns are needed, so one pass over the
rows is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Matrix = NDArray[np.float64]

MOST_WIDTH = 16_384
"""Dimensions at most: the matrix of their products takes 2 GB, and is inverted."""


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over rows, from which the closed form is computed.

    Attributes:
        gram: X Xᵀ, float64 (d, d).
        by_class: sum of each class's rows, float64 (d, z).
        counts: rows of each class, int64 (z,).
    """

    gram: Matrix
    by_class: Matrix
    counts: Numbers

    @property
    def means(self) -> NDArray[np.float32]:
        """Mean of each class's rows, float32 (z, d)."""
        means: NDArray[np.float32] = (self.by_class / np.maximum(self.counts, 1)).T.astype("f4")
        return means


def sum_rows(
    blocks: Iterable[tuple[NDArray[np.floating[Any]], Numbers]], width: int, classes: int
) -> Sums:
    """Sum over blocks of rows (n, width), each with the numbers of their classes (n,)."""
    if width > MOST_WIDTH:
        raise UsageError(
            f"{counted(width, 'dimension')}; the closed form of eszsl takes {MOST_WIDTH} at most. "
            "Shorten them first (vggfeat reduce --dims 2048), pool maps, or take --method devise"
        )
    gram, by_class = np.zeros((width, width)), np.zeros((width, classes))
    counts = np.zeros(classes, dtype=np.int64)
    for x, own in blocks:
        wide = x.astype(np.float64)
        gram += wide.T @ wide
        by_class += wide.T @ (own[:, None] == np.arange(classes))
        counts += np.bincount(own, minlength=classes)
    return Sums(gram, by_class, counts)


def targets_of(costs: Matrix) -> Matrix:
    """Return the row of Y for images of each class, float64 (z, z): 1 - 2 cost.

    Without a tree all mistakes cost 1, which gives the paper's 1 and -1. With a tree, classes near
    the right one should score higher than distant ones.
    """
    return 1 - 2 * costs


def solve_eszsl(
    sums: Sums, vectors: Matrix, targets: Matrix, gamma: float, lambda_: float
) -> Matrix:
    """Return the map V, float64 (d, a), of class vectors (z, a); a class's score is xᵀ V s."""
    (found,) = solve_many(sums, vectors, targets, gamma, (lambda_,))
    return found


def solve_many(
    sums: Sums, vectors: Matrix, targets: Matrix, gamma: float, lambdas: Iterable[float]
) -> Iterator[Matrix]:
    """Yield `solve_eszsl` for several lambdas; the large system is solved once."""
    right = sums.by_class @ targets @ vectors  # X Y Sᵀ, (d, a)
    system = sums.gram.copy()
    np.fill_diagonal(system, np.diag(system) + gamma)
    left = np.linalg.solve(system, right)
    products, dims = vectors.T @ vectors, vectors.shape[1]
    for lambda_ in lambdas:
        yield np.linalg.solve(products + lambda_ * np.eye(dims), left.T).T


def spanning_basis(x: NDArray[np.float32]) -> Matrix | None:
    """Return an orthonormal basis of fewer rows than dimensions, float64 (d, n); else None.

    The columns of V lie in the span of the rows, so the small problem in its coordinates has the
    same map.
    """
    if len(x) >= x.shape[1]:
        return None
    basis: Matrix = np.linalg.qr(x.T.astype(np.float64))[0]
    return basis
