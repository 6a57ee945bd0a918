"""A class hierarchy such as WordNet's: distances between classes, and costs of mistakes."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.class_names import ClassNames, class_key
from vggfeat.core.text import counted, first_few
from vggfeat.errors import UsageError
from vggfeat.storage.text_files import read_text
from vggfeat.zeroshot.name_matching import ClassIndex, identifier, listed, nearest_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.zeroshot.metrics import Judged


_HEAD = ["child", "parent"]
_DEEPEST = 1000  # levels; WordNet has 20
_SHOWN = 8  # classes of a circle that an error names


@dataclass(frozen=True, slots=True)
class ClassTree:
    """A tree, or a forest under a root without a name.

    Attributes:
        parents: node → its parent; roots have none.
    """

    parents: Mapping[str, str]

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, children before those that are only parents."""
        return tuple(dict.fromkeys([*self.parents, *self.parents.values()]))

    def lineage(self, node: str) -> tuple[str, ...]:
        """Return the nodes from the root down to `node`."""
        return (*([""] if self.forest else []), *self.ancestry(node)[::-1])

    def ancestry(self, node: str) -> list[str]:
        """Return `node` and the nodes above it that have names."""
        up = [node]
        while up[-1] in self.parents:
            up.append(self.parents[up[-1]])
        return up

    @property
    def forest(self) -> bool:
        """Whether the tree has several roots."""
        return len(set(self.parents.values()) - set(self.parents)) > 1

    def find(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the node of each class, by its name in any case or by its identifier."""
        nodes = self.nodes
        index = ClassIndex(nodes)
        found = [index.find_whole(name) or index.find(identifier(name)) or "" for name in names]
        missing = [name for name, node in zip(names, found, strict=True) if not node]
        if missing:
            near = {name: nearest_names(name, nodes) for name in missing}
            raise UsageError(
                f"the class tree lacks {listed(missing, near)}; add child,parent lines"
            )
        return tuple(found)

    def above(self, names: Sequence[str]) -> ClassTree:
        """Return the part of the tree that holds these classes and their ancestors."""
        kept = dict.fromkeys(node for one in self.find(names) for node in self.ancestry(one)[::-1])
        return ClassTree({node: self.parents[node] for node in kept if node in self.parents})


@dataclass(frozen=True, slots=True, eq=False)
class TreeDistances:
    """Distances between z classes.

    Attributes:
        hops: number of edges between two classes, int64 (z, z).
        height: of their lowest common ancestor, in edges down to its deepest leaf, int64 (z, z); 0
            on the diagonal.
        tallest: height of the root.
    """

    hops: NDArray[np.int64]
    height: NDArray[np.int64]
    tallest: int

    def costs(self, beta: float) -> NDArray[np.float64]:
        """Return the cost of taking one class for another, float64 (z, z), 0 to 1.

        It is 1 - exp(-beta d), where d is the height of the lowest common ancestor relative to that
        of the tree (Bertinetto et al., CVPR 2020, whose soft labels decay as exp(-beta d)). With a
        large beta all mistakes cost 1, as without a tree. The diagonal is 0.
        """
        return 1 - np.exp(-beta * self.height / max(self.tallest, 1))


def flat_costs(count: int) -> NDArray[np.float64]:
    """Return costs without a tree, float64 (count, count): all mistakes cost 1."""
    return 1 - np.eye(count)


def tree_distances(tree: ClassTree, names: Sequence[str]) -> TreeDistances:
    """Return the distances between classes of a tree."""
    root = [""] if tree.forest else []
    lines = [[*root, *tree.ancestry(node)[::-1]] for node in tree.find(names)]
    heights = _heights(tree)
    numbers = {node: number for number, node in enumerate(heights)}
    deepest = max(map(len, lines), default=1)
    padded = [[*(numbers[node] for node in line), *[-1] * (deepest - len(line))] for line in lines]
    down = np.array(padded, dtype=np.int64).reshape(len(lines), deepest)  # (z, levels)
    level = np.array([len(line) - 1 for line in lines], dtype=np.int64)
    shared = np.zeros((len(lines), len(lines)), dtype=np.int64)  # levels that two have in common
    for column in down.T:
        shared += (column[:, None] == column) & (column >= 0)
    common = np.take_along_axis(down, shared - 1, 1)  # (z, z)
    height = np.array(list(heights.values()), dtype=np.int64)[common]
    np.fill_diagonal(height, 0)
    hops = level[:, None] + level - 2 * (shared - 1)
    return TreeDistances(hops, height, max(heights.values(), default=1))


def _heights(tree: ClassTree) -> dict[str, int]:
    heights: dict[str, int] = {}
    root = [""] if tree.forest else []
    for node in tree.nodes:
        for up, above in enumerate([*tree.ancestry(node), *root]):
            if heights.get(above, -1) >= up:
                break  # and so are those above it
            heights[above] = up
    return heights


def read_tree(path: str | os.PathLike[str]) -> ClassTree:
    """Read a tree from a CSV file (RFC 4180) of `child,parent` lines.

    It is UTF-8, or UTF-16 with a byte order mark. A header is skipped.

    Raises:
        InputError: the file cannot be read.
        UsageError: a line does not have two columns, a child has two parents, there is a cycle, or
            more than 1,000 levels.
    """
    path = os.fspath(path)
    parents, wrong = _parse(io.StringIO(read_text(path, "class tree"), newline=""))
    wrong = wrong or no_tree(parents)
    if wrong:
        problems = first_few(wrong, "; ")
        raise UsageError(f"class tree {path!r}, expected lines of child,parent: {problems}")
    return ClassTree(parents)


def _parse(lines: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    parents: dict[str, str] = {}
    wrong = []
    reader = csv.reader(lines, strict=True)
    try:
        for number, row in enumerate(filter(None, reader)):
            cells = [cell.strip() for cell in row]
            if number == 0 and [cell.lower() for cell in cells] == _HEAD:
                continue
            if len(cells) != len(_HEAD) or not all(cells):
                wrong.append(
                    f"line {reader.line_num}: {counted(len([c for c in cells if c]), 'name')}"
                )
            elif parents.setdefault(cells[0], cells[1]) != cells[1]:
                both = f"{parents[cells[0]]!r} and {cells[1]!r}"
                wrong.append(f"line {reader.line_num}: {cells[0]!r} has two parents, {both}")
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    return _joined(parents), wrong or ([] if parents else ["it has no classes"])


def _joined(parents: Mapping[str, str]) -> dict[str, str]:
    """Give each parent the name that it has as a child, or else the first spelling."""
    known = ClassNames(parents)
    first: dict[str, str] = {}
    joined = {}
    for child, parent in parents.items():
        key = class_key(parent)
        node = known.find(parent) or first.setdefault(key, parent)
        # A genus may be the parent of a species of its name: Bison of bison.
        joined[child] = parent if key == class_key(child) else node
    return joined


def no_tree(parents: Mapping[str, str]) -> list[str]:
    """Say why parents are no tree, or one too deep; nothing if they are one."""
    return _circles(parents) or _depths(parents)


def _circles(parents: Mapping[str, str]) -> list[str]:
    good: set[str] = set()
    for node in parents:
        seen: dict[str, None] = {}
        while node in parents and node not in good:
            if node in seen:
                circle = [*seen][[*seen].index(node) :]
                shown = [*circle[:_SHOWN], *(["..."] if len(circle) > _SHOWN else []), node]
                return [f"{' under '.join(shown)} is a circle"]
            seen[node] = None
            node = parents[node]  # noqa: PLW2901 on the way up
        good.update(seen)
    return []


def _depths(parents: Mapping[str, str]) -> list[str]:
    """Say which class lies too deep in a tree without circles, if one does."""
    levels: dict[str, int] = {}
    for node in parents:
        up = [node]
        while up[-1] in parents and up[-1] not in levels:
            up.append(parents[up[-1]])
        level = levels.setdefault(up.pop(), 1)
        for one in reversed(up):
            level += 1
            levels[one] = level
        if level > _DEEPEST:
            return [f"{node!r} lies {level} levels deep, and at most {_DEEPEST} are read"]
    return []


@dataclass(frozen=True, slots=True)
class TreeMistakes:
    """Distances of the top-1 predictions from the right classes.

    Attributes:
        of: whose images: `seen` or `unseen`.
        among: the candidate classes: `unseen` or `all`.
        hops: edges between prediction and right class, mean over the images; 0 for a right
            prediction.
        hops_guessed: expected hops of guessing.
        hops_of_mistakes: mean over the mistakes alone; None if there are none.
        height_of_mistakes: of the lowest common ancestor, mean over the mistakes (Bertinetto et
            al., CVPR 2020); None likewise.
        histogram: number of images by hops, from 0.
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
    """Return the mistakes on unseen images among unseen classes, and on both kinds among all."""
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
        if mine.any() and choice.sum() > 1  # with one candidate nothing can be wrong
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
