"""Queries of every kind: paths, images in memory, vectors; one is one, and is not iterated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from caches_to_search import cache_of, noise
from PIL import Image

import vggfeat
from vggfeat.errors import TooManyFailuresError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from vggfeat.retrieval.search import SearchResult

SETTINGS = vggfeat.Settings(
    layers="conv1_1,conv2_1:max", model="vgg11", weights="random:0", size=32, device="cpu",
    precision="float32", dtype="float32", workers=0, batch_size=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 256, (40 + number, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    vggfeat.extract(folder / "images", folder / "f.h5", SETTINGS)
    return folder


def found(folder: Path, *queries: Any, **more: Any) -> SearchResult:
    chosen = {"layers": "conv1_1", "top": 4, "device": "cpu", **more}
    return vggfeat.search(folder / "f.h5", *queries, **chosen)


def rows_and_scores(result: SearchResult, answer: int = 0) -> list[tuple[int, float]]:
    return [(hit.row, hit.score) for hit in result.answers[answer].hits]


def test_one_query_of_any_kind(folder: Path) -> None:
    """A path, an opened image, an array, bytes and a vector find what the row itself finds."""
    path = folder / "images" / "2.png"
    right = rows_and_scores(found(folder, [path]))
    assert right[0][0] == 2
    with Image.open(path) as opened:
        array = np.asarray(opened)
        kinds: list[Any] = [path, str(path), opened, array, path.read_bytes(), opened.copy()]
        kinds.append(torch.from_numpy(array.copy()).permute(2, 0, 1))
        for kind in kinds:
            result = found(folder, kind)
            assert len(result.answers) == 1
            assert rows_and_scores(result) == right
        named = found(folder, opened)
        assert named.answers[0].query == str(path)
        assert named.answers[0].hits[0].is_self
    vector = vggfeat.open(folder / "f.h5")["conv1_1"][2]
    for given in (vector, vector[None], vector.tolist(), torch.from_numpy(vector.copy())):
        assert rows_and_scores(found(folder, vectors=given)) == right


def test_a_mix_of_queries(folder: Path) -> None:
    """Files come first, sorted, then images in memory, vectors and rows; each says what it is."""
    paths = [folder / "images" / f"{number}.png" for number in (3, 1)]
    array = np.asarray(Image.open(folder / "images" / "0.png").convert("RGB"))
    features = vggfeat.Extractor(SETTINGS)(paths[0])
    result = found(folder, [paths[0], array, paths[1], b"no image"], vectors=features, rows=2)
    names = [answer.query for answer in result.answers]
    assert names == [str(paths[1]), str(paths[0]), "images[1]", "vectors[0]", "2.png"]
    assert [answer.hits[0].row for answer in result.answers[:4]] == [1, 3, 0, 3]
    assert [(failed.path, failed.reason) for failed in result.failures] == [
        ("images[3]", "not an image Pillow can read")
    ]
    several = found(folder, vectors=features, layers=["conv2_1:max", "conv1_1"])
    assert several.answers[0].hits[0].row == 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "width": (
        {"vectors": np.ones((2, 9))},
        r"conv1_1 have shape \(2, 9\); expected \(queries, 8\)",
    ),
    "axes": ({"vectors": np.ones((1, 2, 8))}, r"shape \(1, 2, 8\); expected \(queries, 8\)"),
    "text": ({"vectors": ["a"]}, "vectors for conv1_1 are no array of numbers"),
    "NaN": ({"vectors": np.full(8, np.nan)}, "values that are not finite"),
    "layer": ({"vectors": {"conv2_1": np.ones(4)}}, "no vectors for conv1_1; .* for conv2_1"),
    "layers": (
        {"vectors": np.ones(8), "layers": ["conv1_1", "conv2_1"]},
        "vectors are of one layer, and conv1_1, conv2_1 are searched; expected a mapping",
    ),
    "unequal": (
        {
            "vectors": {"conv1_1": np.ones((2, 8)), "conv2_1": np.ones(4)},
            "layers": ["conv1_1", "conv2_1"],
        },
        "vectors are 2 for conv1_1, 1 for conv2_1; expected equally many",
    ),
    "nothing": ({}, "no query"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_vectors_are_refused(kind: str, tmp_path: Path) -> None:
    """Each says what was expected and what was found."""
    options, message = REFUSED[kind]
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(5, 8), "conv2_1": noise(5, 4)})
    with pytest.raises(UsageError, match=message):
        vggfeat.search(cache, **{"layers": "conv1_1", **options})


def test_no_image_among_those_in_memory(folder: Path) -> None:
    """If none can be decoded, the error names the first."""
    with pytest.raises(TooManyFailuresError, match=r"the first, 'images\[0\]': array of shape"):
        found(folder, [np.zeros((3, 40, 90))])


def test_one_path_is_one_elsewhere_too(folder: Path) -> None:
    """Functions that take several caches or layers take one by itself."""
    cache = folder / "f.h5"
    merged = vggfeat.merge(str(cache), folder / "copy.h5")
    assert merged.rows == 4
    exported = vggfeat.export(cache, folder / "f.npy", to="npy", layers="conv1_1")
    assert exported.layers == ("conv1_1",)
