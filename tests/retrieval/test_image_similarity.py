"""Similarity of vectors and images: SciPy's figures, torchvision's features, plain output."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from caches_to_search import cache_of, noise
from command_line import SMALL, assert_one_line, vggfeat, write_images
from PIL import Image
from scipy.spatial.distance import cdist

import vggfeat as library
from vggfeat.errors import CacheError, DecodeError, InputError, TooManyFailuresError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS = "conv1_1,conv2_1:max"


def unit(x: NDArray[Any]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    found: NDArray[np.float64] = x / lengths
    return found


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor, lambda x: x.tolist()])
@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw"])
def test_vectors_are_compared_as_by_scipy(make: Any, metric: Any) -> None:
    """Each with each, row by row, one with many, and one with one; of any length."""
    a, b = noise(3, 20), 100 * noise(3, 20, seed=1)
    right = {
        "cosine": 1 - cdist(a, b, "cosine"),
        "l2": 1 / (1 + cdist(unit(a), unit(b), "euclidean")),
        "l2-raw": 1 / (1 + cdist(a.astype(float), b.astype(float), "euclidean")),
    }[metric]
    x, y = make(a), make(b)
    near: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
    found: Any = library.similarity(x, y, metric, pairwise=True)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, right, **near)
    np.testing.assert_allclose(library.similarity(x, y, metric), right.diagonal(), **near)
    np.testing.assert_allclose(library.similarity(x[0], y, metric), right[0], **near)
    np.testing.assert_allclose(library.similarity(x, y[2], metric), right[:, 2], **near)
    one = library.similarity(x[1], y[2], metric)
    assert isinstance(one, float)
    assert one == pytest.approx(right[1, 2], abs=1e-12)


def test_ends_of_the_scale() -> None:
    """Equal directions are 1 whatever their length, opposite ones -1 and 1/3; zeros are no NaN."""
    x = np.array([3.0, 4.0])
    assert library.similarity(x, 7 * x) == 1
    assert library.similarity(x, 1e300 * x) == 1
    assert library.similarity(x, x * 7, "l2") == 1
    assert library.similarity(x, -x) == -1
    assert library.similarity(x, -x, "l2") == pytest.approx(1 / 3)
    assert library.similarity(x, 0 * x) == 0
    assert library.similarity(x, 0 * x, "l2") == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        ([1, 2], [1, 2, 3], {}, ["(2,)", "(3,)", "one length"]),
        (np.eye(3), np.eye(3)[:2], {}, ["3 vectors", "2", "pairwise=True"]),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), {}, ["(2, 3, 4)", "(N, D)", "reshape"]),
        ([1, np.nan], [1, 2], {}, ["a holds values that are not finite"]),
        (["1"], [1], {}, ["images"]),
        ([[1], [2, 3]], [1], {}, ["a is no array of numbers"]),
        (np.array([1 + 1j]), [1], {}, ["complex128"]),
        (np.array([1], np.int8), [1], {}, ["int8", "FeatureCache.values"]),
        ([1], [1], {"metric": "manhattan"}, ["manhattan", "cosine, l2"]),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(a: Any, b: Any, options: Any, words: list[str]) -> None:
    """Says what was found, what was expected, and what to do."""
    with pytest.raises(UsageError) as failed:
        library.similarity(a, b, **options)
    assert all(word in str(failed.value) for word in words), failed.value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 36 x 48, a file that is none, and a cache of two layers of the images."""
    folder = tmp_path_factory.mktemp("similarity")
    write_images(folder / "images", 4)
    done = vggfeat("extract", "images", *SMALL, "--dtype", "float32", "--out", "f.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "bad.jpg").write_text("no image")
    return folder


def by_torchvision(features: Any, images: list[Image.Image]) -> list[NDArray[np.float64]]:
    """Mean of conv1_1 and maximum of conv2_1, of images of the network's size."""
    to_tensor = torchvision.transforms.ToTensor()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalise = torchvision.transforms.Normalize(mean, std)
    x = torch.stack([normalise(to_tensor(image)) for image in images])
    with torch.inference_mode():
        shallow, deep = features[:2](x), features[:5](x)
    return [shallow.mean((2, 3)).double().numpy(), deep.amax((2, 3)).double().numpy()]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_images_are_compared_by_the_features_of_torchvision(metric: Any) -> None:
    """By each layer and together, as the cosine or distance of torchvision's own activations."""
    torch.manual_seed(0)
    vgg = torchvision.models.vgg
    features = vgg.make_layers(vgg.cfgs["A"])  # of vgg11, without the 500 MB behind them
    weights: Any = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(one) for one in pixels]
    parts = [unit(x) for x in by_torchvision(features, images)]
    settings = library.Settings(
        layers=LAYERS, model="vgg11", weights=weights, size=32, device="cpu",
        precision="float32", crop="squash",
    )  # fmt: skip
    found = library.similarity_matrix(
        images, metric=metric, settings=settings, layer_weights=(3, 1)
    )
    assert (found.images[2], found.layers) == ("images[2]", ("conv1_1", "conv2_1:max"))
    assert found.weights == (0.75, 0.25)
    joined = np.concatenate([0.75**0.5 * parts[0], 0.25**0.5 * parts[1]], 1)
    scores = [x @ x.T if metric == "cosine" else cdist(x, x, "euclidean") for x in (*parts, joined)]
    for layer, right in zip((*found.layers, None), scores, strict=True):
        own = found.combined if layer is None else found.scores[layer]
        np.testing.assert_allclose(own, right, atol=2e-6)
        alike = right if metric == "cosine" else 1 / (1 + right)
        np.testing.assert_allclose(found.similarities(layer), alike, atol=2e-6)
    one = library.similarity(images[0], images[2], metric, settings=settings, layer_weights=(3, 1))
    assert one == pytest.approx(found.similarities()[0, 2], abs=1e-6)


def test_images_of_any_kind_one_or_many(place: Path) -> None:
    """Paths, PIL images and bytes; one with many, row by row, each with each."""
    settings = library.Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu"
    )
    files = [place / "images" / f"0{number}.png" for number in range(4)]
    with Image.open(files[1]) as opened:
        opened.load()
    kinds = [files[0], opened, files[2].read_bytes(), str(files[3])]
    x = library.open(place / "f.h5").values("conv1_1")
    right = library.similarity(x, x, pairwise=True)
    assert isinstance(right, np.ndarray)
    each: Any = library.similarity(kinds, kinds[:2], pairwise=True, settings=settings)
    np.testing.assert_allclose(each, right[:, :2], atol=1e-5)
    first: Any = library.similarity(kinds[0], kinds[1:], settings=settings)
    np.testing.assert_allclose(first, right[0, 1:], atol=1e-5)
    beside: Any = library.similarity(kinds[:2], kinds[2:], settings=settings)
    np.testing.assert_allclose(beside, right[[0, 1], [2, 3]], atol=1e-5)
    cached = library.similarity(files[0], kinds[3], cache=place / "f.h5", layers=["conv1_1"])
    assert cached == pytest.approx(right[0, 3], abs=1e-5)
    assert library.similarity(files[0], files[0], settings=settings) == pytest.approx(1)


def test_images_that_cannot_be_compared(place: Path) -> None:
    """A damaged image, a missing one, a folder for one image, and choices that contradict."""
    a, settings = place / "images" / "00.png", library.Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu"
    )  # fmt: skip
    with pytest.raises(DecodeError, match=r"bad\.jpg.*not an image"):
        library.similarity(a, place / "bad.jpg", settings=settings)
    with pytest.raises(TooManyFailuresError, match="no two can be compared"):
        library.similarity_matrix([a, place / "bad.jpg"], settings=settings)
    with pytest.raises(InputError, match=r"none\.png"):
        library.similarity(a, place / "none.png", settings=settings)
    with pytest.raises(UsageError, match="2 images are given and 5 found"):
        library.similarity(a, place / "images", settings=settings)
    with pytest.raises(UsageError, match="1 image to compare"):
        library.similarity_matrix(a, settings=settings)
    with pytest.raises(UsageError, match="leave settings out"):
        library.similarity(a, a, cache=place / "f.h5", settings=settings)
    with pytest.raises(UsageError, match="layers given beside settings"):
        library.similarity(a, a, layers="fc7", settings=settings)
    with pytest.raises(UsageError, match="2 weights for 1 layer"):
        library.similarity(a, a, settings=settings, layer_weights=(1, 2))
    with pytest.raises(UsageError, match="a is of images"):
        library.similarity(a, [1, 2])
    with pytest.raises(CacheError, match="no layer 'conv5_1'"):
        library.similarity(a, a, cache=place / "f.h5", layers="conv5_1")
    with pytest.raises(TypeError, match="settings"):
        library.similarity([1], [1], settings=settings)
    with pytest.raises(TypeError, match="layer'"):
        library.similarity(a, a, settings=settings, layer="fc7")
    maps = library.Settings(
        layers="conv1_1:map", model="vgg11", weights="random:0", size=32, device="cpu"
    )
    with pytest.raises(UsageError, match=r"conv1_1:map holds maps.*flatten"):
        library.similarity(a, a, settings=maps)


def test_the_command_compares_two_images(place: Path) -> None:
    """A row for each layer and one for all, the scale in words, and a warning of the weights."""
    words = ["images/00.png", "images/01.png", *SMALL[:-4], "--precision", "float32"]
    done = vggfeat("similarity", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "RANDOM WEIGHTS" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "images/00.png and images/01.png"
    assert lines[1].split() == ["layer", "cosine"]
    shown = {line.split()[0]: float(line.split()[1]) for line in lines[2:5]}
    cache = library.open(place / "f.h5")
    right = [
        float((unit(cache.values(layer)) @ unit(cache.values(layer)).T)[0, 1])
        for layer in ("conv1_1", "conv2_1:max")
    ]
    assert shown["conv1_1"] == pytest.approx(right[0], abs=1e-4)
    assert shown["conv2_1:max"] == pytest.approx(right[1], abs=1e-4)
    assert shown["combined"] == pytest.approx(np.mean(right), abs=1e-4)
    assert lines[5].startswith("cosine: 1 for equal vectors")


def test_the_command_compares_many_images(place: Path) -> None:
    """The first with the others or each with each; failures are named; JSON and CSV agree."""
    files = ["images/01.png", "images/00.png", "bad.jpg", "images/02.png"]
    words = ["similarity", *files, *SMALL[:-4], "--metric", "l2"]
    table = vggfeat(*words, cwd=place)
    assert "bad.jpg" in table.stderr
    head, *rows = [line.split() for line in table.stdout.splitlines()[1:-1]]
    assert head == ["conv1_1", "conv2_1:max", "combined", "image"]
    assert [row[-1] for row in rows] == ["images/00.png", "images/02.png"]
    pairs = vggfeat(*words, "--all-pairs", cwd=place).stdout.splitlines()[2:-1]
    assert [line.split()[-2:] for line in pairs][-1] == ["images/00.png", "images/02.png"]
    found = json.loads(vggfeat(*words, "--json", cwd=place).stdout)
    assert [failure["path"] for failure in found["failures"]] == ["bad.jpg"]
    assert "RANDOM WEIGHTS" in found["warning"]
    assert [f"{pair['similarity']:.4f}" for pair in found["pairs"]] == [row[2] for row in rows]
    comma = vggfeat(*words, "--csv", cwd=place)
    assert "RANDOM WEIGHTS" in comma.stderr
    records = list(csv.DictReader(io.StringIO(comma.stdout)))
    assert [record["layer"] for record in records[:3]] == ["conv1_1", "conv2_1:max", "combined"]
    assert float(records[2]["score"]) == pytest.approx(found["pairs"][0]["score"], rel=1e-6)
    score, alike = (float(records[0][name]) for name in ("score", "similarity"))
    assert alike == pytest.approx(1 / (1 + score), rel=1e-5)


def test_the_command_compares_rows_of_a_cache(place: Path) -> None:
    """Images are computed as the cache's were, rows come from the file, layers are the cache's."""
    words = ["similarity", "images/02.png", "--row", "02.png", "--row", "03.png", "--cache", "f.h5"]
    found = json.loads(vggfeat(*words, "--json", cwd=place).stdout)
    assert found["images"] == ["images/02.png", "02.png", "03.png"]
    assert found["layers"] == ["conv1_1", "conv2_1:max"]
    assert found["pairs"][0]["score"] == pytest.approx(1, abs=1e-6)
    rows = library.similarity_matrix(rows=["02.png", 3], cache=place / "f.h5", layers="conv1_1")
    assert rows.combined[0, 1] == pytest.approx(
        found["pairs"][1]["layers"]["conv1_1"]["score"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["images/00.png", "bad.jpg"], 4, "bad.jpg"),
        (["--row", "00.png", "--row", "01.png"], 2, "--cache"),
        (["--row", "00.png", "--row", "01.png", "--cache", "f.h5", "--size", "64"], 2, "--size"),
        (["images/00.png", "images/01.png", "--json", "--csv"], 2, "two forms"),
    ],
)
def test_wrong_commands_are_one_line(place: Path, words: list[str], code: int, said: str) -> None:
    network = [] if "--cache" in words else SMALL[:-4]
    assert_one_line(vggfeat("similarity", *words, *network, cwd=place), code, said)


def test_a_cache_of_int8_is_compared_by_its_values(tmp_path: Path) -> None:
    """Rows are what the codes stand for."""
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(3, 64)}, "int8")
    found = library.similarity_matrix(rows=range(3), cache=cache)
    x = unit(cache.values("conv1_1"))
    np.testing.assert_allclose(found.combined, x @ x.T, atol=1e-9)
