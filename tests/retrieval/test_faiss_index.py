"""Indices: what they find and how well is NumPy's, and no other cache's index is ever taken."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import faiss
import h5py
import numpy as np
import pytest
from caches_to_search import cache_of, noise, scored
from command_line import SMALL, assert_one_line, vggfeat, write_images

import vggfeat as library
from vggfeat.cache.reader import FeatureCache
from vggfeat.errors import CacheError, CacheMismatchError, InputError, LockedError, UsageError
from vggfeat.retrieval import faiss_index as indexing
from vggfeat.retrieval.faiss_index import FaissIndex, build_index, open_index
from vggfeat.storage.locks import hold

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MANY = 21_000  # more than a flat index takes


def photos(rows: int, width: int = 32) -> NDArray[np.float32]:
    """Rows as features are: few directions matter, and little lies beside them."""
    x: NDArray[np.float32] = noise(rows, 8) @ noise(8, width, seed=1)
    return x + 0.3 * noise(rows, width, seed=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureCache]:
    """Caches of many rows, of which each seventh is not done."""
    folder = tmp_path_factory.mktemp("large")
    states = [0 if row % 7 == 3 else 1 for row in range(MANY * 7 // 6)]
    x = photos(len(states))
    return {
        dtype: cache_of(folder / f"{dtype}.h5", {"conv1_1": x}, dtype, states)
        for dtype in ("float16", "float32", "int8")
    }


@pytest.fixture(scope="module")
def built(large: dict[str, FeatureCache], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index by cosine of many rows in float16."""
    path = tmp_path_factory.mktemp("built") / "l.faiss"
    build_index(large["float16"], "conv1_1", "cosine", path)
    return path


def nearest_others(
    x: NDArray[np.float32], own: NDArray[np.int64], metric: str, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places of the k nearest to each of some rows, itself left out, and scores; both (q, k)."""
    wide = x.astype(np.float64)
    if metric in ("cosine", "l2"):
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    scores: NDArray[np.float64] = wide[own] @ wide.T
    if metric.startswith("l2"):
        squares = (wide**2).sum(1)
        scores = -np.sqrt(np.maximum(squares[own, None] + squares - 2 * scores, 0))
    scores[np.arange(len(own)), own] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "l2-raw", "dot"])
def test_a_flat_index_finds_what_numpy_finds(tmp_path: Path, dtype: str, metric: Any) -> None:
    """Of few rows the index is flat, and rows and scores are NumPy's over the same values."""
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(900, 24)}, dtype)
    queries = noise(5, 24, seed=1)
    index = open_index(cache, "conv1_1", metric, tmp_path / "f.faiss")
    found = index.search(queries, 7)
    right = scored(cache.values("conv1_1"), queries, metric)
    np.testing.assert_array_equal(found.rows, np.argsort(-right, axis=1)[:, :7])
    shown = -np.sort(-right, axis=1)[:, :7] * (-1 if metric.startswith("l2") else 1)
    np.testing.assert_allclose(found.scores, shown, rtol=1e-6, atol=1e-6)
    info = index.info
    assert (info.kind, info.rows, info.at, info.sample, info.recall) == ("flat", 900, 10, 200, 1.0)


@pytest.mark.parametrize(
    ("dtype", "metric", "storage"),
    [
        ("float16", "cosine", "float16"),
        ("float16", "l2", "float16"),
        ("float32", "dot", "float32"),
        ("int8", "l2-raw", "float16"),
    ],
)
def test_recall_is_what_is_reported(
    large: dict[str, FeatureCache], tmp_path: Path, dtype: str, metric: Any, storage: str
) -> None:
    """The share of the ten nearest that is found is NumPy's, and half the probes are too few."""
    cache = large[dtype]
    index = open_index(cache, "conv1_1", metric, tmp_path / "f.faiss")
    info = index.info
    assert (info.kind, info.rows, info.storage) == ("ivf", MANY, storage)
    assert info.lists * 39 <= info.trained <= MANY
    rows = np.flatnonzero(cache.done)
    own = np.arange(200) * MANY // 200  # places of the queries among rows that are done
    x = cache.values("conv1_1", rows)
    right, scores = nearest_others(x, own, metric, 10)

    def recall(index: FaissIndex) -> float:
        found = index.search(x[own], 10, left_out=rows[own]).rows
        return float(np.mean([np.isin(rows[a], b).mean() for a, b in
                              zip(right, found, strict=True)]))  # fmt: skip

    assert info.recall >= 0.95
    assert recall(index) == pytest.approx(info.recall, abs=0.002)  # rows of equal score count
    assert info.probes.bit_count() == 1
    found = index.search(x[own], 10, left_out=rows[own])
    same = found.rows == rows[right]
    assert same.mean() > 0.5  # one that is missed moves those behind it
    sign = -1 if metric.startswith("l2") else 1
    np.testing.assert_allclose(found.scores[same], sign * scores[same], rtol=1e-5, atol=1e-5)
    if info.probes > 1:
        index.info = dataclasses.replace(info, probes=info.probes // 2)
        assert recall(index) < 0.95


def test_values_too_large_for_float16_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances between numbers beyond float16 are found: the index then holds float32."""
    monkeypatch.setattr(indexing, "FLAT_ROWS", 500)
    for dtype in ("float32", "int8"):
        x = 1e6 * photos(2000)
        cache = cache_of(tmp_path / "f.h5", {"conv1_1": x}, dtype)
        index = open_index(cache, "conv1_1", "l2-raw", tmp_path / f"{dtype}.faiss")
        assert (index.info.kind, index.info.storage) == ("ivf", "float32")
        assert index.info.recall >= 0.95
        assert index.search(cache.values("conv1_1", np.arange(50)), 1).rows[:, 0].tolist() == list(
            range(50)
        )


def test_an_index_of_vectors_as_stored_is_none_at_unit_length(tmp_path: Path) -> None:
    """Earlier files of metric l2 hold vectors as stored: they serve l2-raw, and l2 refuses them."""
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(60, 8)})
    path = tmp_path / "f.faiss"
    open_index(cache, "conv1_1", "l2-raw", path)
    before = path.read_bytes()
    assert b'"metric": "l2",' in before  # as earlier versions wrote it
    with pytest.raises(CacheMismatchError, match="is of metric l2-raw, expected l2; name another"):
        open_index(cache, "conv1_1", "l2", path)
    open_index(cache, "conv1_1", "l2-raw", path)
    assert path.read_bytes() == before


def test_only_rows_that_are_done_are_found(
    large: dict[str, FeatureCache], built: Path, tmp_path: Path
) -> None:
    """Failed and pending rows are in no index, whatever they hold, and few are few."""
    x = noise(40, 8)
    x[3], x[5] = np.nan, np.inf
    states = [1] * 40
    states[3], states[4], states[5] = 2, 0, 3
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": x}, states=states)
    done = np.flatnonzero(cache.done)
    found = open_index(cache, "conv1_1", "l2", tmp_path / "f.faiss").search(x[:2], 99)
    assert found.rows.shape == (2, 37)
    assert sorted(found.rows[0].tolist()) == done.tolist()
    index = open_index(large["float16"], "conv1_1", "cosine", built)
    query = large["float16"].values(
        "conv1_1", np.array([3, 4])
    )  # one that is not done, one that is
    found = index.search(query, 500, left_out=np.array([-1, 4]))
    assert large["float16"].done[found.rows].all()
    assert 4 not in found.rows[1]
    found = index.search(query[:1], MANY)  # more than the lists of one query hold
    assert sorted(found.rows[0].tolist()) == np.flatnonzero(large["float16"].done).tolist()


def test_zero_vectors_and_single_rows(tmp_path: Path) -> None:
    """Rows of zeros have cosine 0, one row is its own index, and none is refused."""
    x = np.array([[0, 0], [1, 0], [-1, 0]], np.float32)
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": x})
    found = open_index(cache, "conv1_1", "cosine", tmp_path / "f.faiss").search(x[1:2], 3)
    assert (found.rows.tolist(), found.scores.tolist()) == ([[1, 0, 2]], [[1, 0, -1]])
    cache = cache_of(tmp_path / "one.h5", {"conv1_1": x[1:2]})
    index = open_index(cache, "conv1_1", "l2", tmp_path / "one.faiss")
    assert (index.info.sample, index.search(x[:1], 5).scores.tolist()) == (0, [[1]])
    cache = cache_of(tmp_path / "none.h5", {"conv1_1": x}, states=[0, 0, 0])
    with pytest.raises(InputError, match=r"no image of cache .* is done"):
        open_index(cache, "conv1_1", "l2", tmp_path / "none.faiss")


def test_faiss_reads_the_file_by_itself(large: dict[str, FeatureCache], built: Path) -> None:
    """What lies behind the index in its file is nothing to faiss; ids count rows that are done."""
    cache = large["float16"]
    index = faiss.read_index(str(built))
    assert index.ntotal == MANY
    rows = np.flatnonzero(cache.done)[:20]
    x = cache.values("conv1_1", rows)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert index.search(x, 1)[1][:, 0].tolist() == list(range(20))


def checksummed(path: Path, count: int = 50) -> FeatureCache:
    cache_of(path, {"conv1_1": noise(count, 8), "conv2_1": noise(count, 8, seed=1)})
    with h5py.File(path, "r+") as file:
        file["images/checksum"][:] = np.arange(count)
    return FeatureCache(path)


def test_a_changed_cache_has_its_index_built_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as nothing changes the file stays; other rows, or rows of other content, renew it."""
    cache = checksummed(tmp_path / "f.h5")
    path = tmp_path / "f.faiss"
    open_index(cache, "conv1_1", "l2", path)
    before = os.stat(path)
    open_index(cache, "conv1_1", "l2", path)
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    caplog.set_level(logging.INFO, "vggfeat")
    for change, left in ((("images/state", 7, 2), 49), (("images/checksum", 9, 1234), 49)):
        name, row, value = change
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            file[name][row] = value
            file["features/conv1_1"][9] = 5 if name == "images/checksum" else 0
        caplog.clear()
        index = open_index(FeatureCache(tmp_path / "f.h5"), "conv1_1", "l2", path)
        assert f"some of the {left} done now are others" in caplog.messages[0]
        assert index.info.rows == left
        assert 7 not in index.search(noise(1, 8), 50).rows
    assert index.search(np.full((1, 8), 5, np.float32), 1).scores.tolist() == [[0]]


def test_rows_that_moved_keep_their_index(tmp_path: Path) -> None:
    """Where done rows only stand elsewhere, the index stays and finds them where they are now."""
    checksummed(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["images/state"][7] = 0
    path = tmp_path / "f.faiss"
    open_index(FeatureCache(tmp_path / "f.h5"), "conv1_1", "l2", path)
    before = os.stat(path).st_mtime_ns
    moved = np.arange(50)
    moved[[7, 8]] = 8, 7
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        for name in ("images/state", "images/checksum", "features/conv1_1"):
            file[name][:] = file[name][:][moved]
    cache = FeatureCache(tmp_path / "f.h5")
    index = open_index(cache, "conv1_1", "l2", path)
    assert os.stat(path).st_mtime_ns == before
    found = index.search(cache.values("conv1_1", np.array([7])), 49)
    assert (found.rows[0, 0], found.scores[0, 0]) == (7, 0)
    assert 8 not in found.rows


def test_an_index_of_something_else_is_refused(tmp_path: Path) -> None:
    """Another layer, metric, cache or root is named with what was expected; the file stays."""
    cache = checksummed(tmp_path / "f.h5")
    path = tmp_path / "f.faiss"
    build_index(cache, "conv1_1", "l2", path)
    before = path.read_bytes()
    other = cache_of(tmp_path / "g.h5", {"conv1_1": noise(50, 8)})
    checksummed(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "r+") as file:
        assert bytes(file.attrs["root"]) == b"/"
        file.attrs["root"] = np.void(b"/elsewhere")
    for source, layer, metric, says in (
        (cache, "conv2_1", "l2", "of layer conv1_1, expected conv2_1"),
        (cache, "conv1_1", "dot", "of metric l2, expected dot"),
        (other, "conv1_1", "l2", "of a cache with fingerprint [0-9a-f]+, expected [0-9a-f]+; name"),
        (FeatureCache(tmp_path / "r.h5"), "conv1_1", "l2", "images in /, expected /elsewhere"),
    ):
        for function in (open_index, build_index):
            with pytest.raises(CacheMismatchError, match=says):
                function(source, layer, metric, path)  # type: ignore[arg-type] # str is enough here
    assert path.read_bytes() == before


def test_a_file_that_is_cut_short_while_it_is_used(
    tmp_path: Path, large: dict[str, FeatureCache], built: Path
) -> None:
    """The next search is an error, and does not touch the pages of the map that are gone."""
    path = tmp_path / "l.faiss"
    path.write_bytes(built.read_bytes())
    index = open_index(large["float16"], "conv1_1", "cosine", path)
    query = photos(1)
    index.search(query, 3)
    end = path.read_bytes().index(b'{"source"')
    os.truncate(path, end)  # without the record, but all that is mapped is there
    index.search(query, 3)
    os.truncate(path, end - 1)
    with pytest.raises(CacheError, match=f"was cut short while it was used: {end - 1} of {end} b"):
        index.search(query, 3)


def test_damage_is_noticed(tmp_path: Path, large: dict[str, FeatureCache], built: Path) -> None:
    """A file that was cut short, changed, or is none of ours is refused and never overwritten."""
    cache = checksummed(tmp_path / "f.h5")
    path = tmp_path / "f.faiss"
    build_index(cache, "conv1_1", "l2", path)
    whole = path.read_bytes()
    end = whole.index(b'{"source"')
    broken = {
        "was cut short": [b"", b"x", whole[:-1], whole[: end // 2], whole[:end]],
        "its content is wrong": [whole[:60] + b"\xff" + whole[61:], b"\0" + whole[1:]],
        "its record is wrong": [whole[: end + 20] + b"\xff" + whole[end + 21 :]],
        "its length is wrong": [whole[1:], b"x" + whole],
    }
    for says, files in broken.items():
        for data in files:
            path.write_bytes(data)
            with pytest.raises(CacheError, match=says):
                open_index(cache, "conv1_1", "l2", path)
            assert path.read_bytes() == data
    with pytest.raises(CacheError, match="is no index of vggfeat"):
        open_index(cache, "conv1_1", "l2", tmp_path / "f.h5")
    lists = bytearray(built.read_bytes())
    lists[5000] ^= 0xFF  # a centroid
    (tmp_path / "l.faiss").write_bytes(lists)
    with pytest.raises(CacheError, match="its content is wrong; delete it"):
        open_index(large["float16"], "conv1_1", "cosine", tmp_path / "l.faiss")


KILLED = """
import os, signal, sys
from vggfeat.retrieval.faiss_index import build_index
from vggfeat.cache.reader import FeatureCache
def end(*_): os.kill(os.getpid(), getattr(signal, sys.argv[2]))
if sys.argv[1] == "before the rename":
    os.replace = end
on_progress = end if sys.argv[1] == "while rows are added" else None
build_index(FeatureCache("f.h5"), "conv1_1", "l2", "f.faiss", on_progress=on_progress)
"""


@pytest.mark.parametrize("when", ["while rows are added", "before the rename"])
def test_a_build_that_ends_early_leaves_no_index(tmp_path: Path, when: str) -> None:
    """Killed or interrupted, nothing stands under the name; the next build tidies up and works."""
    cache = checksummed(tmp_path / "f.h5")
    for name in ("SIGKILL", "SIGINT"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, when, name], cwd=tmp_path, capture_output=True,
            check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == -getattr(signal, name), done.stderr
        names = {"f.h5"}
        if name == "SIGKILL":
            names.add("f.faiss.lock")
        if (name, when) == ("SIGKILL", "before the rename"):
            names.add("f.faiss.vggfeat.tmp")
        assert set(os.listdir(tmp_path)) == names
    open_index(cache, "conv1_1", "l2", tmp_path / "f.faiss")
    assert set(os.listdir(tmp_path)) == {"f.h5", "f.faiss"}


def test_one_run_builds_at_a_time(tmp_path: Path) -> None:
    """While one run builds an index another one says so; reading needs no lock."""
    cache = checksummed(tmp_path / "f.h5")
    path = tmp_path / "f.faiss"
    with hold(str(path)), pytest.raises(LockedError, match="is being built by another run"):
        open_index(cache, "conv1_1", "l2", path)
    build_index(cache, "conv1_1", "l2", path)
    with hold(str(path)):
        assert open_index(cache, "conv1_1", "l2", path).info.rows == 50


def test_wrong_queries(tmp_path: Path) -> None:
    """Maps, unknown metrics, and queries of another width are refused as by the exact search."""
    maps = noise(10, 18).reshape(10, 2, 3, 3)
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(10, 8), "conv2_1:map": maps})
    path = tmp_path / "f.faiss"
    with pytest.raises(UsageError, match="holds maps, not vectors"):
        build_index(cache, "conv2_1:map", "l2", path)
    with pytest.raises(UsageError, match="unknown metric 'l1'"):
        build_index(cache, "conv1_1", "l1", path)  # type: ignore[arg-type] # which is the point
    index = open_index(cache, "conv1_1", "l2", path)
    with pytest.raises(UsageError, match="top is 0"):
        index.search(noise(1, 8), 0)
    with pytest.raises(UsageError, match=r"have shape \(1, 9\); expected \(queries, 8\)"):
        index.search(noise(1, 9), 1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexing")
    write_images(folder / "images", 13)
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_search_by_an_index_in_a_process(workplace: Path) -> None:
    """The first run builds and says the recall, the second reads; hits are the exact search's."""
    words = ["search", "feats.h5", "--layer", "conv1_1", "images/03.png", "--row", "05.png"]
    done = vggfeat(*words, "--index", "feats.faiss", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "building index 'feats.faiss' of 13 images by conv1_1" in done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == "13 images searched by conv1_1, cosine"
    assert second == "by an index: recall at 10 is 1.00, measured on 13 images"
    before = os.stat(workplace / "feats.faiss")
    done = vggfeat(*words, "--index", "feats.faiss", "--json", cwd=workplace)
    after = os.stat(workplace / "feats.faiss")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    found = json.loads(done.stdout)
    exact = library.search(
        workplace / "feats.h5", [workplace / "images/03.png"], rows=["05.png"], layers=["conv1_1"]
    )
    assert exact.index is None
    for answer, right in zip(found["answers"], exact.answers, strict=True):
        assert [hit["path"] for hit in answer["hits"]] == [hit.path for hit in right.hits]
        scores = [hit["score"] for hit in answer["hits"]]
        assert scores == pytest.approx([hit.score for hit in right.hits], abs=1e-4)
    index = found["index"]
    assert (index["kind"], index["recall"], index["sample"]) == ("flat", 1.0, 13)
    again = library.search(
        workplace / "feats.h5", rows=["05.png"], layers=["conv1_1"],
        index=workplace / "feats.faiss", top=99,
    )  # fmt: skip
    assert again.answers[0].hits[:10] == exact.answers[1].hits
    assert len(again.answers[0].hits) == 12


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--layer", "conv1_1", "--layer", "conv2_1:max"], 2, ["an index is of one layer"]),
        (["--layer", "conv1_1", "--index", "feats.h5"], 5, ["'feats.h5' is no index of vggfeat"]),
        (["--layer", "conv1_1", "--index", "none/x.faiss"], 2, ["none/x.faiss"]),
        (["--layer", "conv1_1", "--metric", "l1"], 2, ["unknown metric 'l1'"]),
    ],
)
def test_exit_codes(workplace: Path, words: list[str], code: int, says: list[str]) -> None:
    """Errors are one line and the exit code of their kind, and leave no index."""
    before = (workplace / "feats.h5").read_bytes()
    if "--index" not in words:
        words = [*words, "--index", "x.faiss"]
    done = vggfeat("search", "feats.h5", "--row", "05.png", *words, cwd=workplace)
    last = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout,
        "".join(line for line in done.stderr.splitlines(keepends=True) if "building" not in line),
    )  # fmt: skip
    assert_one_line(last, code, *says)
    assert not (workplace / "x.faiss").exists()
    assert (workplace / "feats.h5").read_bytes() == before


def test_another_index_is_exit_code_5(workplace: Path, tmp_path: Path) -> None:
    """An index of another metric is refused by the command, in one line."""
    words = ["search", str(workplace / "feats.h5"), "--row", "05.png", "--layer", "conv1_1",
             "--index", "i.faiss"]  # fmt: skip
    assert vggfeat(*words, "--metric", "l2", cwd=tmp_path).returncode == 0
    assert_one_line(vggfeat(*words, cwd=tmp_path), 5, "is of metric l2, expected cosine")


def test_a_missing_faiss_is_named(workplace: Path) -> None:
    """Where faiss is not installed, the message says what to install, and nothing is left."""
    code = "import sys; sys.modules['faiss'] = None; from vggfeat.cli import main; main()"
    before = os.listdir(workplace)
    done = subprocess.run(
        [sys.executable, "-c", code, "search", "feats.h5", "--row", "05.png", "--layer", "conv1_1",
         "--index", "y.faiss"],
        cwd=workplace, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert_one_line(done, 2, "an index needs faiss", "pip install '", "[faiss]'")
    assert os.listdir(workplace) == before
