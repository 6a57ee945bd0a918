"""ESZSL: a bilinear map between features and class vectors in closed form.

Romera-Paredes & Torr, "An embarrassingly simple approach to zero-shot learning", ICML 2015:
V = (X Xᵀ + gI)⁻¹ X Y Sᵀ (S Sᵀ + λI)⁻¹ minimises ‖XᵀVS - Y‖² + g‖VS‖² + λ‖XᵀV‖² + gλ‖V‖², g for
gamma. X (d, m) has an image in each column, S (a, z) a class, and Y (m, z) is 1 for the right class
and -1 for others. Only X Xᵀ and the sum of each class's columns are needed, so one pass over the
rows is enough. Ridge regression from features to class vectors, (X Xᵀ + gI)⁻¹ X Sᵀ with the class
vector of each image, has the same system and another right side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    left = regularised(sums.gram, sums.by_class @ eszsl_columns(vectors, targets), gamma)
    return eszsl_side(left, vectors, lambda_)


def eszsl_columns(vectors: Matrix, targets: Matrix) -> Matrix:
    """Return what ESZSL fits to the rows of each class, Y Sᵀ by class: float64 (z, a)."""
    columns: Matrix = targets @ vectors
    return columns


def eszsl_side(left: Matrix, vectors: Matrix, lambda_: float) -> Matrix:
    """Multiply by (S Sᵀ + λI)⁻¹ from the right, (n, a) → (n, a): a map, or rows times a map."""
    products = vectors.T @ vectors
    np.fill_diagonal(products, np.diag(products) + lambda_)
    side: Matrix = np.linalg.solve(products, left.T).T
    return side


def regularised(system: Matrix, right: Matrix, gamma: float) -> Matrix:
    """Solve (system + gamma I) Z = right, float64 (m, m) and (m, a) → (m, a)."""
    shifted = system.copy()
    np.fill_diagonal(shifted, np.diag(shifted) + gamma)
    solution: Matrix = np.linalg.solve(shifted, right)
    return solution


def row_products(x: NDArray[np.float32]) -> Matrix:
    """Return products of all pairs of rows, float64 (n, n).

    X (Xᵀ X + gI)⁻¹ T is (X Xᵀ + gI)⁻¹ X T: with fewer rows than dimensions the system of the rows
    is the smaller one, and both have the same map.
    """
    wide = x.astype(np.float64)
    products: Matrix = wide @ wide.T
    return products


def solve_rows(x: NDArray[np.float32], products: Matrix, targets: Matrix, gamma: float) -> Matrix:
    """Return (X Xᵀ + gamma I)⁻¹ X T, float64 (d, a), by way of the rows; T is (n, a)."""
    solution: Matrix = x.T.astype(np.float64) @ regularised(products, targets, gamma)
    return solution
