"""Attributes as data sets publish them: AwA2's matrices, MATLAB's splits, gensim's own files."""

from __future__ import annotations

import codecs
import logging
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import scipy.io

from vggfeat.errors import InputError, UsageError
from vggfeat.zeroshot.class_vectors import class_vectors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAMES = ["antelope", "grizzly+bear", "killer+whale"]
MATRIX = np.array([[5.5, 0, 20, 3], [70.25, 1, 0, 4], [0, 8, 9.5, 5]])


def write_awa(folder: Path, matrix: NDArray[Any], encoding: str = "utf-8") -> str:
    """AwA2's files, spaced as they are there."""
    folder.mkdir(exist_ok=True)
    lines = [" ".join(f"{value:>7.2f}" for value in row) for row in matrix]
    predicates = [f"{number:8}\tpredicate{number}" for number in range(1, matrix.shape[1] + 1)]
    classes = [f"{number:8}\t{name}" for number, name in enumerate(NAMES, 1)]
    for name, text in {
        "predicate-matrix-continuous.txt": lines,
        "predicates.txt": predicates,
        "classes.txt": classes,
    }.items():
        (folder / name).write_bytes(("\r\n".join(text) + "\r\n").encode(encoding))
    return str(folder / "predicate-matrix-continuous.txt")


def write_mat(path: Path, names: list[str], matrix: NDArray[Any], form: str) -> str:
    """`att_splits.mat` of either version, with splits and what MATLAB puts around it."""
    if form == "5":
        cells = np.empty((len(names), 1), dtype=object)
        cells[:, 0] = names
        splits = {"trainval_loc": np.arange(1.0, 5)[:, None], "test_unseen_loc": np.ones((2, 1))}
        scipy.io.savemat(path, {"att": matrix.T, "allclasses_names": cells, **splits})
        return str(path)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["att"] = matrix  # transposed, as MATLAB's columns come first
        text = h5py.special_dtype(ref=h5py.Reference)
        cells_here = file.create_dataset("allclasses_names", (1, len(names)), dtype=text)
        for number, name in enumerate(names):
            letters = np.frombuffer(name.encode("utf-16-le"), "<u2")[:, None]
            cells_here[0, number] = file.create_dataset(f"#refs#/{number}", data=letters).ref
    with open(path, "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\0\2IM")
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_matrices_of_awa_are_read_with_the_names_beside(encoding: str, tmp_path: Path) -> None:
    """Classes are found by their names, also as folders of AwA2 and of others are called."""
    path = write_awa(tmp_path, MATRIX, encoding)
    for names in (NAMES, ["Antelope", "grizzly_bear", "killer whale"], ["antelope", "GrizzlyBear"]):
        found = class_vectors(path, names)
        assert found.form == "table"
        np.testing.assert_array_equal(found.vectors, MATRIX[: len(names)].astype(np.float32))


def test_a_matrix_under_another_name_is_recognised(tmp_path: Path) -> None:
    """Numbers alone beside `classes.txt` are a matrix, and words beside it are not."""
    path = write_awa(tmp_path, MATRIX)
    other = tmp_path / "mine.txt"
    other.write_bytes((tmp_path / "predicate-matrix-continuous.txt").read_bytes())
    np.testing.assert_array_equal(
        class_vectors(other, NAMES).vectors, class_vectors(path, NAMES).vectors
    )
    (tmp_path / "glove.txt").write_text("antelope 1 2 3\nbear 4 5 6\n")
    assert class_vectors(tmp_path / "glove.txt", ["bear"]).vectors.tolist() == [[4, 5, 6]]


def test_missing_ratings_are_the_mean_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """-1 of the continuous matrix becomes the attribute's mean over the classes that have it."""
    matrix = MATRIX.copy()
    matrix[0, 1] = matrix[2, 2] = -1
    with caplog.at_level(logging.INFO, "vggfeat"):
        found = class_vectors(write_awa(tmp_path, matrix), NAMES)
    expected = MATRIX.copy()
    expected[0, 1], expected[2, 2] = (1 + 8) / 2, (20 + 0) / 2
    np.testing.assert_array_equal(found.vectors, expected.astype(np.float32))
    assert "2 missing values (-1) replaced by the mean of the other classes" in caplog.text
    matrix[:, 3] = -1
    with pytest.raises(UsageError, match=r"attribute 4 is missing \(-1\) for every class"):
        class_vectors(write_awa(tmp_path, matrix), NAMES)


def test_codes_of_minus_one_and_one_are_values(tmp_path: Path) -> None:
    """Where 1 is the largest value, -1 is a code and no missing rating."""
    matrix = np.array([[1, -1, 1], [-1, 1, 1], [-1, -1, 1.0]])
    np.testing.assert_array_equal(class_vectors(write_awa(tmp_path, matrix), NAMES).vectors, matrix)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """Other counts, a missing list of classes, and lines of other lengths are told."""
    path = write_awa(tmp_path, MATRIX[:2])
    with pytest.raises(
        UsageError, match=r"are 2 x 4 numbers; classes.txt and .* name 3 classes and 4"
    ):
        class_vectors(path, NAMES)
    path = write_awa(tmp_path, MATRIX)
    with open(path, "a") as file:
        file.write("1 2\n")
    with pytest.raises(UsageError, match=r"line 4: 2 numbers, the first line has 4"):
        class_vectors(path, NAMES)
    path = write_awa(tmp_path, MATRIX)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"classes '.*classes.txt' cannot be read"):
        class_vectors(path, NAMES)


@pytest.mark.parametrize("form", ["5", "7.3"])
def test_splits_in_matlab_files_give_their_attributes(form: str, tmp_path: Path) -> None:
    """Both versions give the columns of `att` by name, numbered and joined names included."""
    names = ["001.Black_footed_Albatross", "grizzly+bear", "größe"]
    path = write_mat(tmp_path / "att_splits.mat", names, MATRIX, form)
    found = class_vectors(path, ["001.Black_footed_Albatross", "grizzly_bear", "größe"])
    np.testing.assert_array_equal(found.vectors, MATRIX.astype(np.float32))


def test_other_matlab_files_are_refused(tmp_path: Path) -> None:
    """Features without attributes, counts that differ, and what is no MATLAB file are told."""
    path = tmp_path / "res101.mat"
    scipy.io.savemat(path, {"features": MATRIX, "labels": np.ones((3, 1))})
    with pytest.raises(UsageError, match=r"lack allclasses_names and att; expected att_splits.mat"):
        class_vectors(path, NAMES)
    with pytest.raises(UsageError, match=r"att is \(4, 3\) and there are 2 names"):
        class_vectors(write_mat(path, NAMES[:2], MATRIX, "5"), NAMES)
    with pytest.raises(UsageError, match="some are not finite in float32"):
        class_vectors(write_mat(path, NAMES, MATRIX * 1e300, "5"), NAMES)
    path.write_bytes(b"no MATLAB file" * 100)
    with pytest.raises(UsageError, match="are no MATLAB file"):
        class_vectors(path, NAMES)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        class_vectors(tmp_path / "absent.mat", NAMES)


def test_gensims_own_files_are_refused_with_what_converts_them(tmp_path: Path) -> None:
    """A pickle is never loaded; its error has the line that makes a file that is read."""
    models = pytest.importorskip("gensim.models")
    vectors = models.KeyedVectors(3)
    vectors.add_vectors(["bear", "whale"], np.eye(3, dtype=np.float32)[:2])
    path = str(tmp_path / "words.kv")
    vectors.save(path)
    with pytest.raises(UsageError, match=r"are a pickle.*save_word2vec_format") as told:
        class_vectors(path, ["bear"])
    assert f"KeyedVectors.load({path!r})" in str(told.value)
    models.KeyedVectors.load(path).save_word2vec_format(str(tmp_path / "w.bin"), binary=True)
    assert class_vectors(tmp_path / "w.bin", ["whale"]).vectors.tolist() == [[0, 1, 0]]


def test_a_table_may_have_a_mark(tmp_path: Path) -> None:
    """Excel's CSV begins with a byte order mark, which is no part of the first class."""
    (tmp_path / "a.csv").write_bytes(codecs.BOM_UTF8 + b"bear,1,2\nwhale,3,-1\n")
    assert class_vectors(tmp_path / "a.csv", ["bear", "whale"]).vectors.tolist() == [
        [1, 2],
        [3, -1],
    ]
