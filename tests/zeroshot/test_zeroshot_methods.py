"""Ridge, words of the nearest classes, centered vectors, the choice of a method, probabilities."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import vggfeat
from places import TESTS
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from zeroshot_caches import NAMES, write_cache, write_vectors

import vggfeat as library
from vggfeat.errors import CacheError, CacheMismatchError, UsageError
from vggfeat.zeroshot.metrics import fit_temperature

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

EACH, DIMS, WIDTH = 4, 6, 16
CLASSES = NAMES[:24]
UNSEEN = CLASSES[-6:]


def drawn_rows(noise: float = 0.4) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Class vectors with something in common, features linear in them with noise, and paths."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((len(CLASSES), DIMS)) + 2 * np.arange(DIMS)
    rows = np.repeat(vectors @ draw.standard_normal((DIMS, WIDTH)), EACH, axis=0)
    features = rows + noise * rows.std() * draw.standard_normal(rows.shape)
    paths = [f"{name}/{at}.png" for name in CLASSES for at in range(EACH)]
    return vectors.astype(np.float32), features.astype(np.float32), paths


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    vectors, features, paths = drawn_rows()
    write_cache(folder / "f.h5", {"conv1_1": features}, paths)
    write_vectors(folder / "v.csv", vectors, CLASSES)
    return folder


def fit(place: Path, out: Path, **given: Any) -> library.ZeroShotModel:
    chosen = {"layers": "conv1_1", "unseen": ",".join(UNSEEN), "held_out": 0, **given}
    settings = library.ZeroShotSettings(**chosen)
    library.fit_zeroshot(place / "f.h5", place / "v.csv", out, settings, fresh=True)
    return library.ZeroShotModel.load(out)


def inputs_of(place: Path, model: library.ZeroShotModel) -> NDArray[np.float32]:
    return model.inputs({"conv1_1": library.open(place / "f.h5").values("conv1_1")})


def test_class_vectors_are_centered_on_the_seen_ones(place: Path, tmp_path: Path) -> None:
    """Unit vectors less the mean of the seen classes', at unit length; or as they are."""
    unit = normalize(drawn_rows()[0].astype(np.float64))
    center = unit[: -len(UNSEEN)].mean(0)
    model = fit(place, tmp_path / "m.h5", method="ridge", gamma=1)
    assert model.center is not None
    np.testing.assert_allclose(model.center, center, rtol=1e-5)
    np.testing.assert_allclose(model.vectors, normalize(unit - center), atol=1e-5)
    plain = fit(place, tmp_path / "p.h5", method="ridge", gamma=1, center=False)
    assert plain.center is None
    np.testing.assert_allclose(plain.vectors, unit, atol=1e-6)
    more = library.class_vectors(place / "v.csv", UNSEEN)
    again = model.among(CLASSES[:-6]).with_classes(more)
    np.testing.assert_array_equal(again.vectors, model.vectors)


def test_a_vector_that_is_the_mean_is_refused(place: Path, tmp_path: Path) -> None:
    """Nothing is left of it; without centering it may be used."""
    vectors = np.ones((len(CLASSES), DIMS), np.float32)
    write_vectors(tmp_path / "v.csv", vectors, CLASSES)
    shutil.copy(place / "f.h5", tmp_path / "f.h5")
    with pytest.raises(UsageError, match=r"'class00', .* are the mean .* --no-center"):
        fit(tmp_path, tmp_path / "m.h5", method="nearest")


@pytest.mark.parametrize("each", [EACH, 1])
def test_ridge_is_scikit_learns(tmp_path: Path, each: int) -> None:
    """The map solves the same regression, with more rows than dimensions or fewer; scores are
    cosines of what it predicts.
    """
    keep = [at for at in range(len(CLASSES) * EACH) if at % EACH < each][: 15 if each == 1 else 99]
    vectors, features, paths = drawn_rows()
    names = list(dict.fromkeys(paths[at].split("/")[0] for at in keep))
    write_cache(tmp_path / "f.h5", {"conv1_1": features[keep]}, [paths[at] for at in keep])
    write_vectors(tmp_path / "v.csv", vectors, CLASSES)
    model = fit(tmp_path, tmp_path / "m.h5", method="ridge", gamma=0.3, unseen=",".join(names[-2:]))
    x = inputs_of(tmp_path, model).astype(np.float64)
    own = np.array([names.index(paths[at].split("/")[0]) for at in keep])
    seen = own < len(names) - 2
    assert (seen.sum() < WIDTH) == (each == 1)
    ridge = Ridge(alpha=0.3, fit_intercept=False).fit(x[seen], model.vectors[own[seen]])
    assert model.map is not None
    np.testing.assert_allclose(model.map, ridge.coef_.T, atol=1e-5)
    layers = {"conv1_1": library.open(tmp_path / "f.h5").values("conv1_1")}
    expected = normalize(ridge.predict(x)) @ model.vectors.T
    np.testing.assert_allclose(model.scores(layers), expected, atol=1e-5)


def test_words_of_the_nearest_classes_are_mixed_by_cosine(place: Path, tmp_path: Path) -> None:
    """Written anew from the paper: the words of the three nearest class means, weighted."""
    model = fit(place, tmp_path / "m.h5", method="nearest", neighbors=3)
    assert model.map is None
    x = inputs_of(place, model).astype(np.float64)
    own = np.repeat(np.arange(len(CLASSES)), EACH)
    seen = own < len(CLASSES) - len(UNSEEN)
    means = normalize(NearestCentroid().fit(x[seen], own[seen]).centroids_)
    expected = []
    for row in x:
        cosines = means @ row
        nearest = sorted(range(len(means)), key=lambda at: -cosines[at])[:3]
        word = sum(max(cosines[at], 0) * model.vectors[at] for at in nearest)
        expected.append(model.vectors @ (word / np.linalg.norm(word)))
    layers = {"conv1_1": library.open(place / "f.h5").values("conv1_1")}
    np.testing.assert_allclose(model.scores(layers), expected, atol=1e-5)
    few = model.among(UNSEEN)  # the words stay those of all seen classes
    np.testing.assert_array_equal(few.scores(layers), model.scores(layers)[:, ~model.seen])


def test_auto_takes_the_best_on_held_out_classes(place: Path, tmp_path: Path) -> None:
    """It is one of the others, says which and why, and evaluate shows the others beside it."""
    auto = fit(place, tmp_path / "auto.h5")
    (why,) = [note for note in auto.record["notes"] if note.startswith("method ")]
    figures = why.rpartition(": ")[2].split(", ")
    reached = {name: float(figure) for name, figure in (one.split() for one in figures)}
    assert set(reached) == {"eszsl", "ridge", "nearest"}
    assert reached[auto.method] == max(reached.values())
    assert auto.record["asked"]["method"] == "auto"
    alone = fit(place, tmp_path / "alone.h5", method=auto.method)
    np.testing.assert_array_equal(auto.vectors, alone.vectors)
    for name in ("map", "bias", "temperature"):
        np.testing.assert_array_equal(getattr(auto, name), getattr(alone, name))


def test_regularisers_without_a_method_are_those_of_eszsl(place: Path, tmp_path: Path) -> None:
    """As they were before there was a choice."""
    assert fit(place, tmp_path / "m.h5", gamma=1, lambda_=1).method == "eszsl"


def test_evaluate_compares_with_simpler_ways(place: Path, tmp_path: Path) -> None:
    """Baselines are what models of these methods reach; a model that is beaten says so."""
    fit(place, tmp_path / "e.h5", gamma=1e-3, lambda_=1e-3, center=False)
    beaten = library.evaluate_zeroshot(tmp_path / "e.h5", place / "f.h5", top=(1, 3))
    others: dict[str, dict[str, Any]] = {
        "nearest": {"method": "nearest", "neighbors": 1},
        "nearest_few": {"method": "nearest", "neighbors": beaten.neighbors},
        "ridge": {"method": "ridge"},
    }
    for name, given in others.items():
        fit(place, tmp_path / "o.h5", center=False, **given)
        found = library.evaluate_zeroshot(tmp_path / "o.h5", place / "f.h5", top=(1, 3))
        for one, other in zip(beaten.figures, found.figures, strict=True):
            if one.among == "unseen":
                assert getattr(one, name) == pytest.approx(other.accuracy)
            else:
                assert getattr(one, name) is None
    (last,) = [one for one in beaten.figures if (one.among, one.top) == ("unseen", 3)]
    assert last.ridge is not None
    assert last.ridge > last.accuracy
    assert any("this model of eszsl" in note for note in beaten.notes)
    done = vggfeat("zeroshot", "evaluate", "e.h5", place / "f.h5", "--top", "3", cwd=tmp_path)
    assert "nearest word" in done.stdout
    assert f"{last.ridge:.3f}" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if line[2:5] == "  3") <= 60


def test_a_figure_that_cannot_be_wrong_is_left_out(place: Path, tmp_path: Path) -> None:
    """Among one unseen class every answer is right."""
    fit(place, tmp_path / "m.h5", unseen=UNSEEN[0], seen=None)
    (tmp_path / "t.csv").write_text("".join(f"{name},all\n" for name in CLASSES))
    found = library.evaluate_zeroshot(
        tmp_path / "m.h5", place / "f.h5", tree=tmp_path / "t.csv", top=(1, 2)
    )
    assert found.unseen_images == EACH
    assert {one.among for one in found.figures} == {"all"}
    assert {one.among for one in found.mistakes} == {"all"}
    assert any(note.startswith("one unseen class: ") for note in found.notes)


def test_the_temperature_has_the_least_surprise() -> None:
    """SciPy finds the same one."""
    draw = np.random.default_rng(1)
    parts = [
        (draw.standard_normal((50, count)).astype(np.float32), draw.integers(0, count, 50))
        for count in (5, 9)
    ]
    for scores, own in parts:
        scores[np.arange(50), own] += 1.5

    def surprise(log_t: float) -> float:
        logs = [log_softmax(s.astype(float) / np.exp(log_t), 1)[np.arange(50), o] for s, o in parts]
        return -float(np.concatenate(logs).mean())

    least = minimize_scalar(surprise, bounds=(-7, 5), method="bounded")
    assert np.log(fit_temperature(parts)) == pytest.approx(least.x, abs=0.05)


def test_predictions_are_probabilities_among_the_candidates(place: Path, tmp_path: Path) -> None:
    """Softmax of scores, less the bias, over the model's temperature; raw where there is none."""
    model = fit(place, tmp_path / "m.h5", method="ridge")
    told = library.predict_zeroshot(tmp_path / "m.h5", place / "f.h5", calibrate=0.2, top=24)
    layers = {"conv1_1": library.open(place / "f.h5").values("conv1_1")}
    scores = model.scores(layers).astype(np.float64) - 0.2 * model.seen
    assert told.probabilities is not None
    expected = -np.sort(-softmax(scores / model.temperature, 1), axis=1)
    np.testing.assert_allclose(told.probabilities, expected, atol=1e-5)
    single = library.predict_zeroshot(tmp_path / "m.h5", place / "f.h5", classes=UNSEEN[0])
    assert single.probabilities is None  # it could be nothing but 1
    fit(place, tmp_path / "few.h5", unseen=None, seen=",".join(CLASSES[:3]))
    words = ["zeroshot", "predict", "few.h5", str(place / "f.h5"), "--classes", "seen"]
    few = vggfeat(*words, cwd=tmp_path)
    assert "raw scores" in few.stdout.splitlines()[0]


def test_a_model_of_an_earlier_version_gives_what_it_gave(tmp_path: Path) -> None:
    """It has no center, no temperature and no ridge; the command that fitted it keeps it."""
    draw = np.random.default_rng(5)
    vectors = draw.standard_normal((6, 3)).round(2).astype(np.float32)
    rows = np.repeat(vectors @ draw.standard_normal((3, 5)), 3, axis=0)
    x = (rows + 0.3 * draw.standard_normal((18, 5))).round(2).astype(np.float32)
    paths = [f"{name}/{at}.png" for name in NAMES[:6] for at in range(3)]
    write_cache(tmp_path / "c.h5", {"conv1_1": x}, paths)
    write_vectors(tmp_path / "v.csv", vectors, NAMES[:6])
    shutil.copy(TESTS / "data" / "zeroshot-1.h5", tmp_path / "m.h5")
    model = library.ZeroShotModel.load(tmp_path / "m.h5")
    gave = [0.61815673, -0.5855521, 0.27706242, -0.15134178, -0.26779604, 0.45463377]
    np.testing.assert_allclose(model.scores({"conv1_1": x})[0], gave, rtol=1e-5)
    assert (model.center, model.temperature, model.ridge) == (None, None, None)
    found = library.evaluate_zeroshot(tmp_path / "m.h5", tmp_path / "c.h5")
    first = next(one for one in found.figures if one.among == "unseen")
    assert first.nearest is not None
    assert first.ridge is None
    settings = library.ZeroShotSettings(layers="conv1_1", unseen="class04,class05")
    before = (tmp_path / "m.h5").read_bytes()
    kept = library.fit_zeroshot(tmp_path / "c.h5", tmp_path / "v.csv", tmp_path / "m.h5", settings)
    assert not kept.anew
    assert any("earlier version" in note for note in kept.notes)
    assert (tmp_path / "m.h5").read_bytes() == before
    for other in ({"method": "ridge"}, {"center": False}):
        chosen = library.ZeroShotSettings(layers="conv1_1", unseen="class04,class05", **other)
        with pytest.raises(CacheMismatchError, match=f"{next(iter(other))}: model"):
            library.fit_zeroshot(tmp_path / "c.h5", tmp_path / "v.csv", tmp_path / "m.h5", chosen)


@pytest.mark.parametrize(
    ("given", "version"),
    [
        ({"method": "eszsl"}, 2),
        ({"method": "ridge", "center": False}, 2),
        ({"method": "nearest", "center": False, "neighbors": 2}, 2),
        ({"method": "eszsl", "center": False}, 1),
    ],
)
def test_a_model_that_earlier_versions_would_use_wrongly_has_another_version(
    place: Path, tmp_path: Path, given: dict[str, Any], version: int
) -> None:
    """They know no center, and neither cosines nor words of classes; they refuse version 2."""
    model = fit(place, tmp_path / "m.h5", **given)
    with h5py.File(tmp_path / "m.h5") as file:
        assert int(file.attrs["format_version"]) == version
    assert model.to_fitted().version == version


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1.0), ("neighbors", 0), ("method", "sje")]
)
def test_numbers_of_a_damaged_model_are_refused(
    place: Path, tmp_path: Path, name: str, value: object
) -> None:
    """One line, before anything is computed with them."""
    from vggfeat.transforms.model_file import load_fitted, save_fitted

    fit(place, tmp_path / "m.h5", method="nearest", neighbors=2)
    fitted = load_fitted(str(tmp_path / "m.h5"), "zeroshot")
    fitted.parameters[name] = value  # type: ignore[index] # a dict
    save_fitted(str(tmp_path / "m.h5"), fitted)
    with pytest.raises(CacheError, match=name):
        library.ZeroShotModel.load(tmp_path / "m.h5")
