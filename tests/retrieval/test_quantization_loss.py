"""`inspect --loss`: what fewer bits cost, by cosines and neighbours that NumPy finds too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images
from noise_caches import blow_up
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

import vggfeat as library
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 300 rows in float32, and small ones of every dtype."""
    folder = tmp_path_factory.mktemp("loss")
    write_images(folder / "images", 12)
    for dtype in ("float32", "float16", "int8"):
        words = ["extract", "images", *SMALL, "--dtype", dtype, "--out", f"{dtype}.h5"]
        assert vggfeat(*words, cwd=folder).returncode == 0
    blow_up(folder / "float32.h5", folder / "large.h5", 300)
    return folder


def neighbours(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Ten nearest others of each row by cosine, by scikit-learn."""
    found = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute").fit(rows)
    ranks: NDArray[np.int64] = found.kneighbors(rows, return_distance=False)[:, 1:]
    return ranks


def test_the_loss_of_float16_is_what_scikit_learn_finds(workplace: Path) -> None:
    """Cosines and neighbours before and after are those of an independent computation."""
    with h5py.File(workplace / "large.h5") as file:
        rows = file["features/conv1_1"][:]
    half = rows.astype(np.float16).astype(np.float32)
    found = library.measure_loss(library.open(workplace / "large.h5"))
    (loss,) = [one for one in found if (one.layer, one.dtype) == ("conv1_1", "float16")]
    cosines = np.diag(cosine_similarity(rows.astype(np.float64), half.astype(np.float64)))
    assert loss.cosine_least == pytest.approx(cosines.min(), abs=1e-7)
    before, after = neighbours(rows), neighbours(half)
    kept = [len({*one} & {*other}) / 10 for one, other in zip(before, after, strict=True)]
    assert loss.nearest_changed == pytest.approx((before[:, 0] != after[:, 0]).mean(), abs=0.01)
    assert loss.nearest_kept == pytest.approx(np.mean(kept), abs=0.01)
    assert (loss.rows, loss.row_bytes, loss.reference) == (300, 128, "float32")


def test_int8_costs_more_than_float16(workplace: Path) -> None:
    """On noise, where neighbours are close calls, int8 changes more of them, and says so."""
    found = library.measure_loss(library.open(workplace / "large.h5"))
    by_dtype = {one.dtype: one for one in found if one.layer == "conv1_1"}
    assert by_dtype["int8"].cosine_least < by_dtype["float16"].cosine_least < 1
    assert by_dtype["int8"].nearest_kept < by_dtype["float16"].nearest_kept
    assert by_dtype["int8"].row_bytes * 2 == by_dtype["float16"].row_bytes


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_cache_is_compared_with_a_wider_one(workplace: Path, dtype: str) -> None:
    """With `--against`, the cost is that of the cache as it is."""
    words: list[str | Path] = ["inspect", f"{dtype}.h5", "--loss", "--against", "float32.h5"]
    done = vggfeat(*words, "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    narrow, wide = (library.open(workplace / f"{name}.h5") for name in (dtype, "float32"))
    for loss in json.loads(done.stdout)["loss"]:
        layer = loss["layer"]
        right = np.diag(cosine_similarity(
            narrow.values(layer).astype(np.float64), wide.values(layer).astype(np.float64)
        ))  # fmt: skip
        assert loss["dtype"] == dtype
        assert loss["cosine_least"] == pytest.approx(right.min(), abs=1e-6)
        assert loss["cosine_least"] < 1
    assert "cost against float32" in vggfeat(*words, cwd=workplace).stdout


def test_what_cannot_be_told_is_said(workplace: Path, tmp_path: Path) -> None:
    """An int8 cache by itself, another layer set, and --against alone are clear errors."""
    done = vggfeat("inspect", "int8.h5", "--loss", cwd=workplace)
    assert_one_line(done, 2, "does not know what it was before")
    done = vggfeat("inspect", "float16.h5", "--against", "float32.h5", cwd=workplace)
    assert_one_line(done, 2, "give both")
    words: list[str | Path] = [
        "extract",
        workplace / "images",
        *SMALL,
        "--layers",
        "conv1_1",
        "--out",
        "o.h5",
    ]
    assert vggfeat(*words, "--out", "o.h5", cwd=tmp_path).returncode == 0
    done = vggfeat("inspect", workplace / "int8.h5", "--loss", "--against", "o.h5", cwd=tmp_path)
    assert_one_line(done, 5, "has no conv2_1:max")


def test_one_row_has_no_neighbour(workplace: Path, tmp_path: Path) -> None:
    """With fewer than two rows done there is nothing to compare."""
    path = tmp_path / "f.h5"
    path.write_bytes((workplace / "float32.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["images/state"][1:] = 0
    with pytest.raises(UsageError, match=r"1 row of .* can be compared"):
        library.measure_loss(library.open(path))
