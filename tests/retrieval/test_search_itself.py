"""A query that is an image of the cache: its own hit is marked, or left out."""

from __future__ import annotations

import csv
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import SMALL, vggfeat, write_images
from PIL import Image
from sklearn.preprocessing import normalize

import vggfeat as library

if TYPE_CHECKING:
    from pathlib import Path

    from vggfeat.retrieval.search import Answer

LAYER = "conv1_1"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in a cache, three of which are one file; the same images in another folder."""
    folder = tmp_path_factory.mktemp("itself")
    write_images(folder / "images", 6)
    (folder / "images" / "copies").mkdir()
    for name in ("a.png", "b.png", "z.png"):
        shutil.copy(folder / "images" / "03.png", folder / "images" / "copies" / name)
    for words in (
        ["extract", "images", *SMALL, "--layers", LAYER, "--out", "f.h5"],
        ["extract", "images", *SMALL, "--layers", LAYER, "--out", "shards/", "--shards", "3"],
    ):
        done = vggfeat(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "images", folder / "elsewhere")
    return folder


def asked(workplace: Path, query: str, cache: str = "f.h5", **given: Any) -> Answer:
    given = {"layers": [LAYER], "device": "cpu", "top": 3, **given}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        (answer,) = library.search(cache, [query], **given).answers
    return answer


def right(workplace: Path, name: str, without: set[str], top: int) -> list[str]:
    """The nearest by NumPy, without some of the images."""
    cache = library.open(workplace / "f.h5")
    x = normalize(cache.values(LAYER).astype(np.float64))
    scores = x @ x[cache.row(name)]
    names = [cache.name(row) for row in np.argsort(-scores.astype(np.float32), kind="stable")]
    return [one for one in names if one not in without][:top]


CACHES = ["f.h5", "shards"]


@pytest.mark.parametrize("cache", CACHES)
def test_the_hit_of_the_same_path_is_the_query_itself(workplace: Path, cache: str) -> None:
    """Only the row of the query's path is itself; files of the same bytes are others, and said."""
    answer = asked(workplace, "images/03.png", cache, top=9)
    marks = {hit.path: (hit.is_self, hit.identical) for hit in answer.hits}
    assert marks.pop("03.png") == (True, True)
    copies = {f"copies/{name}.png": (False, True) for name in "abz"}
    assert marks == copies | {f"0{at}.png": (False, False) for at in (0, 1, 2, 4, 5)}


@pytest.mark.parametrize("cache", CACHES)
def test_elsewhere_the_same_bytes_are_the_query_itself(workplace: Path, cache: str) -> None:
    """A query from another folder is known by its content."""
    answer = asked(workplace, "elsewhere/04.png", cache)
    assert (answer.hits[0].path, answer.hits[0].is_self) == ("04.png", True)
    assert not any(hit.is_self for hit in answer.hits[1:])
    several = asked(workplace, "elsewhere/03.png", cache, top=5)
    assert {hit.path for hit in several.hits if hit.is_self} == {
        "03.png", "copies/a.png", "copies/b.png", "copies/z.png",
    }  # fmt: skip


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("by_index", "metric"), [(False, "cosine"), (True, "cosine"), (True, "l2")]
)
@pytest.mark.parametrize(
    ("query", "without"),
    [
        ("images/00.png", "00.png"),
        ("images/03.png", "03.png"),
        ("elsewhere/03.png", "03.png copies/a.png copies/b.png copies/z.png"),
    ],
)
def test_without_itself_as_many_are_found(
    workplace: Path, tmp_path: Path, cache: str, *, by_index: bool, metric: str, query: str,
    without: str,
) -> None:  # fmt: skip
    """With exclude_self k hits are others, in NumPy's order, ranked from 1."""
    if by_index:
        pytest.importorskip("faiss")
    left_out = set(without.split())
    index = tmp_path / "i.faiss" if by_index else None
    answer = asked(workplace, query, cache, exclude_self=True, index=index, metric=metric)
    found = [hit.path for hit in answer.hits]
    if metric == "cosine":
        assert found == right(workplace, query.rpartition("/")[2], left_out, 3)
    assert len(found) == 3
    assert not set(found) & left_out
    assert [hit.rank for hit in answer.hits] == [1, 2, 3]
    every = asked(workplace, query, cache, exclude_self=True, index=index, metric=metric, top=99)
    assert len(every.hits) == 9 - len(left_out)


def test_another_image_is_never_itself(workplace: Path, tmp_path: Path) -> None:
    """The same pixels in other bytes are another file."""
    with Image.open(workplace / "images" / "02.png") as image:
        image.save(tmp_path / "02.png", compress_level=0)
    answer = asked(workplace, str(tmp_path / "02.png"))
    first = answer.hits[0]
    assert (first.path, first.is_self, first.identical) == ("02.png", False, False)
    assert first.score == pytest.approx(1, abs=1e-4)


def test_rows_say_which_files_are_the_same(workplace: Path) -> None:
    """A row as query leaves itself out as ever; its copies are identical, not itself."""
    (answer,) = library.search(workplace / "f.h5", rows=["03.png"], layers=[LAYER], top=9).answers
    assert len(answer.hits) == 8
    assert [hit.path for hit in answer.hits if hit.identical] == [
        "copies/a.png", "copies/b.png", "copies/z.png",
    ]  # fmt: skip
    assert not any(hit.is_self for hit in answer.hits)


def test_every_form_of_output_marks_itself(workplace: Path, tmp_path: Path) -> None:
    """Table, JSON, CSV and sheet say which hit is the query itself; --exclude-self has none."""
    words = ["search", "f.h5", "images/03.png", "--top", "5", "--device", "cpu"]
    table = vggfeat(*words, "--sheet", tmp_path / "s.html", cwd=workplace).stdout.splitlines()
    assert [line for line in table if line.endswith("  03.png  (the query itself)")]
    assert [line for line in table if line.endswith("  copies/a.png  (identical file)")]
    assert table[-1] == f"contact sheet: {tmp_path / 's.html'}"
    page = (tmp_path / "s.html").read_text()
    assert page.count("the query itself") == 1
    assert page.count("identical file") == 3
    hits = json.loads(vggfeat(*words, "--json", cwd=workplace).stdout)["answers"][0]["hits"]
    assert [hit["path"] for hit in hits if hit["self"]] == ["03.png"]
    assert sum(hit["identical"] for hit in hits) == 4
    lines = list(csv.DictReader(io.StringIO(vggfeat(*words, "--csv", cwd=workplace).stdout)))
    assert [line["path"] for line in lines if line["self"] == "true"] == ["03.png"]
    done = vggfeat(*words, "--exclude-self", "--json", cwd=workplace)
    hits = json.loads(done.stdout)["answers"][0]["hits"]
    assert len(hits) == 5
    assert not any(hit["self"] for hit in hits)
    narrow = vggfeat(*words, cwd=workplace, env={"COLUMNS": "50"}).stdout.splitlines()
    assert all(len(line) <= 50 for line in narrow[1:])
