"""`VggFeatures` in scikit-learn: its checks, pipelines, and a cache that saves every pass."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import write_images
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

import vggfeat
from vggfeat.errors import DecodeError, InputError, SpaceError, UsageError
from vggfeat.extraction import feature_store
from vggfeat.storage.locks import hold

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {
    "layers": "conv1_1,conv2_1:max", "model": "vgg11", "weights": "random:0", "size": 32,
    "device": "cpu", "settings": {"precision": "float32"}, "dtype": "float32", "workers": 0,
}  # fmt: skip
CHECKS = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_mixin_order",
)
"""Those of scikit-learn's that give no tables of numbers to an estimator, which are no images."""


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [str(path) for path in sorted(write_images(tmp_path / "images", 8).iterdir())]


@pytest.fixture
def features(tmp_path: Path) -> vggfeat.VggFeatures:
    return vggfeat.VggFeatures(**SMALL, cache_dir=tmp_path / "kept")


def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on an extraction is an error."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(feature_store, "extract", refused)


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_of_scikit_learn(check: str, features: vggfeat.VggFeatures) -> None:
    """Whatever scikit-learn checks of an estimator without giving it numbers holds."""
    if not hasattr(estimator_checks, check):
        pytest.skip("not in this scikit-learn")
    getattr(estimator_checks, check)("VggFeatures", features)


def test_it_is_an_estimator(features: vggfeat.VggFeatures) -> None:
    """Cloned, pickled and set by name; unknown names and contradictions are told."""
    again = clone(features)
    assert again.get_params() == features.get_params()
    assert pickle.loads(pickle.dumps(features)).get_params() == features.get_params()
    assert again.set_params(layers="conv1_1").layers == "conv1_1"
    check_is_fitted(features)
    assert repr(vggfeat.VggFeatures(size=64)) == "VggFeatures(size=64)"
    with pytest.raises(ValueError, match=r"Invalid parameter 'layer'.*it has layers, model"):
        features.set_params(layer="fc7")
    with pytest.raises(UsageError, match="layer 'conv9_9' is not in vgg11"):
        clone(features).set_params(layers="conv9_9").fit()
    with pytest.raises(UsageError, match="size in settings"):
        clone(features).set_params(settings={"size": 64}).fit()
    with pytest.raises(UsageError, match="time_limit in settings"):
        clone(features).set_params(settings={"time_limit": "1h"}).fit()
    with pytest.raises(UsageError, match="on_error"):
        clone(features).set_params(on_error="skip").fit()


def test_features_are_those_of_extract(
    paths: list[str], features: vggfeat.VggFeatures, tmp_path: Path
) -> None:
    """In the order given, layers side by side and named; a folder, images and arrays as well."""
    flat = {name: value for name, value in SMALL.items() if name != "settings"}
    settings = vggfeat.Settings(**flat, precision="float32")
    vggfeat.extract(tmp_path / "images", tmp_path / "f.h5", settings)
    cache = vggfeat.open(tmp_path / "f.h5")
    right = np.concatenate([cache.values("conv1_1"), cache.values("conv2_1:max")], 1)
    order = [3, 0, 3, 7]
    found = features.fit_transform([paths[at] for at in order])
    assert (str(found.dtype), found.shape) == ("float32", (4, 192))
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(found, right[order], **near)
    names = features.get_feature_names_out()
    assert (names[0], names[64], names[191]) == ("conv1_1_0", "conv2_1:max_0", "conv2_1:max_127")
    np.testing.assert_allclose(features.transform(str(tmp_path / "images")), right, **near)
    column = np.array(paths[:2])[:, None]
    np.testing.assert_array_equal(features.transform(column), features.transform(paths[:2]))
    images = [Image.open(path).convert("RGB") for path in paths[:2]]
    mixed = [images[0], np.array(images[1]), paths[2]]
    np.testing.assert_allclose(features.transform(mixed), right[:3], **near)
    assert features.transform([]).shape == (0, 192)


def test_no_image_is_computed_twice(
    paths: list[str], features: vggfeat.VggFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any images that were there cost no pass, in any order, by another object; others cost one."""
    first = features.transform(paths[:6])
    images = [Image.open(path).convert("RGB") for path in paths[:3]]
    held = features.transform(images)
    with monkeypatch.context() as patch:
        no_pass(patch)
        np.testing.assert_array_equal(clone(features).transform(paths[5:1:-1]), first[5:1:-1])
        np.testing.assert_array_equal(features.transform([images[2].copy()]), held[2:])
        with pytest.raises(AssertionError, match="the network is asked"):
            features.transform(paths)
        for change in ({"layers": "conv1_1"}, {"weights": "random:1"}, {"size": 64}):
            with pytest.raises(AssertionError, match="the network is asked"):
                clone(features).set_params(**change).transform(paths[:6])
    asked: list[int] = []
    extract = vggfeat.extract

    def counting(sources: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(len(sources))
        return extract(sources, *arguments, **options)

    monkeypatch.setattr(feature_store, "extract", counting)
    features.transform(paths)
    assert asked == [2]
    shutil.copy(paths[1], paths[0])  # another image of that name
    np.testing.assert_allclose(features.transform(paths[:1])[0], first[1], rtol=1e-4, atol=1e-5)
    assert asked == [2, 1]


def test_a_killed_call_goes_on(
    paths: list[str], features: vggfeat.VggFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a run has left are taken, and the rest is done in the same file."""
    extract = vggfeat.extract

    def cut(sources: Any, out: str, settings: Any, **options: Any) -> None:
        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        small = replace(settings, batch_size=2, checkpoint_seconds=0)
        extract(sources, out, small, on_progress=interrupt, **options)

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "extract", cut)
        with pytest.raises(KeyboardInterrupt):
            features.transform(paths)
    (kept,) = (tmp_path / "kept").rglob("*.h5")
    assert not vggfeat.open(kept).done.all()
    whole = features.transform(paths)
    assert list((tmp_path / "kept").rglob("*.h5")) == [kept]
    assert np.isfinite(whole).all()


def test_images_that_fail(
    paths: list[str], features: vggfeat.VggFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named with their reason, at the second call too, or a row of NaN; a missing file is told."""
    (tmp_path / "bad.png").write_text("no image")
    some = [paths[0], str(tmp_path / "bad.png"), paths[1]]
    with pytest.raises(DecodeError, match=r"1 of 3 images.*bad\.png.*not an image"):
        features.transform(some)
    no_pass(monkeypatch)
    with pytest.raises(DecodeError, match=r"bad\.png.*on_error='nan'"):
        features.transform(some)
    found = clone(features).set_params(on_error="nan").transform(some)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()
    with pytest.raises(InputError, match=r"none\.png.*No such file"):
        features.transform([paths[0], "none.png"])
    with pytest.raises(UsageError, match="is a folder among images"):
        features.transform([paths[0], str(tmp_path)])
    with pytest.raises(UsageError, match=r"X\[1\] is of type int"):
        features.transform([paths[0], 3])
    for one in (Image.new("RGB", (40, 40)), np.zeros((40, 40, 3), np.uint8)):
        with pytest.raises(UsageError, match="one image alone"):
            features.transform(one)
    with pytest.raises(UsageError, match="X is of type int"):
        features.transform(3)
    with pytest.raises(DecodeError, match=r"^X\[1\]: array uint8 of 7 channels"):
        features.transform([paths[0], np.zeros((5, 5, 7), np.uint8)])
    nowhere = clone(features).set_params(cache_dir=paths[0])
    with pytest.raises(SpaceError, match=r"^cache folder .* cannot be made: Not a directory"):
        nowhere.transform(paths)


def test_all_images_fail(features: vggfeat.VggFeatures, tmp_path: Path) -> None:
    """A run of which nothing is left is told like any other."""
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(DecodeError, match=r"1 of 1 image.*bad\.png"):
        features.transform([tmp_path / "bad.png"])


def test_another_process_is_waited_for(
    paths: list[str], features: vggfeat.VggFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another run holds the file, a call waits; what that run did is not done again."""
    held: list[Any] = []

    def waited(_: float) -> None:
        held.pop().__exit__(None, None, None)

    extract = vggfeat.extract

    def taken(sources: Any, out: str, settings: Any, **options: Any) -> Any:
        if not held and not waits:
            waits.append(out)
            lock = hold(out)
            lock.__enter__()
            held.append(lock)
        return extract(sources, out, settings, **options)

    waits: list[str] = []
    monkeypatch.setattr("vggfeat.extraction.feature_store.time.sleep", waited)
    monkeypatch.setattr(feature_store, "extract", taken)
    assert np.isfinite(features.transform(paths)).all()
    assert waits
    assert not held


def test_in_a_pipeline(paths: list[str], features: vggfeat.VggFeatures) -> None:
    """Cross-validation, also in two processes, scores as on features; layers can be searched."""
    labels = np.arange(len(paths)) % 2
    x = features.transform(paths)
    model = make_pipeline(features, StandardScaler(), LogisticRegression())
    right = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression()), x, labels, cv=2)
    for jobs in (None, 2):
        scores = cross_val_score(model, np.array(paths), labels, cv=2, n_jobs=jobs)
        np.testing.assert_allclose(scores, right)
    searched = GridSearchCV(
        Pipeline([("features", features), ("classify", LogisticRegression())]),
        {"features__layers": ["conv1_1", "conv1_1,conv2_1:max"]}, cv=2,
    ).fit(paths, labels)  # fmt: skip
    assert searched.best_estimator_.predict(paths).shape == (8,)
    assert model.fit(paths, labels)[:-1].get_feature_names_out()[0] == "conv1_1_0"
