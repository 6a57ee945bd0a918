"""Classes of images: from CSV files as people write them, and from folders."""

from __future__ import annotations

import csv
import logging
import unicodedata
from typing import TYPE_CHECKING

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggfeat.cache.format import Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.labels import UNLABELLED, labels_of, labels_of_paths, read_labels
from vggfeat.cache.layout import lay_out
from vggfeat.cache.reader import FeatureCache
from vggfeat.core.preprocessing import Preprocess
from vggfeat.errors import InputError, UsageError

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
        ("a,cat,0.9\nb\n", r"line 1: 3 columns; line 2: 1 column"),
        ("a,cat\n,dog\nb,\n", r"line 2: no path; line 3: no label"),
        ('a,cat\n"b"c,dog\n', r"line 2: "),
        ("1\n2\n3\n4\n5\n6\n7\n", r"line 5: 1 column; and 2 more"),
        ("path,label\n", r"no labels in it"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    """What is wrong with a file is said by line, of several mistakes the first three."""
    with pytest.raises(UsageError, match=f"labels '.*labels.csv', expected .*{words}"):
        read_labels(written(tmp_path, text))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(tmp_path: Path, separator: str) -> None:
    """A file of another separator than the comma is refused as that, once."""
    file = written(tmp_path, f"path{separator}label\na.jpg{separator}cat\n")
    with pytest.raises(UsageError, match=r"labels.csv' is separated by '(;|\\t)'; expected ','$"):
        read_labels(file)


def test_the_remedy_for_another_encoding_is_told_once(tmp_path: Path) -> None:
    """Of several labels that are not UTF-8 each is named, and the remedy stands at the end."""
    with pytest.raises(UsageError, match="line 2: label") as refused:
        read_labels(written(tmp_path, b"a,\xe9\nb,\xe8\n"))
    assert str(refused.value).count("save the file as UTF-8") == 1


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
    with pytest.raises(UsageError, match=r"lie in no folders .* give --labels FILE\.csv"):
        labels_of(cache_of(tmp_path, b"a.jpg", b"b.jpg"))


@pytest.mark.parametrize(
    "text",
    [
        "./cat/a 1.jpg,cat\n.//dog/./b.jpg,dog\n",
        "cat\\a 1.jpg,cat\r\ndog\\b.jpg,dog\r\n",
        ".\\cat\\a 1.jpg,cat\n.\\dog\\b.jpg,dog\n",
        "/data/images/cat/a 1.jpg,cat\n/data/images/dog/b.jpg,dog\n",
        "file:///data/images/cat/a%201.jpg,cat\nfile:///data/images/dog/b.jpg,dog\n",
        "cat/a%201.jpg,cat\ndog/b%2Ejpg,dog\n",
        "filename,class\ncat/a 1.jpg,cat\ndog/b.jpg,dog\n",
        "Image_Path, Label\n   \ncat/a 1.jpg, cat \n\r\ndog/b.jpg ,dog\n",
        "cat/a 1.jpg,cat\n./cat/a 1.jpg,Cat\ndog/b.jpg,dog\ncat\\a 1.jpg,cat\n",
    ],
)
def test_paths_as_other_tools_write_them(tmp_path: Path, text: str) -> None:
    """Dots, backslashes, absolute paths, addresses and blanks written as %20 find their image."""
    paths = [b"cat/a 1.jpg", b"dog/b.jpg", b"other/c.jpg"]
    found = labels_of_paths(paths, "'f.h5'", written(tmp_path, text), b"/data/images")
    assert found.names == ("cat", "dog")
    assert found.classes.tolist() == [0, 1, UNLABELLED]


def test_labels_by_absolute_path_of_a_cache(tmp_path: Path) -> None:
    """Absolute paths begin at the root that a cache records; a path as it stands goes first."""
    cache = cache_of(tmp_path, b"%20.jpg", b"a\\b.jpg", b"x.jpg")
    text = "%20.jpg,cat\na\\b.jpg,dog\n/x.jpg,eel\n"
    assert labels_of(cache, written(tmp_path, text)).names == ("cat", "dog", "eel")


def test_paths_of_another_unicode_form(tmp_path: Path) -> None:
    """A list with composed letters finds files whose names a Mac decomposed, and the other way."""
    forms = [unicodedata.normalize(form, "Löwe/ä.jpg") for form in ("NFC", "NFD")]
    for one, other in (forms, forms[::-1]):
        file = written(tmp_path, f"{other},lion\nb.jpg,cat\n")
        found = labels_of_paths([one.encode(), b"b.jpg"], "'f.h5'", file)
        assert found.classes.tolist() == [1, 0]


def test_one_image_under_two_paths_with_two_labels(tmp_path: Path) -> None:
    """Lines that name one image in two ways and disagree are listed together, five at most."""
    paths = [f"{number}.jpg".encode() for number in range(7)]
    lines = [f"{number}.jpg,cat\n./{number}.jpg,dog\n" for number in range(7)]
    with pytest.raises(UsageError) as caught:
        labels_of_paths(paths, "'f.h5'", written(tmp_path, "".join(lines)))
    text = str(caught.value)
    assert "expected one label for each image of 'f.h5'" in text
    assert "'0.jpg' and './0.jpg' are one image, 'cat' and 'dog'" in text
    assert text.endswith("; and 2 more")


def test_spellings_of_one_label_do_not_conflict(tmp_path: Path) -> None:
    """A path given twice, with labels of one class, has that class."""
    text = "a.jpg,cat\na.jpg, Cat\nb.jpg,sea_lion\nb.jpg,Sea-Lion\n"
    found = labels_of_paths([b"a.jpg", b"b.jpg"], "'f.h5'", written(tmp_path, text))
    assert found.names == ("cat", "sea_lion")


def test_what_has_no_counterpart_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels of no image and images of no label: how many, and the first five of either."""
    cache = cache_of(tmp_path, *(f"{number}.jpg".encode() for number in range(7)))
    file = written(tmp_path, "6.jpg,cat\n" + "".join(f"x{at}.jpg,dog\n" for at in range(6)))
    with caplog.at_level(logging.INFO, "vggfeat"):
        found = labels_of(cache, file)
    where = f"paths in {file} are not in {cache.path!r}"
    assert found.notes == (
        f"6 of 7 {where}: 'x0.jpg', 'x1.jpg', 'x2.jpg', 'x3.jpg', 'x4.jpg' and 1 more",
        "6 of 7 images have no label: '0.jpg', '1.jpg', '2.jpg', '3.jpg', '4.jpg' and 1 more",
    )  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == list(found.notes)
