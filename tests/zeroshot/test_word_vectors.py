"""Class vectors: gensim's own files read the same, class names found as people write them."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggfeat.core.class_names import fold
from vggfeat.errors import InputError, UsageError
from vggfeat.zeroshot.class_vectors import class_vectors
from vggfeat.zeroshot.name_matching import all_words, spellings
from vggfeat.zeroshot.word_vectors import read_words

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Values = NDArray[np.float32]

gensim = pytest.importorskip("gensim.models")

WORDS = (
    "the",
    "sea_lion",
    "Sea",
    "sea",
    "lion",
    "Lion",
    "Black_Bear",
    "black",
    "bear",
    "café",
    "42",
)


def vectors_of(count: int, dims: int = 5) -> Values:
    noise = np.random.default_rng(0)
    return noise.standard_normal((count, dims)).astype(np.float32)


def saved(
    path: Path, form: str, words: tuple[str, ...] = WORDS, dims: int = 5
) -> dict[str, Values]:
    """What gensim saves, or a GloVe file of the same: word → vector as gensim reads it again."""
    keyed = gensim.KeyedVectors(dims)
    keyed.add_vectors(list(words), vectors_of(len(words), dims))
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    keyed.save_word2vec_format(str(plain), binary=form == "binary")
    back = gensim.KeyedVectors.load_word2vec_format(str(plain), binary=form == "binary")
    if form == "glove":  # is word2vec text without its first line
        plain.write_bytes(plain.read_bytes().split(b"\n", 1)[1])
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return {word: back[word] for word in words}


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz", "v"])
@pytest.mark.parametrize("form", ["binary", "text", "glove"])
def test_files_are_read_as_gensim_reads_them(tmp_path: Path, form: str, name: str) -> None:
    """word2vec text and binary and GloVe text, gzipped or not, give gensim's own numbers."""
    theirs = saved(tmp_path / name, form)
    ours = read_words(str(tmp_path / name), all_words(WORDS))
    assert form in ours.form.lower()
    assert list(ours.vectors) == list(WORDS)
    for word, vector in theirs.items():
        np.testing.assert_array_equal(ours.vectors[word], vector)


@settings(max_examples=30, deadline=None)
@given(
    words=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=6),
        min_size=1,
        max_size=20,
        unique=True,
    ),
    dims=st.integers(1, 40),
)
def test_binary_files_of_any_words_are_read(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], dims: int
) -> None:
    """Whatever bytes the numbers are, and whatever the words, binary files are read whole."""
    path = tmp_path_factory.mktemp("words") / "v.bin"
    theirs = saved(path, "binary", tuple(words), dims)
    ours = read_words(str(path), {fold(word) for word in words})
    assert ours.form == "word2vec binary"
    assert set(ours.vectors) == set(words)
    for word, vector in theirs.items():
        np.testing.assert_array_equal(ours.vectors[word], vector)


@pytest.mark.parametrize(("form", "count", "most"), [("binary", 24_000, 4e6), ("text", 4_000, 4e5)])
def test_only_the_words_needed_are_kept(tmp_path: Path, form: str, count: int, most: float) -> None:
    """A file of many words takes no more memory than a buffer and the words asked for."""
    words = tuple(f"w{number}" for number in range(count))
    saved(tmp_path / "v", form, words, 60)
    assert (tmp_path / "v").stat().st_size > 1.4 * most
    wanted = {"w7", words[-1]}
    tracemalloc.start()
    found = read_words(str(tmp_path / "v"), wanted)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(found.vectors) == wanted
    assert peak < most


@pytest.mark.parametrize(
    ("name", "found_as"),
    [
        ("sea_lion", ("sea_lion",)),
        ("sea lion", ("sea_lion",)),
        ("Sea-Lion", ("sea_lion",)),
        ("SeaLion", ("sea_lion",)),
        ("n02077923-sea-lion", ("sea_lion",)),
        ("n02077923_sea_lion", ("sea_lion",)),
        ("017.Sea_Lion", ("sea_lion",)),
        ("seal of nowhere, sea lion", ("sea_lion",)),
        ("black bear", ("Black_Bear",)),
        ("Lion", ("Lion",)),
        ("LION", ("lion",)),
        ("bear lion", ("bear", "lion")),
        ("BearLion", ("bear", "lion")),
        ("lion of the sea", ("lion", "the", "sea")),
        ("Café", ("café",)),
        ("42", ("42",)),
    ],
)
def test_class_names_are_found_as_people_write_them(
    tmp_path: Path, name: str, found_as: tuple[str, ...]
) -> None:
    """Whole names in any joining and case come first, then the mean over their words."""
    theirs = saved(tmp_path / "v.bin", "binary")
    found = class_vectors(tmp_path / "v.bin", [name])
    assert found.found_as == (found_as,)
    right = np.mean([theirs[word] for word in found_as], axis=0)
    np.testing.assert_allclose(found.vectors[0], right, rtol=1e-6)


def test_a_joined_word_is_tried_before_its_parts(tmp_path: Path) -> None:
    """`sea lion` is the word `sealion` where there is one, not the mean of sea and lion."""
    (tmp_path / "g.txt").write_text("sea 1 0\nlion 0 1\nsealion 3 3\n")
    assert class_vectors(tmp_path / "g.txt", ["sea lion"]).found_as == (("sealion",),)


def test_words_with_spaces_are_read(tmp_path: Path) -> None:
    """A few words of GloVe files have spaces in them."""
    (tmp_path / "g.txt").write_text("dog 1 2\nnew york 3 4\nnew 5 6\n. . . 7 8\n")
    found = class_vectors(tmp_path / "g.txt", ["new_york", "dog"])
    assert found.vectors.tolist() == [[3, 4], [1, 2]]


def test_the_first_of_two_counts(tmp_path: Path) -> None:
    """Of a word that stands there twice the first is taken, as by gensim."""
    (tmp_path / "g.txt").write_text("dog 1 2\ndog 3 4\n")
    assert class_vectors(tmp_path / "g.txt", ["dog"]).vectors.tolist() == [[1, 2]]


def test_missing_classes_are_named_at_once_with_what_is_near(tmp_path: Path) -> None:
    """All classes without a vector are listed, each with words like it."""
    saved(tmp_path / "v.txt", "text")
    with pytest.raises(UsageError) as raised:
        class_vectors(tmp_path / "v.txt", ["sea", "lyon", "quokka", "black baer"])
    text = str(raised.value)
    assert "none for 3 of 4 classes" in text
    assert "'lyon' (near: Lion)" in text
    assert "'quokka'" in text
    assert "'black baer' (near: " in text
    assert "bear" in text


def test_rows_without_a_name_of_their_own_are_refused(tmp_path: Path) -> None:
    """An .npy whose names are too few, or which is no matrix, is one line that says so."""
    (tmp_path / "e.txt").write_text("yak\n")
    for array, found in ((np.eye(2), "float64 of shape (2, 2), and 1 line"), (np.ones(1), "(1,)")):
        np.save(tmp_path / "e.npy", array)
        with pytest.raises(UsageError) as raised:
            class_vectors(tmp_path / "e.npy", ["yak"])
        assert found in str(raised.value)


def test_tables_are_one(tmp_path: Path) -> None:
    """CSV with a head, TSV without, both kinds of npz, and npy give the same vectors."""
    names, vectors = ["grey_wolf", "yak"], np.array([[1, 0.5], [0, -2]], np.float32)
    (tmp_path / "a.csv").write_text('class,furry,big\n"grey_wolf",1,0.5\nyak,0,-2\n')
    (tmp_path / "b.tsv").write_text("grey_wolf\t1\t0.5\n\nyak\t0\t-2\n")
    np.savez(tmp_path / "c.npz", names=np.array(names), vectors=vectors)
    np.savez(tmp_path / "d.npz", **dict(zip(names, vectors, strict=True)))
    np.save(tmp_path / "e.npy", vectors)
    (tmp_path / "e.txt").write_text("grey_wolf\nyak\n")
    for file in ("a.csv", "b.tsv", "c.npz", "d.npz", "e.npy"):
        found = class_vectors(tmp_path / file, ["yak", "GreyWolf"])
        assert found.found_as == (("yak",), ("grey_wolf",))
        np.testing.assert_array_equal(found.vectors, vectors[::-1])


def test_tables_are_never_averaged(tmp_path: Path) -> None:
    """The attributes of a sea lion are not the mean of those of the sea and of a lion."""
    (tmp_path / "a.csv").write_text("sea,1,0\nlion,0,1\n")
    with pytest.raises(UsageError, match=r"1 of 1 class: 'sea lion' \(near: "):
        class_vectors(tmp_path / "a.csv", ["sea lion"])


def npy_bytes(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"yak,1,x\nwolf,1\nyak,1,2\nyak,3,4\n", "line 1: 'x' is no number; line 2: 1"),
        ("a.csv", b"", "it has no classes"),
        ("a.csv", b"yak,1,nan\n", "'nan' is no number"),
        ("a.csv", b"yak,0,0\n", "all zero or not finite for 'yak'"),
        ("a.npz", b"PK no", "no .npz of plain arrays"),
        ("a.npy", b"\x93NUMPY no", "no .npy of plain arrays"),
        ("a.npy", npy_bytes(np.ones((2, 3))), "have no names; expected"),
        ("a.txt", b"", "begin with ''"),
        ("a.txt", b"<html>\n", "begin with '<html>'"),
        ("a.txt", b"dog 1 2\nyak 1\n", "line 2, 'yak': expected a word and 2 numbers"),
        ("a.txt", b"2 2\ndog 1 2\nyak 1 x\n", "line 3, 'yak'"),
        ("a.bin", b"2 2\nyak \0\0\0\0\0\0\x80?dog \0", "cut off in their last word"),
        ("a.bin", b"\xba\x16\x4f\x2f\0\0", "fastText model"),
        ("a.txt.gz", b"no gzip", "damaged, or not gzipped"),
        ("none.txt", None, "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    """Files that are cut off, of another kind or wrong say where, and what was expected."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((UsageError, InputError)) as raised:
        class_vectors(tmp_path / name, ["yak"])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=20))
def test_every_name_has_spellings(name: str) -> None:
    """Any name at all is looked for as it is, first of all, unless it is empty."""
    first = spellings(name)[0]
    assert first.whole[:1] == ((name,) if name else ())
