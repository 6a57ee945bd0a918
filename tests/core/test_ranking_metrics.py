"""Metrics against scikit-learn's, and by hand where it has none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, pairwise, top_k_accuracy_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from vggfeat.core.arrays import inner_products, nearness, unit_rows
from vggfeat.core.ranking_metrics import average_precision, first_relevant

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIED = st.integers(-3, 3).map(float)
ANY = st.floats(-1, 1, width=32)


@st.composite
def retrievals(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores, often equal ones, and what is relevant, at least one item."""
    size = draw(st.integers(1, 40))
    scores = draw(arrays(np.float32, size, elements=draw(st.sampled_from([TIED, ANY]))))
    relevant = draw(arrays(np.bool_, size))
    relevant[draw(st.integers(0, size - 1))] = True
    return scores, relevant


@settings(max_examples=300)
@given(case=retrievals())
def test_average_precision_is_scikit_learns(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    """Average precision is that of scikit-learn, whatever ties there are."""
    scores, relevant = case
    expected = average_precision_score(relevant, scores)
    assert average_precision(scores, relevant) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand() -> None:
    """Relevant at ranks 1, 3 and 6 of 6: (1 + 2/3 + 3/6) / 3, in any order of the items."""
    scores = np.array([6, 5, 4, 3, 2, 1], np.float32)
    relevant = np.array([1, 0, 1, 0, 0, 1], bool)
    assert average_precision(scores, relevant) == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert average_precision(scores[::-1], relevant[::-1]) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def recall_at(k: int, scores: NDArray[np.float32], relevant: NDArray[np.bool_]) -> float:
    """Whether the first relevant image is among the first k, as `compare` counts it."""
    position = first_relevant(scores, relevant)
    return position if math.isnan(position) else float(position < k)


@given(data=st.data())
def test_recall_is_scikit_learns_top_k_accuracy(data: st.DataObject) -> None:
    """With one relevant item and no ties, recall at k is the top-k accuracy of that query."""
    size = data.draw(st.integers(3, 30))
    k = data.draw(st.integers(1, size - 1))
    seed = data.draw(st.integers(0, 2**32 - 1))
    scores = np.random.default_rng(seed).permutation(size).astype(np.float32)
    wanted = data.draw(st.integers(0, size - 1))
    expected = top_k_accuracy_score([wanted], scores[None], k=k, labels=np.arange(size))
    assert recall_at(k, scores, np.arange(size) == wanted) == expected


def test_a_tie_counts_against() -> None:
    """An irrelevant item of the same score comes first; a relevant one does no harm."""
    scores = np.array([2, 1, 1, 1, 0], np.float32)
    relevant = np.array([0, 1, 0, 1, 1], bool)
    assert first_relevant(scores, relevant) == 2
    assert [recall_at(k, scores, relevant) for k in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert recall_at(1, np.ones(3, np.float32), np.ones(3, bool)) == 1


def test_nothing_relevant() -> None:
    """A query for which nothing is relevant has no value, so that no mean takes it in."""
    nothing = np.ones(3, np.float32), np.zeros(3, bool)
    assert math.isnan(average_precision(*nothing))
    assert math.isnan(first_relevant(*nothing))
    assert math.isnan(recall_at(1, *nothing))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_recall_at_1_is_the_accuracy_of_a_1_nn_classifier(metric: str) -> None:
    """Recall at 1 with the query left out is scikit-learn's leave-one-out 1-NN accuracy."""
    noise = np.random.default_rng(0)
    classes = noise.integers(0, 4, 60)
    x = noise.normal(size=(60, 8)) + 0.6 * noise.normal(size=(4, 8))[classes]
    classifier = KNeighborsClassifier(1, metric=metric, algorithm="brute")
    expected = cross_val_predict(classifier, x, classes, cv=LeaveOneOut()) == classes
    assert 0.3 < expected.mean() < 0.95
    rows = x.astype(np.float32)
    if metric == "cosine":
        scores = inner_products(unit_rows(rows.copy()), unit_rows(rows))
    else:
        scores = nearness(rows, rows)
    found = [
        recall_at(1, np.delete(row, own), np.delete(classes == classes[own], own))
        for own, row in enumerate(scores)
    ]
    assert found == expected.astype(float).tolist()


def test_cosines_are_scikit_learns() -> None:
    """Inner products of unit rows are scikit-learn's cosines; a row of zeros has cosine 0."""
    noise = np.random.default_rng(0)
    a, b = (noise.normal(size=(n, 300)).astype(np.float32) * 1000 for n in (5, 7))
    a[2] = 0
    expected = pairwise.cosine_similarity(a.astype(float), b.astype(float))
    found = inner_products(unit_rows(a), unit_rows(b))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[2].any()


def test_nearness_is_scikit_learns_distance() -> None:
    """Nearness is minus the square of scikit-learn's Euclidean distance."""
    noise = np.random.default_rng(0)
    a, b = (noise.normal(size=(n, 300)).astype(np.float32) for n in (5, 7))
    expected = -pairwise.euclidean_distances(a.astype(float), b.astype(float), squared=True)
    found = nearness(a, b)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
