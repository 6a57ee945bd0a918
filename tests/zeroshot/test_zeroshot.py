"""Zero-shot learning: closed forms, losses and measures against others', and the commands whole."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from command_line import SMALL, assert_one_line, vggfeat, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from places import REPOSITORY
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path
from sklearn.metrics import auc, balanced_accuracy_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize
from zeroshot_caches import NAMES, write_cache, write_vectors

import vggfeat as library
from vggfeat.errors import CacheError, CacheMismatchError, InputError, UsageError
from vggfeat.zeroshot.class_split import image_keys, split_classes
from vggfeat.zeroshot.class_tree import ClassTree, flat_costs, read_tree, tree_distances
from vggfeat.zeroshot.cross_validation import Attempt, Chooser, Sample
from vggfeat.zeroshot.eszsl import (
    eszsl_columns,
    eszsl_side,
    row_products,
    solve_eszsl,
    solve_rows,
    sum_rows,
    targets_of,
)
from vggfeat.zeroshot.metrics import harmonic_mean, judge, per_class, trade_off
from vggfeat.zeroshot.torch_model import ranking_loss

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Values = NDArray[np.float32]

WIDTH, DIMS, PER_CLASS = 24, 6, 8
SEEN = NAMES[:-6]
UNSEEN = NAMES[-6:]


def made_up(noise: float = 0.6, seed: int = 0) -> tuple[Values, Values, list[str]]:
    """Class vectors, features that are a linear map of them with noise, and paths of the rows."""
    drawn = np.random.default_rng(seed)
    vectors = normalize(drawn.standard_normal((len(NAMES), DIMS)))
    centres = vectors @ drawn.standard_normal((DIMS, WIDTH))
    rows = np.repeat(centres, PER_CLASS, axis=0)
    features = rows + noise * drawn.standard_normal(rows.shape)
    paths = [f"{name}/{at:02}.png" for name in NAMES for at in range(PER_CLASS)]
    return vectors.astype(np.float32), features.astype(np.float32), paths


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of made-up features, class vectors, a tree, and the list of unseen classes."""
    folder = tmp_path_factory.mktemp("zeroshot")
    vectors, features, paths = made_up()
    other = np.random.default_rng(9).standard_normal((len(features), 8)).astype(np.float32)
    write_cache(folder / "f.h5", {"conv1_1": features, "conv2_1": other}, paths)
    write_vectors(folder / "v.csv", vectors)
    (folder / "unseen.txt").write_text("\n".join(UNSEEN) + "\n")
    pairs = [f"{name},group{at % 4}" for at, name in enumerate(NAMES)]
    (folder / "tree.csv").write_text(
        "\n".join(["child,parent", *pairs, *(f"group{at},all" for at in range(4))]) + "\n"
    )
    return folder


def fitted(workplace: Path, out: Path, **given: Any) -> library.ZeroShotModel:
    chosen = {"layers": "conv1_1", "unseen": ",".join(UNSEEN), "device": "cpu", **given}
    library.fit_zeroshot(
        workplace / "f.h5", workplace / "v.csv", out, library.ZeroShotSettings(**chosen)
    )
    return library.ZeroShotModel.load(out)


def unseen_accuracy(workplace: Path, model: Path) -> float:
    found = library.evaluate_zeroshot(model, workplace / "f.h5")
    (first,) = [one for one in found.figures if (one.among, one.top) == ("unseen", 1)]
    return first.accuracy


def problem(rows: int = 30, width: int = 7, dims: int = 4, classes: int = 5) -> tuple[Any, ...]:
    drawn = np.random.default_rng(1)
    x = drawn.standard_normal((rows, width)).astype(np.float32)
    own = drawn.integers(0, classes, rows)
    return x, own, drawn.standard_normal((classes, dims))


def closed_form(x: Values, own: NDArray[np.int64], s: Any, targets: Any, *, step: int = 8) -> Any:
    parts = [(x[at : at + step], own[at : at + step]) for at in range(0, len(x), step)]
    return solve_eszsl(sum_rows(parts, x.shape[1], len(s)), s, targets, 0.3, 0.7)


def test_the_closed_form_solves_the_kronecker_system() -> None:
    """(S Sᵀ + lambda I) ⊗ (X Xᵀ + gamma I) times vec(V) is vec(X Y Sᵀ)."""
    x, own, s = problem()
    y = 2.0 * (own[:, None] == np.arange(len(s))) - 1
    wide = x.astype(np.float64)
    left = np.kron(s.T @ s + 0.7 * np.eye(4), wide.T @ wide + 0.3 * np.eye(7))
    right = (wide.T @ y @ s).ravel(order="F")
    right_map = np.linalg.solve(left, right).reshape((7, 4), order="F")
    found = closed_form(x, own, s, targets_of(flat_costs(len(s))))
    np.testing.assert_allclose(found, right_map, rtol=1e-9, atol=1e-12)


def test_the_closed_form_is_the_least_of_the_papers_objective() -> None:
    """With targets of a tree too, V is what least squares over all four terms gives."""
    x, own, s = problem()
    costs = flat_costs(len(s)) * np.random.default_rng(2).uniform(0.1, 1, (len(s), len(s)))
    targets = targets_of(costs)
    eye_d, eye_a, wide = np.eye(7), np.eye(4), x.astype(np.float64)
    system = np.vstack([
        np.kron(s, wide),
        np.sqrt(0.3) * np.kron(s, eye_d),
        np.sqrt(0.7) * np.kron(eye_a, wide),
        np.sqrt(0.3 * 0.7) * np.kron(eye_a, eye_d),
    ])  # fmt: skip
    y = targets[own].ravel(order="F")
    right = np.concatenate([y, np.zeros(len(system) - len(y))])
    solution = np.linalg.lstsq(system, right, rcond=None)[0].reshape((7, 4), order="F")
    np.testing.assert_allclose(closed_form(x, own, s, targets), solution, rtol=1e-8, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
def test_the_size_of_blocks_changes_nothing(step: int) -> None:
    """Rows in a stream give the map of all rows at once."""
    x, own, s = problem()
    targets = targets_of(flat_costs(len(s)))
    whole = closed_form(x, own, s, targets, step=100)
    np.testing.assert_allclose(closed_form(x, own, s, targets, step=step), whole, rtol=1e-10)


def test_few_rows_are_solved_in_their_span() -> None:
    """With fewer rows than dimensions the small problem has the same map."""
    x, own, s = problem(rows=12, width=40)
    targets = targets_of(flat_costs(len(s)))
    wanted = eszsl_columns(s, targets)[own]
    small = eszsl_side(solve_rows(x, row_products(x), wanted, 0.3), s, 0.7)
    np.testing.assert_allclose(small, closed_form(x, own, s, targets), atol=1e-9)


@pytest.mark.parametrize(
    "given", [{}, {"method": "devise"}, {"method": "devise", "norm": "l2"}], ids=str
)
def test_unseen_classes_are_told_apart_nearly_as_well_as_can_be(
    workplace: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    """Where features are a linear map of class vectors, classes never seen are found.

    The best possible is the nearest of the true class centres.
    """
    vectors, features, _ = made_up()
    drawn = np.random.default_rng(0)
    drawn.standard_normal((len(NAMES), DIMS))
    centres = vectors @ drawn.standard_normal((DIMS, WIDTH)).astype(np.float32)
    mine = slice(PER_CLASS * len(SEEN), None)
    right = np.repeat(np.arange(len(UNSEEN)), PER_CLASS)
    distances = np.linalg.norm(features[mine, None] - centres[-len(UNSEEN) :], axis=2)
    best = balanced_accuracy_score(right, distances.argmin(1))
    fitted(workplace, tmp_path / "m.h5", **given)
    assert best > 0.95
    assert unseen_accuracy(workplace, tmp_path / "m.h5") > best - 0.1


def test_eszsl_needs_centred_features(workplace: Path, tmp_path: Path) -> None:
    """With many classes it fails at unit length alone, where standardised it makes no mistake.

    Class vectors are as they come: centered ones make up for some of it.
    """
    for norm in ("l2", "standard"):
        fitted(workplace, tmp_path / f"{norm}.h5", method="eszsl", norm=norm, center=False)
    assert unseen_accuracy(workplace, tmp_path / "l2.h5") < 0.5
    assert unseen_accuracy(workplace, tmp_path / "standard.h5") == 1


def test_shuffled_class_vectors_are_no_better_than_chance(workplace: Path, tmp_path: Path) -> None:
    """Nothing but the class vectors leads to unseen classes: with wrong ones there is no way."""
    reached = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(NAMES))
        wrong = write_vectors(tmp_path / "w.csv", made_up()[0][order])
        library.fit_zeroshot(
            workplace / "f.h5", wrong, tmp_path / f"{seed}.h5",
            library.ZeroShotSettings(layers="conv1_1", unseen=",".join(UNSEEN), gamma=1, lambda_=1),
        )  # fmt: skip
        reached.append(unseen_accuracy(workplace, tmp_path / f"{seed}.h5"))
    assert np.mean(reached) < 0.45  # chance is 0.17


@pytest.mark.parametrize("norm", ["l2", "ssr", "standard"])
@pytest.mark.parametrize("method", ["eszsl", "devise", "ridge", "nearest"])
def test_the_torch_module_gives_the_same_scores(
    workplace: Path, tmp_path: Path, method: str, norm: str
) -> None:
    """`ZeroShotModel.module()` and `scores` agree, layers joined by attention."""
    given: dict[str, Any] = {"method": method, "norm": norm, "layers": None, "attention": True}
    model = fitted(workplace, tmp_path / "m.h5", seen=None, **given)
    cache = library.open(workplace / "f.h5")
    layers = {name: cache.values(name) for name in cache.layers}
    with torch.no_grad():
        found = model.module()({name: torch.from_numpy(x) for name, x in layers.items()})
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), model.scores(layers), rtol=1e-4, atol=1e-5)


def test_layers_are_normalised_as_scikit_learn_does(workplace: Path, tmp_path: Path) -> None:
    """Standardised layers over the rows learnt from, joined, at unit length."""
    model = fitted(workplace, tmp_path / "m.h5", layers=None, norm="standard", held_out=0)
    cache = library.open(workplace / "f.h5")
    layers = {name: cache.values(name) for name in cache.layers}
    seen = slice(0, PER_CLASS * len(SEEN))
    parts = [
        StandardScaler().fit(x[seen].astype(np.float64)).transform(x) / np.sqrt(x.shape[1])
        for x in layers.values()
    ]
    np.testing.assert_allclose(model.inputs(layers), normalize(np.hstack(parts)), atol=1e-4)


@pytest.mark.parametrize("method", ["eszsl", "devise"])
def test_attention_finds_the_layer_that_tells(workplace: Path, tmp_path: Path, method: str) -> None:
    """A layer of noise gets the smaller weight beside one that knows the classes."""
    model = fitted(workplace, tmp_path / "m.h5", layers=None, attention=True, method=method)
    cache = library.open(workplace / "f.h5")
    attention = model.inputs.attention
    assert attention is not None
    weights = attention.weights(model.inputs.parts({n: cache.values(n) for n in cache.layers}))
    assert weights[:, 0].mean() > 0.55


def test_the_ranking_loss_is_the_papers() -> None:
    """A double loop over images and wrong classes gives the same sum, margins of a tree or not."""
    drawn = np.random.default_rng(3)
    scores, classes = drawn.standard_normal((9, 5)), drawn.integers(0, 5, 9)
    for margins in (0.1 * flat_costs(5), drawn.uniform(0, 1, (5, 5)) * flat_costs(5)):
        right = 0.0
        for row, own in zip(scores, classes, strict=True):
            right += sum(
                max(0.0, margins[own, other] - row[own] + row[other])
                for other in range(5)
                if other != own
            )
        found = ranking_loss(
            torch.from_numpy(scores), torch.from_numpy(classes), torch.from_numpy(margins)
        )
        assert float(found) == pytest.approx(right / len(scores))


def test_accuracies_are_scikit_learns() -> None:
    """Per-class accuracy is the balanced accuracy, among seen, unseen and all classes."""
    drawn = np.random.default_rng(4)
    scores = drawn.standard_normal((200, 7)).astype(np.float32)
    classes = drawn.integers(0, 7, 200)
    scores[np.arange(200), classes] += 1
    seen = np.arange(7) < 4
    judged = judge(scores, classes, seen, bias=0.3)
    shifted = scores - 0.3 * seen
    for kind in (seen, ~seen):
        mine = kind[classes]
        own = np.where(kind, scores, -np.inf)[mine].argmax(1)
        some = judged.where(mine)
        assert per_class(some.within(1), some.classes) == pytest.approx(
            balanced_accuracy_score(classes[mine], own)
        )
        assert per_class(some.among_all(1), some.classes) == pytest.approx(
            np.mean(
                [np.mean(shifted[classes == one].argmax(1) == one) for one in np.flatnonzero(kind)]
            )
        )
    best_three = np.argsort(-shifted, axis=1)[:, :3]
    right = (best_three == classes[:, None]).any(1)
    np.testing.assert_array_equal(judged.among_all(3), right)


def test_the_area_is_that_of_all_biases_tried() -> None:
    """Trying each bias by itself gives the same curve, area and best harmonic mean."""
    drawn = np.random.default_rng(5)
    scores = drawn.standard_normal((60, 6)).astype(np.float32)
    classes = drawn.integers(0, 6, 60)
    scores[np.arange(60), classes] += 0.8
    seen = np.arange(6) < 3
    judged = judge(scores, classes, seen)
    curve = trade_off(judged.where(seen[classes]), judged.where(~seen[classes]))
    tried = []
    for bias in curve.bias.tolist():
        answers = (scores.astype(np.float64) - bias * seen).argmax(1)
        tried.append([
            balanced_accuracy_score(classes[mine], answers[mine], adjusted=False)
            if set(answers[mine]) <= set(classes[mine])
            else np.mean([np.mean(answers[classes == one] == one) for one in set(classes[mine])])
            for mine in (seen[classes], ~seen[classes])
        ])  # fmt: skip
    a, b = np.array(tried).T
    np.testing.assert_allclose(curve.seen, a)
    np.testing.assert_allclose(curve.unseen, b)
    assert curve.area == pytest.approx(auc(b, a))
    best = max(harmonic_mean(*pair) for pair in tried)
    at = curve.bias.tolist().index(curve.best)
    assert harmonic_mean(curve.seen[at], curve.unseen[at]) == pytest.approx(best)


TREE = {
    "wolf": "canine", "fox": "canine", "canine": "carnivore", "cat": "carnivore",
    "carnivore": "animal", "whale": "animal", "oak": "plant", "animal": "thing", "plant": "thing",
}  # fmt: skip


def test_hops_are_shortest_paths() -> None:
    """Edges between any two nodes of a tree are SciPy's shortest paths."""
    tree = ClassTree(TREE)
    nodes = tree.nodes
    graph = np.zeros((len(nodes), len(nodes)))
    for child, parent in TREE.items():
        graph[nodes.index(child), nodes.index(parent)] = 1
    right = shortest_path(csr_matrix(graph), directed=False)
    np.testing.assert_array_equal(tree_distances(tree, nodes).hops, right)


def test_heights_are_of_the_lowest_common_ancestor() -> None:
    """Heights by hand; costs grow with them, and with a large beta are all 1."""
    found = tree_distances(ClassTree(TREE), ["wolf", "fox", "cat", "whale", "Oak", "n01-fox"[4:]])
    assert found.height[0].tolist() == [0, 1, 2, 3, 4, 1]
    assert found.tallest == 4
    costs = found.costs(2.0)
    np.testing.assert_allclose(costs[0, :5], 1 - np.exp([0, -0.5, -1, -1.5, -2]))
    different = found.height > 0
    np.testing.assert_allclose(found.costs(1e6)[different], 1)


def test_a_forest_has_one_root_more() -> None:
    """Classes of different trees meet in a root without a name."""
    tree = ClassTree({"wolf": "animal", "oak": "plant"})
    found = tree_distances(tree, ["wolf", "oak"])
    assert (found.hops[0, 1], found.height[0, 1], found.tallest) == (4, 2, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\na,c\n", "line 2: 'a' has two parents, 'b' and 'c'"),
        ("a,b\nb,c\nc,a\n", "a under b under c under a is a circle"),
        ("a,b,c\n\nd\n", "line 1: 3 names; line 3: 1 name"),
        ("child,parent\n", "it has no classes"),
    ],
)
def test_trees_with_mistakes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    """What is no tree says where."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match="expected lines of child,parent") as raised:
        read_tree(tmp_path / "t.csv")
    assert says in str(raised.value)


def test_classes_without_a_place_in_the_tree_are_named(workplace: Path, tmp_path: Path) -> None:
    """All at once, before anything is fitted."""
    (tmp_path / "t.csv").write_text("class00,all\nclass01,all\n")
    with pytest.raises(UsageError, match=r"the class tree lacks 'class02'.*'class39'"):
        fitted(workplace, tmp_path / "m.h5", tree=str(tmp_path / "t.csv"))
    assert not (tmp_path / "m.h5").exists()


@pytest.mark.parametrize("method", ["eszsl", "devise"])
def test_a_tree_makes_mistakes_less_bad(tmp_path: Path, method: str) -> None:
    """Over three draws of groups of classes, a tree brings answers nearer to the right class."""
    names = tuple(f"c{at:02}" for at in range(20))
    paths = [f"{name}/{at:02}.png" for name in names for at in range(12)]
    (tmp_path / "t.csv").write_text("".join(f"{name},g{at % 4}\n" for at, name in enumerate(names)))
    hops = {None: 0.0, str(tmp_path / "t.csv"): 0.0}
    for tree, seed in itertools.product(hops, range(3)):
        drawn = np.random.default_rng(seed)
        groups = drawn.standard_normal((4, WIDTH))
        centres = groups[np.arange(20) % 4] + 0.5 * drawn.standard_normal((20, WIDTH))
        x = np.repeat(centres, 12, axis=0) + 1.2 * drawn.standard_normal((240, WIDTH))
        (tmp_path / "f.h5").unlink(missing_ok=True)
        write_cache(tmp_path / "f.h5", {"conv1_1": x.astype(np.float32)}, paths)
        # Of no use to ESZSL, so that what it knows of groups it has from the tree.
        vectors = np.eye(20) if method == "eszsl" else centres
        write_vectors(tmp_path / "v.csv", vectors.astype(np.float32), names)
        given: dict[str, Any] = {"method": method, "margin": 1, "beta": 0.5, "held_out": 0.5}
        given["center"] = False  # without centering, there is more for a tree to mend
        library.fit_zeroshot(
            tmp_path / "f.h5", tmp_path / "v.csv", tmp_path / "m.h5",
            library.ZeroShotSettings(tree=tree, device="cpu", **given), fresh=True,
        )  # fmt: skip
        found = library.evaluate_zeroshot(
            tmp_path / "m.h5", tmp_path / "f.h5", tree=tmp_path / "t.csv"
        )
        hops[tree] += found.mistakes[0].hops
    assert hops[str(tmp_path / "t.csv")] < 0.97 * hops[None]


def test_regularisers_are_chosen_by_classes_not_by_images() -> None:
    """Where seen classes are best kept apart by one map and held-out ones by another, ours is the
    one for those held out.
    """
    drawn = np.random.default_rng(8)
    vectors = normalize(drawn.standard_normal((12, 5)))
    centres = vectors @ drawn.standard_normal((5, 30)) + 0.8 * drawn.standard_normal((12, 30))
    own = np.repeat(np.arange(12), 30)
    x = (centres[own] + 0.5 * drawn.standard_normal((360, 30))).astype(np.float32)
    sample = Sample(x, own, vectors, flat_costs(12))
    grid = (1e-3, 1e-1, 1e1, 1e3, 1e5)
    chooser = Chooser(sample, seed=0)
    candidates = [Attempt("eszsl", pair) for pair in itertools.product(grid, grid)]
    choice = chooser.choose(candidates)["eszsl"]
    alone = [chooser.choose([one])["eszsl"].accuracy for one in candidates]
    assert choice.accuracy == max(alone)
    assert min(alone) < choice.accuracy
    assert choice.chance == pytest.approx(0.25)


@pytest.mark.parametrize("method", ["eszsl", "devise"])
def test_the_same_seed_gives_the_same_model(workplace: Path, tmp_path: Path, method: str) -> None:
    """Two fits are one to the last bit; another seed holds other images out."""
    digests = [
        fitted(workplace, tmp_path / f"{at}.h5", method=method, seed=seed).to_fitted().sha256
        for at, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_images_learnt_from_do_not_judge(workplace: Path, tmp_path: Path) -> None:
    """Of seen classes only images held out count, in the same cache and in another of the same
    images.
    """
    model = fitted(workplace, tmp_path / "m.h5", gamma=1, lambda_=1)
    cache = library.open(workplace / "f.h5")
    assert len(model.trained) == 204
    assert np.isin(image_keys(cache, np.arange(len(cache))), model.trained).sum() == 204
    found = library.evaluate_zeroshot(tmp_path / "m.h5", workplace / "f.h5")
    assert (found.seen_images, found.unseen_images) == (68, 48)
    _, features, paths = made_up()
    some = [at for at in range(len(paths)) if at % 2]
    write_cache(tmp_path / "half.h5", {"conv1_1": features[some]}, [paths[at] for at in some])
    half = library.evaluate_zeroshot(tmp_path / "m.h5", tmp_path / "half.h5")
    keys = image_keys(library.open(tmp_path / "half.h5"), np.arange(len(some)))
    assert half.seen_images == 136 - np.isin(keys, model.trained).sum()


def test_figures_are_those_of_the_scores(workplace: Path, tmp_path: Path) -> None:
    """Every figure, baseline and calibrated one follows from scores, by scikit-learn."""
    model = fitted(workplace, tmp_path / "m.h5", layers=None, norm="ssr")
    cache = library.open(workplace / "f.h5")
    found = library.evaluate_zeroshot(tmp_path / "m.h5", workplace / "f.h5", calibrate=0.05)
    layers = {name: cache.values(name) for name in cache.layers}
    scores, own = model.scores(layers), np.repeat(np.arange(40), PER_CLASS)
    fresh = ~np.isin(image_keys(cache, np.arange(len(cache))), model.trained)
    for figure in found.figures:
        kind = model.seen if figure.of == "seen" else ~model.seen
        mine = kind[own] & fresh
        among = np.ones(40, bool) if figure.among == "all" else kind
        order = np.argsort(-np.where(among, scores, -np.inf)[mine], axis=1)[:, : figure.top]
        right = (order == own[mine, None]).any(1)
        classes = np.unique(own[mine])
        expected = np.mean([right[own[mine] == one].mean() for one in classes])
        assert figure.accuracy == pytest.approx(expected)
        assert figure.chance == pytest.approx(figure.top / among.sum())
    x, known = model.inputs(layers), model.seen[own] & ~fresh
    nearest = NearestCentroid().fit(x[known].astype(np.float64), own[known])
    mine = model.seen[own] & fresh
    (first,) = [one for one in found.figures if (one.of, one.among, one.top) == ("seen", "seen", 1)]
    assert first.class_mean == pytest.approx(
        balanced_accuracy_score(own[mine], nearest.predict(x[mine].astype(np.float64)))
    )
    assert found.calibrated is not None
    answers = (scores - np.float32(0.05) * model.seen).argmax(1)
    mine = ~model.seen[own]
    expected = np.mean([(answers[own == one] == one).mean() for one in np.flatnonzero(~model.seen)])
    assert found.calibrated.unseen == pytest.approx(expected)


def test_a_bias_found_on_classes_held_out_helps_the_unseen(workplace: Path, tmp_path: Path) -> None:
    """Calibrated stacking raises the harmonic mean where seen classes draw all to themselves."""
    model = fitted(workplace, tmp_path / "m.h5", seen=",".join(NAMES[:10]), unseen=None)
    found = library.evaluate_zeroshot(tmp_path / "m.h5", workplace / "f.h5", calibrate="auto")
    assert found.calibrated is not None
    assert found.generalised is not None
    assert found.calibrated.bias == model.bias
    assert found.calibrated.harmonic > found.generalised.harmonic


def test_new_classes_need_a_vector_only(workplace: Path, tmp_path: Path) -> None:
    """Classes that the fit never heard of are answered with, as well as if it had."""
    known = fitted(workplace, tmp_path / "known.h5", gamma=1, lambda_=1, norm="l2")
    chosen = library.ZeroShotSettings(
        layers="conv1_1", seen=",".join(SEEN), gamma=1, lambda_=1, norm="l2"
    )
    few = write_cache(
        tmp_path / "few.h5",
        {"conv1_1": made_up()[1][: len(SEEN) * PER_CLASS]},
        made_up()[2][: len(SEEN) * PER_CLASS],
    )
    library.fit_zeroshot(few, workplace / "v.csv", tmp_path / "new.h5", chosen)
    assert not set(UNSEEN) & set(library.ZeroShotModel.load(tmp_path / "new.h5").names)
    answers = [
        library.predict_zeroshot(
            tmp_path / name, workplace / "f.h5", classes=",".join(UNSEEN), vectors=vectors
        )
        for name, vectors in (("known.h5", None), ("new.h5", workplace / "v.csv"))
    ]
    assert answers[0].names == answers[1].names == UNSEEN
    np.testing.assert_array_equal(answers[0].classes, answers[1].classes)
    np.testing.assert_allclose(answers[0].scores, answers[1].scores, atol=1e-5)
    assert known.vectors.shape == (40, DIMS)


def test_predictions_are_the_best_scores(workplace: Path, tmp_path: Path) -> None:
    """The first few of all classes, in order; a bias moves seen ones back but not the scores."""
    model = fitted(workplace, tmp_path / "m.h5")
    cache = library.open(workplace / "f.h5")
    scores = model.scores({"conv1_1": cache.values("conv1_1")})
    for bias in (0.0, 0.2):
        found = library.predict_zeroshot(
            tmp_path / "m.h5", workplace / "f.h5", top=3, calibrate=bias
        )
        order = np.argsort(-(scores - np.float32(bias) * model.seen), axis=1)[:, :3]
        np.testing.assert_array_equal(found.classes, order)
        np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), rtol=1e-5)
    assert found.paths[9] == "class01/01.png"


@pytest.mark.parametrize(
    ("seen", "unseen", "right"),
    [
        (None, None, (("a", "b", "c"), ())),
        (["b", "a"], None, (("a", "b"), ("c",))),
        (None, ["c", "z"], (("a", "b"), ("c", "z"))),
    ],
)
def test_classes_are_split_by_either_list(
    seen: list[str] | None, unseen: list[str] | None, right: tuple[Any, ...]
) -> None:
    """Seen ones by name or all but the unseen, which need no images."""
    found = split_classes(["a", "b", "c"], seen, unseen)
    assert (found.seen, found.unseen) == right


def words(workplace: Path, *more: str, method: str = "eszsl") -> list[str | Path]:
    return ["zeroshot", "fit", workplace / "f.h5", "--vectors", workplace / "v.csv", "--layer",
            "conv1_1", "--unseen", workplace / "unseen.txt", "--method", method, *more]  # fmt: skip


def test_the_commands_do_it_all_without_torch(workplace: Path, tmp_path: Path) -> None:
    """Fit, the same again, predict and evaluate from the command line; no torch for ESZSL."""
    env = {"PYTHONPROFILEIMPORTTIME": "1"}
    done = vggfeat(*words(workplace, "--tree", str(workplace / "tree.csv")), "--out", "m.h5",
                   cwd=tmp_path, env=env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "seen     34 classes, 204 images, 68 held out" in done.stdout
    assert "unseen   6 classes: class34, class35" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]
    before = (tmp_path / "m.h5").read_bytes()
    again = vggfeat(*words(workplace, "--tree", str(workplace / "tree.csv")), "--out", "m.h5",
                    cwd=tmp_path)  # fmt: skip
    assert "fitted already" in again.stdout
    assert (tmp_path / "m.h5").read_bytes() == before
    told = vggfeat("zeroshot", "predict", "m.h5", workplace / "f.h5", "--classes", "unseen",
                   "--csv", "--top", "2", cwd=tmp_path, env=env)  # fmt: skip
    rows = list(csv.reader(io.StringIO(told.stdout)))
    assert rows[0] == ["path", "rank", "class", "score", "probability"]
    assert len(rows) == 1 + 2 * 320
    assert {row[2] for row in rows[1:]} == set(UNSEEN)
    judged = vggfeat("zeroshot", "evaluate", "m.h5", workplace / "f.h5", "--calibrate", "auto",
                     cwd=tmp_path, env=env)  # fmt: skip
    assert "harmonic mean H" in judged.stdout
    assert "distance in the class tree" in judged.stdout
    for one in (done, told, judged):
        assert "vggfeat.zeroshot" in one.stderr
        assert "| torch" not in one.stderr


def test_json_and_csv_say_the_same(workplace: Path, tmp_path: Path) -> None:
    """Figures of both forms are one, and fit's and predict's JSON can be read."""
    done = vggfeat(*words(workplace), "--out", "m.h5", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["unseen"] == list(UNSEEN)
    told = vggfeat("zeroshot", "predict", "m.h5", workplace / "f.h5", "--json", cwd=tmp_path)
    assert len(json.loads(told.stdout)["images"][0]["classes"]) == 5
    command: list[str | Path] = ["zeroshot", "evaluate", "m.h5", workplace / "f.h5"]
    plain = json.loads(vggfeat(*command, "--json", cwd=tmp_path).stdout)
    table = csv.DictReader(io.StringIO(vggfeat(*command, "--csv", cwd=tmp_path).stdout))
    accuracies = [float(row["value"]) for row in table if row["figure"] == "accuracy"]
    assert accuracies == pytest.approx([one["accuracy"] for one in plain["figures"]], abs=1e-6)


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--seen", "class00,class01"], 2, "--seen and --unseen name the same split"),
        (["--method", "sje"], 2, "unknown method 'sje'; expected one of auto, eszsl"),
        (["--method", "devise", "--gamma", "1"], 2, "--gamma and --lambda belong to the method"),
        (["--method", "nearest", "--lambda", "1"], 2, "belong to the method"),
        (["--method", "ridge", "--lambda", "1", "--neighbors", "2"], 2,
         "--lambda belongs to the method eszsl, not ridge; --neighbors belongs to the method"),
        (["--gamma", "0", "--beta", "-1"], 2, "gamma is 0.0; expected a number above 0; beta is"),
        (["--layer", "fc7"], 2, "no vectors of fc7; it has conv1_1, conv2_1"),
        (["--attention"], 2, "attention weighs several layers, found conv1_1 alone"),
        (["--unseen", "yak,gnu"], 2, "none for 2 of 42 classes: 'gnu', 'yak'"),
        (["--vectors", "none.txt"], 3, "vectors 'none.txt' cannot be read"),
        (["--out", "no/m.h5"], 2, "does not exist; create it first"),
        (["--labels", "none.csv"], 3, "labels 'none.csv' cannot be read"),
        (["--held-out", "1"], 2, "held-out 1: expected a share"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_line(
    workplace: Path, tmp_path: Path, more: list[str], code: int, says: str
) -> None:
    """Each mistake names what, what was expected and found, and leaves nothing behind."""
    done = vggfeat(*words(workplace), "--out", "m.h5", *more, cwd=tmp_path)
    assert_one_line(done, code, says)
    assert list(tmp_path.iterdir()) == []


def test_models_and_caches_that_do_not_fit_are_refused(workplace: Path, tmp_path: Path) -> None:
    """Another fit, another network, other vectors, other kinds of file: each says so."""
    fitted(workplace, tmp_path / "m.h5", gamma=1, lambda_=1)
    with pytest.raises(CacheMismatchError, match=r"gamma: model 1, requested 2.*--fresh"):
        fitted(workplace, tmp_path / "m.h5", gamma=2, lambda_=1)
    with pytest.raises(CacheError, match="does not exist; vggfeat zeroshot fit makes one"):
        library.predict_zeroshot(tmp_path / "none.h5", workplace / "f.h5")
    before = (workplace / "f.h5").read_bytes()
    with pytest.raises(CacheError, match=r"no model of ours.* not replaced; name another place"):
        library.fit_zeroshot(
            workplace / "f.h5", workplace / "v.csv", workplace / "f.h5", fresh=True
        )
    assert (workplace / "f.h5").read_bytes() == before
    with pytest.raises(CacheError, match="no model of ours"):
        library.predict_zeroshot(workplace / "f.h5", workplace / "f.h5")
    _, features, paths = made_up()
    write_cache(tmp_path / "o.h5", {"conv1_1": features[:, :9]}, paths)
    with pytest.raises(CacheMismatchError, match="does not fit"):
        library.predict_zeroshot(tmp_path / "m.h5", tmp_path / "o.h5")
    write_vectors(tmp_path / "w.csv", np.eye(2, dtype=np.float32), ("yak", "gnu"))
    with pytest.raises(UsageError, match="have 2 dimensions, the model's 6"):
        library.predict_zeroshot(
            tmp_path / "m.h5", workplace / "f.h5", classes="yak", vectors=tmp_path / "w.csv"
        )
    with pytest.raises(UsageError, match="no vector of 'yak'; --vectors FILE"):
        library.predict_zeroshot(tmp_path / "m.h5", workplace / "f.h5", classes="yak")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["map"]
    with pytest.raises(CacheError, match="damaged: 'map' is missing"):
        library.ZeroShotModel.load(tmp_path / "m.h5")


def test_few_classes_are_fitted_without_choosing(workplace: Path, tmp_path: Path) -> None:
    """With fewer than four seen classes nothing is held out, which is said; `auto` is refused."""
    given: dict[str, Any] = {"unseen": None, "seen": "class00,class01,class02"}
    for method in ("eszsl", "devise"):
        model = fitted(workplace, tmp_path / f"{method}.h5", method=method, **given)
        assert model.bias is None
        assert any("fewer than 4 seen classes" in note for note in model.record["notes"])
        with pytest.raises(CacheError, match="has no calibration"):
            library.evaluate_zeroshot(
                tmp_path / f"{method}.h5", workplace / "f.h5", calibrate="auto"
            )


def test_without_images_to_judge_by_it_says_so(workplace: Path, tmp_path: Path) -> None:
    """A model of all classes and images has nothing left to be judged by."""
    fitted(workplace, tmp_path / "m.h5", unseen=None, held_out=0, gamma=1, lambda_=1)
    with pytest.raises(UsageError, match=r"no image of cache .* to judge by"):
        library.evaluate_zeroshot(tmp_path / "m.h5", workplace / "f.h5")
    write_cache(tmp_path / "e.h5", {"conv1_1": made_up()[1]}, made_up()[2])
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file["images/state"][:] = 0
    with pytest.raises(InputError, match=r"no image of cache .* is done"):
        library.predict_zeroshot(tmp_path / "m.h5", tmp_path / "e.h5")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_fit_that_is_killed_leaves_what_was_there(
    workplace: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Signals in the middle of training: the old model stays, whole, and nothing beside it."""
    out = tmp_path / "m.h5"
    fitted(workplace, out, gamma=1, lambda_=1)
    before = out.read_bytes()
    command = [*words(workplace, "--fresh", method="devise"), "--out", out]
    run = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.stderr is not None
    assert "fitting devise" in run.stderr.readline()
    time.sleep(0.3)
    run.send_signal(number)
    run.communicate(timeout=600)
    assert run.returncode != 0
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


def test_digits_never_seen_are_told_apart(test_data: Path, tmp_path: Path) -> None:
    """By real features and attributes of digits, three unseen ones are found more often than by
    chance, over eight random choices of them; the bias found on held-out classes helps.
    """
    script = REPOSITORY / "scripts" / "bench" / "zeroshot.py"
    spec = importlib.util.spec_from_file_location("zeroshot_bench", script)
    assert spec is not None
    assert spec.loader is not None
    bench = sys.modules["zeroshot_bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.write_digits(tmp_path / "digits", 8)
    bench.write_tables(tmp_path)
    library.extract(
        tmp_path / "digits", tmp_path / "digits.h5",
        library.Settings(
            layers="conv4_3", model="vgg16", transform="features", size=64, device="cpu",
            weights=str(test_data / "weights" / "vgg16_features.safetensors"), workers=0,
        ),
    )  # fmt: skip
    found = [bench.run(tmp_path, "both", {"layers": "conv4_3"}, seed) for seed in range(8)]
    assert np.mean([one.unseen for one in found]) > 0.42  # chance is 1/3
    assert np.mean([one.calibrated - one.harmonic for one in found]) > 0.1


def test_images_go_the_way_of_the_cache(tmp_path: Path) -> None:
    """Images given are told the classes that their rows in the cache are."""
    write_images(tmp_path / "all", 12)
    for number, path in enumerate(sorted((tmp_path / "all").iterdir())):
        place = tmp_path / "images" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    done = vggfeat("extract", "images", *SMALL, "--dtype", "float32", "--out", "f.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "v.csv").write_text("class0,1,0,1\nclass1,0,1,1\nclass2,1,1,0\n")
    fit = ["zeroshot", "fit", "f.h5", "--vectors", "v.csv", "--unseen", "class2", "--out", "m.h5"]
    assert vggfeat(*fit, cwd=tmp_path).returncode == 0
    (tmp_path / "broken.png").write_bytes(b"no image")
    told = [
        vggfeat("zeroshot", "predict", "m.h5", "f.h5", *more, "--json", cwd=tmp_path)
        for more in ([], ["images", "broken.png"])
    ]
    assert "warning: image broken.png: not an image" in told[1].stderr
    rows, images = (json.loads(one.stdout)["images"] for one in told)
    assert [f"images/{one['path']}" for one in rows] == [one["path"] for one in images]
    for one, other in zip(rows, images, strict=True):
        assert [c["name"] for c in one["classes"]] == [c["name"] for c in other["classes"]]
        np.testing.assert_allclose(
            [c["score"] for c in one["classes"]], [c["score"] for c in other["classes"]], atol=1e-4
        )
