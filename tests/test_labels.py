"""Classes of images: from CSV files as people write them, and from folders."""

from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggfeat.errors import InputError, UsageError
from vggfeat.identity import Identity
from vggfeat.labels import labels_of, read_labels
from vggfeat.preprocess import Preprocess
from vggfeat.reader import FeatureCache
from vggfeat.schema import Provenance, lay_out

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def cache_of(folder: Path, *paths: bytes) -> FeatureCache:
    """A cache of images with those paths, which must be sorted."""
    assert list(paths) == sorted(paths)
    out = str(folder / "f.h5")
    identity = Identity("vgg16", "w", "00" * 32, "float32", "float16", Preprocess(), ("fc7",))
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    lay_out(
        out, len(paths), max(map(len, paths)),
        shapes={"fc7": (4096,)}, identity=identity, provenance=provenance,
    )  # fmt: skip
    with h5py.File(out, "r+") as file:
        file["images/path"][:] = list(paths)
    return FeatureCache(out)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg,cat\nb.jpg,dog\n",
        "path,label\na/1.jpg,cat\nb.jpg,dog",
        "\ufeffPath,Label\r\na/1.jpg,cat\r\n\r\nb.jpg,dog\r\n\r\n",
        '"a/1.jpg","cat"\n"b.jpg",dog\na/1.jpg,cat\n',
    ],
)
def test_files_as_people_write_them(tmp_path: Path, text: str) -> None:
    """Header or none, quotes, blank lines, a byte order mark, a line given twice: one mapping."""
    assert read_labels(written(tmp_path, text)) == {b"a/1.jpg": "cat", b"b.jpg": "dog"}


@given(rows=st.dictionaries(TEXT, TEXT))
def test_whatever_the_csv_module_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str]
) -> None:
    """Commas, quotes and line breaks within paths and labels come back as they were."""
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows.items()])
    if not rows:
        with pytest.raises(UsageError, match="no labels in it"):
            read_labels(path)
        return
    assert read_labels(path) == {path.encode(): label for path, label in rows.items()}


def test_paths_that_are_no_utf_8(tmp_path: Path) -> None:
    """Undecodable bytes of a path are those that a cache has."""
    cache = cache_of(tmp_path, b"\xff.jpg")
    assert labels_of(cache, written(tmp_path, b"\xff.jpg,cat\n")).names == ("cat",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,cat\nb,dog\na,dog\n", r"line 3: 'a' is 'dog' here and 'cat' above"),
        ("a,cat,0.9\nb\n", r"line 1: 3 columns; line 2: 1 columns"),
        ("a,cat\n,dog\nb,\n", r"line 2: no path; line 3: no label"),
        ('a,cat\n"b"c,dog\n', r"line 2: "),
        ("1\n2\n3\n4\n5\n", r"line 3: 1 columns; and 2 more"),
        ("path,label\n", r"no labels in it"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    """What is wrong with a file is said by line, of several mistakes the first three."""
    with pytest.raises(UsageError, match=f"labels '.*labels.csv', expected .*{words}"):
        read_labels(written(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    """Labels that cannot be read are a missing input."""
    with pytest.raises(InputError, match=r"labels '.*none.csv' cannot be read: No such file"):
        read_labels(tmp_path / "none.csv")


def test_labels_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows get the number of their class or -1; paths that are not in the cache are counted."""
    cache = cache_of(tmp_path, b"a.jpg", b"b.jpg", b"c.jpg", b"d.jpg")
    file = written(tmp_path, "d.jpg,cat\na.jpg,dog\nc.jpg,cat\nz.jpg,bird\ny.jpg,cat\n")
    with caplog.at_level(logging.INFO, "vggfeat"):
        found = labels_of(cache, file)
    assert found.names == ("cat", "dog")
    assert found.classes.tolist() == [1, -1, 0, 0]
    assert "2 of 5 paths in" in caplog.text


def test_a_file_of_other_images(tmp_path: Path) -> None:
    """If no path matches, the error shows one of either side."""
    cache = cache_of(tmp_path, b"train/a.jpg")
    with pytest.raises(UsageError, match=r"expected paths like 'train/a\.jpg', found 'a\.jpg'"):
        labels_of(cache, written(tmp_path, "a.jpg,cat\n"))


def test_labels_of_folders(tmp_path: Path) -> None:
    """The label is the innermost folder, on disk or within an archive; the root has none."""
    cache = cache_of(
        tmp_path, b"a.jpg", b"cat/1.jpg", b"s.tar!x.jpg", b"s.tar.gz!cat/y.jpg",
        b"s.zip!a/dog/z.jpg", b"train/dog/2.jpg", b"wow!/3.jpg",
    )  # fmt: skip
    found = labels_of(cache)
    assert found.names == ("cat", "dog", "wow!")
    assert found.classes.tolist() == [-1, 0, -1, 0, 1, 1, 2]


def test_no_folders(tmp_path: Path) -> None:
    """Images that all lie in the root have no labels, and the error says what to give."""
    with pytest.raises(UsageError, match=r"lie in no folders .* give --labels FILE\.csv, or --qu"):
        labels_of(cache_of(tmp_path, b"a.jpg", b"b.jpg"))
