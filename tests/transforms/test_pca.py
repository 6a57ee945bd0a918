"""PCA and standardisation from a stream, against scikit-learn's of the whole data."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from vggfeat.errors import InputError, UsageError
from vggfeat.transforms import pca_solvers as components
from vggfeat.transforms.pca import Pca, fit_pca, fit_standardisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.transforms.pca_solvers import Blocks

    Rows = NDArray[np.float32]


def decaying(rows: int, width: int, power: float = 1.0, offset: float = 0.0) -> Rows:
    """Rows whose i-th variance is about 1 / i^power, in directions of no special kind."""
    noise = np.random.default_rng(0)
    turn = np.linalg.qr(noise.standard_normal((width, width)))[0]
    deviations = np.arange(1, width + 1) ** (-power / 2)
    data: Rows = (noise.standard_normal((rows, width)) * deviations @ turn + offset).astype("f4")
    return data


def stream(data: Rows, sizes: Sequence[int] = (100,)) -> Blocks:
    """Passes over `data` in blocks of these sizes, over and over."""

    def blocks() -> Iterator[Rows]:
        start = turn = 0
        while start < len(data):
            size = sizes[turn % len(sizes)]
            yield data[start : start + size]
            start, turn = start + size, turn + 1

    return blocks


def exact(data: Rows, dims: float, *, whiten: bool = False) -> PCA:
    """scikit-learn's, by SVD of the whole data as float64."""
    return PCA(dims, svd_solver="full", whiten=whiten).fit(data.astype(np.float64))


def assert_like(ours: Pca, theirs: PCA, data: Rows) -> None:
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-5)
    assert ours.share == pytest.approx(theirs.explained_variance_ratio_.sum())
    np.testing.assert_allclose(ours.components, theirs.components_, atol=1e-5)
    expected = theirs.transform(data.astype(np.float64))
    # The smallest of whitened components enlarge the rounding of float32 most.
    np.testing.assert_allclose(ours.apply(data), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "dims"),
    [(500, 40, 12), (500, 40, 40), (120, 300, 20), (30, 200, 29), (2, 5, 1), (41, 40, 40)],
)
def test_as_scikit_learn(rows: int, width: int, dims: int, *, whiten: bool) -> None:
    """Means, components, signs, variances and projections are those of the whole data's SVD."""
    data = decaying(rows, width, offset=0.3)
    theirs = exact(data, dims, whiten=whiten)
    ours = fit_pca(stream(data), dims, whiten=whiten)
    assert (ours.rows, ours.whiten) == (rows, whiten)
    assert ours.components.dtype == ours.apply(data).dtype == np.float32
    assert_like(ours, theirs, data)


def test_more_dimensions_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A covariance made in tiles is the same."""
    monkeypatch.setattr(components, "_TILE", 64)
    data = decaying(300, 150)
    assert_like(fit_pca(stream(data), 30), exact(data, 30), data)


@pytest.mark.parametrize(("limit", "value"), [("GRAM_ROWS", 49), ("GRAM_BYTES", 39_999)])
def test_too_much_for_the_gram_matrix(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """With fewer rows than dimensions, but too many of them or too much data, it is not made."""
    data = decaying(50, 200)
    assert data.nbytes == 40_000
    monkeypatch.setattr(components, limit, value)
    assert_like(fit_pca(stream(data), 49), exact(data, 49), data)
    monkeypatch.setattr(components, "COVARIANCE_LIMIT", 199)
    with pytest.raises(UsageError, match="a share needs all variances"):
        fit_pca(stream(data), 0.9)
    monkeypatch.setattr(components, limit, value + 1)
    assert_like(fit_pca(stream(data), 0.9), exact(data, 0.9), data)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("rows", [60, 600])
def test_a_share_of_the_variance(share: float, rows: int) -> None:
    """A share gives as many components as scikit-learn takes for it, and they explain it."""
    data = decaying(rows, 80)
    theirs = exact(data, share)
    ours = fit_pca(stream(data), share)
    assert len(ours.components) == theirs.n_components_
    assert ours.share >= share > ours.explained[:-1].sum()
    assert_like(ours, theirs, data)


@pytest.mark.parametrize("rows", [20, 600])
def test_a_share_of_nearly_all(rows: int) -> None:
    """The largest share below 1 never asks for more components than there are."""
    data = decaying(rows, 80, power=6)
    ours = fit_pca(stream(data), float(np.nextafter(1, 0)))
    assert len(ours.components) <= min(rows - 1, 80)
    assert ours.share == pytest.approx(1, abs=1e-12)


def test_a_share_that_rounding_keeps_from_being_reached() -> None:
    """Variances that add up to just less than their total give all components, and no more."""
    data = components.Data(stream(decaying(9, 3)), 9, np.zeros(3), 1.0)
    variances = np.array([0.75, 0.125, 0.125 - 2**-52])
    assert data.count(1 - 2**-53, variances) == 3


@given(sizes=st.lists(st.integers(1, 70), min_size=1), wide=st.booleans(), chunk=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_blocks_do_not_matter(sizes: list[int], chunk: int, *, wide: bool) -> None:
    """However rows are cut into blocks, the result is the same bit for bit."""
    data = decaying(60, 100) if wide else decaying(130, 20, offset=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_CHUNK_BYTES", 8 * data.shape[1] * chunk)
        whole, parts = fit_pca(stream(data, [len(data)]), 7), fit_pca(stream(data, sizes), 7)
        scale, scales = (
            fit_standardisation(stream(data, [200])),
            fit_standardisation(stream(data, sizes)),
        )
    for name in ("mean", "components", "variances", "total_variance"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert np.array_equal(scale.mean, scales.mean)
    assert np.array_equal(scale.scale, scales.scale)


@given(chunk=st.integers(1, 140), wide=st.booleans())
@settings(max_examples=40, deadline=None)
def test_pieces_do_not_matter(chunk: int, *, wide: bool) -> None:
    """However much is worked on at once, it is scikit-learn's result."""
    data = decaying(60, 100) if wide else decaying(130, 20, offset=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_CHUNK_BYTES", 8 * data.shape[1] * chunk)
        assert_like(fit_pca(stream(data), 7), exact(data, 7), data)
        ours = fit_standardisation(stream(data))
        scaled = ours.apply(data)
    theirs = StandardScaler().fit(data.astype(np.float64))
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-12)
    np.testing.assert_allclose(scaled, theirs.transform(data.astype(np.float64)), atol=1e-5)


def test_rows_that_follow_each_other_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted data, whose pieces have nothing in common, is fitted as any other."""
    monkeypatch.setattr(components, "_CHUNK_BYTES", 8 * 30 * 64)
    data = decaying(1000, 30)
    data = np.sort(data * 3 + 7, axis=0)
    assert_like(fit_pca(stream(data), 4), exact(data, 4), data)
    ours, theirs = fit_standardisation(stream(data)), StandardScaler().fit(data.astype(np.float64))
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-12)


@pytest.mark.parametrize("rows", [2000, 30])
def test_whitened_data_has_unit_covariance(rows: int) -> None:
    """What is whitened has a variance of 1 along each component and no correlation."""
    data = decaying(rows, 64, power=2, offset=-1)
    whitened = fit_pca(stream(data), 20, whiten=True).apply(data)
    np.testing.assert_allclose(np.cov(whitened.astype(np.float64).T), np.eye(20), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)


def test_a_large_offset_costs_no_precision() -> None:
    """Means of 10,000 at deviations of 1 leave components, variances and projections exact."""
    noise = np.random.default_rng(1).standard_normal((5000, 24))
    data = (noise * np.linspace(1, 2, 24) + 1e4).astype(np.float32)
    pca, reference = fit_pca(stream(data), 10), exact(data, 10)
    assert_like(pca, reference, data)
    expected = reference.transform(data.astype(np.float64))
    np.testing.assert_allclose(pca.apply(data), expected, atol=1e-5)
    ours, theirs = fit_standardisation(stream(data)), StandardScaler().fit(data.astype(np.float64))
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-10)
    np.testing.assert_allclose(
        ours.apply(data), theirs.transform(data.astype(np.float64)), atol=1e-6
    )


@pytest.mark.parametrize(("power", "passes"), [(0.5, 10), (1, 8), (2, 6)])
@pytest.mark.parametrize("whiten", [False, True])
def test_above_the_limit(
    monkeypatch: pytest.MonkeyPatch, power: float, passes: int, *, whiten: bool
) -> None:
    """Without a covariance, leading components are exact to 1e-4 in cosine, in few passes."""
    data = decaying(500, 200, power, offset=1)
    begun = []

    def counted() -> Iterator[Rows]:
        begun.append(True)
        return stream(data)()

    monkeypatch.setattr(components, "COVARIANCE_LIMIT", 199)
    ours, theirs = fit_pca(counted, 16, whiten=whiten), exact(data, 16, whiten=whiten)
    assert len(begun) <= passes
    cosines = (ours.components * theirs.components_).sum(axis=1)
    assert cosines.min() > 1 - 1e-4
    gram = ours.components @ ours.components.T
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-5)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-4)


def test_above_the_limit_with_few_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of fewer directions than are looked for gives those, and no variance to others."""
    noise = np.random.default_rng(2)
    data = (noise.standard_normal((300, 4)) @ noise.standard_normal((4, 200))).astype(np.float32)
    data = np.round(data, 1)[:, np.arange(200) % 5]  # five directions, exactly
    data = data.astype(np.float32)
    monkeypatch.setattr(components, "COVARIANCE_LIMIT", 100)
    ours, theirs = fit_pca(stream(data), 8), exact(data, 8)
    np.testing.assert_allclose(ours.components[:5], theirs.components_[:5], atol=1e-5)
    assert ours.variances[5:].max() < 1e-12 * ours.variances[0]
    assert ours.variances.min() >= 0
    np.testing.assert_allclose(ours.components @ ours.components.T, np.eye(8), atol=1e-5)


def test_what_is_not_told_apart_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Components of nearly one variance are given after the last pass, and that is said."""
    monkeypatch.setattr(components, "COVARIANCE_LIMIT", 100)
    monkeypatch.setattr(components, "_MOST_PASSES", 3)
    data = decaying(900, 300, power=0)
    with caplog.at_level(logging.WARNING, "vggfeat"):
        ours = fit_pca(stream(data), 5)
    assert "after 4 passes" in caplog.text
    np.testing.assert_allclose(ours.components @ ours.components.T, np.eye(5), atol=1e-5)


@pytest.mark.parametrize("rows", [20, 300])
def test_fewer_directions_than_components(rows: int) -> None:
    """Dimensions that repeat each other leave components without variance, yet orthonormal."""
    data = np.tile(decaying(rows, 5), 10)
    ours, theirs = fit_pca(stream(data), 12), exact(data, 12)
    np.testing.assert_allclose(ours.components[:5], theirs.components_[:5], atol=1e-5)
    np.testing.assert_allclose(ours.components @ ours.components.T, np.eye(12), atol=1e-5)
    assert 0 <= ours.variances[5:].min() <= ours.variances[5:].max() < 1e-12
    with pytest.raises(
        UsageError, match=r"of 12 components only 5 can be whitened.*ask for 5 at most"
    ):
        fit_pca(stream(data), 12, whiten=True)
    whitened = fit_pca(stream(data), 5, whiten=True).apply(data)
    np.testing.assert_allclose(np.cov(whitened.astype(np.float64).T), np.eye(5), atol=1e-4)


def test_a_row_of_nan_stays_one() -> None:
    """A failed row, of NaN, is NaN after either, and touches no other."""
    data = decaying(50, 8)
    pca, scaling = fit_pca(stream(data), 3), fit_standardisation(stream(data))
    broken = data.copy()
    broken[7] = np.nan
    for fitted in (pca, scaling):
        result = fitted.apply(broken)
        assert np.isnan(result[7]).all()
        np.testing.assert_array_equal(np.delete(result, 7, 0), np.delete(fitted.apply(data), 7, 0))


def test_nothing_to_apply_to() -> None:
    """No rows give no rows."""
    data = decaying(50, 8)
    assert fit_pca(stream(data), 3).apply(data[:0]).shape == (0, 3)
    assert fit_standardisation(stream(data)).apply(data[:0]).shape == (0, 8)


def test_a_constant_dimension() -> None:
    """A dimension that never changes becomes 0, whatever its value, as with scikit-learn."""
    data = decaying(300, 6)
    data[:, 2], data[:, 4] = 0.1, 1e4 / 3
    ours, theirs = fit_standardisation(stream(data, (7, 1))), StandardScaler().fit(data)
    assert ours.scale[2] == ours.scale[4] == theirs.scale_[2] == theirs.scale_[4] == 1
    assert not ours.apply(data)[:, [2, 4]].any()


@pytest.mark.parametrize("dims", [0, -1, 0.0, 1.0, 1.5, float("nan")])
def test_dims_that_make_no_sense(dims: float) -> None:
    """Neither a whole number from 1 nor a share between 0 and 1 is refused before any pass."""
    with pytest.raises(UsageError, match=rf"dims {dims}: expected a whole number, 1 or more"):
        fit_pca(lambda: pytest.fail("a pass was begun"), dims)


@pytest.mark.parametrize(("rows", "width", "most"), [(10, 20, 9), (30, 20, 20)])
def test_more_components_than_there_are(rows: int, width: int, most: int) -> None:
    """More than rows - 1 or D components are refused, with what there is."""
    data = decaying(rows, width)
    assert len(fit_pca(stream(data), most).components) == most
    with pytest.raises(
        UsageError, match=f"dims {most + 1}: {rows} rows of {width} dimensions have {most} comp"
    ):
        fit_pca(stream(data), most + 1)


def test_what_the_iteration_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit a share is refused, and so are too many components."""
    monkeypatch.setattr(components, "COVARIANCE_LIMIT", 100)
    data = decaying(300, 200)
    with pytest.raises(UsageError, match=r"dims 0\.9: .* up to 100 dimensions; the data has 200"):
        fit_pca(stream(data), 0.9)
    with pytest.raises(UsageError, match=r"dims 31: of 200 dimensions, .* at most 30 components"):
        fit_pca(stream(data), 31)
    assert len(fit_pca(stream(data), 30).components) == 30
    assert fit_pca(stream(data[:150]), 0.9).share >= 0.9  # of few rows, all variances are known


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(value: float) -> None:
    """NaN or infinity anywhere is named by value, row and dimension."""
    data = decaying(300, 6)
    data[123, 4] = value
    for fit in (
        lambda: fit_pca(stream(data), 2),
        lambda: fit_standardisation(stream(data, (1, 2))),
    ):
        with pytest.raises(InputError, match=f"row 123 of the data holds {value} in dimension 4"):
            fit()


def test_both_infinities() -> None:
    """Infinities of both signs in one dimension are named, without a warning."""
    data = decaying(300, 6)
    data[[20, 30], 4] = np.inf, -np.inf
    with pytest.raises(InputError, match="row 20 of the data holds inf in dimension 4"):
        fit_pca(stream(data), 2)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows(rows: int) -> None:
    """No row or a single one is refused."""
    data = decaying(5, 3)[:rows]
    for fit in (lambda: fit_pca(stream(data), 1), lambda: fit_standardisation(stream(data))):
        with pytest.raises(InputError, match=f"the data has {rows} rows?; expected two or more"):
            fit()


def test_rows_all_the_same() -> None:
    """Data without any variance is refused."""
    data = np.repeat(decaying(1, 9), 20, axis=0)
    with pytest.raises(InputError, match="all 20 rows are the same"):
        fit_pca(stream(data), 1)


def test_blocks_of_different_widths() -> None:
    """A block of other dimensions than the first is refused, and so is applying to others."""
    data = decaying(20, 9)
    with pytest.raises(UsageError, match=r"a block of shape \(20, 8\); expected \(rows, 9\)"):
        fit_standardisation(lambda: iter([data, data[:, :8]]))
    for fitted in (fit_pca(stream(data), 1), fit_standardisation(stream(data))):
        with pytest.raises(UsageError, match=r"9 dimensions: expected \(n, 9\), found \(20, 8\)"):
            fitted.apply(data[:, :8])


@pytest.mark.parametrize("width", [8, 200])
@pytest.mark.parametrize("later", [90, 110])
def test_data_that_changes(width: int, later: int) -> None:
    """A later pass over more or fewer rows than the first is refused."""
    data = decaying(110, width)
    passes = iter([100, later])

    def changing() -> Iterator[Rows]:
        return stream(data[: next(passes)])()

    with pytest.raises(InputError, match=f"changed while it was read: 100 rows at first.* {later}"):
        fit_pca(changing, 3)


MEMORY = """
import resource
import numpy as np
from vggfeat.transforms.pca import fit_pca, fit_standardisation

def blocks():
    noise = np.random.default_rng(0)
    for size in (1, 49_999, 100_000, 50_000):
        for start in range(0, size, 4096):
            yield noise.standard_normal((min(4096, size - start), 256), dtype=np.float32)

np.linalg.eigh(np.eye(256) @ np.eye(256))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pca = fit_pca(blocks, 16, whiten=True)
scaling = fit_standardisation(blocks)
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(pca.rows, peak)
"""


def test_memory_stays_flat() -> None:
    """Fitting on 200 MB of float32 that is never whole takes less than 150 MB at its peak."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True
    )
    rows, peak = map(int, done.stdout.split())
    assert rows == 200_000
    assert peak < 150


def test_a_block_larger_than_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of everything is worked on in pieces, to fit and to apply."""
    monkeypatch.setattr(components, "_CHUNK_BYTES", 8 * 30 * 10)
    data = decaying(95, 30)
    assert {len(chunk) for chunk in components.chunks(stream(data, [95]))} == {10, 5}
    assert_like(fit_pca(stream(data, [95]), 3), exact(data, 3), data)
