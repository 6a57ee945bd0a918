"""Images of known classes, and their stratified split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import counted, first_few
from vggfeat.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.images.image_list import ImageList

    Numbers = NDArray[np.int64]

_ORDERS = 20  # of groups, of either kind, of which the best split is taken
_TRAIN, _VALIDATION, _TEST = range(3)


def _no_rows() -> Numbers:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of the images for training, for validation, and for the test, which chooses nothing.

    Attributes:
        train: int64 (t,), ascending.
        validation: int64 (v,), ascending.
        test: int64 (s,), ascending; may be empty.
    """

    train: Numbers
    validation: Numbers
    test: Numbers = field(default_factory=_no_rows)


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of each class that are held out, between 0 and 1, and the seed of the choice."""

    validation: float
    test: float
    seed: int


def split_images(
    rows: Numbers,
    classes: Numbers,
    names: Sequence[str],
    shares: Shares,
    groups: Numbers | None = None,
) -> Split:
    """Hold out the same shares of every class for validation and test.

    Validation gets at least one image of each class. The test gets one too where three or more are
    there; a class of two has none.

    Args:
        rows: int64 (n,), the images.
        classes: int64 (n,), the class of each.
        names: of the classes.
        shares: that are held out.
        groups: int64 (n,), images that stay together; None if each is by itself.

    Raises:
        InputError: a class has too few images, or too few groups.
    """
    counts = np.bincount(classes, minlength=len(names))
    few = [f"{name!r} {count}" for name, count in zip(names, counts, strict=True) if count < 2]  # noqa: PLR2004 one for training, one for validation
    if few or len(names) < 2:  # noqa: PLR2004 as few as can be told apart
        found = f"too few in {first_few(few)}" if few else counted(len(names), "class")
        raise InputError(
            "expected images of two classes or more, two or more of each, for training "
            f"and validation; found {found}. The name of the folder that an image lies in is its "
            "class; --labels FILE.csv names others"
        )
    rng = np.random.default_rng(shares.seed)
    if groups is None:
        parts = _parts(classes, counts, shares, rng)
    else:
        parts = _parts_of_groups(classes, names, groups, shares, rng)
    return Split(*(np.sort(rows[parts == part]) for part in (_TRAIN, _VALIDATION, _TEST)))


def _parts(classes: Numbers, counts: Numbers, shares: Shares, rng: np.random.Generator) -> Numbers:
    """Return the part of each image, int64 (n,), drawn within its class."""
    parts = np.full(len(classes), _TRAIN)
    for number, count in enumerate(counts.tolist()):
        members = rng.permutation(np.flatnonzero(classes == number))
        first = min(count - 1, max(1, round(shares.validation * count)))
        second = min(count - 1 - first, max(1, round(shares.test * count)) if shares.test else 0)
        parts[members[:first]] = _VALIDATION
        parts[members[first : first + second]] = _TEST
    return parts


def _parts_of_groups(
    classes: Numbers,
    names: Sequence[str],
    groups: Numbers,
    shares: Shares,
    rng: np.random.Generator,
) -> Numbers:
    """Return the part of each image, int64 (n,), the same for all of a group.

    Groups are assigned one after another to the part which then comes nearest to its share of each
    class. Of many orders, random ones and those with the largest group first, the best is taken.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    table = np.zeros((int(inverse.max()) + 1, len(names)))  # images of each group and class
    np.add.at(table, (inverse, classes), 1)
    wanted = np.array([1 - shares.validation - shares.test, shares.validation, shares.test])
    size = table.sum(1)
    orders = [rng.permutation(len(table)) for _ in range(_ORDERS)]
    by_size = [order[np.argsort(-size[order], kind="stable")] for order in orders]
    tried = [_assign(table, wanted, order, first=False) for order in by_size]
    tried += [_assign(table, wanted, order, first=True) for order in orders]
    best = min(tried, key=lambda parts: _faults(table, wanted, parts))
    missing = _missing(table, best)
    absent = np.any(missing[:_TEST], axis=0).tolist()
    bad = [name for name, gone in zip(names, absent, strict=True) if gone]
    if bad:
        raise InputError(
            f"groups: {first_few(map(repr, bad))} cannot be in training and in validation with "
            "each group on one side; expected images of each class in two groups or more"
        )
    return best[inverse]


def _assign(
    table: NDArray[np.float64], wanted: NDArray[np.float64], order: Numbers, *, first: bool
) -> Numbers:
    """Return the part of each group, (g,), assigned in an order.

    With `first`, training and validation get a group of each class before shares count.
    """
    total = table.sum(0)
    have, parts = np.zeros((len(wanted), table.shape[1])), np.zeros(len(table), np.int64)
    for group in order.tolist():
        lacking = (wanted[:, None] * total - have) / total  # (parts, classes)
        gain = (table[group] / total * (2 * lacking - table[group] / total)).sum(1)
        if first:
            absent = (have[:_TEST] == 0) & (table[group] > 0)
            gain[:_TEST] += len(table) * absent.sum(1)
        gain[wanted == 0] = -np.inf
        parts[group] = int(gain.argmax())
        have[parts[group]] += table[group]
    return parts


def _missing(table: NDArray[np.float64], parts: Numbers) -> NDArray[np.bool_]:
    """Return which class is in no group of which part, bool (3, classes)."""
    return np.array([table[parts == part].sum(0) == 0 for part in (_TRAIN, _VALIDATION, _TEST)])


def _faults(
    table: NDArray[np.float64], wanted: NDArray[np.float64], parts: Numbers
) -> tuple[int, int, float]:
    """Return what makes a split worse: classes missing where they must be, in the test, shares."""
    missing = _missing(table, parts)
    shares = np.array([table[parts == part].sum(0) for part in range(len(wanted))]) / table.sum(0)
    off = float(np.square(shares - wanted[:, None]).sum())
    return int(missing[:_TEST].sum()), int(missing[_TEST].sum()), off


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images, their classes, and their features from the untouched network.

    Attributes:
        images: all of them, N.
        classes: int64 (N,), of each.
        class_count: number of classes.
        split: rows for training, validation and test.
        train_features: float32 (t, D), of the training rows.
        validation_features: float32 (v, D), of the validation rows.
        test_features: float32 (s, D), of the test rows.
        groups: int64 (N,), of each; None if each image is by itself.
    """

    images: ImageList
    classes: Numbers
    class_count: int
    split: Split
    train_features: NDArray[np.float32]
    validation_features: NDArray[np.float32]
    test_features: NDArray[np.float32]
    groups: Numbers | None
