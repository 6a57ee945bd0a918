"""Searching: every figure is NumPy's or scikit-learn's, queries go the way the cache was made."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from caches_to_search import cache_of, noise, scored
from command_line import SMALL, assert_one_line, vggfeat, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

import vggfeat as library
from vggfeat.errors import CacheError, UsageError
from vggfeat.retrieval import exact_search as scan
from vggfeat.retrieval import similarity as blocks
from vggfeat.retrieval.blas_threads import single_threaded
from vggfeat.retrieval.exact_search import nearest, top_k
from vggfeat.retrieval.similarity import LayerQuery

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS = ("conv1_1", "conv2_1:max")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw", "dot"])
def test_the_nearest_are_those_of_scikit_learn(tmp_path: Path, dtype: str, metric: Any) -> None:
    """Rows and distances are those of scikit-learn's brute force over the same values."""
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(3000, 64)}, dtype)
    queries = noise(5, 64, seed=1)
    x = cache.values("conv1_1")
    rows, scores = top_k(cache, "conv1_1", queries, 9, metric)
    assert (str(rows.dtype), str(scores.dtype), rows.shape) == ("int64", "float32", (5, 9))
    if metric == "dot":
        right = np.argsort(-scored(x, queries, metric), axis=1)[:, :9]
        values = np.take_along_axis(scored(x, queries, metric), right, 1)
    else:
        name = "cosine" if metric == "cosine" else "euclidean"
        ready = normalize if metric == "l2" else np.asarray
        brute = NearestNeighbors(n_neighbors=9, metric=name, algorithm="brute")
        brute.fit(ready(x.astype(np.float64)))
        distances, right = brute.kneighbors(ready(queries.astype(np.float64)))
        values = 1 - distances if metric == "cosine" else distances
    np.testing.assert_array_equal(rows, right)
    np.testing.assert_allclose(scores, values, rtol=1e-6, atol=1e-6)


def test_every_float16_becomes_the_float32_it_is() -> None:
    """All 63,488 finite numbers of float16 come out as NumPy converts them, to the bit."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    grid = halves[np.isfinite(halves)].reshape(64, -1)
    for some in (grid, grid[:, ::-1].copy(), np.abs(grid)):
        found = blocks.to_float32(some, np.empty(some.shape, np.float32))
        np.testing.assert_array_equal(
            found.view(np.uint32), some.astype(np.float32).view(np.uint32)
        )


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.tuples(*[st.integers(-2, 2)] * 2), min_size=1, max_size=60
    ),
    metric=st.sampled_from(["cosine", "l2", "l2-raw", "dot"]),
    k=st.integers(1, 12),
    threads=st.integers(1, 4),
    size=st.integers(1, 16),
    kept=st.sampled_from([1, 1 << 20]),
)  # fmt: skip
def test_ties_stand_by_row_whatever_the_blocks_and_threads(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    values: list[tuple[int, int]],
    metric: Any,
    k: int,
    threads: int,
    size: int,
    kept: int,
) -> None:
    """Among equal scores the lower row comes first, with any blocks, threads and short lists."""
    x = np.array(values, np.float32)
    cache = cache_of(tmp_path_factory.getbasetemp() / "ties.h5", {"conv1_1": x})
    queries = np.array([[1, 0], [1, 1], [-2, 1]], np.float32)
    shown = scored(x, queries, metric).astype(np.float32)
    right = np.argsort(-shown, axis=1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_VALUES", 2 * size)
        patch.setattr(scan, "_MOST_KEPT", kept)
        found = nearest(cache, [LayerQuery("conv1_1", queries)], k, metric, threads=threads)
    values_found = np.take_along_axis(shown, found.rows, 1) * (-1 if metric.startswith("l2") else 1)
    np.testing.assert_allclose(found.scores, values_found, atol=1e-6)
    # Rows equal to the bit are ordered by row; others within a rounding error may be either way.
    np.testing.assert_allclose(
        np.take_along_axis(shown, right, 1), np.take_along_axis(shown, found.rows, 1), atol=1e-6
    )
    for one in found.rows:
        for first, second in pairwise(one):
            assert first < second or not np.array_equal(x[first], x[second])
    twins = [
        [row for row in range(len(x)) if np.array_equal(x[row], x[last])]
        for last in found.rows[:, -1]
    ]
    for one, group in zip(found.rows.tolist(), twins, strict=True):
        inside = [row for row in group if row in one]
        assert inside == group[: len(inside)]


def test_far_from_the_origin_nothing_is_lost(tmp_path: Path) -> None:
    """Where float32 cannot tell distances apart at all, the result is float64's all the same."""
    x = 3000 + 2 * np.random.default_rng(0).integers(-1, 2, (2000, 256)).astype(np.float32)
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": x})
    rows, scores = top_k(cache, "conv1_1", x[:3], 5, "l2-raw")
    distances = -scored(x, x[:3], "l2-raw").astype(np.float32)
    np.testing.assert_array_equal(rows, np.argsort(distances, axis=1, kind="stable")[:, :5])
    np.testing.assert_array_equal(scores, np.sort(distances, axis=1)[:, :5])


def test_only_rows_that_are_done_and_asked_for(tmp_path: Path) -> None:
    """Failed, pending and removed rows are never found; `rows` narrows, and few are few."""
    x = noise(40, 8)
    x[3], x[5] = np.nan, np.inf
    states = [1] * 40
    states[3], states[4], states[5] = 2, 0, 3
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": x}, states=states)
    done = np.flatnonzero(cache.done)
    for metric in blocks.METRICS:
        rows, scores = top_k(cache, "conv1_1", x[:2], 100, metric)
        assert rows.shape == (2, 37)
        assert sorted(rows[0].tolist()) == done.tolist()
        assert np.isfinite(scores).all()
    rows, _ = top_k(cache, "conv1_1", x[:1], 5, rows=np.array([30, 7, 7, 12]))
    assert sorted(rows[0].tolist()) == [7, 12, 30]
    found = nearest(cache, [LayerQuery("conv1_1", x[:2])], 37, left_out=np.array([0, -1]))
    assert found.rows[0, -1] == -1
    assert 0 not in found.rows[0]
    assert found.rows[1].min() == 0


def test_zero_vectors_have_cosine_zero(tmp_path: Path) -> None:
    """A row or a query of zeros is near nothing, and breaks nothing."""
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": np.array([[0, 0], [1, 0], [-1, 0]], "f4")})
    rows, scores = top_k(cache, "conv1_1", np.array([[2, 0], [0, 0]], np.float32), 3)
    assert rows.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert scores.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_several_layers_are_a_weighted_mean(tmp_path: Path) -> None:
    """Scores are the mean of cosines, or the distance of the vectors that fuse would make."""
    layers = {"conv1_1": noise(300, 16), "conv2_1:max": noise(300, 48, seed=1)}
    cache = cache_of(tmp_path / "f.h5", layers, "float32")
    asked = [LayerQuery(name, rows[:4], weight) for (name, rows), weight in
             zip(layers.items(), (3, 1), strict=True)]  # fmt: skip
    joined, stored = (
        np.hstack(
            [np.sqrt(share) * ready(rows.astype(np.float64)) for rows, share in
             zip(layers.values(), (0.75, 0.25), strict=True)]
        )
        for ready in (normalize, np.asarray)
    )  # fmt: skip
    for metric, sign in (("cosine", 1), ("l2", -1), ("l2-raw", -1)):
        found = nearest(cache, asked, 6, metric)  # type: ignore[arg-type] # of METRICS
        x = stored if metric == "l2-raw" else joined
        right = scored(x, x[:4], "l2-raw" if metric == "l2" else metric)
        np.testing.assert_array_equal(found.rows, np.argsort(-right, axis=1)[:, :6])
        np.testing.assert_allclose(sign * found.scores, -np.sort(-right, axis=1)[:, :6], atol=1e-6)
    found = nearest(cache, asked, 6, "dot")
    products = [scored(rows, rows[:4], "dot") for rows in layers.values()]
    right = 0.75 * products[0] + 0.25 * products[1]
    np.testing.assert_array_equal(found.rows, np.argsort(-right, axis=1)[:, :6])


def test_a_distance_means_one_thing(tmp_path: Path) -> None:
    """One layer, the same beside one of no weight, a pair and a near-duplicate: one distance."""
    layers = {"conv1_1": 40 * np.abs(noise(30, 16)), "conv2_1:max": noise(30, 48, seed=1)}
    cache = cache_of(tmp_path / "f.h5", layers, "float32")
    x = normalize(layers["conv1_1"].astype(np.float64))
    right = np.linalg.norm(x - x[0], axis=1)
    order = np.argsort(right)[1:4]
    for names, weights in ((["conv1_1"], ()), (list(layers), (1, 0))):
        found = library.search(
            cache, rows=0, layers=names, weights=weights, metric="l2", top=3
        )  # fmt: skip
        hits = found.answers[0].hits
        assert [hit.row for hit in hits] == order.tolist()
        assert [hit.score for hit in hits] == pytest.approx(right[order].tolist(), abs=1e-6)
    rows = cache.values("conv1_1")
    alike = library.similarity(rows[0], rows[order], "l2")
    np.testing.assert_allclose(alike, [hit.similarity for hit in hits], atol=1e-6)
    pair = cache_of(tmp_path / "two.h5", {"conv1_1": layers["conv1_1"][[0, order[0]]]}, "float32")
    (group,) = library.duplicates(pair, threshold=2, metric="l2").groups
    assert group.score == pytest.approx(right[order[0]], abs=1e-6)


def test_products_are_single_threaded_for_a_while() -> None:
    """NumPy's products have one thread within the block, and as many as before behind it."""
    threadpoolctl = pytest.importorskip("threadpoolctl")  # comes with scikit-learn

    def threads() -> list[int]:
        return [
            one["num_threads"] for one in threadpoolctl.threadpool_info()
            if one["internal_api"] == "openblas" and "numpy" in one["filepath"]
        ]  # fmt: skip

    before = threads()
    with single_threaded() as alone, single_threaded():
        if not alone:
            pytest.skip("no OpenBLAS")
        assert threads() == [1] * len(before)
    assert threads() == before


@pytest.mark.parametrize(
    ("queries", "options", "words"),
    [
        (np.zeros((1, 9)), {}, r"queries for conv1_1 have shape \(1, 9\); expected \(queries, 8\)"),
        (np.full((1, 8), np.nan), {}, "hold values that are not finite"),
        (np.zeros((1, 8)), {"k": 0}, "top is 0"),
        (np.zeros((1, 8)), {"metric": "hamming"}, "unknown metric 'hamming'; expected one of"),
        (np.zeros((1, 8)), {"rows": np.array([99])}, "rows from 99 to 99 are requested"),
        (np.zeros((1, 8)), {"layer": "conv2_1:map"}, "conv2_1:map of cache .* holds maps"),
    ],
)
def test_wrong_queries(
    tmp_path: Path, queries: NDArray[np.float32], options: dict[str, Any], words: str
) -> None:
    """What cannot be searched with is refused with what was expected."""
    maps = noise(10, 18).reshape(10, 2, 3, 3)
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(10, 8), "conv2_1:map": maps})
    with pytest.raises(UsageError, match=words):
        top_k(cache, **{"layer": "conv1_1", "queries": queries, "k": 3, **options})
    with pytest.raises(CacheError, match="no layer 'conv3_1'"):
        top_k(cache, "conv3_1", np.zeros((1, 8), np.float32), 1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in two folders, one of them broken, and caches of them made in several ways."""
    folder = tmp_path_factory.mktemp("search")
    write_images(folder / "images" / "a", 6)
    write_images(folder / "b", 12)
    (folder / "b").rename(folder / "images" / "b")
    for number in range(6):  # the same pixels as in a
        (folder / "images" / "b" / f"{number:02}.png").unlink()
    (folder / "images" / "b" / "broken.png").write_bytes(b"no image")
    for name, more in MADE.items():
        done = vggfeat("extract", "images", *SMALL, *more, "--out", f"{name}.h5", cwd=folder)
        assert done.returncode == 0, done.stderr
    for words in (
        ["fuse", "feats.h5", "--out", "joined.h5"],
        ["fuse", "feats.h5", "--norm", "standard", "--out", "standard.h5"],
        ["reduce", "feats.h5", "--dims", "4", "--layers", "conv1_1", "--out", "short.h5"],
        ["reduce", "feats.h5", "--method", "keep", "--dtype", "float32", "--out", "kept.h5"],
        ["reduce", "joined.h5", "--dims", "3", "--out", "chain.h5"],
        ["reduce", "fly.h5", "--dims", "3", "--out", "flown.h5"],
        ["reduce", "standard.h5", "--dims", "5", "--out", "fitted.h5"],
    ):
        done = vggfeat(*words, cwd=folder)
        assert done.returncode == 0, (words, done.stderr)
    return folder


MADE: dict[str, list[str]] = {
    "feats": [],
    "pad": ["--crop", "pad", "--size", "48", "--layers", "conv2_1:gem"],
    "whole": ["--crop", "none", "--layers", "conv2_1"],
    "half": ["--precision", "bfloat16", "--layers", "conv3_1"],
    "codes": ["--dtype", "int8", "--layers", "conv1_1"],
    "fly": ["--fuse", "weighted(2,1)"],
}


@pytest.mark.parametrize(
    ("cache", "layer"),
    [
        ("feats", "conv1_1"), ("feats", "conv2_1:max"), ("pad", None), ("whole", None),
        ("half", None), ("codes", None), ("fly", None), ("joined", None), ("standard", None),
        ("short", None), ("kept", "conv2_1:max"),
        ("chain", None), ("flown", None), ("fitted", None),
    ],
)  # fmt: skip
def test_an_image_of_the_cache_finds_itself(workplace: Path, cache: str, layer: str | None) -> None:
    """Whatever a cache was made with, its own images come back first, at a cosine of 1."""
    words = ["--layer", layer] if layer else []
    done = vggfeat(
        "search", f"{cache}.h5", "images", *words, "--top", "1", "--json", "--device", "cpu",
        cwd=workplace,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["answers"]) == 12
    for answer in found["answers"]:
        (hit,) = answer["hits"]
        assert answer["query"] == f"images/{hit['path']}"
        assert hit["score"] >= 0.9999
    assert [one["path"] for one in found["failures"]] == ["images/b/broken.png"]
    assert "warning: query images/b/broken.png: not an image" in done.stderr


def test_an_altered_cache_is_searched_with_images_as_they_are(
    workplace: Path, tmp_path: Path
) -> None:
    """Queries to a cache of altered images are not altered themselves."""
    done = vggfeat("extract", workplace / "images", *SMALL, "--augment", "invert", "--out", "i.h5",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    query = workplace / "images" / "a" / "02.png"
    found = library.search(tmp_path / "i.h5", [query], layers=["conv1_1"], top=12, device="cpu")
    cache = library.open(tmp_path / "i.h5")
    plain = library.open(workplace / "feats.h5").values("conv1_1", np.array([2]))
    right = scored(cache.values("conv1_1")[cache.done], plain, "cosine")[0]
    shown = [hit.score for hit in found.answers[0].hits]
    np.testing.assert_allclose(shown, -np.sort(-right), atol=1e-3)  # stored as float16


def test_rows_as_queries_leave_themselves_out_and_need_no_torch(workplace: Path) -> None:
    """An image of the cache finds the others, in the same order as NumPy, without torch."""
    done = vggfeat(
        "search", "feats.h5", "--row", "a/03.png", "--row", "b/07.png", "--layer", "conv1_1",
        "--json", "--top", "99", cwd=workplace, env={"PYTHONPROFILEIMPORTTIME": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| torch" not in done.stderr
    cache = library.open(workplace / "feats.h5")
    names = [cache.name(row) for row in np.flatnonzero(cache.done).tolist()]
    x = cache.values("conv1_1")[cache.done]
    assert json.loads(done.stdout)["warning"].startswith("RANDOM WEIGHTS")
    for answer in json.loads(done.stdout)["answers"]:
        own = names.index(answer["query"])
        scores = scored(x, x[own : own + 1], "cosine")[0]
        right = [names[at] for at in np.argsort(-scores, kind="stable") if at != own]
        assert [hit["path"] for hit in answer["hits"]] == right
        assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 12))


def test_tables_and_csv(workplace: Path) -> None:
    """Distances come with a similarity of 1/(1+d); a narrow terminal cuts paths from the left."""
    words = ["search", "feats.h5", "--row", "a/03.png", "--layers", "conv1_1,relu2_1:max",
             "--layer-weights", "3,1", "--metric", "l2", "--top", "2"]  # fmt: skip
    done = vggfeat(*words, cwd=workplace, env={"COLUMNS": "120"})
    warning = "cache 'feats.h5': RANDOM WEIGHTS (seed 0): these features carry no learnt meaning"
    assert done.stderr == f"vggfeat: warning: {warning}\n"
    head, _, query, columns, *rows = done.stdout.splitlines()
    assert head == (
        "12 images searched by conv1_1 0.75, conv2_1:max 0.25, L2 distance at unit length"
    )
    assert (query, columns.split()) == ("a/03.png", ["rank", "distance", "similarity", "path"])
    found = library.search(
        workplace / "feats.h5", rows=["a/03.png"], layers=LAYERS, weights=(3, 1), metric="l2", top=2
    )
    for row, hit in zip(rows, found.answers[0].hits, strict=True):
        assert row.split() == [str(hit.rank), f"{hit.score:.4f}", f"{hit.similarity:.4f}", hit.path]
        assert hit.similarity == pytest.approx(1 / (1 + hit.score))
    done = vggfeat(*words, "--csv", cwd=workplace)
    assert done.stderr == f"vggfeat: warning: {warning}\n"
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [line["path"] for line in table] == [hit.path for hit in found.answers[0].hits]
    assert float(table[0]["score"]) == pytest.approx(found.answers[0].hits[0].score, rel=1e-6)
    long = workplace / "images" / ("x" * 60)
    shutil.copytree(workplace / "images" / "a", long / "y")
    try:
        done = vggfeat("extract", long, *SMALL, "--root", "images", "--out", "long.h5",
                       cwd=workplace)  # fmt: skip
        assert done.returncode == 0, done.stderr
        done = vggfeat("search", "long.h5", "--row", f"{'x' * 60}/y/00.png", "--layer", "conv1_1",
                       cwd=workplace, env={"COLUMNS": "40"})  # fmt: skip
    finally:
        shutil.rmtree(long)
    lines = done.stdout.splitlines()[3:]
    assert max(map(len, lines)) < 40
    assert all(line.endswith(".png") for line in lines[1:])


def test_the_weights_must_be_those_of_the_cache(workplace: Path, tmp_path: Path) -> None:
    """Other weights are exit 5, weights that are gone exit 3, and --weights finds them."""
    from vggfeat.core.vgg_layers import layer_table
    from vggfeat.network.weights import load_tensors

    weights = library.Extractor(
        library.Settings(layers="conv1_1", model="vgg11", weights="random:0", device="cpu")
    ).weights
    convolutions = [layer for layer in layer_table("vgg11") if layer.name in ("conv1_1", "conv2_1")]
    tensors = load_tensors(weights, "vgg11", tuple(convolutions))
    torch.save(tensors, tmp_path / "mine.pth")
    torch.save({name: one + 1 for name, one in tensors.items()}, tmp_path / "other.pth")
    words = [*SMALL, "--weights", "mine.pth", "--out", "mine.h5"]
    done = vggfeat("extract", workplace / "images" / "a", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "there").mkdir()
    (tmp_path / "mine.pth").rename(tmp_path / "there" / "mine.pth")
    ask = ["search", "mine.h5", str(workplace / "images" / "a" / "01.png"), "--layer", "conv1_1",
           "--top", "1"]  # fmt: skip
    assert_one_line(vggfeat(*ask, cwd=tmp_path), 3, "'mine.pth' not found", "--weights FILE")
    done = vggfeat(*ask, "--model-weights", "other.pth", cwd=tmp_path)
    assert_one_line(done, 5, "weights 'other.pth' are not those", "mine.pth")
    done = vggfeat(*ask, "--weights", "there/mine.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("     1  1.0000  01.png  (the query itself)\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["feats.h5", "--layer", "conv1_1"], 2, ["no query", "--row"]),
        (["feats.h5", "--row", "a/00.png"], 2, ["several layers", "conv1_1, conv2_1:max"]),
        (["feats.h5", "--row", "zz.png", "--layer", "conv1_1"], 2, ["'zz.png' is not in"]),
        (["feats.h5", "--row", "b/broken.png", "--layer", "conv1_1"], 2, ["is failed, not done"]),
        (["feats.h5", "--row", "a/00.png", "--layer", "conv3_1"], 2, ["no layer 'conv3_1'"]),
        (["codes.h5", "--row", "a/00.png", "--weights", "1,2"], 2, ["2 weights for 1 layer"]),
        (["codes.h5", "--row", "a/00.png", "--weights", "0"], 2, ["not all 0"]),
        (["codes.h5", "--row", "a/00.png", "--metric", "l1"], 2, ["unknown metric 'l1'"]),
        (["codes.h5", "--row", "a/00.png", "--top", "0"], 2, ["top is 0"]),
        (["codes.h5", "--row", "a/00.png", "--csv", "--json"], 2, ["give one of them"]),
        (["codes.h5", "--row", "a/00.png", "--sheet", "x.gif"], 2, ["end it in .png or .html"]),
        (["codes.h5", "none.png"], 3, ["'none.png'"]),
        (["codes.h5", "images/b/broken.png"], 4, ["none of 1 query image can", "broken.png"]),
        (["images/a/00.png", "images"], 5, ["images/a/00.png"]),
        (["short.h5", "images", "--use", "none.h5"], 3, ["model 'none.h5' does not exist"]),
        (["short.h5", "images", "--use", "standard.model.h5"], 5, ["expected one of vggfeat red"]),
    ],
)
def test_exit_codes(workplace: Path, words: list[str], code: int, says: list[str]) -> None:
    """Errors are one line and the exit code of their kind."""
    assert_one_line(vggfeat("search", *words, cwd=workplace), code, *says)


def test_another_fit_is_refused(workplace: Path, tmp_path: Path) -> None:
    """A model file that is not the one the cache was made with is named, with both digests."""
    for words in (["--dims", "3"], ["--dims", "4", "--norm", "l2"]):
        out = tmp_path / f"{len(words)}.h5"
        done = vggfeat("reduce", workplace / "feats.h5", *words, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = vggfeat(
        "search", workplace / "short.h5", workplace / "images", "--use", "4.model.h5", cwd=tmp_path
    )
    assert_one_line(done, 5, "is not the one that cache", "name it with --use")


def test_the_models_of_several_steps_are_told_apart(workplace: Path, tmp_path: Path) -> None:
    """Moved, the models of a cache made in two steps are taken from --use in any order."""
    for name in ("standard.model.h5", "fitted.model.h5", "fitted.h5"):
        (tmp_path / name).write_bytes((workplace / name).read_bytes())
    image = workplace / "images" / "a" / "01.png"
    for first, second in (("standard", "fitted"), ("fitted", "standard")):
        done = vggfeat(
            "search", "fitted.h5", image, "--use", f"{first}.model.h5",
            "--use", f"{second}.model.h5", "--top", "1", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("     1  1.0000  a/01.png  (the query itself)\n")
    done = vggfeat("search", "fitted.h5", image, "--use", "fitted.model.h5", cwd=tmp_path)
    assert_one_line(done, 5, "expected one of vggfeat fuse")


def test_a_sheet_shows_queries_and_what_they_found(workplace: Path, tmp_path: Path) -> None:
    """`--sheet` writes every query and hit, images of the cache among them, also moved ones."""
    words = ["search", str(workplace / "feats.h5"), "--layer", "conv1_1", "--row", "a/00.png",
             "--row", "a/03.png", "--top", "3", "--json", "--sheet"]  # fmt: skip
    done = vggfeat(*words, "found.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "found.html").read_text()
    answers = json.loads(done.stdout)["answers"]
    assert len(answers) == 2
    for answer in answers:
        assert answer["query"] in page
        assert all(hit["path"] in page for hit in answer["hits"])
    assert page.count("data:image") >= 2 + 6
    shutil.move(workplace / "images", tmp_path / "moved")
    try:
        assert vggfeat(*words, "gone.html", cwd=tmp_path).returncode == 0
        assert "data:image" not in (tmp_path / "gone.html").read_text()
        assert vggfeat(*words, "moved.html", "--root", "moved", cwd=tmp_path).returncode == 0
        assert (tmp_path / "moved.html").read_text().count("data:image") == page.count("data:image")
    finally:
        shutil.move(tmp_path / "moved", workplace / "images")


def test_searching_changes_nothing(workplace: Path, tmp_path: Path) -> None:
    """A search leaves no file behind, and the cache as it was."""
    shutil.copy(workplace / "codes.h5", tmp_path / "codes.h5")
    before = (tmp_path / "codes.h5").read_bytes()
    Image.new("RGB", (50, 40), "red").save(tmp_path / "q.png")
    done = vggfeat("search", "codes.h5", "q.png", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "q.png"]
    assert (tmp_path / "codes.h5").read_bytes() == before


@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw", "dot"])
def test_odd_rows_are_ranked_as_numpy_ranks_them(tmp_path: Path, metric: Any) -> None:
    """Zeros and ties stand as NumPy's stable sort has them; failed rows and NaN are never found."""
    x = noise(12, 6, seed=5)
    x[3], x[4], x[7], x[8], x[9] = 0, 0, x[1], np.nan, np.inf
    states = [1, 1, 2, 1, 1, 1, 0, 1, 1, 2, 1, 3]
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": x}, "float32", states=states)
    queries = np.stack([x[1], np.zeros(6, np.float32), -x[1]])
    rows, scores = top_k(cache, "conv1_1", queries, 12, metric)
    good = np.array([row for row in range(12) if states[row] == 1 and row != 8])
    with np.errstate(all="ignore"):
        right = scored(x[good], queries, metric).astype(np.float32)
    order = np.argsort(-right, axis=1, kind="stable")
    for at in range(len(queries)):
        np.testing.assert_array_equal(rows[at, : len(good)], good[order[at]])
        values = right[at][order[at]]
        expected = -values if metric.startswith("l2") else values
        np.testing.assert_allclose(scores[at, : len(good)], expected, rtol=1e-6, atol=1e-7)
        assert (rows[at, len(good) :] == -1).all()
        assert np.isnan(scores[at, len(good) :]).all()
