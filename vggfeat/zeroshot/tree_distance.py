"""How bad mistakes are: distances in the class tree between what was answered and what is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.zeroshot.class_tree import tree_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.zeroshot.class_tree import ClassTree, TreeDistances
    from vggfeat.zeroshot.metrics import Judged


@dataclass(frozen=True, slots=True)
class TreeMistakes:
    """Distances of the first answers.

    Attributes:
        of: whose images: `seen` or `unseen`.
        among: which classes were to choose from: `unseen` or `all`.
        hops: edges between answer and right class, mean over the images; 0 for right answers.
        hops_guessed: what guessing would come to.
        hops_of_mistakes: mean over the mistakes alone; None where there are none.
        height_of_mistakes: of the lowest common ancestor, mean over the mistakes (Bertinetto et
            al., CVPR 2020); None likewise.
        histogram: images by hops, from 0.
    """

    of: str
    among: str
    hops: float
    hops_guessed: float
    hops_of_mistakes: float | None
    height_of_mistakes: float | None
    histogram: tuple[int, ...]


def tree_mistakes(
    tree: ClassTree, names: Sequence[str], judged: Judged, seen: NDArray[np.bool_]
) -> tuple[TreeMistakes, ...]:
    """Of unseen images among unseen classes, and of both kinds among all.

    Raises:
        UsageError: classes are not in the tree.
    """
    distances = tree_distances(tree, names)
    among_all = np.where(judged.gap >= 0, judged.best_seen, judged.best_unseen)
    is_seen = seen[judged.classes]
    every = np.ones(len(seen), dtype=bool)
    tasks = [
        ("unseen", "unseen", ~is_seen, judged.best_unseen, ~seen),
        ("seen", "all", is_seen, among_all, every),
        ("unseen", "all", ~is_seen, among_all, every),
    ]
    return tuple(
        _distances_of(of, among, distances, (judged.classes[mine], answers[mine]), choice)
        for of, among, mine, answers, choice in tasks
        if mine.any()
    )


def _distances_of(
    of: str,
    among: str,
    distances: TreeDistances,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    choice: NDArray[np.bool_],
) -> TreeMistakes:
    hops, height = distances.hops[pairs], distances.height[pairs]
    wrong = pairs[0] != pairs[1]
    return TreeMistakes(
        of,
        among,
        float(hops.mean()),
        float(distances.hops[pairs[0]][:, choice].mean()),
        float(hops[wrong].mean()) if wrong.any() else None,
        float(height[wrong].mean()) if wrong.any() else None,
        tuple(np.bincount(hops).tolist()),
    )
