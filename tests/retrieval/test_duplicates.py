"""Near-duplicates: all pairs as NumPy finds them, groups as SciPy's connected components."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from caches_to_search import cache_of, noise, scored
from command_line import SMALL, assert_one_line, vggfeat, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

import vggfeat as library
from vggfeat.errors import InputError, UsageError
from vggfeat.retrieval import duplicates as near

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def expected(
    x: NDArray[np.float32], metric: str, threshold: float
) -> tuple[int, set[frozenset[int]]]:
    """Pairs, and groups of two and more."""
    scores = scored(x, x, metric).astype(np.float32)
    close = scores >= np.float32(threshold if metric == "cosine" else -threshold)
    np.fill_diagonal(close, val=False)
    _, labels = connected_components(close, directed=False)
    groups = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
    return int(np.triu(close).sum()), {group for group in groups if len(group) > 1}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(2, 60),
    outer=st.integers(1, 20),
    metric=st.sampled_from(["cosine", "l2", "l2-raw"]),
    threshold=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
)
def test_groups_are_the_connected_components(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    seed: int,
    count: int,
    outer: int,
    metric: Any,
    threshold: float,
) -> None:
    """Whatever the blocks, pairs and groups are those of all scores at once."""
    x = noise(count, 4, seed).astype(np.float16).astype(np.float32)
    x[count // 2] = x[0]
    cache = cache_of(tmp_path_factory.getbasetemp() / "groups.h5", {"conv1_1": x})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_OUTER_ROWS", outer)
        found = library.duplicates(cache, threshold=threshold, metric=metric)
    groups = {frozenset(member.row for member in group.members) for group in found.groups}
    assert (found.pairs, groups) == expected(x, metric, threshold)
    scores = scored(x, x, metric)
    np.fill_diagonal(scores, -np.inf)
    for group in found.groups:
        best = [scores[member.row].max() for member in group.members]
        shown = [member.score * (1 if metric == "cosine" else -1) for member in group.members]
        np.testing.assert_allclose(shown, best, atol=1e-6)
        assert group.score * (1 if metric == "cosine" else -1) == pytest.approx(max(best), abs=1e-6)
    sizes = [len(group.members) for group in found.groups]
    assert sizes == sorted(sizes, reverse=True)


def test_rows_that_are_not_done_do_not_count(tmp_path: Path) -> None:
    """Failed and pending rows are in no pair; a lone image is an error."""
    x = np.ones((6, 4), np.float32)
    x[1] = np.nan
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": x}, states=[1, 2, 0, 1, 1, 3])
    found = library.duplicates(cache)
    assert [member.row for member in found.groups[0].members] == [0, 3, 4]
    assert (found.images, found.pairs, found.spare) == (3, 3, 2)
    lone = cache_of(tmp_path / "lone.h5", {"conv1_1": x}, states=[1, 2, 0, 0, 0, 0])
    with pytest.raises(InputError, match=r"1 image of cache .* is done"):
        library.duplicates(lone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "threshold is 1.5; expected a cosine from -1 to 1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": -1.0, "metric": "l2-raw"}, "expected a distance of 0 or more"),
        ({"threshold": 2.5, "metric": "l2"}, "a distance of 0 to 2 at unit length; l2-raw"),
        ({"metric": "l2-raw"}, "no threshold for metric l2-raw"),
        ({"metric": "dot"}, "unknown metric 'dot'; expected one of cosine, l2"),
    ],
)
def test_wrong_choices(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    """Thresholds and metrics that make no sense are refused."""
    cache = cache_of(tmp_path / "f.h5", {"conv1_1": noise(4, 4)})
    with pytest.raises(UsageError, match=words):
        library.duplicates(cache, **options)


def test_from_the_command_line(tmp_path: Path) -> None:
    """Copies are marked as identical files, images of equal pixels alone are not."""
    write_images(tmp_path / "images", 4)
    shutil.copy(tmp_path / "images" / "01.png", tmp_path / "images" / "copy.png")
    with (tmp_path / "images" / "01.png").open("rb") as file:
        data = file.read()
    (tmp_path / "images" / "padded.png").write_bytes(data + b"\0")
    done = vggfeat("extract", "images", *SMALL, "--out", "f.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["duplicates", "f.h5", "--layer", "conv2_1:max", "--threshold", "0.99999"]
    done = vggfeat(*words, cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    assert "| torch" not in done.stderr
    warning = "RANDOM WEIGHTS (seed 0): these features carry no learnt meaning"
    assert done.stderr.count(f"vggfeat: warning: cache 'f.h5': {warning}\n") == 1
    assert done.stdout.splitlines() == [
        "6 images by conv2_1:max: 3 pairs with cosine >= 0.99999, 1 group, 2 redundant images",
        "",
        "group 1: 3 images, nearest 1.0000",
        "  1.0000  01.png  (identical file)",
        "  1.0000  copy.png  (identical file)",
        "  1.0000  padded.png",
    ]
    found = json.loads(vggfeat(*words, "--json", cwd=tmp_path).stdout)
    assert found["warning"] == warning
    assert [one["identical"] for one in found["groups"][0]["members"]] == [True, True, False]
    assert_one_line(vggfeat("duplicates", "f.h5", cwd=tmp_path), 2, "several layers")
    assert_one_line(vggfeat("duplicates", "images/01.png", cwd=tmp_path), 5, "01.png")
    done = vggfeat(*words[:4], "--threshold", "2", cwd=tmp_path)
    assert_one_line(done, 2, "threshold is 2")
