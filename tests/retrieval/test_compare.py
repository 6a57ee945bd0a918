"""Layers compared: each figure is scikit-learn's over vectors really concatenated."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import assert_one_line, vggfeat
from PIL import Image
from sklearn.metrics import average_precision_score, pairwise, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from vggfeat.cache.reader import FeatureCache
from vggfeat.cli.compare import compare as command
from vggfeat.errors import CacheMismatchError, UsageError
from vggfeat.retrieval import layer_ranking as retrieval
from vggfeat.retrieval.compare import compare

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat.retrieval.compare import Candidate, Comparison

SMALL = ["--model", "vgg11", "--size", "32", "--device", "cpu", "--workers", "0",
         "--precision", "float32", "-q"]  # fmt: skip
LAYERS = ["conv1_1", "conv2_1:max", "conv3_2"]
CLASSES = {"cat": 6, "dog": 5, "eel": 7, "lone": 1}
"""Folder and number of its images that can be read."""


def extract(folder: Path, out: str, *more: str, layers: str, weights: str = "random:0") -> None:
    words = ["extract", "images", *SMALL, "--layers", layers, "--weights", weights, "--out", out]
    done = vggfeat(*words, *more, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of images, one image broken; a cache, one of other weights, two of altered images."""
    folder = tmp_path_factory.mktemp("compare")
    noise = np.random.default_rng(0)
    for name, count in CLASSES.items():
        (folder / "images" / name).mkdir(parents=True)
        colours = noise.integers(0, 256, (8, 8, 3))
        for number in range(count):
            pixels = (colours + noise.normal(0, 90, (8, 8, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(
                folder / "images" / name / f"{number}.png"
            )
    (folder / "images" / "dog" / "broken.png").write_bytes(b"no image")
    extract(folder, "feats.h5", layers=",".join([*LAYERS, "conv1_1:map"]))
    extract(folder, "other.h5", layers="conv1_1,conv4_1", weights="random:1")
    extract(folder, "squash.h5", "--crop", "squash", layers=",".join(LAYERS))
    extract(folder, "pad.h5", "--crop", "pad", "--dtype", "float32", layers=",".join(LAYERS))
    return folder


def vectors(path: Path, *layers: str, metric: str = "cosine") -> NDArray[np.float64]:
    """Done rows of layers side by side: at unit length, or for `l2-raw` as they are."""
    cache = FeatureCache(path)
    parts = [np.asarray(cache[layer][cache.done], dtype=np.float64) for layer in layers]
    return np.hstack([part if metric == "l2-raw" else normalize(part) for part in parts])


def folders(path: Path) -> NDArray[np.str_]:
    cache = FeatureCache(path)
    names = [cache.name(row).split("/")[0] for row in np.flatnonzero(cache.done).tolist()]
    return np.array(names)


def similarities(
    a: NDArray[np.float64], b: NDArray[np.float64], metric: str
) -> NDArray[np.float64]:
    if metric == "cosine":
        return np.asarray(pairwise.cosine_similarity(a, b))
    return np.asarray(-pairwise.euclidean_distances(a, b))


def by_layer(candidates: tuple[Candidate, ...]) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in candidates}


def figures(candidate: Candidate) -> list[float]:
    recalls = [recall.value for recall in candidate.recalls]
    return [candidate.mean_average_precision, candidate.nearest_neighbour, *recalls]


def expected_by_labels(
    x: NDArray[np.float64], classes: NDArray[np.str_], metric: str, k: tuple[int, ...]
) -> list[float]:
    """Mean average precision, leave-one-out 1-NN accuracy and recalls, by scikit-learn."""
    queries = [own for own, name in enumerate(classes) if (classes == name).sum() > 1]
    scores = similarities(x, x, metric)
    precisions = [
        average_precision_score(
            np.delete(classes == classes[own], own), np.delete(scores[own], own)
        )
        for own in queries
    ]
    neighbours = NearestNeighbors(
        n_neighbors=max(1, *k), metric="cosine" if metric == "cosine" else "euclidean"
    )
    near = neighbours.fit(x).kneighbors(return_distance=False)[queries]  # itself is left out
    right = classes[near] == classes[queries][:, None]
    return [float(np.mean(precisions)), right[:, 0].mean()] + [
        right[:, :rank].any(axis=1).mean() for rank in k
    ]


GROUPS = {name: (name,) for name in LAYERS} | {f"concat({','.join(LAYERS)})": tuple(LAYERS)}
PAIRS = {
    f"concat({one},{other})": (one, other)
    for number, other in enumerate(LAYERS)
    for one in LAYERS[:number]
}


@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw"])
def test_by_labels_the_figures_are_scikit_learns(workplace: Path, metric: str) -> None:
    """Layers, pairs and all together: the figures are those of concatenated unit vectors."""
    path = workplace / "feats.h5"
    found = compare([path], metric=metric, fusions="pairs", k=(3, 2))
    candidates = by_layer(found.candidates)
    assert set(candidates) == set(GROUPS | PAIRS)
    for name, layers in (GROUPS | PAIRS).items():
        x = vectors(path, *layers, metric=metric)
        expected = expected_by_labels(x, folders(path), metric, (2, 3))
        assert figures(candidates[name]) == pytest.approx(expected, abs=1e-6), name
        assert candidates[name].width == x.shape[1]
        assert (candidates[name].queries, candidates[name].images) == (18, 19)
    assert (found.by, found.metric, found.classes) == ("labels", metric, 4)
    means = [candidate.mean_average_precision for candidate in found.candidates]
    assert means == sorted(means, reverse=True)
    assert len({round(mean, 6) for mean in means}) > 3, "the candidates hardly differ"


@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw"])
def test_by_queries_the_figures_are_scikit_learns(workplace: Path, metric: str) -> None:
    """Each altered image has one right answer among all done images; caches also pooled."""
    path = workplace / "feats.h5"
    altered = [workplace / "squash.h5", workplace / "pad.h5"]
    found = compare([path], queries=altered, metric=metric, k=(2,))
    assert [part.queries for part in found.by_queries] == [str(one) for one in altered]
    for name, layers in GROUPS.items():
        x = vectors(path, *layers, metric=metric)
        each = []
        for part, other in zip(found.by_queries, altered, strict=True):
            scores = similarities(vectors(other, *layers, metric=metric), x, metric)
            own = np.eye(19, dtype=bool)
            expected = [
                np.mean([average_precision_score(own[i], scores[i]) for i in range(19)]),
                *(top_k_accuracy_score(np.arange(19), scores, k=k) for k in (1, 2)),
            ]
            candidate = by_layer(part.candidates)[name]
            assert figures(candidate) == pytest.approx(expected, abs=1e-6)
            assert (candidate.queries, candidate.images) == (19, 19)
            each.append(expected)
        pooled = by_layer(found.candidates)[name]
        assert figures(pooled) == pytest.approx(np.mean(each, axis=0).tolist(), abs=1e-6)
        assert pooled.queries == 38
    assert (found.by, found.classes) == ("queries", 0)
    assert by_layer(found.candidates)["conv1_1"].mean_average_precision < 1
    assert compare([path], queries=altered[:1]).by_queries == ()


@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw"])
def test_blocks_change_nothing(
    workplace: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query and a few rows at a time give what all at once give."""
    whole = compare([workplace / "feats.h5"], metric=metric, fusions="pairs")
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "_SCORE_BYTES", 1)
        patch.setattr(retrieval, "_ROW_BYTES", 4 * 256 * 5)
        parts = compare([workplace / "feats.h5"], metric=metric, fusions="pairs")
    assert set(by_layer(parts.candidates)) == set(by_layer(whole.candidates))
    for name, candidate in by_layer(whole.candidates).items():
        again = figures(by_layer(parts.candidates)[name])
        assert again == pytest.approx(figures(candidate), abs=1e-6)


def test_distances_far_from_the_origin(workplace: Path, tmp_path: Path) -> None:
    """Vectors that are alike but for the last digits of float16 keep their distances apart."""
    shutil.copy(workplace / "feats.h5", tmp_path / "far.h5")
    noise = np.random.default_rng(0)
    with h5py.File(tmp_path / "far.h5", "r+") as file:
        rows = 3000 + 2 * noise.integers(-1, 2, file["features/conv3_2"].shape)
        file["features/conv3_2"][:] = rows
    found = compare([tmp_path / "far.h5"], metric="l2-raw", fusions="none", k=(1, 2))
    x = vectors(tmp_path / "far.h5", "conv3_2", metric="l2-raw")
    expected = expected_by_labels(x, folders(tmp_path / "far.h5"), "l2-raw", (1, 2))
    assert figures(by_layer(found.candidates)["conv3_2"]) == pytest.approx(expected, abs=1e-6)


def test_fusions(workplace: Path) -> None:
    """Asked for none there are none, and of two layers the one pair is all."""
    path = workplace / "feats.h5"
    assert set(by_layer(compare([path], fusions="none").candidates)) == set(LAYERS)
    assert set(by_layer(compare([path], fusions="all").candidates)) == set(GROUPS)
    two = compare([workplace / "other.h5"], fusions="pairs").candidates
    assert sorted(one.name for one in two) == ["concat(conv1_1,conv4_1)", "conv1_1", "conv4_1"]


def test_several_caches(workplace: Path, tmp_path: Path) -> None:
    """Only images done in all count, whatever their rows; a name in two files names the file."""
    shutil.copytree(workplace / "images", tmp_path / "images")
    (tmp_path / "images" / "cat" / "0.png").unlink()
    (tmp_path / "images" / "eel" / "3.png").unlink()
    (tmp_path / "images" / "ant").mkdir()
    shutil.copy(workplace / "images" / "dog" / "1.png", tmp_path / "images" / "ant" / "9.png")
    extract(tmp_path, "few.h5", layers="conv1_1,conv4_1", weights="random:1")
    found = by_layer(compare([workplace / "feats.h5", tmp_path / "few.h5"], k=(2,)).candidates)
    names = {"conv1_1 in feats.h5", "conv1_1 in few.h5", "conv2_1:max", "conv3_2", "conv4_1"}
    assert set(found) == names | {f"concat({','.join(LAYERS)})"}
    assert found["conv4_1"].cache == str(tmp_path / "few.h5")
    kept = np.flatnonzero(folders(tmp_path / "few.h5") != "ant")
    x, classes = vectors(tmp_path / "few.h5", "conv4_1")[kept], folders(tmp_path / "few.h5")[kept]
    expected = expected_by_labels(x, classes, "cosine", (2,))
    assert figures(found["conv4_1"]) == pytest.approx(expected, abs=1e-6)
    assert {(one.queries, one.images) for one in found.values()} == {(16, 17)}
    shutil.copy(workplace / "feats.h5", tmp_path / "feats.h5")
    again = compare([workplace / "feats.h5", tmp_path / "feats.h5"]).candidates
    assert f"conv3_2 in {tmp_path / 'feats.h5'}" in by_layer(again)


def test_labels_from_a_file(workplace: Path, tmp_path: Path) -> None:
    """With a file its labels count, and images without one are neither asked nor searched."""
    path = workplace / "feats.h5"
    cache = FeatureCache(path)
    done = [cache.name(row) for row in np.flatnonzero(cache.done).tolist()]
    chosen = np.arange(2, 17)
    classes = np.array([str(number % 3) for number in chosen])
    lines = [f"{done[row]},{label}" for row, label in zip(chosen, classes, strict=True)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    found = by_layer(compare([path], labels=tmp_path / "labels.csv", k=(3,)).candidates)
    expected = expected_by_labels(vectors(path, "conv3_2")[chosen], classes, "cosine", (3,))
    assert figures(found["conv3_2"]) == pytest.approx(expected, abs=1e-6)
    assert (found["conv3_2"].queries, found["conv3_2"].images) == (15, 15)


def test_a_sample_of_the_queries(workplace: Path) -> None:
    """Some queries are spread over all images, which are still searched whole."""
    path = workplace / "feats.h5"
    found = by_layer(compare([path], sample=3, fusions="none").candidates)["conv3_2"]
    assert (found.queries, found.images) == (3, 19)
    classes, x = folders(path), vectors(path, "conv3_2")
    scores = similarities(x, x, "cosine")
    chosen = [np.flatnonzero(classes == name)[0] for name in ("cat", "dog")]
    chosen.append(np.flatnonzero(classes != "lone")[12])  # 18 that can be asked: 0, 6 and 12
    precisions = [
        average_precision_score(np.delete(classes == classes[i], i), np.delete(scores[i], i))
        for i in chosen
    ]
    assert found.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-6)
    altered = workplace / "pad.h5"
    queried = by_layer(compare([path], queries=[altered], sample=4).candidates)["conv3_2"]
    assert (queried.queries, queried.images) == (4, 19)
    scores, own = similarities(vectors(altered, "conv3_2"), x, "cosine"), np.eye(19, dtype=bool)
    precisions = [average_precision_score(own[i], scores[i]) for i in (0, 4, 9, 14)]
    assert queried.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-6)


@pytest.mark.parametrize(
    ("caches", "options", "words"),
    [
        ([], {}, "no caches to compare"),
        (["feats.h5", "feats.h5"], {}, "'.*feats.h5' is given twice"),
        (["feats.h5"], {"queries": ["feats.h5"]}, "'.*feats.h5' is given twice"),
        (["feats.h5", "other.h5"], {"queries": ["pad.h5"]}, "one cache and 2 are given"),
        (["feats.h5"], {"queries": ["pad.h5"], "labels": "l.csv"}, "give --labels or --queries"),
        (["feats.h5"], {"metric": "dot", "sample": 0, "k": (0, 5), "fusions": "some"},
         "unknown metric 'dot'.*unknown fusions 'some'.*sample is 0.*k is 0,5"),
        (["pad.h5"], {"queries": ["other.h5"]},
         "have no conv2_1:max, conv3_2; they have conv1_1, conv4_1: extract the same layers"),
    ],
)  # fmt: skip
def test_wrong_usage(
    workplace: Path, caches: list[str], options: dict[str, Any], words: str
) -> None:
    """Choices that are none, and files that do not go together, are errors that say so."""
    options = {
        name: [workplace / one for one in value] if name == "queries" else value
        for name, value in options.items()
    }
    with pytest.raises(UsageError, match=words):
        compare([workplace / name for name in caches], **options)


def test_queries_of_another_network(workplace: Path, tmp_path: Path) -> None:
    """Queries made with other weights are refused, and the error says what differs."""
    shutil.copytree(workplace / "images", tmp_path / "images")
    extract(tmp_path, "other.h5", layers=",".join(LAYERS), weights="random:1")
    with pytest.raises(CacheMismatchError, match=r"'.*other\.h5' .*: weights: file random:0 "):
        compare([workplace / "feats.h5"], queries=[tmp_path / "other.h5"])


def test_nothing_in_common_and_nothing_to_tell_apart(workplace: Path, tmp_path: Path) -> None:
    """Caches of other images, of no done image, of one class or of maps only are refused."""
    (tmp_path / "images").mkdir()
    shutil.copytree(workplace / "images" / "cat", tmp_path / "images" / "ant")
    extract(tmp_path, "ants.h5", layers="conv1_1,conv2_1:map")
    with pytest.raises(CacheMismatchError, match=r"no image is done in .*of the same images"):
        compare([workplace / "feats.h5", tmp_path / "ants.h5"])
    with pytest.raises(UsageError, match="6 images done the labels make 1 class,"):
        compare([tmp_path / "ants.h5"])
    extract(tmp_path, "maps.h5", layers="conv2_1:map")
    with pytest.raises(UsageError, match=r"no vectors to compare: '.*maps\.h5' hold maps"):
        compare([tmp_path / "maps.h5"])
    with h5py.File(tmp_path / "ants.h5", "r+") as file:
        file["images/state"][:] = 0
    with pytest.raises(CacheMismatchError, match=r"no image of '.*ants\.h5' is done; run"):
        compare([tmp_path / "ants.h5"])


def as_json(found: Comparison) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(found)))


def test_from_the_command_line(workplace: Path) -> None:
    """A table with the best first and bars of its mean average precision; maps are left out."""
    wide = {"COLUMNS": "120", "PYTHONIOENCODING": "utf-8", "PYTHONPROFILEIMPORTTIME": "1"}
    done = vggfeat("compare", "feats.h5", "--k", "3", cwd=workplace, env=wide)
    assert done.returncode == 0, done.stderr
    assert "vggfeat: conv1_1:map of feats.h5 holds maps, not vectors: left out" in done.stderr
    assert "| torch" not in done.stderr
    assert "| matplotlib" not in done.stderr
    head, columns, *rows = done.stdout.splitlines()
    assert (
        head == "18 queries, each for images of its class, of 4 classes, among 19 images, by cosine"
    )
    assert columns.split() == ["layer", "width", "mAP", "NN", "R@3"]
    candidates = compare([workplace / "feats.h5"], k=(3,)).candidates
    assert len(rows) == len(candidates)
    assert max(map(len, rows)) < 120
    for row, candidate in zip(rows, candidates, strict=True):
        name, width, *shares, bar = row.split()
        assert (name, width) == (candidate.name, str(candidate.width))
        assert shares == [f"{share:.3f}" for share in figures(candidate)]
        assert set(bar) <= set("█▏▎▍▌▋▊▉")
        room = 119 - row.index(bar)
        assert len(bar) == pytest.approx(candidate.mean_average_precision * room, abs=1)


def test_a_plain_terminal(workplace: Path) -> None:
    """Where blocks cannot be written bars are of #; where there is no room there are none."""
    env = {"PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = vggfeat("compare", "feats.h5", cwd=workplace, env=env)
    assert done.returncode == 0, done.stderr
    assert "  ####" in done.stdout
    done = vggfeat("compare", "feats.h5", cwd=workplace, env={**env, "COLUMNS": "72"})
    assert "#" not in done.stdout
    assert "  concat(conv1_1,conv2_1:ma...  " in done.stdout


def test_json(workplace: Path) -> None:
    """JSON holds what the library returns, and nothing else is written."""
    words = ["compare", "feats.h5", "--queries", "pad.h5", "--queries", "squash.h5", "--json",
             "--metric", "l2", "--sample", "7", "--fusions", "pairs"]  # fmt: skip
    done = vggfeat(*words, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    altered = [workplace / "pad.h5", workplace / "squash.h5"]
    found = compare(
        [workplace / "feats.h5"], queries=altered, metric="l2", sample=7, fusions="pairs"
    )
    expected = json.dumps(as_json(found)).replace(f"{workplace}/", "")
    assert json.loads(done.stdout) == json.loads(expected)
    done = vggfeat(*words[:6], cwd=workplace)
    assert (
        done.stdout.splitlines()[0]
        == "38 queries, each for its original among 19 images, by cosine"
    )
    assert "\n\npad.h5\n" in done.stdout
    assert "\n\nsquash.h5\n" in done.stdout


def test_the_defaults_are_the_librarys() -> None:
    """What the command does unasked is what the library does unasked."""
    library = inspect.signature(compare).parameters
    ours = inspect.signature(command).parameters
    for name in ("metric", "fusions", "sample"):
        assert ours[name].default == library[name].default
    assert ours["k"].default == ",".join(map(str, library["k"].default))


def test_charts(workplace: Path, tmp_path: Path) -> None:
    """A chart is a picture in the format its name asks for, with every layer and both measures."""
    for form in ("png", "svg", "pdf"):
        done = vggfeat("compare", workplace / "feats.h5", "--chart", f"c.{form}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["c.pdf", "c.png", "c.svg"]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        often = [colour for count, colour in sorted(colours, reverse=True)[:3]]
        assert set(often) == {(255, 255, 255), (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)}
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF-")
    svg = (tmp_path / "c.svg").read_text()
    assert ET.fromstring(svg).tag.endswith("}svg")
    for text in (
        *(f"{name}  (" for name in LAYERS),
        "Finding images of the same class, 4 classes",
        "cosine, 18 queries, 19 images",
        "mean average precision",
        "RANDOM WEIGHTS (seed 0): these features carry no learnt meaning",
    ):
        assert f"<!-- {text}" in svg


def test_charts_that_cannot_be(workplace: Path, tmp_path: Path) -> None:
    """A wrong name, a missing folder or library end at once; a failed write leaves nothing."""
    shutil.copy(workplace / "feats.h5", tmp_path / "f.h5")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "without" / "matplotlib").mkdir(parents=True)
    (tmp_path / "without" / "matplotlib" / "__init__.py").write_text("raise ImportError('gone')")
    before = sorted(os.listdir(tmp_path))
    without = {"PYTHONPATH": os.pathsep.join(["without", os.environ.get("PYTHONPATH", "")])}
    for cache, chart, env, code, words in (
        ("none.h5", "c.gif", {}, 2, "chart 'c.gif' has no known format; end it in .png or .svg"),
        ("none.h5", "none/c.png", {}, 2, "does not exist; create it first"),
        ("none.h5", "c.svg", without, 2, "[plot]'"),
        ("f.h5", "c.png", {}, 2, "'c.png' is a folder, expected a regular file"),
    ):
        done = vggfeat("compare", cache, "--json", "--chart", chart, cwd=tmp_path, env=env)
        assert_one_line(done, code, words)
        assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == before


def test_exit_codes(workplace: Path) -> None:
    """Errors are one line and the exit code of their kind."""
    for code, words, message in (
        (2, ["feats.h5", "--k", "five"], "k is 'five'; expected whole numbers such as 5,10"),
        (2, ["feats.h5", "--metric", "dot"], "unknown metric 'dot'; expected one of cosine, l2"),
        (3, ["pad.h5", "--labels", "none.csv"], "labels 'none.csv' cannot be read"),
        (5, ["images/cat/0.png"], "images/cat/0.png"),
    ):
        assert_one_line(vggfeat("compare", *words, cwd=workplace), code, message)


def test_what_makes_figures_doubtful_is_said(workplace: Path, tmp_path: Path) -> None:
    """Random weights, and other files under the same paths, are warned of and in the notes."""
    assert vggfeat("compare", "feats.h5", cwd=workplace).stderr.count("warning: cache") == 1
    shutil.copytree(workplace / "images", tmp_path / "images")
    for name in ("cat/0.png", "dog/1.png"):
        Image.new("RGB", (48, 40), "red").save(tmp_path / "images" / name)
    extract(tmp_path, "changed.h5", layers="conv3_2")
    notes = compare([workplace / "feats.h5", tmp_path / "changed.h5"]).notes
    assert [note.partition("RANDOM WEIGHTS")[1] for note in notes[:2]] == ["RANDOM WEIGHTS"] * 2
    assert notes[2].startswith("2 of 20 images that ")
    assert notes[2].endswith(
        "under the same paths have other contents there; images are compared by path"
    )
    same = compare([workplace / "feats.h5", workplace / "other.h5"]).notes
    assert len(same) == 2
