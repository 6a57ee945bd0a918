"""Images of known classes, and their stratified split into training and validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import counted, first_few
from vggfeat.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.images.image_list import ImageList


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of the images for training and for validation.

    Attributes:
        train: int64 (t,), ascending.
        validation: int64 (v,), ascending.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def stratified_split(
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    names: Sequence[str],
    *,
    share: float,
    seed: int,
) -> Split:
    """Hold out the same share of every class for validation, at least one image of each.

    Args:
        rows: int64 (n,), the images.
        classes: int64 (n,), the class of each.
        names: of the classes.
        share: held out of each class, between 0 and 1.
        seed: of the random choice.
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
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(rows), dtype=bool)
    for number, count in enumerate(counts.tolist()):
        members = rng.permutation(np.flatnonzero(classes == number))
        held_out[members[: min(count - 1, max(1, round(share * count)))]] = True
    return Split(np.sort(rows[~held_out]), np.sort(rows[held_out]))


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images, their classes, and their features from the untouched network.

    Attributes:
        images: all of them, N.
        classes: int64 (N,), of each.
        class_count: number of classes.
        split: rows for training and for validation.
        train_features: float32 (t, D), of the training rows.
        validation_features: float32 (v, D), of the validation rows.
    """

    images: ImageList
    classes: NDArray[np.int64]
    class_count: int
    split: Split
    train_features: NDArray[np.float32]
    validation_features: NDArray[np.float32]
