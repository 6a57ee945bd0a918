"""`vggfeat reduce`: scikit-learn's numbers in a cache, kept, applied again, and gone on with."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images
from killing import contents
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

import vggfeat as library
from vggfeat.errors import InterruptedRunError
from vggfeat.transforms.settings import ReduceSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat.core.records import Progress

WIDE = [*SMALL, "--dtype", "float32"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of twelve images and one that failed."""
    folder = tmp_path_factory.mktemp("reduce")
    write_images(folder / "images", 12)
    (folder / "images" / "05x.png").write_bytes(b"no image")
    done = vggfeat("extract", "images", *WIDE, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(path: Path) -> dict[str, NDArray[np.float64]]:
    """Layer → the done rows of a cache in float64."""
    with h5py.File(path) as file:
        done = file["images/state"][:] == 1
        return {name: data[:][done].astype(np.float64) for name, data in file["features"].items()}


def test_components_are_those_of_scikit_learn(workplace: Path, tmp_path: Path) -> None:
    """Every layer by itself is centred and projected as PCA does, and says what it explains."""
    derived = library.reduce(
        workplace / "feats.h5", tmp_path / "o.h5", ReduceSettings(dims=4), dtype="float32"
    )
    found = rows_of(tmp_path / "o.h5")
    for layer, rows in rows_of(workplace / "feats.h5").items():
        right = PCA(4, svd_solver="full").fit(rows)
        np.testing.assert_allclose(found[f"{layer}:pca4"], right.transform(rows), atol=2e-4)
        share = f"{right.explained_variance_ratio_.sum():.2%} of the variance"
        assert any(layer in note and share in note for note in derived.notes)
    assert derived.layers == {"conv1_1:pca4": 4, "conv2_1:max:pca4": 4}


def test_whitened_vectors_have_unit_length(workplace: Path, tmp_path: Path) -> None:
    """Normalised, whitened, normalised again: the way of Jégou & Chum."""
    done = vggfeat("reduce", workplace / "feats.h5", "--layers", "conv1_1", "--dims", "3",
                   "--whiten", "--norm", "l2", "--dtype", "float32", "--out", "w.h5",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = normalize(rows_of(workplace / "feats.h5")["conv1_1"])
    right = normalize(PCA(3, whiten=True, svd_solver="full").fit_transform(rows))
    np.testing.assert_allclose(rows_of(tmp_path / "w.h5")["conv1_1:pca3"], right, atol=2e-3)


def test_a_share_of_the_variance_chooses_the_dimensions(workplace: Path, tmp_path: Path) -> None:
    """`--dims 80%` keeps as many as scikit-learn would."""
    words: list[str | Path] = [
        "reduce",
        workplace / "feats.h5",
        "--layers",
        "conv1_1",
        "--dims",
        "80%",
    ]
    done = vggfeat(*words, "--out", "o.h5", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_of(workplace / "feats.h5")["conv1_1"]
    right = PCA(0.8, svd_solver="full").fit(rows).n_components_
    assert json.loads(done.stdout)["layers"] == {f"conv1_1:pca{right}": right}


def test_standardised_layers_are_those_of_scikit_learn(workplace: Path, tmp_path: Path) -> None:
    """Each dimension to mean 0 and deviation 1."""
    library.reduce(
        workplace / "feats.h5", tmp_path / "o.h5", ReduceSettings(method="standard"),
        dtype="float32",
    )  # fmt: skip
    found = rows_of(tmp_path / "o.h5")
    for layer, rows in rows_of(workplace / "feats.h5").items():
        right = StandardScaler().fit_transform(rows)
        np.testing.assert_allclose(found[f"{layer}:standard"], right, atol=1e-3)


def test_a_model_is_applied_to_new_images(workplace: Path, tmp_path: Path) -> None:
    """What was fitted to some images reduces others, as scikit-learn's transform does."""
    library.reduce(workplace / "feats.h5", tmp_path / "o.h5", ReduceSettings(dims=4))
    images = write_images(tmp_path / "images", 2)
    (images / "00.png").rename(images / "other.png")
    shutil.copy(workplace / "images" / "07.png", images / "one.png")
    assert vggfeat("extract", images, *WIDE, "--out", "new.h5", cwd=tmp_path).returncode == 0
    done = vggfeat("reduce", "new.h5", "--use", "o.model.h5", "--out", "n.h5", "--dtype",
                   "float32", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    fitted = PCA(4, svd_solver="full").fit(rows_of(workplace / "feats.h5")["conv1_1"])
    right = fitted.transform(rows_of(tmp_path / "new.h5")["conv1_1"])
    np.testing.assert_allclose(rows_of(tmp_path / "n.h5")["conv1_1:pca4"], right, atol=2e-4)


def test_a_run_goes_on_with_the_model_it_began_with(workplace: Path, tmp_path: Path) -> None:
    """Rows that the source got since are reduced by what was fitted before they were there."""
    shutil.copy(workplace / "feats.h5", tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["images/state"][9:11] = 0
    first = library.reduce(tmp_path / "f.h5", tmp_path / "o.h5", ReduceSettings(dims=4))
    before = rows_of(tmp_path / "o.h5")["conv1_1:pca4"]
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["images/state"][9:11] = 1
    second = library.reduce(tmp_path / "f.h5", tmp_path / "o.h5", ReduceSettings(dims=4))
    assert (first.pending, second.new_done, second.pending) == (2, 2, 0)
    after = rows_of(tmp_path / "o.h5")["conv1_1:pca4"]
    assert np.array_equal(np.delete(after, [8, 9], 0), before)


def test_fresh_fits_anew(workplace: Path, tmp_path: Path) -> None:
    """With --fresh the model too is made anew, and equals what a first run makes."""
    words: list[str | Path] = [
        "reduce",
        workplace / "feats.h5",
        "--out",
        tmp_path / "o.h5",
        "--dims",
    ]
    assert vggfeat(*words, "4", cwd=tmp_path).returncode == 0
    whole = contents(tmp_path / "o.h5")
    assert_one_line(vggfeat(*words, "5", cwd=tmp_path), 5, "fitted to something else: dims")
    assert contents(tmp_path / "o.h5") == whole
    assert vggfeat(*words, "5", "--fresh", cwd=tmp_path).returncode == 0
    assert vggfeat(*words, "4", "--fresh", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "o.h5") == whole


def test_layers_are_kept_to_change_their_dtype(workplace: Path, tmp_path: Path) -> None:
    """`--method keep --dtype int8` codes every dimension over the range it really has."""
    words: list[str | Path] = ["reduce", workplace / "feats.h5", "--method", "keep"]
    assert vggfeat(*words, "--dtype", "int8", "--out", "k.h5", cwd=tmp_path).returncode == 0
    cache = library.open(tmp_path / "k.h5")
    for layer, rows in rows_of(workplace / "feats.h5").items():
        step = (rows.max(0) - rows.min(0)) / 254
        error = np.abs(cache.values(layer, np.flatnonzero(cache.done)) - rows)
        assert (error <= 0.51 * step + 1e-6).all()
    assert not (tmp_path / "k.model.h5").exists()
    assert library.verify(tmp_path / "k.h5").bad == ()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--dims", "12"], 2, "12"),
        (["--dims", "0"], 2, "dims '0'"),
        (["--dims", "110%"], 2, "dims '110%'"),
        (["--method", "lda"], 2, "unknown method 'lda'"),
        (["--norm", "l1"], 2, "unknown norm 'l1'"),
        (
            ["--method", "standard", "--whiten"],
            2,
            "whitening belongs to the method pca",
        ),
        (["--layers", "fc7"], 2, "no vectors of fc7"),
        (["--use", "m.h5", "--dims", "3"], 2, "give it without --dims"),
    ],
)
def test_bad_requests_are_one_line(
    workplace: Path, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    """Each mistake names what, what was expected and found, and leaves nothing behind."""
    done = vggfeat("reduce", workplace / "feats.h5", *words, "--out", "o.h5", cwd=tmp_path)
    assert_one_line(done, code, says)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".h5"]


def test_an_interrupted_fresh_run_is_resumed_by_the_same_call(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `fresh` had transformed by then is kept; a run that has finished begins again."""
    source, out = workplace / "feats.h5", tmp_path / "r.h5"
    monkeypatch.setattr("vggfeat.transforms.base.READ_BYTES", 1)  # a block is one row
    settings = ReduceSettings(method="standard")
    whole = library.reduce(source, out, settings)

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="run the same command again to resume") as error:
        library.reduce(source, out, settings, begin="fresh", on_progress=stop)
    done = error.value.summary.new_done
    assert 0 < done < whole.new_done
    assert library.reduce(source, out, settings, begin="fresh").new_done == whole.new_done - done
    assert library.reduce(source, out, settings, begin="fresh").new_done == whole.new_done
    assert {path.name for path in tmp_path.iterdir()} == {"r.h5", "r.model.h5"}

    with pytest.raises(InterruptedRunError):
        library.reduce(source, out, settings, begin="fresh", on_progress=stop)
    anew = shutil.copy(source, tmp_path / "anew.h5")
    words = ["extract", workplace / "images", *WIDE, "--fresh", "--out", anew]
    assert vggfeat(*words, cwd=workplace).returncode == 0
    assert library.reduce(anew, out, settings, begin="fresh").new_done == whole.new_done
