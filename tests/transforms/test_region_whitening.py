"""R-MAC as its paper has it: regions whitened by a PCA of regions, as scikit-learn does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from caches_to_search import cache_of, noise
from command_line import SMALL, write_images
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

import vggfeat
from vggfeat.errors import UsageError
from vggfeat.transforms.pca import Pca
from vggfeat.transforms.reduce import RegionPca

if TYPE_CHECKING:
    from pathlib import Path

REGIONS, CHANNELS, IMAGES = 14, 64, 30


@pytest.mark.parametrize("whiten", [True, False])
def test_regions_are_whitened_one_by_one(tmp_path: Path, *, whiten: bool) -> None:
    """PCA of all regions, unit length, sum, unit length; cosines are those of scikit-learn's."""
    x = normalize(np.abs(noise(IMAGES * REGIONS, CHANNELS))).astype(np.float32)
    layers = {"conv1_1:regions": x.reshape(IMAGES, -1), "conv1_1": noise(IMAGES, 64)}
    cache_of(tmp_path / "f.h5", layers, "float32")
    settings = vggfeat.ReduceSettings(dims=8, whiten=whiten, final_norm="l2")
    report = vggfeat.reduce(tmp_path / "f.h5", tmp_path / "r.h5", settings, dtype="float32")
    assert report.layers == {"conv1_1:regions:pca8": 8, "conv1_1:pca8": 8}
    assert any("fitted to 420 regions" in note for note in report.notes)
    pca = PCA(8, whiten=whiten, svd_solver="full").fit(x.astype(np.float64))
    regions = normalize(pca.transform(x.astype(np.float64))).reshape(IMAGES, REGIONS, -1)
    right = normalize(regions.sum(1))
    found = vggfeat.open(tmp_path / "r.h5").values("conv1_1:regions:pca8")
    np.testing.assert_allclose(found @ found.T, right @ right.T, atol=2e-5)
    again = vggfeat.reduce(
        tmp_path / "f.h5", tmp_path / "again.h5", use=tmp_path / "r.model.h5", dtype="float32"
    )
    assert again.layers == report.layers
    np.testing.assert_array_equal(
        vggfeat.open(tmp_path / "again.h5").values("conv1_1:regions:pca8"), found
    )


def test_images_are_searched_by_whitened_regions(tmp_path: Path) -> None:
    """A query image goes the same way: regions of the network, the fitted whitening, the sum."""
    images = write_images(tmp_path / "images", 6)
    given = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    settings = vggfeat.Settings(
        layers="conv2_1:regions(levels=2)", model="vgg11", weights="random:0", size=32,
        device=given["--device"], precision="float32", dtype="float32", workers=0,
    )  # fmt: skip
    vggfeat.extract(images, tmp_path / "f.h5", settings)
    vggfeat.reduce(
        tmp_path / "f.h5", tmp_path / "r.h5", vggfeat.ReduceSettings(dims=4, whiten=True)
    )
    found = vggfeat.search(tmp_path / "r.h5", images / "03.png", top=2)
    assert found.layers == ("conv2_1:regions(levels=2):pca4",)
    first, second = found.answers[0].hits
    assert (first.path, first.is_self) == ("03.png", True)
    assert first.score == pytest.approx(1, abs=1e-3)
    assert second.score < first.score


def test_rows_of_other_regions_are_refused() -> None:
    """Rows that are no whole number of regions are no regions of this layer."""
    pca = Pca(np.zeros(4), np.eye(2, 4, dtype=np.float32), np.ones(2), 2.0, 9, whiten=True)
    part = RegionPca(pca)
    assert part.apply(np.ones((3, 8), np.float32)).shape == (3, 2)
    with pytest.raises(UsageError, match="regions are of 4 numbers; found rows of 6"):
        part.apply(np.ones((3, 6), np.float32))
